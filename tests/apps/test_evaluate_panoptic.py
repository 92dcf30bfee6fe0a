"""Panoptic quality of models and of files; panopticapi's own numbers are in tests/parity."""

import json
import math
import pickle
from pathlib import Path

import pytest
from painter import Painter
from panoptic_folder import CATEGORIES, PanopticFolder, segment, stripes

from maskwright.apps import measure_panoptic
from maskwright.apps.evaluate import evaluate_and_report
from maskwright.apps.evaluate_panoptic import compare_panoptic_files, evaluate_panoptic
from maskwright.cli import main
from maskwright.errors import UserError
from maskwright.predictor import Predictor
from maskwright.structures import Category


@pytest.fixture
def folder(tmp_path: Path) -> PanopticFolder:
    scenes = [
        (stripes(1, 2), [segment(1, 3), segment(2, 200)]),
        (stripes(3, 3, 4, 4), [segment(3, 3), segment(4, 200)]),
    ]
    return PanopticFolder(tmp_path).write(*scenes)


SKY_IN_TWO = [segment(3, 3), segment(4, 200), segment(5, 200)]
MODEL = [Category(id=1, name="dog"), Category(id=2, name="cat"), Category(id=3, name="sky", isthing=False)]
IMAGINATIVE = [Category(id=1, name="dog"), Category(id=3, name="sky", isthing=False), Category(id=2, name="cat")]


def test_a_model_with_its_own_label_space(folder: PanopticFolder, tmp_path: Path):
    content = json.loads(folder.annotations.read_text())
    content["categories"] = [CATEGORIES[2], CATEGORIES[1]]
    folder.annotations.write_text(json.dumps(content))
    out = tmp_path / "found.json"
    summary = evaluate_panoptic(
        Predictor(Painter(MODEL)), folder.images, folder.annotations, save_results=out, batch_size=2
    )
    assert (summary["pq"], summary["pq_things"], summary["pq_stuff"]) == (1.0, 1.0, 1.0)
    assert (summary["images"], summary["classes"]) == (2, 2)
    # What is written has the file's categories, and compares with it as the model did.
    assert [entry["id"] for entry in json.loads(out.read_text())["categories"]] == [3, 200]
    assert compare_panoptic_files(folder.annotations, out).compute()["pq"] == 1.0


def test_the_file_says_which_classes_are_things(folder: PanopticFolder):
    """The model takes sky, which says nothing, for a thing; by the file it is stuff."""
    content = json.loads(folder.annotations.read_text())
    content["categories"] = [CATEGORIES[2], CATEGORIES[1]]
    folder.annotations.write_text(json.dumps(content))
    silent = [Category(id=1, name="dog"), Category(id=3, name="sky")]
    summary = evaluate_panoptic(Predictor(Painter(silent)), folder.images, folder.annotations)
    assert (summary["classes_things"], summary["classes_stuff"], summary["pq_stuff"]) == (1, 1, 1.0)


def test_a_class_that_the_file_does_not_have_is_void(folder: PanopticFolder, tmp_path: Path):
    content = json.loads(folder.annotations.read_text())
    content["categories"] = [CATEGORIES[2], CATEGORIES[1]]
    folder.annotations.write_text(json.dumps(content))
    out = tmp_path / "found.json"
    summary = evaluate_panoptic(Predictor(Painter(IMAGINATIVE)), folder.images, folder.annotations, save_results=out)
    rows = {row["name"]: (row["pq"], row["false_positives"], row["false_negatives"]) for row in summary["per_class"]}
    assert rows == {"dog": (1.0, 0, 0), "sky": (0.0, 0, 2)}
    assert compare_panoptic_files(folder.annotations, out).compute()["pq"] == summary["pq"]


def test_a_model_for_instances_is_refused(folder: PanopticFolder):
    model = Painter(MODEL)
    model.task = "instance"
    with pytest.raises(UserError, match="but the model finds single instances only"):
        evaluate_panoptic(Predictor(model), folder.images, folder.annotations)
    with pytest.raises(UserError, match="must be one of official, in_house, but got 'best'"):
        evaluate_panoptic.__wrapped__(Predictor(model), folder.images, folder.annotations, variant="best")


def test_two_processes_measure_every_image_once(folder: PanopticFolder, tmp_path: Path, monkeypatch):
    """What comes back from the processes is pickled; all that is said and saved is that of one process."""
    scenes = [(stripes(number, number + 1), [segment(number, 3), segment(number + 1, 200)]) for number in (1, 5, 9)]
    (tmp_path / "three").mkdir()
    three = PanopticFolder(tmp_path / "three").write(*scenes)
    monkeypatch.setattr(
        measure_panoptic,
        "in_processes",
        lambda work, shares: [pickle.loads(pickle.dumps(work(share))) for share in shares],
    )
    found = []
    for processes in (1, 2):
        out = tmp_path / f"found{processes}.json"
        model = Predictor(Painter(MODEL))
        summary = evaluate_panoptic(model, three.images, three.annotations, save_results=out, processes=processes)
        maps = [(out.with_suffix("") / f"{number}.png").read_bytes() for number in (1, 2, 3)]
        found.append((summary, json.loads(out.read_text()), maps))
    assert found[0] == found[1]
    assert found[0][0]["images"] == 3


def test_the_command_takes_either_kind_of_file(folder: PanopticFolder, tmp_path: Path, capsys, ellipse_model):
    painter = Predictor(Painter(MODEL))
    content = json.loads(folder.annotations.read_text())
    content["categories"] = [CATEGORIES[2], CATEGORIES[1]]
    folder.annotations.write_text(json.dumps(content))
    moved = folder.maps.rename(tmp_path / "elsewhere")
    numbers = tmp_path / "numbers.json"
    options = {"segmentations": moved, "panoptic_quality": "in_house"}
    evaluate_and_report(painter, folder.images, folder.annotations, json=numbers, **options)
    assert "dog" in capsys.readouterr().out
    assert json.loads(numbers.read_text())["variant"] == "in_house"

    instances = tmp_path / "instances.json"
    entry = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 4, 4], "segmentation": [[0, 0, 4, 0, 4, 4]]}
    instances.write_text(json.dumps({**content, "annotations": [entry]}))
    for model, file, extra, words in [
        (painter, instances, {}, "instances.json is no COCO panoptic file"),
        (Predictor(ellipse_model), folder.annotations, {"segmentations": moved}, "model finds single instances only"),
        (painter, folder.annotations, {"boxes": "predicted"}, "--boxes cannot be given here, since .* panoptic file"),
        (painter, instances, {"segmentations": moved}, "--segmentations cannot be given here, since .* no COCO panop"),
        (painter, folder.annotations, {"segmentations": moved, "processes": 0}, "processes >= 1"),
        (painter, folder.annotations, {"json": folder.annotations}, "it is an input or another output"),
        (painter, folder.annotations, {"json": numbers, "save_results": numbers}, "it is an input or another output"),
        (
            painter,
            folder.annotations,
            {"predicted_segmentations": moved},
            "since MODEL is no .json file of predictions",
        ),
        (painter, instances, {"predicted_segmentations": moved}, "--predicted-segmentations cannot be given here"),
        (painter, folder.annotations, {"save_results": tmp_path / "elsewhere.json"}, "exists already"),
    ]:
        with pytest.raises(UserError, match=words):
            evaluate_and_report(model, folder.images, file, **extra)


class TestFiles:
    def predicted(self, tmp_path: Path, *scenes: tuple) -> Path:
        (tmp_path / "found").mkdir()
        found = PanopticFolder(tmp_path / "found").write(*scenes)
        content = json.loads(found.annotations.read_text())
        found.annotations.write_text(json.dumps({"annotations": content["annotations"]}))
        return found.annotations

    def test_areas_are_those_of_the_file(self, folder: PanopticFolder, tmp_path: Path):
        """24 common pixels; the file says that the dog has 36: 24 / (24 + 36 - 24)."""
        content = json.loads(folder.annotations.read_text())
        content["annotations"][0]["segments_info"][0]["area"] = 36
        folder.annotations.write_text(json.dumps(content))
        found = self.predicted(
            tmp_path, (stripes(8, 0), [segment(8, 3)]), (stripes(1, 2), [segment(1, 3), segment(2, 200)])
        )
        dog = compare_panoptic_files(folder.annotations, found).per_class()[2]
        assert dog.iou == pytest.approx(24 / 36 + 1)

    def test_areas_of_predictions_are_those_of_their_maps(self, folder: PanopticFolder, tmp_path: Path):
        """A dog on 20 of its 24 pixels and 4 others: 20 / (24 + 24 - 20); by its false area it would not match."""
        ids = stripes(1, 1, 2, 2)
        ids[0] = ids[0, ::-1].copy()
        scene = (ids, [segment(1, 3, area=48), segment(2, 200, area=0)])
        found = self.predicted(tmp_path, scene, (stripes(3, 3, 4, 4), [segment(3, 3, area=1), segment(4, 200)]))
        for row in compare_panoptic_files(folder.annotations, found).per_class():
            expected = 0.0 if row.name in ("person", "grass") else 20 / 28 + 1
            assert row.iou == pytest.approx(expected), row.name

    def test_only_images_that_the_truth_annotates_count(self, folder: PanopticFolder, tmp_path: Path, capsys):
        """Image 1 has lost its annotation; images 3 and "a" are nobody's, and what is wrong with them is nobody's."""
        content = json.loads(folder.annotations.read_text())
        del content["annotations"][0]
        folder.annotations.write_text(json.dumps(content))
        good = (stripes(3, 3, 4, 4), [segment(3, 3), segment(4, 200)])
        found = self.predicted(tmp_path, (stripes(9), []), good, (stripes(1), [segment(1, 55)]))
        entries = json.loads(found.read_text())["annotations"]
        entries.append({**entries[2], "image_id": "a", "file_name": "missing.png"})
        found.write_text(json.dumps({"annotations": entries}))
        numbers = compare_panoptic_files(folder.annotations, found).compute()
        assert (numbers["images"], numbers["pq"]) == (1, 1.0)
        assert "1 image without annotation" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("scene", "words"),
        [
            ((stripes(1), [segment(1, 3), segment(2, 3)]), "image 1: 1 predicted segments have no pixel"),
            ((stripes(1, 2), [segment(1, 3)]), "image 1: the predicted map has ids that are not in its list"),
            ((stripes(1), [segment(1, 55)]), "unknown category, category_id is 55"),
        ],
    )
    def test_broken_predictions(self, folder: PanopticFolder, tmp_path: Path, scene: tuple, words: str):
        found = self.predicted(tmp_path, scene, (stripes(), []))
        with pytest.raises(UserError, match=words):
            compare_panoptic_files(folder.annotations, found)

    def test_an_image_without_a_prediction(self, folder: PanopticFolder, tmp_path: Path):
        found = self.predicted(tmp_path, (stripes(), []))
        with pytest.raises(UserError, match=r"no annotation has the image_id 2 \(1 of the 2 annotated images"):
            compare_panoptic_files(folder.annotations, found)

    def test_images_of_other_names(self, folder: PanopticFolder, tmp_path: Path):
        found = self.predicted(tmp_path, (stripes(), []), (stripes(), []))
        entries = json.loads(found.read_text())["annotations"]
        renamed = [{**entry, "image_id": entry["file_name"]} for entry in entries]
        found.write_text(json.dumps({"annotations": renamed}))
        with pytest.raises(
            UserError, match=r"no annotation has the image_id 1 \(2 of the 2 annotated images .* missing"
        ):
            compare_panoptic_files(folder.annotations, found)

    def test_ids_that_mean_other_classes(self, folder: PanopticFolder, tmp_path: Path):
        found = self.predicted(tmp_path, (stripes(), []), (stripes(), []))
        content = json.loads(found.read_text())
        for name, agrees in (("Dog", True), ("cat", False)):
            found.write_text(json.dumps({**content, "categories": [{"id": 3, "name": name}, {"id": 999, "name": "x"}]}))
            if agrees:
                compare_panoptic_files(folder.annotations, found)
            else:
                with pytest.raises(UserError, match=r"category 3 is 'cat', but in .* it is 'dog'"):
                    compare_panoptic_files(folder.annotations, found)

    def test_the_command(self, folder: PanopticFolder, tmp_path: Path, capsys):
        """As panopticapi's script; two halves of a sky are one segment for the DeepLab2 trainer."""
        found = self.predicted(
            tmp_path, (stripes(1, 2), [segment(1, 3), segment(2, 200)]), (stripes(3, 3, 4, 5), SKY_IN_TWO)
        )
        numbers = tmp_path / "numbers.json"
        arguments = ["evaluate", str(found), "--annotations", str(folder.annotations), "--json", str(numbers)]
        assert main(arguments) == 0
        captured = capsys.readouterr()
        assert "dog" in captured.out
        assert json.loads(numbers.read_text())["pq_stuff"] == pytest.approx(1 / (1 + 1 + 0.5))
        moved = found.with_suffix("").rename(tmp_path / "maps")
        assert main(arguments) == 2
        assert "name the folder of its PNGs as `predicted_segmentations`" in capsys.readouterr().err
        options = ["--predicted-segmentations", str(moved), "--panoptic-quality", "in_house"]
        assert main([*arguments, *options]) == 0
        summary = json.loads(numbers.read_text())
        assert (summary["variant"], summary["pq_stuff"], summary["images"]) == ("in_house", 1.0, 2)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            (["--images", "images"], "--images cannot be given here, since"),
            (["--device", "cpu"], "--device cannot be given here, since"),
            (["--boxes", "predicted"], "--boxes cannot be given here, since"),
            (["--json", "FOUND"], "it is an input or another output"),
            (["--annotations", "FOUND"], "expected the keys 'annotations', 'categories'"),
            (["--annotations", "missing.json"], "cannot read the annotation file missing.json"),
        ],
    )
    def test_the_command_refuses(self, folder: PanopticFolder, tmp_path: Path, capsys, changes: list, words: str):
        found = self.predicted(tmp_path, (stripes(), []), (stripes(), []))
        options = [str(found) if value == "FOUND" else value for value in changes]
        assert main(["evaluate", str(found), "--annotations", str(folder.annotations), *options]) == 2
        assert words in capsys.readouterr().err

    def test_nothing_predicted(self, folder: PanopticFolder, tmp_path: Path):
        found = self.predicted(tmp_path, (stripes(), []), (stripes(), []))
        numbers = compare_panoptic_files(folder.annotations, found).compute()
        assert (numbers["pq"], numbers["classes"]) == (0.0, 2)
        assert not math.isnan(numbers["pq_stuff"])
