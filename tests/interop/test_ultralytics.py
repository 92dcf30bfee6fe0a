"""Ultralytics reads the segmentation labels that `complete data.yaml` writes.

It is no dependency, not of the tests either: MASKWRIGHT_ULTRALYTICS_PYTHON names the Python of an environment that has
it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

from maskwright.cli import main

PYTHON = os.environ.get("MASKWRIGHT_ULTRALYTICS_PYTHON")
pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(PYTHON is None, reason="MASKWRIGHT_ULTRALYTICS_PYTHON names no Python with ultralytics"),
]

JOB = Path(__file__).with_name("ultralytics_job.py")
SIZES = {"a": (120, 160), "b": (90, 200), "none": (40, 40)}
BOXES = {"a": ["1 0.5 0.5 0.4 0.6", "0 0.2 0.2 0.3 0.3", "1 0.9 0.9 0.2 0.2"], "b": ["0 0.25 0.5 0.2 0.4"]}


@pytest.fixture
def completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ellipse_model) -> Path:
    """A data set of boxes whose completed labels were copied over it; the completed COCO file lies beside it."""
    monkeypatch.setattr("maskwright.apps.weights.from_pretrained", lambda _: ellipse_model)
    monkeypatch.chdir(tmp_path)
    images, labels = tmp_path / "set" / "images" / "train", tmp_path / "set" / "labels" / "train"
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for name, (height, width) in SIZES.items():
        pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{name}.png")
    for name, lines in BOXES.items():
        (labels / f"{name}.txt").write_text("\n".join(lines) + "\n")
    Path("set/data.yaml").write_text("train: images/train\nval: images/train\nnames: [cat, dog]\n")
    assert main(["complete", "set/data.yaml", "--out", "done.json"]) == 0
    shutil.copytree("done_labels/labels", "set/labels", dirs_exist_ok=True)
    return images


def test_objects_classes_and_pixels_are_those_of_the_completed_file(completed: Path):
    environment = {**os.environ, "YOLO_CONFIG_DIR": str(Path.cwd()), "YOLO_OFFLINE": "true"}
    command = [str(PYTHON), str(JOB), str(completed), "cat,dog", "found.npz"]
    subprocess.run(command, check=True, env=environment, timeout=600)
    found = np.load("found.npz")
    content = json.loads(Path("done.json").read_text())
    for image in content["images"]:
        name = Path(image["file_name"]).stem
        entries = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
        assert tuple(found[f"{name}/size"]) == SIZES[name] == (image["height"], image["width"])
        assert found[f"{name}/classes"].tolist() == [entry["category_id"] for entry in entries]
        assert len(entries) == len(BOXES.get(name, ()))
        for row, entry in enumerate(entries):
            outline = found[f"{name}/{row}"] * [image["width"], image["height"]]
            code = coco_mask.segmToRle([outline.ravel().tolist()], image["width"], image["height"])
            assert coco_mask.area(code) == entry["area"] > 100
            assert (coco_mask.decode(code) == coco_mask.decode(entry["segmentation"])).all()
