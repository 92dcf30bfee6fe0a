"""The partial-supervision benchmark reads the validation that was asked for."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "partial_supervision.py"


@pytest.fixture
def benchmark():
    specification = importlib.util.spec_from_file_location("partial_supervision", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def write_validations(folder: Path, *steps: int) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "validation.jsonl").write_text(
        "".join(json.dumps({"step": s, "mask_iou": s / 1000}) + "\n" for s in steps)
    )


def test_a_longer_run_is_read_at_the_asked_step(benchmark, tmp_path: Path):
    write_validations(tmp_path / "resnet4_0", 200, 400, 600)
    values = benchmark.run("resnet4", 0, argparse.Namespace(out=tmp_path, steps=400))
    assert values == {"step": 400, "mask_iou": 0.4}


def test_a_run_that_was_stopped_is_continued(benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_validations(tmp_path / "resnet4_0", 40)
    with (tmp_path / "resnet4_0" / "validation.jsonl").open("a") as file:
        file.write('{"step": 400, "mask_i')
    (tmp_path / "resnet4_0" / "recipe.yaml").touch()
    asked = argparse.Namespace(
        out=tmp_path,
        steps=400,
        recipe="deep_mac/tiny",
        vary="model.mask_head",
        images="IMAGES",
        annotations="FILE",
        mask_classes="voc",
        validation_share=0.25,
        batch_size=4,
        crop_size=320,
        precision="32",
    )
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    with pytest.raises(SystemExit, match="no validation at step 400"):
        benchmark.run("resnet4", 0, asked)
    assert commands[0][3:5] == ["train", "deep_mac/tiny"]
    assert ("--model.mask_head", "resnet4") in pairwise(commands[0])
    assert commands[0][-2:] == ["--resume", "last"]
    monkeypatch.setattr(subprocess, "run", lambda command, check: write_validations(tmp_path / "resnet4_0", 40, 400))
    assert benchmark.run("resnet4", 0, asked)["step"] == 400
