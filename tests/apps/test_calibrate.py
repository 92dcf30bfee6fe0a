"""`maskwright calibrate`: the command as a person calls it, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_max_deeplab
import torch
from PIL import Image

from maskwright.apps.calibrate import CalibrateOptions, calibrate
from maskwright.apps.evaluate import evaluate
from maskwright.cli import main
from maskwright.models.deep_mac import DeepMAC
from maskwright.models.hub import bundled_names, from_pretrained, save_pretrained
from maskwright.predictor import load


def write_data(folder: Path, images: int) -> None:
    """13 boxes in each image, half of them filled, the others to a third; one without a mask and one crowd more."""
    generator = np.random.default_rng(0)
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 5, "name": "cat"}]}
    for image in range(1, images + 1):
        Image.fromarray(generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{image}.png")
        content["images"].append({"id": image, "file_name": f"{image}.png", "width": 64, "height": 64})
        for row in range(15):
            x, y = (int(value) for value in generator.integers(0, 30, 2))
            w, h = (int(value) for value in generator.integers(9, 30, 2))
            right = x + (w if row % 2 else w // 3)
            entry = {"id": 100 * image + row, "image_id": image, "category_id": 5, "bbox": [x, y, w, h], "area": w * h}
            polygon = [[x, y, right, y, right, y + h, x, y + h]]
            entry |= {"iscrowd": int(row == 13), "segmentation": [] if row == 14 else polygon}
            content["annotations"].append(entry)
    (folder / "instances.json").write_text(json.dumps(content))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_data(tmp_path, 4)
    return tmp_path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = DeepMAC(
        image_size=64,
        backbone="resnet18_fpn",
        mask_head="fully_connected",
        mask_size=8,
        width=0.1,
        mask_classes=["cat"],
    )
    save_pretrained(model, tmp_path / "weights", card="mine")
    return tmp_path / "weights"


def command(weights: object, data: Path, *options: str) -> int:
    files = ["--images", str(data), "--annotations", str(data / "instances.json"), "--device", "cpu"]
    return main(["calibrate", str(weights), *files, *options])


def test_a_copy_is_calibrated(weights: Path, data: Path, capsys):
    before = (weights / "config.json").read_bytes()
    assert command(weights, data, "--out", str(data / "calibrated")) == 0
    told = capsys.readouterr().out
    assert "fitted on 52 masks of 4 images" in told
    assert "calibration error" in told
    assert (weights / "config.json").read_bytes() == before
    assert (data / "calibrated" / "README.md").read_text() == "mine"
    files = {"images": data, "annotations": data / "instances.json"}
    raw, calibrated = (evaluate(load(path, "cpu"), **files).score_quality() for path in (weights, data / "calibrated"))
    assert calibrated.error < raw.error / 5  # measured on what it was fitted on


def test_the_folder_itself_is_calibrated_and_again_from_raw_scores(weights: Path, data: Path):
    first = calibrate(CalibrateOptions(weights, data, data / "instances.json", device="cpu"))
    stored = (weights / "config.json").read_bytes()
    assert from_pretrained(weights).mask_calibration == first.curve
    assert calibrate(CalibrateOptions(weights, data, data / "instances.json", device="cpu")) == first
    assert (weights / "config.json").read_bytes() == stored


def test_what_cannot_be_calibrated_is_refused(weights: Path, data: Path, capsys):
    before = (weights / "config.json").read_bytes()
    save_pretrained(small_max_deeplab.small_model(), data / "panoptic")
    (data / "few").mkdir()
    write_data(data / "few", 3)
    for model, folder, options, message in (
        (bundled_names()[0], data, (), "--out"),
        (data / "panoptic", data, (), "expected weights of a model that takes boxes"),
        (weights, data / "few", (), "at least 50 masks on 2 or more images, but there are 39 on 3"),
        (weights, data, ("--out", str(data)), "exists already"),
        (data / "nowhere", data, (), "neither a weights folder"),
    ):
        assert command(model, folder, *options) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
    assert (weights / "config.json").read_bytes() == before
