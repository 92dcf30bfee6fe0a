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
    # The written file, in the model's categories, holds the same against its own copy of the truth.
    written = json.loads(out.read_text())
    assert [entry["id"] for entry in written["categories"]] == [1, 2, 3]
    assert compare_panoptic_files(out, out).compute()["pq"] == 1.0


def test_the_file_says_which_classes_are_things(folder: PanopticFolder):
    """The model takes sky, which says nothing, for a thing; by the file it is stuff."""
    content = json.loads(folder.annotations.read_text())
    content["categories"] = [CATEGORIES[2], CATEGORIES[1]]
    folder.annotations.write_text(json.dumps(content))
    silent = [Category(id=1, name="dog"), Category(id=3, name="sky")]
    summary = evaluate_panoptic(Predictor(Painter(silent)), folder.images, folder.annotations)
    assert (summary["classes_things"], summary["classes_stuff"], summary["pq_stuff"]) == (1, 1, 1.0)


def test_a_class_that_the_file_does_not_have_is_void(folder: PanopticFolder):
    content = json.loads(folder.annotations.read_text())
    content["categories"] = [CATEGORIES[2], CATEGORIES[1]]
    folder.annotations.write_text(json.dumps(content))
    summary = evaluate_panoptic(Predictor(Painter(IMAGINATIVE)), folder.images, folder.annotations)
    rows = {row["name"]: (row["pq"], row["false_positives"], row["false_negatives"]) for row in summary["per_class"]}
    assert rows == {"dog": (1.0, 0, 0), "sky": (0.0, 0, 2)}


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
        (painter, folder.annotations, {"json": folder.annotations}, "it is the annotation file"),
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
        with pytest.raises(UserError, match="image 2: the image has no usable annotation"):
            compare_panoptic_files(folder.annotations, found)

    def test_nothing_predicted(self, folder: PanopticFolder, tmp_path: Path):
        found = self.predicted(tmp_path, (stripes(), []), (stripes(), []))
        numbers = compare_panoptic_files(folder.annotations, found).compute()
        assert (numbers["pq"], numbers["classes"]) == (0.0, 2)
        assert not math.isnan(numbers["pq_stuff"])
