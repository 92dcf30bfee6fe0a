"""The comparison of precisions: overlaps by hand, and the command as a person calls it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from panoptic_folder import PanopticFolder, segment, stripes
from PIL import Image
from small_deep_mac import build
from small_max_deeplab import small_model
from torch import nn

from maskwright.models.hub import save_pretrained
from maskwright.structures import InstancePrediction

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "precision.py"
SIZE = (60, 80)


@pytest.fixture(scope="module")
def benchmark():
    specification = importlib.util.spec_from_file_location("precision", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def run(benchmark, monkeypatch, out: Path, *arguments: object) -> dict[str, float]:
    given = ["precision", *map(str, arguments), "--threads", "1", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", given)
    benchmark.main()
    return json.loads(out.read_text())


def found(boxes: list[list[float]], labels: list[int]) -> InstancePrediction:
    certain = torch.ones(len(boxes))
    crops = torch.ones(len(boxes), 4, 4)
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return InstancePrediction(rows, torch.tensor(labels, dtype=torch.int64), certain, certain, crops, SIZE, "pixel")


def test_overlaps_by_hand(benchmark):
    ours, theirs = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    ours[0, :2], theirs[0, :1] = True, True
    ours[1, 0] = True
    assert benchmark.mask_ious(ours, theirs).tolist() == [0.5, 0, 1]

    exact = found([[0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]], [0, 1, 2])
    rounded = found([[20, 20, 30, 30], [0, 0, 10, 5], [0, 0, 10, 10], [20, 20, 25, 30]], [0, 0, 1, 1])
    assert benchmark.detection_ious(exact, rounded).tolist() == [0.5, 0.5, 0]
    assert benchmark.detection_ious(exact, found([], [])).tolist() == [0, 0, 0]
    assert benchmark.detection_ious(found([], []), rounded).tolist() == []


@pytest.mark.parametrize("detector", [None, "centernet"])
def test_masks_and_detections(benchmark, tmp_path, monkeypatch, detector):
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    boxes = [[5, 5, 30, 40], [20, 10, 50, 30], [0, 0, 80, 60]]
    annotations = [
        {"id": row + 1, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": int(row == 2), "area": 1}
        for row, box in enumerate(boxes)
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 80, "height": 60}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": annotations,
    }
    (tmp_path / "file.json").write_text(json.dumps(content))
    model = build(categories=content["categories"], detector=detector)
    if detector:
        nn.init.constant_(model.network.detector[-1].center[-1].bias, 2.0)  # sure of an object in every peak
        nn.init.constant_(model.network.detector[-1].size[-1].bias, 4.0)
    save_pretrained(model, tmp_path / "model")
    files = ("--images", tmp_path / "images", "--annotations", tmp_path / "file.json")
    result = run(benchmark, monkeypatch, tmp_path / "out.json", tmp_path / "model", *files)
    assert result["masks"] == 2
    assert 0.5 < result["mean_mask_iou"] <= 1
    assert (result.get("detections", 0) > 0) == (detector is not None)
    assert 0.5 < result.get("mean_detection_iou", 1) <= 1


def test_maps(benchmark, tmp_path, monkeypatch):
    data = PanopticFolder(tmp_path).write((stripes(4, 1, size=SIZE), [segment(4, 7), segment(1, 200)]))
    model = small_model(class_threshold=0.0, thing_area_limit=0, stuff_area_limit=0)
    save_pretrained(model, tmp_path / "model")
    files = ("--images", data.images, "--annotations", data.annotations)
    result = run(benchmark, monkeypatch, tmp_path / "out.json", tmp_path / "model", *files)
    assert result["pixels"] == 60 * 80
    assert 0 <= result["pixels_of_another_class"] < 0.5


def test_bad_input_is_one_sentence(benchmark, tmp_path, monkeypatch, capsys):
    def said(*arguments: object) -> str:
        with pytest.raises(SystemExit, match="2"):
            run(benchmark, monkeypatch, tmp_path / "out.json", *arguments)
        return capsys.readouterr().err.splitlines()[-1]

    files = ("--images", tmp_path, "--annotations", "none.json")
    assert said("deep-mac-tiny", *files).startswith("precision: error: cannot read the annotation file none.json")
    data = PanopticFolder(tmp_path).write((stripes(4, 1, size=SIZE), [segment(4, 7), segment(1, 200)]))
    files = ("--images", data.images, "--annotations", data.annotations)
    assert "is a COCO panoptic file, which does not go with deep-mac-tiny" in said("deep-mac-tiny", *files)
    empty = tmp_path / "empty.json"
    image = {"id": 1, "file_name": next(data.images.iterdir()).name, "width": SIZE[1], "height": SIZE[0]}
    empty.write_text(json.dumps({"images": [image], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}))
    assert "no box to give" in said("deep-mac-tiny", "--images", data.images, "--annotations", empty)
    assert not (tmp_path / "out.json").exists()
