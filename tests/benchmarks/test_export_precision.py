"""The comparison of stored precisions, as a person calls it."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import config
from PIL import Image
from small_deep_mac import build

from maskwright.models.hub import save_pretrained

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "export_precision.py"


def run(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["export_precision", *map(str, arguments)])
    monkeypatch.syspath_prepend(SCRIPT.parent)
    config.update("jaxtyping_disable", True)  # to compare the sizes of shapes would make constants of them
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    finally:
        config.update("jaxtyping_disable", False)


def write_set(folder: Path, **annotation: object) -> tuple[object, ...]:
    """Arguments for a set with one picture, a mask and a crowd."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    box = {"image_id": 1, "category_id": 1, "bbox": [5, 5, 30, 40], "area": 1200}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 80, "height": 60}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "iscrowd": 0, **box, **annotation}, {"id": 2, "iscrowd": 1, **box}],
    }
    (folder / "file.json").write_text(json.dumps(content))
    return "--images", folder, "--annotations", folder / "file.json"


def test_each_precision_beside_float32(tmp_path, monkeypatch, capsys):
    save_pretrained(build(categories=[{"id": 1, "name": "cat"}]), tmp_path / "model")
    files = write_set(tmp_path, segmentation=[[5, 5, 35, 5, 35, 45, 5, 45]])
    run(monkeypatch, tmp_path / "model", *files, "--json", tmp_path / "out.json")
    numbers = json.loads((tmp_path / "out.json").read_text())
    assert list(numbers) == ["float32", "float16", "int8"]
    assert {each["masks"] for each in numbers.values()} == {1}
    assert (numbers["float32"]["iou_with_float32"], numbers["float32"]["difference"]) == (1, 0)
    assert 0 < numbers["float16"]["difference"] < numbers["int8"]["difference"] < 0.5
    assert "1 masks" in capsys.readouterr().out


def test_no_mask_to_compare_with_is_told_before_anything_is_exported(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "deep-mac-tiny", *write_set(tmp_path))
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"export_precision: error: {tmp_path / 'file.json'}: no annotation has a mask to compare with"
