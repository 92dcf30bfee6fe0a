"""The latency benchmark: how it charges time, and the command as a person calls it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import maskwright

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "latency.py"

RECIPE = """
family: deep_mac
model: {detector: centernet, backbone: hourglass10, mask_head: hourglass10, image_size: 64, mask_size: 8, width: 0.1}
"""


@pytest.fixture(scope="module")
def benchmark():
    specification = importlib.util.spec_from_file_location("latency", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules["latency"] = module
    specification.loader.exec_module(module)
    yield module
    del sys.modules["latency"]


def test_time_belongs_to_the_innermost_stage(benchmark):
    now = [0.0]

    class Inner(nn.Module):
        def forward(self, x):
            now[0] += 5
            return x

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Module()
            self.network.inner = Inner()

        def maps(self, x):
            now[0] += 2
            x = self.network.inner(self.network.inner(x))
            now[0] += 3
            return x

    model, stopwatch = Model(), benchmark.Stopwatch(lambda: (now[0], 10 * now[0]))
    stages = {"maps": "maps", "network.inner": "inner", "network.missing": "missing", "other.missing": "missing"}
    with stopwatch.watch(model, stages), stopwatch.stage("rest"):
        now[0] += 1
        model.maps(0)
    assert stopwatch.spent == {"rest": [1, 10], "maps": [5, 50], "inner": [10, 100]}
    model.maps(0)  # no longer watched
    assert stopwatch.spent["inner"] == [10, 100]


def run(benchmark, monkeypatch: pytest.MonkeyPatch, *options: object) -> None:
    monkeypatch.setattr(sys, "argv", ["latency.py", *map(str, options), "--threads", "1"])
    benchmark.main()


def test_a_recipe_with_random_weights(
    benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "small.yaml").write_text(RECIPE)
    out = tmp_path / "out.json"
    work = ("--image-size", 48, 64, "--boxes", 20, "--batch-size", 2, "--repeats", 1)
    run(benchmark, monkeypatch, tmp_path / "small.yaml", *work, "--json", out)
    content = json.loads(out.read_text())
    assert content["instances"] == [20, 20]  # random weights still find as many boxes as are asked for
    assert content["mask_iou"] is None
    stages = content["precisions"]["float32"]["stages"]
    parts = ["pre-processing", "backbone", "heads", "decoding", "crop", "mask head", "pasting"]
    assert sorted(stages) == sorted([*parts, "all"])
    assert all(stages[part]["seconds"] > 0 for part in parts)
    assert stages["all"]["gflop"] == pytest.approx(sum(stages[part]["gflop"] for part in parts))
    assert stages["mask head"]["gflop"] > 0
    assert stages["pasting"]["gflop"] == 0
    assert "mask head" in capsys.readouterr().out


def test_precisions_are_compared_on_given_boxes(
    benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    torch.manual_seed(0)
    small = {"backbone": "hourglass10", "mask_head": "hourglass10", "image_size": 64, "mask_size": 8, "width": 0.1}
    maskwright.save_pretrained(maskwright.DeepMAC(**small), tmp_path / "weights")
    work = ("--boxes", 3, "--repeats", 1, "--image-size", 48, 64)
    run(benchmark, monkeypatch, tmp_path / "weights", *work, "--precision", "float32", "bfloat16")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("instances per image [3]")
    assert any(line.startswith("bfloat16 is ") and "times as fast" in line for line in lines)
    (agreement,) = (line for line in lines if line.startswith("mean IoU of its masks with those of float32: "))
    assert 0.9 < float(agreement.split()[-1]) <= 1


def test_bad_input_is_one_sentence(benchmark, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="latency: error: no-such-model: neither"):
        run(benchmark, monkeypatch, "no-such-model")
    with pytest.raises(SystemExit, match="2"):
        run(benchmark, monkeypatch, "deep-mac-tiny", "--boxes", 0)
    assert "--boxes must be at least 1, but got 0" in capsys.readouterr().err
