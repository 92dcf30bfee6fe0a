"""A run in its own process, broken off from outside, has the losses of an unbroken one to the bit."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from maskwright.training.run import main

TRAIN = """
import sys
from maskwright.training.run import main
sys.exit(main(sys.argv[1:]))
"""


def start(arguments):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", TRAIN, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def count_lines(path):
    return path.read_text().count("\n") if path.is_file() else 0


def wait_for(condition, process, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "the run did not get so far in time"
        time.sleep(0.005)


def losses(directory):
    return [json.loads(line) for line in (directory / "losses.jsonl").read_text().splitlines()]


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
def test_a_killed_run_resumes_with_the_losses_of_an_unbroken_one(arguments, tmp_path):
    run, unbroken = tmp_path / "run", tmp_path / "unbroken"
    # With its detector and two batches per step: all that a step draws and adds up.
    arguments = [*arguments, "--model.detector=centernet", "--trainer.accumulate=2"]
    arguments += ["--trainer.steps=12", "--trainer.validate_every_steps=5"]
    assert main([*arguments, f"--trainer.output={unbroken}"]) == 0

    arguments += ["--data.num_workers=1", "--trainer.checkpoint_every_seconds=0.1"]
    killed = start(arguments)
    wait_for(lambda: count_lines(run / "losses.jsonl") >= 5 and (run / "last.ckpt").is_file(), killed)
    os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait(timeout=600) == -signal.SIGKILL
    assert count_lines(run / "losses.jsonl") < 12

    assert main([*arguments, "--resume", "last"]) == 0
    assert losses(run) == losses(unbroken)


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
def test_a_signal_to_the_whole_group_ends_the_run_with_a_checkpoint(arguments, tmp_path):
    run, unbroken = tmp_path / "run", tmp_path / "unbroken"
    arguments = [*arguments, "--trainer.steps=40", "--trainer.validate_every_steps=40"]
    stopped = start([*arguments, "--data.num_workers=2"])
    wait_for(lambda: count_lines(run / "losses.jsonl") >= 3, stopped)
    os.killpg(stopped.pid, signal.SIGTERM)
    assert stopped.wait(timeout=600) == 128 + signal.SIGTERM, stopped.stderr.read()
    said = stopped.stderr.read()
    assert "Traceback" not in said
    assert f"go on with: maskwright train {run} --resume last" in said
    assert 3 <= count_lines(run / "losses.jsonl") < 40

    assert main([str(run), "--resume"]) == 0
    assert main([*arguments, f"--trainer.output={unbroken}"]) == 0
    assert losses(run) == losses(unbroken)
