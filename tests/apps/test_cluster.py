"""`maskwright complete --engine ray`: what a Ray cluster makes is what one process makes, whatever is killed."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import maskwright
from maskwright.apps.cluster import _Actor
from maskwright.apps.completion.pictures import CompletionSettings, PictureCompleter
from maskwright.apps.processes import result_of
from maskwright.apps.provenance import MaskSource
from maskwright.cli import main
from maskwright.errors import UserError
from maskwright.models.hub import from_pretrained, model_hash
from maskwright.predictor import Predictor

COMMAND = ["complete", "boxes.json", "--images", "images", "--model", "weights", "--device", "cpu"]
RAY = [*COMMAND, "--engine", "ray", "--processes", "2", "--out", "done.json"]
JOURNAL = Path("done.json.journal")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES", "200000000")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # or they never begin on a busy machine
    torch.manual_seed(0)
    size = {"image_size": 32, "mask_size": 8, "width": 0.1}
    model = maskwright.DeepMAC(backbone="resnet18_fpn", mask_head="resnet4", box_frame="pixel", **size)
    maskwright.save_pretrained(model, "weights")


def make_data(count: int) -> None:
    """Pictures with two boxes each, one of them broken."""
    rng = np.random.default_rng(0)
    Path("images").mkdir()
    images = [{"id": row, "file_name": f"{row}.png", "height": 24, "width": 32} for row in range(count)]
    for image in images:
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(f"images/{image['file_name']}")
    Path("images/2.png").write_bytes(b"no picture")
    corners = rng.uniform(0, 14, (2 * count, 2)).round(2).tolist()
    boxes = [{"id": n, "image_id": n // 2, "category_id": 1, "bbox": [x, y, 9, 9]} for n, (x, y) in enumerate(corners)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]}
    Path("boxes.json").write_text(json.dumps(content))


def start(*options: str) -> subprocess.Popen[str]:
    """The command in a session of its own, to which all that Ray starts belongs."""
    command = [sys.executable, "-m", "maskwright", *RAY, *options]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def results() -> int:
    return JOURNAL.read_bytes().count(b"\n") - 1 if JOURNAL.exists() else 0


def members(session: int) -> dict[int, str]:
    """The processes of a session that still run, and their command lines."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, its_session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                found[int(entry.name)] = (entry / "cmdline").read_text()
        except (OSError, ValueError):
            pass
    return found


@pytest.mark.slow
def test_two_actors_give_the_file_of_one_process_and_say_nothing_more():
    make_data(6)
    assert main([*COMMAND, "--out", "whole.json"]) == 3
    running = start()
    _, said = running.communicate(timeout=600)
    assert running.returncode == 3, said
    assert Path("done.json").read_bytes() == Path("whole.json").read_bytes()
    assert all(line.startswith("failed: ") for line in said.splitlines()), said
    assert not JOURNAL.exists()
    wait_for(lambda: not members(running.pid))


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no list of processes there")


@linux
@pytest.mark.slow
def test_a_killed_actor_costs_time_only():
    make_data(200)
    assert main([*COMMAND, "--out", "whole.json"]) == 3
    running = start()
    for done in (20, 80):
        wait_for(lambda done=done: results() > done)
        os.kill(next(pid for pid, line in members(running.pid).items() if "ray::MapWorker" in line), signal.SIGKILL)
    _, said = running.communicate(timeout=600)
    assert running.returncode == 3, said
    assert Path("done.json").read_bytes() == Path("whole.json").read_bytes()


@linux
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_after_a_killed_driver_the_same_command_goes_on_without_ray(number: signal.Signals, code: int):
    make_data(200)
    assert main([*COMMAND, "--out", "whole.json"]) == 3
    running = start()
    wait_for(lambda: results() > 20)
    os.kill(running.pid, number)
    _, said = running.communicate(timeout=600)
    assert running.returncode == code
    assert "Traceback" not in said
    assert ("the same command goes on from there" in said) == (number != signal.SIGKILL)
    wait_for(lambda: not members(running.pid))  # of a killed one Ray's agents end after a minute or two
    before = results()
    assert 20 < before < 200
    assert main([*COMMAND, "--out", "done.json"]) == 3
    assert Path("done.json").read_bytes() == Path("whole.json").read_bytes()


@pytest.mark.slow
def test_where_there_is_no_cluster_one_sentence_says_so(capsys: pytest.CaptureFixture[str]):
    make_data(3)
    assert main([*RAY, "--address", "auto"]) == 2
    said = capsys.readouterr().err
    assert "there is no Ray cluster at auto that this machine belongs to" in said
    assert not JOURNAL.exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--engine", "spark"], "engine must be one of processes, ray, but got 'spark'"),
        (["--address", "auto"], "expected --engine ray with it"),
    ],
)
def test_options_that_do_not_fit(options: list[str], told: str, capsys: pytest.CaptureFixture[str]):
    make_data(3)
    assert main([*COMMAND, "--out", "done.json", *options]) == 2
    assert told in capsys.readouterr().err


@dataclass(frozen=True)
class Picture:
    path: Path


@pytest.fixture
def settings() -> CompletionSettings:
    weights = model_hash(from_pretrained("weights"))
    source = MaskSource("weights", weights, maskwright.__version__)
    return CompletionSettings("boxes.json", [-1], source, "cpu", "float32", False, "auto", False)


def ask(settings: CompletionSettings, path: Path) -> object:
    """What a worker answers that has these settings from its caller."""
    actor = _Actor(PictureCompleter(settings, Predictor(from_pretrained("weights"))), str(Path.cwd()))
    row = actor({"number": 0, "job": pickle.dumps(Picture(path))})
    return result_of(pickle.loads(row["answer"]))


def test_a_machine_that_does_not_see_the_pictures_stops_the_run(settings: CompletionSettings):
    with pytest.raises(UserError, match=r"on machine .*: the picture gone\.png is not there, but it is where"):
        ask(settings, Path("gone.png"))


def test_a_machine_with_other_weights_or_another_version_stops_the_run(settings: CompletionSettings):
    for change in ({"weights": "0123"}, {"version": "9.9"}):
        with pytest.raises(UserError, match=r"on machine .*expected .*(0123|9\.9)"):
            ask(replace(settings, made_by=replace(settings.made_by, **change)), Path("boxes.json"))


def test_a_machine_without_the_precision_stops_the_run(settings: CompletionSettings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("maskwright.predictor._has_fast_bfloat16", lambda _: False)
    with pytest.raises(UserError, match=r"on machine .*: cpu has no fast bfloat16.*give --precision float32"):
        ask(replace(settings, precision="bfloat16"), Path("boxes.json"))
