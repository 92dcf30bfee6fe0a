"""The latency benchmark: how it charges time, and the command as a person calls it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import small_deep_marc
import small_max_deeplab
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import maskwright

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "latency.py"

DEEP_MAC = """
family: deep_mac
model: {detector: centernet, backbone: hourglass10, mask_head: hourglass10, image_size: 64, mask_size: 8, width: 0.1}
"""
DEEP_MARC = """
family: deep_marc
model: {backbone: resnet18_fpn, box_head: 2fc, mask_head: resnet4, image_size: 64, mask_size: 8, width: 0.0625}
"""


@pytest.fixture(scope="module")
def benchmark():
    specification = importlib.util.spec_from_file_location("latency", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules["latency"] = module
    sys.path.insert(0, str(SCRIPT.parent))  # as Python does for the script
    specification.loader.exec_module(module)
    yield module
    sys.path.remove(str(SCRIPT.parent))
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


@pytest.mark.parametrize(("recipe", "of_boxes"), [(DEEP_MAC, ["heads"]), (DEEP_MARC, ["proposals", "box head"])])
def test_a_recipe_with_random_weights(
    benchmark,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    recipe: str,
    of_boxes: list[str],
):
    (tmp_path / "small.yaml").write_text(recipe)
    out = tmp_path / "out.json"
    work = ("--image-size", 48, 64, "--boxes", 20, "--batch-size", 2, "--repeats", 1)
    run(benchmark, monkeypatch, tmp_path / "small.yaml", *work, "--json", out)
    content = json.loads(out.read_text())
    assert content["instances"] == [20, 20]  # random weights still find as many boxes as are asked for
    assert content["mask_iou"] is None
    stages = content["precisions"]["float32"]["stages"]
    parts = ["pre-processing", "backbone", *of_boxes, "decoding", "crop", "mask head", "pasting"]
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
    assert lines[1] == "instances or segments per image [3]"
    assert lines[2].startswith("peak memory of the process ")
    assert any(line.startswith("bfloat16 is ") and "times as fast" in line for line in lines)
    (agreement,) = (line for line in lines if line.startswith("mean IoU of its masks with those of float32: "))
    assert 0.9 < float(agreement.split()[-1]) <= 1


def test_bad_input_is_one_sentence(benchmark, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def said(*arguments: object) -> str:
        with pytest.raises(SystemExit, match="2"):
            run(benchmark, monkeypatch, *arguments)
        return capsys.readouterr().err.splitlines()[-1]

    assert "latency: error: no-such-model: neither" in said("no-such-model")
    assert "--boxes: must be at least 1, but got 0" in said("deep-mac-tiny", "--boxes", 0)
    for options in (("--precision", "half"), ("--warm-up", -1), ("--json", "no-such-folder/out.json")):
        assert options[0] in said("deep-mac-tiny", *options)
    assert "latency: error: device 'none' cannot be used here" in said("deep-mac-tiny", "--device", "none")
    for option in (["--prompt"], ["--boxes", 5]):
        assert "max_deeplab/tiny finds all segments by itself" in said("max_deeplab/tiny", *option)


def stages_of(benchmark, model: nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """GFLOP of each stage of a prediction."""
    maskwright.save_pretrained(model, folder / "weights")
    work = ("--image-size", 48, 64, "--repeats", 1, "--warm-up", 0, "--json", folder / "out.json")
    run(benchmark, monkeypatch, folder / "weights", *work)
    stages = json.loads((folder / "out.json").read_text())["precisions"]["float32"]["stages"]
    return {stage: values["gflop"] for stage, values in stages.items()}


def test_stages_of_deep_marc(benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    gflop = stages_of(benchmark, small_deep_marc.build(min_box_score=0.0), tmp_path, monkeypatch)
    networks = {"backbone", "proposals", "box head", "mask head"}
    assert {stage for stage, number in gflop.items() if number} == networks | {"all"}
    assert set(gflop) == networks | {"pre-processing", "decoding", "crop", "pasting", "all"}


@pytest.mark.parametrize("backbone", ["max_deeplab_s", "max_deeplab_l"])
def test_stages_of_max_deeplab(benchmark, backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = small_max_deeplab.small_model(backbone=backbone).eval().requires_grad_(False)
    gflop = stages_of(benchmark, model, tmp_path, monkeypatch)
    encoder = {"memory features", "stem", *(f"stage {number}" for number in model.network.encoder.stages), "decoder"}
    if backbone == "max_deeplab_s":
        encoder.add("stage 5 again")
    assert {stage for stage, number in gflop.items() if number} == encoder | {"heads", "all"}
    with FlopCounterMode(display=False) as counter:
        model.network.encoder(torch.zeros(1, 3, model.image_size, model.image_size))
    assert sum(gflop[stage] for stage in encoder) == pytest.approx(counter.get_total_flops() / 1e9)
    assert gflop["heads"] == pytest.approx(gflop["all"] - counter.get_total_flops() / 1e9)
