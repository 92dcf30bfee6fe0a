"""The benchmark of `maskwright complete`: it completes what it says, and writes what it measured."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "complete.py"


@pytest.fixture(scope="module")
def benchmark():
    specification = importlib.util.spec_from_file_location("complete_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_every_way_has_a_rate_and_pictures_come_several_times(
    benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ellipse_model, capsys
):
    monkeypatch.setattr("maskwright.apps.weights.from_pretrained", lambda _: ellipse_model)
    for number in range(3):
        Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    images = [{"id": number, "file_name": f"{number}.png", "height": 20, "width": 30} for number in range(3)]
    box = {"category_id": 1, "bbox": [2, 3, 9, 9], "segmentation": [[1, 1, 5, 1, 5, 5]], "area": 16}
    boxes = [{**box, "id": row, "image_id": row % 3, "iscrowd": int(row == 0)} for row in range(6)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    options = ["--processes", "1", "--repeats", "1", "--limit", "2", "--copies", "3"]
    files = [str(tmp_path / "instances.json"), "--images", str(tmp_path), "--json", str(tmp_path / "rates.json")]
    monkeypatch.setattr(sys, "argv", ["complete.py", *files, *options])
    benchmark.main()
    rates = json.loads((tmp_path / "rates.json").read_text())
    assert list(rates) == ["network", "reading", "complete"]
    assert ellipse_model.encoded == 10  # 2 pictures: warm-up and network once, the command 3 times each
    assert ellipse_model.told[0] == [-1]  # of picture 0, without its crowd
