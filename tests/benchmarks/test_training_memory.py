"""The memory benchmark: tensors counted by hand, and the command as a person calls it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "training_memory.py"

MODELS = {
    "deep_mac": "image_size: 64, detector: centernet, backbone: hourglass10, mask_head: hourglass10, mask_size: 8",
    "max_deeplab": "image_size: 65, num_heads: 1, num_mask_slots: 8",
}


@pytest.fixture(scope="module")
def benchmark():
    specification = importlib.util.spec_from_file_location("training_memory", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules["training_memory"] = module
    specification.loader.exec_module(module)
    yield module
    del sys.modules["training_memory"]


def test_storages_count_while_anything_holds_them(benchmark):
    weight = torch.ones(25, requires_grad=True)  # 100 bytes
    with benchmark.MemoryCount([weight]) as memory:
        doubled = (weight * 2).view(5, 5)  # 100 bytes; the view is of the same storage
        assert memory.now == 100
        squared = doubled.square()  # 100 more
        del doubled  # its gradient needs it still
        assert memory.now == 200
        squared.sum().backward()
        assert memory.peak > 300  # gradients beside both
        del squared
        assert memory.now == 100  # the weight's gradient
        weight.detach().add_(1)
        weight.grad = None
    assert memory.now == 0


def test_targets_are_stripes_that_share_the_image(benchmark):
    (panoptic,) = benchmark.synthetic_targets("panoptic", 1, 10, 2, 3)
    assert panoptic["segmentation"][:, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert panoptic["labels"].tolist() == [0, 1, 0]
    (instances,) = benchmark.synthetic_targets("instance", 1, 10, 2, 3)
    assert instances["boxes"].tolist() == [[0, 0, 10, 4], [0, 4, 10, 7], [0, 7, 10, 10]]
    assert instances["masks"].sum(dim=(1, 2)).tolist() == [40, 30, 30]


def small_recipe(folder, family):
    path = folder / "small.yaml"
    path.write_text(f"family: {family}\nmodel: {{width: 0.1, {MODELS[family]}}}\n")
    return str(path)


@pytest.mark.parametrize("family", MODELS)
def test_command_measures_every_family(benchmark, family, tmp_path, monkeypatch, capsys):
    out = tmp_path / "numbers.json"
    command = ["training_memory.py", small_recipe(tmp_path, family), "--classes", "2", "--instances", "2"]
    monkeypatch.setattr(sys, "argv", [*command, "--json", str(out), "--data.batch_size", "5"])
    benchmark.main()
    sizes = json.loads(out.read_text())
    per_image = sizes.pop("of these, per image")
    assert sizes.pop("all") == pytest.approx(sum(sizes.values()))
    assert sizes["optimizer"] == pytest.approx(2 * sizes["gradients"], rel=0.01)  # Adam's two
    assert sizes["saved for the gradients"] + sizes["temporary"] > 4 * per_image
    assert "batch size 5, precision 32" in capsys.readouterr().out


def test_more_images_need_more_and_fewer_bits_less(benchmark, tmp_path):
    path, results = small_recipe(tmp_path, "deep_mac"), []
    for values in (["--data.batch_size=1"], ["--data.batch_size=5"], ["--trainer.precision=bf16-mixed"]):
        recipe = benchmark.resolve_recipe(path, ["--data.images=x", "--data.annotations=x", *values])
        results.append(benchmark.measure(recipe, 2, 2))
    one, five, half = results
    assert five["all"] - one["all"] == pytest.approx(4 * one["of these, per image"])
    assert half["weights"] == one["weights"]
    assert 0.4 < half["of these, per image"] / one["of these, per image"] < 0.9


def test_an_unknown_recipe_is_told_in_one_sentence(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["training_memory.py", "no_such"])
    with pytest.raises(SystemExit, match="2"):
        benchmark.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("training_memory: error: ")
    assert "no_such" in line
