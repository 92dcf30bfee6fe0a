"""A long command that is killed at random moments, again and again; the tests of `predict` and `complete` share it.

    python tests/killed_runs.py JOURNAL KILLS WHOLE MODULE COMMAND...

In a process of its own, which imports MODULE and with it all that the command needs once: each run is a child of it.
Each kill hits a run at work; what stands in the journal stays there, byte for byte, and no picture is made twice.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path


def run_killed(command: list[str], journal: Path, kills: int, whole: str, module: str) -> None:
    """Run a command unbroken, with `--out WHOLE`, and then killed so many times until it ends, as it must, with 3."""
    arguments = [sys.executable, __file__, str(journal), str(kills), whole, module, *command]
    ended = subprocess.run(arguments, capture_output=True, timeout=3600, check=False, text=True)
    assert ended.returncode == 3, ended.stderr
    assert ended.stderr.count("going on; ") == kills
    assert not journal.exists()


def _child(command: list[str]) -> int:
    from maskwright.cli import main

    pid = os.fork()
    if not pid:
        os.nice(10)  # on a busy machine the killer comes first, or the run would end before it is killed
        os._exit(main(command))
    return pid


def _exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _lines(journal: Path) -> bytes:
    content = journal.read_bytes() if journal.exists() else b""
    return content[: content.rfind(b"\n") + 1]  # what a kill tore counts as not written


def _kill_at_work(running: int, journal: Path, kept: bytes, moment: float) -> None:
    """Kill a run so many seconds after it has written something."""
    while _lines(journal).count(b"\n") <= max(1, kept.count(b"\n")):  # the first line says what the run is
        if os.waitpid(running, os.WNOHANG)[0]:
            sys.exit("the run ended before it was killed")
        time.sleep(0.001)
    time.sleep(moment)
    if os.waitpid(running, os.WNOHANG)[0]:
        sys.exit("the run ended before it was killed")
    os.kill(running, signal.SIGKILL)
    os.waitpid(running, 0)


def main(journal: Path, kills: int, whole: str, module: str, command: list[str]) -> int:
    """The exit code of the last run."""
    import_module(module)
    if _exit_code(_child([*command, "--out", whole, "--processes", "1"])) != 3:
        sys.exit("the unbroken run failed")
    moments, kept = random.Random(0), b""
    for kill in range(kills):
        _kill_at_work(_child(command), journal, kept, moments.uniform(0, 0.05))
        before, kept = kept, _lines(journal)
        if not kept.startswith(before):
            sys.exit(f"kill {kill} lost something")
    positions = [json.loads(line)[1][0] for line in kept.splitlines()]
    if len(positions) != len(set(positions)):
        sys.exit("a picture was made twice")
    return _exit_code(_child(command))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:]))
