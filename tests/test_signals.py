"""SIGTERM to a whole process group, as schedulers and `timeout` send it, ends a command with its workers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import maskwright
from maskwright.cli import main
from maskwright.signals import signals_held

PROGRAM = "import sys\nfrom maskwright.cli import main\nsys.exit(main())"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty small pictures with two squares each, and a model."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for index in range(40):
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(tmp_path / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "width": 64, "height": 48})
        for number, (x, y) in enumerate(((4, 5), (30, 20))):
            square = [x, y, x + 20, y, x + 20, y + 20, x, y + 20]
            box = {"bbox": [x, y, 20, 20], "area": 400, "segmentation": [square]}
            annotations.append({"id": 2 * index + number, "image_id": index, "category_id": 1, **box})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
    (tmp_path / "squares.json").write_text(json.dumps(content))
    torch.manual_seed(0)
    size = {"image_size": 64, "mask_size": 8, "width": 0.1}
    model = maskwright.DeepMAC(backbone="resnet18_fpn", mask_head="resnet4", box_frame="pixel", **size)
    maskwright.save_pretrained(model, tmp_path / "weights")
    return tmp_path


def members(group: int) -> int:
    """How many processes of a group there are."""
    count = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            count += int(fields[2]) == group
    return count


EVALUATE = "evaluate weights --images . --annotations squares.json --device cpu --batch-size 1"
TRAIN = (
    "train deep_mac/tiny --data.images . --data.annotations squares.json --model.pretrained_backbone false "
    "--model.backbone resnet18_fpn --model.mask_head resnet4 --model.width 0.1 --model.image_size 64 "
    "--model.mask_size 8 --trainer.output run --trainer.steps 100000 --data.num_workers 2"
)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the processes of a group are counted in /proc")
@pytest.mark.parametrize(
    ("command", "processes"), [(f"{EVALUATE} --processes 2", 3), (f"{EVALUATE} --num-workers 2", 3), (TRAIN, 3)]
)
def test_a_command_and_its_workers_end(folder: Path, command: str, processes: int):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *command.split()],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    started = time.monotonic()
    while members(running.pid) < processes and running.poll() is None:
        assert time.monotonic() - started < 300
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGTERM)
    _, errors = running.communicate(timeout=300)
    assert running.returncode == 143, errors
    assert "Traceback" not in errors
    assert members(running.pid) == 0


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no signals of threads there")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_held_signal_comes_at_the_end_whichever_thread_the_system_gives_it_to(number: signal.Signals):
    """A thread that does not block signals takes them; Python's handlers then run in the main thread all the same."""
    came: list[str] = []
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    arrived, tell = socket.socketpair()
    arrived.settimeout(60)
    tell.setblocking(False)
    before, wakeup = signal.signal(number, lambda *_: came.append("handled")), signal.set_wakeup_fd(tell.fileno())
    try:
        with signals_held():
            os.kill(os.getpid(), number)
            assert arrived.recv(1) == bytes([number])  # it has been given to the other thread
            came.append("held")
        assert came == ["held", "handled"]
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(number, before)
        done.set()
        other.join()
        arrived.close()
        tell.close()
    assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.parametrize(("error", "told"), [(ConnectionResetError, False), (EOFError, False), (ValueError, True)])
def test_a_loaders_worker_says_nothing_of_a_caller_that_is_gone(error: type[Exception], told: bool):
    program = f"from maskwright.signals import end_late\nend_late()\nraise {error.__name__}"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 1
    assert ("Traceback" in ended.stderr) == told


def test_ctrl_c_and_sigterm_have_codes_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    before = signal.getsignal(signal.SIGTERM)
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        monkeypatch.setattr(
            "maskwright.apps.predict.predict_files", lambda *_, number=number: signal.raise_signal(number)
        )
        assert main(["predict", "a.png"]) == code
        assert "maskwright: stopped" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
