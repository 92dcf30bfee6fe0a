"""The box-to-mask benchmark: baselines against known shapes, and the command as a person calls it."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "box_to_mask.py"

pytest.importorskip("cv2", reason="needs maskwright[benchmark]")


@pytest.fixture(scope="module")
def benchmark():
    specification = importlib.util.spec_from_file_location("box_to_mask", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def photo_of_a_disc() -> np.ndarray:
    """120 x 160: a noisy red disc of radius 30 at (80, 60) on noisy blue."""
    y, x = np.mgrid[:120, :160] + 0.5
    disc = (x - 80) ** 2 + (y - 60) ** 2 < 900
    colours = np.where(disc[..., None], (220, 30, 30), (30, 30, 200))
    return (colours + np.random.default_rng(0).integers(-20, 20, (120, 160, 3))).clip(0, 255).astype(np.uint8)


def test_shapes_are_cut_at_pixel_centres(benchmark):
    image = torch.zeros(3, 12, 12, dtype=torch.uint8)
    boxes = torch.tensor([[2.0, 1.0, 6.0, 9.0], [-4.0, 3.6, 3.4, 20.0]])
    filled = benchmark.filled_boxes(image, boxes)
    assert filled[0, 1:9, 2:6].all()
    assert filled.sum((1, 2)).tolist() == [32, 8 * 3]
    ellipse = benchmark.inscribed_ellipses(torch.zeros(3, 100, 100), torch.tensor([[10.0, 20.0, 90.0, 60.0]]))
    assert int(ellipse.sum()) == pytest.approx(math.pi * 40 * 20, rel=0.01)
    assert not ellipse[0, :20].any()
    assert not ellipse[0, 60:].any()


def test_grabcut_finds_a_disc_and_falls_back_to_the_box(benchmark):
    image = torch.from_numpy(photo_of_a_disc()).permute(2, 0, 1)
    whole, disc = [0.0, 0.0, 160.0, 120.0], [50.0, 30.0, 110.0, 90.0]
    found = benchmark.grabcut(image, torch.tensor([disc, whole]))
    y, x = torch.meshgrid(torch.arange(120) + 0.5, torch.arange(160) + 0.5, indexing="ij")
    truth = (x - 80) ** 2 + (y - 60) ** 2 < 900
    assert int((found[0] & truth).sum()) / int((found[0] | truth).sum()) > 0.95
    assert found[1].all()  # no background in the crop: OpenCV refuses


@pytest.fixture
def data(tmp_path: Path) -> Path:
    Image.fromarray(photo_of_a_disc()).save(tmp_path / "a.png")
    circle = [v for a in np.linspace(0, 2 * math.pi, 60) for v in (80 + 30 * math.cos(a), 60 + 30 * math.sin(a))]
    rectangle = [5, 5, 25, 5, 25, 20, 5, 20]
    common = {"image_id": 1, "category_id": 1, "iscrowd": 0}
    annotations = [
        {"id": 1, "bbox": [50, 30, 60, 60], "area": 2827, "segmentation": [circle], **common},
        {"id": 2, "bbox": [5, 5, 20, 15], "area": 300, "segmentation": [rectangle], **common},
        {"id": 3, "bbox": [0, 0, 9, 9], "area": 81, "segmentation": [rectangle], **common, "iscrowd": 1},
        {"id": 4, "bbox": [0, 0, 9, 9], "area": 81, **common},
    ]
    images = [{"id": 1, "file_name": "a.png", "width": 160, "height": 120}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "disc"}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return tmp_path


def run(benchmark, monkeypatch: pytest.MonkeyPatch, data: Path, *options: str) -> None:
    files = ["--images", str(data), "--annotations", str(data / "instances.json"), "--model", "none"]
    monkeypatch.setattr(sys, "argv", ["box_to_mask.py", *files, "--threads", "1", *options])
    benchmark.main()


def test_baselines_need_no_model_and_share_their_instances(
    benchmark, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run(benchmark, monkeypatch, data, "--json", str(data / "out.json"))
    content = json.loads((data / "out.json").read_text())
    assert content["machine"]["threads"] == 1
    methods = content["methods"]
    assert {name: row["instances"] for name, row in methods.items()} == {"GrabCut": 2, "box": 2, "ellipse": 2}
    assert methods["box"]["mask_iou"] == pytest.approx((math.pi / 4 + 1) / 2, abs=0.02)
    assert methods["ellipse"]["mask_iou"] == pytest.approx((1 + math.pi / 4) / 2, abs=0.03)
    assert all(row["seconds_per_instance"] > 0 for row in methods.values())
    assert [line.split()[0] for line in capsys.readouterr().out.split("\n")[3:6]] == ["GrabCut", "box", "ellipse"]


def test_a_sample_is_fixed_by_its_seed(benchmark, data: Path):
    file = data / "instances.json"
    assert benchmark.sampled_ids(file, None, 0) is None
    assert benchmark.sampled_ids(file, 9, 0) == {1, 2}  # neither the crowd nor the bare box
    drawn = [benchmark.sampled_ids(file, 1, seed) for seed in range(8)]
    assert drawn == [benchmark.sampled_ids(file, 1, seed) for seed in range(8)]
    assert {1} in drawn
    assert {2} in drawn


def test_bad_input_is_one_sentence(
    benchmark, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit, match="2"):
        run(benchmark, monkeypatch, data, "--max-instances", "0")
    assert "--max-instances must be at least 1, but got 0" in capsys.readouterr().err
    (data / "a.png").unlink()
    with pytest.raises(SystemExit, match="2"):
        run(benchmark, monkeypatch, data)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("box_to_mask: error: ")
    assert "a.png" in line
