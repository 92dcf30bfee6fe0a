"""`maskwright complete` broken off in every way goes on where it stopped, with the file of an unbroken run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import maskwright
from exported_by_hand import save_exported
from killed_runs import run_killed
from maskwright.apps.completion.pictures import PictureCompleter
from maskwright.cli import main
from maskwright.errors import UserError

COMMAND = ["complete", "boxes.json", "--images", "images", "--out", "done.json"]
JOURNAL = Path("done.json.journal")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_data(6)


def make_data(count: int) -> None:
    """Pictures with three boxes each, one of them broken and one picture, too."""
    rng = np.random.default_rng(0)
    Path("images").mkdir(exist_ok=True)
    images, annotations = [], []
    for number in range(count):
        name = f"{number:03}.png"
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(f"images/{name}")
        images.append({"id": number, "file_name": name, "height": 24, "width": 32})
        for x, y in rng.uniform(0, 14, (3, 2)).round(2).tolist():
            entry = {"id": len(annotations), "image_id": number, "category_id": 1, "bbox": [x, y, 9, 9]}
            annotations.append(entry)
    annotations[1]["bbox"] = [100, 100, 20, 20]
    Path("images/002.png").write_bytes(b"no picture")
    random.Random(0).shuffle(annotations)
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    Path("boxes.json").write_text(json.dumps(content, indent=1))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, ellipse_model) -> None:
    monkeypatch.setattr("maskwright.apps.weights.from_pretrained", lambda _: ellipse_model)


def stop_after(monkeypatch: pytest.MonkeyPatch, count: int, error: BaseException) -> None:
    make, calls = PictureCompleter.__call__, []

    def stopping(self, job):
        calls.append(job)
        if len(calls) > count:
            raise error
        return make(self, job)

    monkeypatch.setattr(PictureCompleter, "__call__", stopping)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("cannot write x: No space left on device")])
def test_after_ctrl_c_or_a_full_disk_the_same_command_goes_on(
    in_process: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ellipse_model, error
):
    assert main([*COMMAND[:-1], "whole.json"]) == 3
    with monkeypatch.context() as patch:
        stop_after(patch, 4, error)
        assert main(COMMAND) == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert "4 of 6 images are done (in done.json.journal)" in capsys.readouterr().err
    assert not Path("done.json").exists()
    seen = ellipse_model.encoded
    assert main(COMMAND) == 3
    assert ellipse_model.encoded - seen == 2
    assert "going on; 4 of 6 images are done" in capsys.readouterr().err
    assert Path("done.json").read_bytes() == Path("whole.json").read_bytes()
    assert not JOURNAL.exists()


def interrupt(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 2, KeyboardInterrupt())
        assert main(command) == 130


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (["--polygons"], "another polygons"),
        (["--min-quality", "0.5"], "another min_quality"),
        (["--replace", "rectangles"], "another replace"),
        (["--classes", "thing"], "another classes"),
        (["--precision", "bfloat16"], "another precision"),
    ],
)
def test_another_option_does_not_go_on(in_process: None, monkeypatch: pytest.MonkeyPatch, capsys, option, told: str):
    command = [*COMMAND, "--precision", "float32"]
    interrupt(monkeypatch, command)
    kept = JOURNAL.read_bytes()
    assert main([*command, *option]) == 2
    assert f"done.json.journal is of a run that did not end, with {told}" in capsys.readouterr().err
    assert JOURNAL.read_bytes() == kept


def test_another_file_picture_or_model_does_not_go_on(
    in_process: None, monkeypatch: pytest.MonkeyPatch, capsys, ellipse_model
):
    interrupt(monkeypatch, COMMAND)
    ellipse_model.register_buffer("weights", torch.ones(1))
    Path("boxes.json").write_text(Path("boxes.json").read_text() + " ")
    Path("images/002.png").write_bytes(b"no picture either")
    assert main(COMMAND) == 2
    assert "with another model, another file, another images" in capsys.readouterr().err.replace(", ", ", another ")


@pytest.fixture
def weights() -> list[str]:
    """The command with a real model."""
    torch.manual_seed(0)
    size = {"image_size": 32, "mask_size": 8, "width": 0.1}
    model = maskwright.DeepMAC(backbone="resnet18_fpn", mask_head="resnet4", box_frame="pixel", **size)
    maskwright.save_pretrained(model, "weights")
    return [*COMMAND, "--model", "weights", "--device", "cpu"]


@pytest.fixture
def exported() -> list[str]:
    """The command with a model whose processes start at once."""
    save_exported(Path("light.onnx"))
    return [*COMMAND, "--model", "light.onnx", "--device", "cpu"]


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork there")


@forks
@pytest.mark.parametrize(("kills", "processes"), [(3, 1), pytest.param(50, 2, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_with_the_file_of_an_unbroken_run(
    exported: list[str], kills: int, processes: int
):
    make_data(100 * kills)  # more than are made between kills
    run_killed([*exported, "--processes", str(processes)], JOURNAL, kills, "whole.json", "maskwright.apps.complete")
    assert Path("done.json").read_bytes() == Path("whole.json").read_bytes()


@forks
@pytest.mark.slow
def test_so_does_a_model_of_torch(weights: list[str]):
    make_data(30 * 50)
    run_killed(weights, JOURNAL, 50, "whole.json", "maskwright.apps.weights")
    assert Path("done.json").read_bytes() == Path("whole.json").read_bytes()


def test_two_processes_give_the_same_file(weights: list[str]):
    assert main([*weights, "--out", "whole.json"]) == 3
    assert main([*weights, "--processes", "2"]) == 3
    assert Path("done.json").read_bytes() == Path("whole.json").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no process groups there")
def test_sigterm_to_the_whole_group_ends_it_with_its_workers(exported: list[str]):
    make_data(1000)
    command = [sys.executable, "-m", "maskwright", *exported, "--processes", "2"]
    running = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while running.poll() is None and (not JOURNAL.exists() or JOURNAL.read_bytes().count(b"\n") < 2):
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGTERM)
    _, errors = running.communicate(timeout=600)
    assert running.returncode == 143
    assert "Traceback" not in errors
    assert "images are done (in done.json.journal): the same command goes on from there" in errors
    with pytest.raises(ProcessLookupError):
        os.killpg(running.pid, 0)
