"""pycocotools and torchvision, which reads with it, take our files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tool_scene import CATEGORY_IDS, Scene, answer
from torchvision import datasets

from maskwright.cli import main


def evaluate(scene: Scene, instances: Path, out: Path) -> Path:
    """The results that `evaluate` saves."""
    arguments = ["--images", str(scene.images), "--annotations", str(instances), "--save-results", str(out)]
    assert main(["evaluate", "deep-mac-tiny", *arguments]) == 0
    return out


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_results(scene: Scene, instances: Path, tmp_path: Path, command: str):
    if command == "predict":
        answer(scene, instances, tmp_path / "out")
        file = tmp_path / "out" / "predictions.json"
    else:
        file = evaluate(scene, instances, tmp_path / "results.json")
    truth = COCO(instances)
    results = truth.loadRes(str(file))
    for image in truth.dataset["images"]:
        entries = results.imgToAnns[image["id"]]
        name = image["file_name"]
        np.testing.assert_array_equal([results.annToMask(entry) for entry in entries], scene.predicted(name))
        assert [entry["category_id"] for entry in entries] == [CATEGORY_IDS[label] for label in scene.labels[name]]
    evaluation = COCOeval(truth, results, "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert 0 < evaluation.stats[1] <= 1  # AP at IoU 0.5


def test_it_reads_a_completed_file(scene: Scene, completed: Path):
    coco = COCO(completed)
    for image in coco.dataset["images"]:
        entries = coco.imgToAnns[image["id"]]
        expected = scene.predicted(image["file_name"])
        np.testing.assert_array_equal([coco.annToMask(entry) for entry in entries], expected)
        assert all(entry["maskwright"]["quality"] == 0.75 for entry in entries)


def test_torchvision_reads_a_completed_file(scene: Scene, completed: Path):
    dataset = datasets.wrap_dataset_for_transforms_v2(
        datasets.CocoDetection(scene.images, completed), target_keys=("boxes", "labels", "masks")
    )
    assert len(dataset) == len(scene.masks)
    for (_, target), name in zip(dataset, scene.masks, strict=True):
        np.testing.assert_array_equal(target["masks"], scene.predicted(name))
        np.testing.assert_array_equal(target["boxes"], scene.boxes(name))
        assert target["labels"].tolist() == [CATEGORY_IDS[label] for label in scene.labels[name]]
