"""The partial-supervision benchmark reads finished runs, continues stopped ones and refuses others; its table."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from maskwright.training.recipes import recipe_yaml, resolve_recipe
from maskwright.training.run_folder import take

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "partial_supervision.py"
COMMAND = ["--images", "IMAGES", "--annotations", "FILE", "--values", "resnet4", "--seeds", "0"]


@pytest.fixture
def benchmark():
    specification = importlib.util.spec_from_file_location("partial_supervision", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def start(benchmark, tmp_path, monkeypatch):
    """Runs the benchmark in place of its trainings `train(command) -> exit code`; the commands it gave."""

    def start(*options: str, train=lambda command: 0) -> list[list[str]]:
        commands: list[list[str]] = []

        def call(command, check):
            commands.append(command[3:])
            return SimpleNamespace(returncode=train(command[3:]))

        monkeypatch.setattr(benchmark, "subprocess", SimpleNamespace(run=call))
        monkeypatch.setattr(sys, "argv", ["partial_supervision.py", *COMMAND, "--out", str(tmp_path), *options])
        benchmark.main()
        return commands

    return start


def finish(command: list[str], **values: float | None) -> int:
    """What a training leaves behind that ran to its end."""
    recipe = resolve_recipe(command[1], [part for part in command[2:] if part not in ("--resume", "last")])
    folder = Path(recipe.trainer.output or "")
    take(folder, recipe_yaml(recipe))
    numbers = dict.fromkeys(("mask_iou_seen", "mask_iou_unseen", "class_mask_iou_seen"), 0.5)
    numbers |= {"class_mask_iou_unseen": 0.25, "instances_seen": 3, "instances_unseen": 4}
    line = {"step": recipe.trainer.steps, **numbers, **values}
    (folder / "validation.jsonl").write_text(json.dumps(line) + "\n")
    return 0


def test_every_run_is_trained_with_its_value_and_seed_and_all_with_the_given_keys(start, capsys):
    options = ("--values", "resnet4", "hourglass20", "--seeds", "3", "4", "--model.frozen_levels", "4")
    commands = start(*options, train=finish)
    assert [command[:2] for command in commands] == [["train", "deep_mac/tiny"]] * 4
    varied = [dict(pairwise(command)) for command in commands]
    assert [(each["--model.mask_head"], each["--trainer.seed"]) for each in varied] == [
        ("resnet4", "3"), ("resnet4", "4"), ("hourglass20", "3"), ("hourglass20", "4"),
    ]  # fmt: skip
    assert all(each["--model.frozen_levels"] == "4" for each in varied)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert rows[2] == "| resnet4 | 3 | 0.5000 | 0.5000 | 0.5000 | 0.2500 |"
    assert [row.split(" | ")[1] for row in rows[2:]] == ["3", "4", "3", "4", "mean", "mean"]


def test_the_mean_is_that_of_the_seeds_and_of_what_a_detector_finds(start, capsys):
    def train(command):
        return finish(command, mask_ap_seen=float(dict(pairwise(command))["--trainer.seed"]), mask_ap_unseen=None)

    start("--seeds", "1", "4", train=train)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert rows[0].endswith("| mask_ap_seen | mask_ap_unseen |")
    assert rows[-1].endswith("| 2.5000 | nan |")


def test_a_finished_run_is_only_read(start, capsys):
    assert len(start(train=finish)) == 1
    table = capsys.readouterr().out
    assert start() == []
    assert capsys.readouterr().out == table


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "500"], "this run is one of 400 steps, not 500"),
        (["--crop-size", "256"], "data.crop_size is 320 in this run"),
        (["--model.frozen_levels", "3"], "model.frozen_levels"),
    ],
)
def test_a_run_with_other_values_is_refused_before_anything_is_trained(start, capsys, options, words):
    start(train=finish)
    with pytest.raises(SystemExit) as exit:
        start("--values", "hourglass20", "resnet4", *options, train=lambda command: pytest.fail("trained"))
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.endswith("give another --out\n")


def test_keys_that_are_the_benchmarks_own_are_refused(start, capsys):
    with pytest.raises(SystemExit):
        start("--trainer.steps=7")
    assert "--trainer.steps is a value that this benchmark gives" in capsys.readouterr().err


def test_a_run_that_was_stopped_is_continued(start, tmp_path):
    folder = tmp_path / "resnet4_0"

    def stop(command):
        finish(command)
        (folder / "validation.jsonl").write_text('{"step": 40, "mask_iou": 0.5}\n{"step": 400, "mask_i')
        return 0

    with pytest.raises(SystemExit, match="no validation at step 400"):
        start(train=stop)
    (command,) = start(train=finish)
    assert command[-2:] == ["--resume", "last"]


def test_a_training_that_fails_ends_the_benchmark_with_its_code(start, capsys):
    commands = []
    with pytest.raises(SystemExit) as exit:
        start("--seeds", "0", "1", train=lambda command: commands.append(command) or 3)
    assert exit.value.code == 3
    assert len(commands) == 1
    assert "|" not in capsys.readouterr().out


def test_the_asked_step_is_read_and_missing_numbers_are_nan(benchmark, tmp_path):
    file = tmp_path / "validation.jsonl"
    assert benchmark.validation_at(400, file) is None
    file.write_text('{"step": 200, "mask_iou": 0.2}\n{"step": 400, "mask_iou": 0.4, "mask_iou_unseen": null}\n')
    found = benchmark.validation_at(400, file)
    assert found["mask_iou"] == 0.4
    assert math.isnan(found["mask_iou_unseen"])
