"""The trainings of a study: processes of their own, which are stopped with it and resumed by it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from maskwright.apps.study_file import StudyRun
from maskwright.errors import UserError
from maskwright.files import try_lock
from maskwright.training.run_folder import is_run, read_run

_LOCK = ".lock"
_POLL_SECONDS = 0.1


def step_of(run: StudyRun) -> int | None:
    """The step of a run's checkpoint, 0 before the first; None where the run was not begun.

    Raises:
        UserError: it was begun with other values, or its checkpoint is damaged.
    """
    if not is_run(run.folder):
        return None
    saved = read_run(run.folder)
    advice = "give another --out, or move that run away"
    try:
        saved.require_same_recipe(run.recipe)
    except UserError as error:  # what to do is said in this command's words
        raise UserError(f"{str(error).partition('; ')[0]}; {advice}") from error
    before, now = saved.recipe.trainer.steps, run.recipe.trainer.steps
    if before != now:  # the learning rate would fall otherwise
        raise UserError(f"{run.folder}: trainer.steps is {before} in this run and cannot become {now}; {advice}")
    return saved.step


def ended_runs(runs: Sequence[StudyRun], processes: int, lock: int) -> Generator[tuple[StudyRun, int]]:
    """Each run with the exit code of its training: first those that are done, with 0, then `train_all` of the others.

    Raises:
        UserError: as `step_of`, before anything is trained.
    """
    done = [each for each in runs if step_of(each) == each.recipe.trainer.steps]
    yield from ((each, 0) for each in done)
    yield from train_all([each for each in runs if each not in done], processes, lock)


def train_all(runs: Sequence[StudyRun], processes: int, lock: int) -> Generator[tuple[StudyRun, int]]:
    """Start or resume each run, and give it with the exit code of its training as it ends.

    When the generator is closed, trainings that are at work are asked to stop, and take a checkpoint.

    Args:
        runs: none of them done.
        processes: trainings at the same time.
        lock: descriptor that the trainings inherit.
    """
    waiting = list(runs)
    running: list[tuple[StudyRun, subprocess.Popen[bytes]]] = []
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                run = waiting.pop(0)
                print(f"maskwright: {run} ({len(runs) - len(waiting)} of {len(runs)} to train)", file=sys.stderr)
                running.append((run, _start(run, processes, lock)))
            time.sleep(_POLL_SECONDS)
            for ended in [pair for pair in running if pair[1].poll() is not None]:
                running.remove(ended)
                yield ended[0], ended[1].returncode
    finally:
        _stop([process for _, process in running])


@contextmanager
def alone_in(out: Path) -> Iterator[int]:
    """Hold the lock of a folder, whose descriptor is given: a training that inherits it keeps it if we are killed.

    Raises:
        UserError: another process works in the folder, or it cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / _LOCK).open("w")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    with file:
        if not try_lock(file.fileno()):
            raise UserError(
                f"{out}: another `maskwright study`, or a training that it started, is at work there; wait for its "
                "end, or give another --out"
            )
        yield file.fileno()


def _start(run: StudyRun, processes: int, lock: int) -> subprocess.Popen[bytes]:
    """Start a training out of reach of the terminal's Ctrl-C, which `_stop` passes on."""
    resume = ["--resume", "last"] if is_run(run.folder) else []
    environment, log = dict(os.environ), None
    if processes > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        log = run.log.open("ab")
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "maskwright", "train", *run.arguments, *resume],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # it says where the weights are; ours is for the table
            stderr=log,
            env=environment,
            start_new_session=True,
            pass_fds=(lock,) if os.name == "posix" else (),
        )
    finally:
        if log is not None:
            log.close()


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask trainings to stop, with a checkpoint; a second Ctrl-C ends them without one."""
    try:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
    except KeyboardInterrupt:
        for process in processes:
            process.kill()
            process.wait()
        raise
