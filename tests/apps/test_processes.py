"""Work shared among processes: by any kind of main program, results as they come, and workers that end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskwright.apps.processes import device_of_process, run_jobs
from maskwright.data.images import read_image
from maskwright.errors import UserError

SCRIPT = """
import math
from maskwright.apps.processes import run_jobs
print("begins", sorted(run_jobs(math.sqrt, [1.0, 4.0, 9.0], 2)))
"""
SAID = "begins [(1.0, 1.0), (4.0, 2.0), (9.0, 3.0)]\n"

# Each worker leaves its process id, then sleeps.
SLEEPER = """
import os, sys, time
from pathlib import Path
from maskwright.apps.processes import run_jobs
sys.path.insert(0, sys.argv[1])
Path(sys.argv[1], "sleeper.py").write_text(
    "import os, time; from pathlib import Path\\n"
    "def sleep(folder): Path(folder, str(os.getpid())).with_suffix('.pid').touch(); time.sleep(600)\\n"
)
from sleeper import sleep
list(run_jobs(sleep, [sys.argv[1]] * 2, 2))
"""


class Unpicklable:
    def __reduce__(self):
        raise TypeError("there is no pickling this")


def run(*command: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=600, **options)


def wait_for(condition) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("waited for ten minutes")


def test_a_script_without_a_guard_is_run_once(tmp_path: Path):
    (tmp_path / "script.py").write_text(SCRIPT)
    ended = run(str(tmp_path / "script.py"))
    assert (ended.stdout, ended.stderr, ended.returncode) == (SAID, "", 0)


def test_standard_input_can_share_its_work():
    ended = run("-", input=SCRIPT)
    assert (ended.stdout, ended.stderr, ended.returncode) == (SAID, "", 0)


def test_what_the_main_program_defines_is_refused(tmp_path: Path):
    (tmp_path / "script.py").write_text(
        "from maskwright.apps.processes import run_jobs\n"
        "from maskwright.errors import UserError\n"
        "class Own: pass\n"
        "try:\n"
        "    list(run_jobs(len, [Own(), Own()], 2))\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    ended = run(str(tmp_path / "script.py"))
    assert ended.stderr == ""
    assert "Own" in ended.stdout
    assert "take processes=1, or, where a class is one of the main program, define it in a module" in ended.stdout


def test_what_no_process_can_take_is_refused():
    with pytest.raises(UserError, match=r"cannot be handed to several processes \(there is no pickling this\)"):
        list(run_jobs(repr, [Unpicklable(), Unpicklable()], 2))


def test_results_come_when_they_are_done_and_jobs_are_taken_when_a_process_is_free(tmp_path: Path):
    """A pipe that nobody writes to keeps one worker busy; the other does all the rest meanwhile."""
    os.mkfifo(tmp_path / "never")
    for name in "abc":
        (tmp_path / name).write_text(name)
    taken: list[str] = []

    def jobs():
        for name in ("never", "a", "b", "c"):
            taken.append(name)
            yield tmp_path / name

    results = run_jobs(Path.read_text, jobs(), 2)
    assert next(results) == (tmp_path / "a", "a")
    assert taken == ["never", "a", "b"]
    assert [text for _, text in (next(results), next(results))] == ["b", "c"]
    (tmp_path / "never").write_text("at last")
    assert list(results) == [(tmp_path / "never", "at last")]


def test_one_process_is_the_callers_own():
    assert [pid for _, pid in run_jobs(lambda _: os.getpid(), [1, 2], 1)] == [os.getpid()] * 2


def test_an_error_is_raised_with_the_place_where_it_happened():
    with pytest.raises(ZeroDivisionError) as raised:
        list(run_jobs(partial(divmod, 1), [0, 0], 2))
    assert "in answer_job" in raised.value.__notes__[0]


def test_a_killed_worker_is_named():
    with pytest.raises(UserError, match=r"process [12] of 2 \(pid \d+\) was killed by SIGKILL \(out of memory\?\)"):
        list(run_jobs(signal.raise_signal, [signal.SIGKILL] * 2, 2))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_caller(tmp_path: Path, number: signal.Signals):
    """Ctrl-C goes to all processes of a terminal, the others to the caller alone."""
    caller = subprocess.Popen([sys.executable, "-c", SLEEPER, str(tmp_path)], stderr=subprocess.PIPE, process_group=0)
    wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    (os.killpg if number == signal.SIGINT else os.kill)(caller.pid, number)
    _, said = caller.communicate(timeout=600)
    workers = [int(path.stem) for path in tmp_path.glob("*.pid")]
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    assert said.count(b"KeyboardInterrupt") == (number == signal.SIGINT)  # the caller's alone


def test_each_worker_has_its_own_number():
    numbers = {number for _, number in run_jobs(partial(os.getenv, "MASKWRIGHT_WORKER"), [None, None], 2)}
    assert numbers == {"1", "2"}


def test_workers_share_the_gpus(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("MASKWRIGHT_WORKER", raising=False)
    assert device_of_process("auto") == "auto"
    devices = []
    for number in "123":
        monkeypatch.setenv("MASKWRIGHT_WORKER", number)
        devices.append([device_of_process(device) for device in ("auto", "cuda", None, "cpu", "cuda:1")])
    assert devices == [[f"cuda:{gpu}"] * 3 + ["cpu", "cuda:1"] for gpu in (0, 1, 0)]


def test_the_callers_own_process_gives_the_workers_warnings(tmp_path: Path):
    Image.fromarray(np.array([[0, 4095]], dtype=np.uint16)).save(tmp_path / "camera.png")
    with pytest.warns(UserWarning, match=r"camera\.png: its 16-bit values"):
        list(run_jobs(read_image, [tmp_path / "camera.png"], 2))
