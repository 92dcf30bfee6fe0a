"""Round trips with supervision: it writes, we read; we write, it reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import supervision
from pycocotools.coco import COCO
from tool_scene import CLASSES, Scene, answer, masks_of_dataset

import maskwright
from maskwright.cli import main


def write_dataset(scene: Scene, detections: dict[str, supervision.Detections], file: Path) -> None:
    """Write a COCO file with supervision; `detections` are those of each picture."""
    by_path = {str(scene.images / name): found for name, found in detections.items()}
    supervision.DetectionDataset(list(CLASSES), list(by_path), by_path).as_coco(annotations_path=str(file))


def detections_of(scene: Scene, name: str, **data: int) -> supervision.Detections:
    masks = scene.masks[name]
    return supervision.Detections(
        xyxy=scene.boxes(name).astype(float),
        mask=masks,
        class_id=np.array(scene.labels[name]),
        data={key: np.full(len(masks), value) for key, value in data.items()},
    )


class TestRead:
    """A file that supervision wrote."""

    @pytest.fixture
    def written(self, scene: Scene, tmp_path: Path) -> Path:
        file = tmp_path / "supervision.json"
        write_dataset(scene, {name: detections_of(scene, name, iscrowd=0) for name in scene.masks}, file)
        return file

    def test_check(self, scene: Scene, written: Path, capsys: pytest.CaptureFixture[str]):
        assert main(["data", "check", str(written), "--images", str(scene.images)]) == 0
        told = capsys.readouterr().out
        assert "annotations: 5 (masks: 5, boxes without masks: 0, crowds among them: 0), dropped: 0" in told
        assert "usable for training: yes" in told

    def test_masks(self, scene: Scene, written: Path):
        coco, found = COCO(written), masks_of_dataset(scene.images, written)
        for image in coco.dataset["images"]:
            expected = [coco.annToMask(entry) for entry in coco.imgToAnns[image["id"]]]
            np.testing.assert_array_equal(found[image["file_name"]], expected)

    def test_every_box_is_answered(self, scene: Scene, written: Path, tmp_path: Path):
        found = [(entry["image_id"], entry["category_id"]) for entry in answer(scene, written, tmp_path / "out")]
        assert found == [(1, 1), (1, 1), (1, 2), (1, 2), (2, 2)]

    def test_boxes_alone_are_answered(self, scene: Scene, tmp_path: Path):
        detections = {name: detections_of(scene, name) for name in scene.masks}
        for found in detections.values():
            found.mask = None
        write_dataset(scene, detections, tmp_path / "boxes.json")
        answers = answer(scene, tmp_path / "boxes.json", tmp_path / "out")
        assert [entry["image_id"] for entry in answers] == [1, 1, 1, 1, 2]

    def test_masks_of_several_parts_are_crowds(self, scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        """Unless supervision is told not to; their masks are kept, their boxes are left out, and that is said."""
        file = tmp_path / "supervision.json"
        write_dataset(scene, {name: detections_of(scene, name) for name in scene.masks}, file)
        assert [entry["iscrowd"] for entry in json.loads(file.read_text())["annotations"]] == [0, 1, 1, 0, 0]
        np.testing.assert_array_equal(masks_of_dataset(scene.images, file)["a.png"][1:3], scene.masks["a.png"][1:3])
        assert len(answer(scene, file, tmp_path / "out")) == scene.count - 2
        assert "left out: 2 x crowd, which is no single instance" in capsys.readouterr().err


def test_it_reads_a_completed_file(scene: Scene, completed: Path):
    dataset = supervision.DetectionDataset.from_coco(str(scene.images), str(completed))
    assert dataset.classes == list(CLASSES)
    assert [Path(path).name for path in dataset.image_paths] == list(scene.masks)
    for path, _, detections in dataset:
        name = Path(path).name
        np.testing.assert_array_equal(detections.mask, scene.predicted(name))
        np.testing.assert_array_equal(detections.xyxy, scene.boxes(name))
        assert detections.class_id.tolist() == scene.labels[name]


def test_a_prediction_goes_through_it_and_back(scene: Scene, tmp_path: Path):
    predictor = maskwright.load("deep-mac-tiny")
    detections = {}
    for name in scene.masks:
        found = predictor.predict(scene.images / name, scene.boxes(name)).to_supervision()
        np.testing.assert_array_equal(found.mask, scene.predicted(name))
        found.class_id, found.data["iscrowd"] = np.array(scene.labels[name]), np.ones(len(found), dtype=int)
        detections[name] = found
    write_dataset(scene, detections, tmp_path / "supervision.json")
    for name, masks in masks_of_dataset(scene.images, tmp_path / "supervision.json").items():
        np.testing.assert_array_equal(masks, scene.predicted(name))
