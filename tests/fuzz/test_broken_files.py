"""Broken files, thousands of kinds: an exit code, a sentence, no traceback, and what is whole comes out whole.

`MASKWRIGHT_FUZZ_CASES` says how many cases are tried (300), `MASKWRIGHT_FUZZ_FIRST` the number of the first (0).
"""

from __future__ import annotations

import json
import os
import signal
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from broken_files import PICTURES, break_world, commands, write_world

from conftest import EllipseModel
from maskwright.cli import main

FIRST = int(os.environ.get("MASKWRIGHT_FUZZ_FIRST", "0"))
CASES = int(os.environ.get("MASKWRIGHT_FUZZ_CASES", "300"))
AT_ONCE = 20
PATCHED = ("predictor", "apps.weights")
HANG = 60  # seconds; a case takes a tenth of one


@contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """Raise where the code hangs."""

    def hang(*_: Any) -> None:
        raise TimeoutError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def ellipses(monkeypatch: pytest.MonkeyPatch, ellipse_model: Any) -> None:
    """No network: the reading of files is what is tried."""
    for module in PATCHED:
        monkeypatch.setattr(f"maskwright.{module}.from_pretrained", lambda _: ellipse_model)


def has_results(command: list[str]) -> bool:
    """Whether it writes masks by picture."""
    return command[0] in ("predict", "complete") and "--undo" not in command


def results_by_picture(command: list[str], folder: Path) -> dict[Any, list[Any]]:
    results: dict[Any, list[Any]] = defaultdict(list)
    if command[0] == "complete":
        entries = json.loads((folder / "completed.json").read_text())["annotations"]
        entries = [entry for entry in entries if isinstance(entry, dict)]
        return {f"im{row}.jpg": [e for e in entries if e.get("image_id") == row + 1] for row in range(PICTURES)}
    for entry in json.loads((folder / "out" / "predictions.json").read_text()):
        name = entry["image_id"] if isinstance(entry["image_id"], str) else f"im{entry['image_id'] - 1}.jpg"
        results[name].append({key: entry[key] for key in ("segmentation", "bbox", "score") if key in entry})
    return results


def undone(file: Path) -> bytes:
    """A file as `--undo` gives it back; as it is where there is nothing to undo."""
    out = file.with_name("back.json")
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        code = main(["complete", str(file), "--undo", "--out", str(out)])
    return out.read_bytes() if code == 0 else file.read_bytes()


def without_folder(command: list[str], folder: Path) -> tuple[str, ...]:
    return tuple(part.replace(str(folder), "") for part in command)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], dict[Any, list[Any]]]:
    """The results of the unbroken files, by command."""
    found = {}
    folder = tmp_path_factory.mktemp("whole") / "world"
    write_world(folder)
    with pytest.MonkeyPatch.context() as patch:
        for module in PATCHED:
            patch.setattr(f"maskwright.{module}.from_pretrained", lambda _: EllipseModel())
        for command in filter(has_results, chain(*commands(folder).values())):
            assert main(command) == 0
            found[without_folder(command, folder)] = results_by_picture(command, folder)
    return found


@pytest.mark.parametrize("first", range(FIRST, FIRST + CASES, AT_ONCE))
@pytest.mark.usefixtures("ellipses")
def test_a_broken_file_gets_an_exit_code_and_a_sentence(
    first: int, whole: dict[tuple[str, ...], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(first, min(first + AT_ONCE, FIRST + CASES)):
        folder = tmp_path / str(number)
        broken = break_world(number, folder)
        with alarm(HANG):
            try:
                code = main(broken.command)
            except BaseException as error:
                raise AssertionError(f"{broken.what}: {broken.command}") from error
        printed = capsys.readouterr()
        text = f"{broken.what}: {broken.command}\nexit code {code}\n{printed.out}\n{printed.err}"
        assert code in (0, 2, 3), text
        assert "Traceback" not in printed.err, text
        if code:
            assert printed.err.strip() or "problems:" in printed.out, text
            assert max(map(len, printed.err.splitlines() or [""])) < 1500, text
        if has_results(broken.command) and broken.hurt is not None:
            assert code != 2, f"one entry stopped the rest: {text}"
            expected = whole[without_folder(broken.command, folder)]
            found = results_by_picture(broken.command, folder)
            for name in set(expected) - broken.hurt:
                assert found[name] == expected[name], f"{name} differs: {text}"
        if (folder / "completed.json").exists():
            assert undone(folder / "completed.json") == undone(folder / "incomplete.json"), text
