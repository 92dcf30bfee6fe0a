"""Panoptic quality of one file against another; panopticapi's own numbers are in tests/parity."""

import json
import math
from pathlib import Path

import pytest
from panoptic_folder import PanopticFolder, segment, stripes

from maskwright.apps.compare_panoptic import compare_panoptic_files
from maskwright.cli import main
from maskwright.errors import UserError

SKY_IN_TWO = [segment(3, 3), segment(4, 200), segment(5, 200)]


@pytest.fixture
def folder(tmp_path: Path) -> PanopticFolder:
    scenes = [
        (stripes(1, 2), [segment(1, 3), segment(2, 200)]),
        (stripes(3, 3, 4, 4), [segment(3, 3), segment(4, 200)]),
    ]
    return PanopticFolder(tmp_path).write(*scenes)


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
            (["--device", "auto", "--batch-size", "4"], "--device, --batch-size cannot be given here, since"),
            (["--boxes", "ground-truth"], "--boxes cannot be given here, since"),
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
