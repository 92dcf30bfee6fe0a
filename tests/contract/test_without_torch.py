"""`maskwright.onnx` in a Python that has numpy, Pillow and onnxruntime, and no torch."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest
import small_deep_mac
from jaxtyping import config

from maskwright.apps.export import ExportArguments, export
from maskwright.models.hub import save_pretrained
from maskwright.predictor import load

ROOT = Path(__file__).parents[2]
INSTALLED = ("numpy", "numpy.libs", "PIL", "pillow.libs", "onnxruntime", "flatbuffers", "google", "packaging")
"""Folders of site-packages: what `pip install numpy pillow onnxruntime` brings."""

SCRIPT = """
import importlib.util, json, sys
import numpy as np
from maskwright.onnx import Predictor

assert [name for name in ("torch", "torchvision", "jaxtyping", "scipy") if importlib.util.find_spec(name)] == []
predictor = Predictor(sys.argv[1])
prediction = predictor.predict(sys.argv[2], json.loads(sys.argv[3]))
found = {"probabilities": prediction.mask_probabilities, "scores": prediction.mask_scores, "masks": prediction.masks}
np.savez(sys.argv[4], **found)
assert "torch" not in sys.modules
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter that sees `INSTALLED` and this package alone."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    numpy = importlib.util.find_spec("numpy")
    assert numpy is not None
    assert numpy.origin is not None
    from_here = Path(numpy.origin).parents[1]
    (site_packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    for name in INSTALLED:
        if (from_here / name).exists():
            (site_packages / name).symlink_to(from_here / name)
    (site_packages / "maskwright").symlink_to(ROOT / "src" / "maskwright")
    return tmp_path / "venv" / "bin" / "python"


def test_it_predicts_the_same(python: Path, tmp_path: Path):
    crops = {"use_image_crop": True, "box_frame": "pixel", "box_margin": 0.1}
    twice = {"second_look_below": 10.0, "second_look_size": 32}  # of four boxes
    model = small_deep_mac.build(mask_head="resnet4", **crops, **twice)
    save_pretrained(model, tmp_path / "deep-mac-tiny")
    config.update("jaxtyping_disable", True)  # to compare the sizes of shapes would make constants of them
    try:
        export(ExportArguments(str(tmp_path / "deep-mac-tiny"), str(tmp_path / "deep-mac-tiny.onnx")))
    finally:
        config.update("jaxtyping_disable", False)
    picture = ROOT / "examples" / "cat.jpg"
    (boxes,) = json.loads((ROOT / "examples" / "cat_boxes.json").read_text()).values()
    arguments = [tmp_path / "deep-mac-tiny.onnx", picture, json.dumps(boxes), tmp_path / "found.npz"]
    ran = subprocess.run([python, "-I", "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found, expected = np.load(tmp_path / "found.npz"), load(tmp_path / "deep-mac-tiny", "cpu").predict(picture, boxes)
    np.testing.assert_allclose(found["probabilities"], expected.mask_probabilities, rtol=0, atol=1e-3)
    np.testing.assert_allclose(found["scores"], expected.mask_scores, rtol=0, atol=1e-3)
    assert (found["masks"] != expected.masks.numpy()).mean() < 1e-4
    check_the_page_s_example(python, tmp_path)


def check_the_page_s_example(python: Path, folder: Path) -> None:
    """The Python of docs/export.md does what it says, in the folder of the exported file."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)
    (folder / "cat.jpg").symlink_to(ROOT / "examples" / "cat.jpg")
    ran = subprocess.run([python, "-I", "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "1 (522, 640)"
