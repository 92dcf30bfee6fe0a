"""Work shared among processes: called by any kind of main program, and what cannot be handed over."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from maskwright.apps.processes import in_processes
from maskwright.errors import UserError

SCRIPT = """
import math
from maskwright.apps.processes import in_processes
print("begins", in_processes(math.sqrt, [1.0, 4.0]))
"""


class Unpicklable:
    def __reduce__(self):
        raise TypeError("there is no pickling this")


def run(*command: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=60, **options)


def test_a_script_without_a_guard_is_run_once(tmp_path: Path):
    (tmp_path / "script.py").write_text(SCRIPT)
    ended = run(str(tmp_path / "script.py"))
    assert (ended.stdout, ended.stderr, ended.returncode) == ("begins [1.0, 2.0]\n", "", 0)


def test_standard_input_can_share_its_work():
    ended = run("-", input=SCRIPT)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("begins [1.0, 2.0]\n", "", 0)


def test_what_the_main_program_defines_is_refused_and_the_main_module_is_back(tmp_path: Path):
    (tmp_path / "script.py").write_text(
        "import sys\n"
        "from maskwright.apps.processes import in_processes\n"
        "from maskwright.errors import UserError\n"
        "class Own: pass\n"
        "main = sys.modules['__main__']\n"
        "try:\n"
        "    in_processes(len, [Own(), Own()])\n"
        "except UserError as error:\n"
        "    print(error)\n"
        "assert sys.modules['__main__'] is main\n"
    )
    ended = run(str(tmp_path / "script.py"))
    assert ended.stderr == ""
    assert "Own" in ended.stdout
    assert "take processes=1, or, where a class is one of the main program, define it in a module" in ended.stdout


def test_what_no_process_can_take_is_refused():
    with pytest.raises(UserError, match=r"cannot be handed to several processes \(there is no pickling this\)"):
        in_processes(repr, [Unpicklable(), Unpicklable()])
