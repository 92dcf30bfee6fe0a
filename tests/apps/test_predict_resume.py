"""`maskwright predict` broken off in every way goes on where it stopped, with the results of an unbroken run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from exported_by_hand import save_exported
from killed_runs import run_killed
from maskwright.apps.predict import PredictOptions, predict_files
from maskwright.apps.predict_pictures import PicturePredictor
from maskwright.cli import main
from maskwright.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with small pictures, one of them broken, and boxes, one of them outside."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    return tmp_path


def make_pictures(count: int) -> None:
    rng = np.random.default_rng(0)
    boxes = {}
    for index in range(count):
        pixels = rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"photos/{index:03}.png")
        corners = rng.uniform(0, 16, (3, 2))
        boxes[f"{index:03}.png"] = np.concatenate([corners, corners + 9], axis=1).tolist()
    boxes["001.png"][1] = [100, 100, 120, 120]
    Path("photos/002.png").write_bytes(b"no picture")
    Path("boxes.json").write_text(json.dumps(boxes))


@pytest.fixture
def in_process(folder: Path, monkeypatch: pytest.MonkeyPatch, ellipse_model) -> None:
    monkeypatch.setattr("maskwright.apps.weights.from_pretrained", lambda _: ellipse_model)
    make_pictures(6)


def options(**changes) -> PredictOptions:
    return PredictOptions(**{"boxes": "boxes.json", "overlays": False, **changes})


def unbroken() -> bytes:
    assert predict_files(["photos"], options(out="whole")).exit_code == 3
    return Path("whole/predictions.json").read_bytes()


def stop_after(monkeypatch: pytest.MonkeyPatch, count: int, error: BaseException) -> None:
    predict, calls = PicturePredictor.__call__, []

    def stopping(self, job):
        calls.append(job)
        if len(calls) > count:
            raise error
        return predict(self, job)

    monkeypatch.setattr(PicturePredictor, "__call__", stopping)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("cannot write x: No space left on device")])
def test_after_ctrl_c_or_a_full_disk_the_same_command_goes_on(
    in_process: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ellipse_model, error
):
    expected = unbroken()
    command = ["predict", "photos", "--boxes", "boxes.json", "--no-overlays"]
    with monkeypatch.context() as patch:
        stop_after(patch, 4, error)
        assert main(command) == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert "4 of 6 images are done (in masks/predictions.journal)" in capsys.readouterr().err
    assert not Path("masks/predictions.json").exists()
    seen = ellipse_model.encoded
    assert main(command) == 3
    captured = capsys.readouterr()
    assert ellipse_model.encoded - seen == 2
    assert len(captured.out.splitlines()) == 2
    assert "going on; 4 of 6 images are done" in captured.err
    assert "failed: 1 x picture that cannot be read, namely photos/002.png" in captured.err
    assert "failed: 1 x box that cannot be used, namely photos/001.png: box 1" in captured.err
    assert Path("masks/predictions.json").read_bytes() == expected
    assert [path.name for path in Path("masks").iterdir()] == ["predictions.json"]


@pytest.mark.parametrize("changes", [{"score_threshold": 0.5}, {"masks": True}, {"precision": "bfloat16"}])
def test_another_option_does_not_go_on_with_an_old_journal(in_process: None, monkeypatch: pytest.MonkeyPatch, changes):
    with monkeypatch.context() as patch:
        stop_after(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            predict_files(["photos"], options(precision="float32"))
    with pytest.raises(UserError, match=f"is of a run that did not end, with another {next(iter(changes))}"):
        predict_files(["photos"], options(**{"precision": "float32", **changes}))


def test_other_boxes_pictures_or_weights_do_not_go_on_with_an_old_journal(
    in_process: None, monkeypatch: pytest.MonkeyPatch, ellipse_model
):
    with monkeypatch.context() as patch:
        stop_after(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            predict_files(["photos"], options())
    ellipse_model.register_buffer("weights", torch.ones(1))
    Path("boxes.json").write_text(Path("boxes.json").read_text().replace("100", "101"))
    Path("photos/000.png").unlink()
    with pytest.raises(UserError, match=r"with another model, images, boxes: give that command again"):
        predict_files(["photos"], options())


def test_a_second_run_says_that_it_replaces_the_first(in_process: None, capsys: pytest.CaptureFixture[str]):
    predict_files(["photos"], options())
    capsys.readouterr()
    predict_files(["photos"], options())
    assert capsys.readouterr().err.startswith("masks/predictions.json of an earlier run will be replaced at the end\n")


def test_strict_stops_at_the_first_failure(in_process: None, capsys: pytest.CaptureFixture[str]):
    assert main(["predict", "photos", "--boxes", "boxes.json", "--strict"]) == 2
    assert "photos/001.png: box 1: [100, 100, 120, 120] lies outside" in capsys.readouterr().err
    assert not Path("masks/predictions.json").exists()


@pytest.fixture
def command(folder: Path) -> list[str]:
    """The command with a model whose processes start at once."""
    save_exported(folder / "light.onnx")
    return ["predict", "photos", "--boxes", "boxes.json", "--model", "light.onnx", "--device", "cpu", "--no-overlays"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork there")
@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_with_the_results_of_an_unbroken_run(command: list[str], kills: int):
    make_pictures(100 * kills)  # more than are made between kills
    run_killed(command, Path("masks/predictions.journal"), kills, "whole", "maskwright.apps.predict")
    assert Path("masks/predictions.json").read_bytes() == Path("whole/predictions.json").read_bytes()
    assert [path.name for path in Path("masks").iterdir()] == ["predictions.json"]


@pytest.mark.skipif(os.name == "nt", reason="no process groups there")
def test_sigterm_to_the_whole_group_ends_it_with_its_workers_and_several_processes_give_the_same(command: list[str]):
    make_pictures(400)
    assert main([*command, "--out", "whole"]) == 3
    command = [*command, "--processes", "2"]
    running = subprocess.Popen(
        [sys.executable, "-m", "maskwright", *command],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert running.stdout is not None
    running.stdout.readline()
    os.killpg(running.pid, signal.SIGTERM)
    _, errors = running.communicate(timeout=600)
    assert running.returncode == 143
    assert "Traceback" not in errors
    assert "images are done (in masks/predictions.journal): the same command goes on from there" in errors
    with pytest.raises(ProcessLookupError):
        os.killpg(running.pid, 0)
    assert main(command) == 3
    assert Path("masks/predictions.json").read_bytes() == Path("whole/predictions.json").read_bytes()
