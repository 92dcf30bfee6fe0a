"""The journal of a long job: what was appended is there again, whatever happened since."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maskwright.errors import UserError
from maskwright.journal import Journal

JOB = {"model": "abc", "score_threshold": 0.3, "boxes": None}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "predictions.journal"


def write(path: Path, items: dict[int, Any]) -> None:
    with Journal.open(path, JOB) as journal:
        for position, item in items.items():
            journal.append(position, item)


def read(path: Path) -> dict[int, Any]:
    with Journal.open(path, JOB) as journal:
        return dict(journal.items())


def test_items_come_back_by_position_with_every_value(path: Path):
    write(path, {3: {"counts": "a\nb", "score": 0.1 + 0.2}, 0: [None, "é", "\U0001f600"]})
    write(path, {1: []})
    assert list(read(path).items()) == [
        (0, [None, "é", "\U0001f600"]),
        (1, []),
        (3, {"counts": "a\nb", "score": 0.1 + 0.2}),
    ]
    with Journal.open(path, JOB) as journal:
        assert [position in journal for position in range(4)] == [True, True, False, True]
        assert len(journal) == 3
        journal.finish()
    assert not path.exists()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 400))
@example(length=1)
def test_cut_anywhere_the_whole_lines_before_are_kept_and_the_rest_is_written_anew(tmp_path_factory, length: int):
    path = tmp_path_factory.mktemp("cut") / "journal"
    items = {position: "x" * position for position in range(8)}
    write(path, items)
    content = path.read_bytes()
    ends = [at + 1 for at, byte in enumerate(content) if byte == 10]
    path.write_bytes(content[:length])
    kept = read(path)
    assert kept == {position: items[position] for position, end in enumerate(ends[1:]) if end <= length}
    write(path, {position: item for position, item in items.items() if position not in kept})
    assert path.read_bytes() == content


def test_a_line_that_does_not_fit_its_checksum_costs_itself(path: Path):
    write(path, {0: "aaa", 1: "bbb", 2: "ccc"})
    path.write_bytes(path.read_bytes().replace(b"bbb", b"bxb"))
    assert read(path) == {0: "aaa", 2: "ccc"}


def test_another_job_is_refused_and_named(path: Path):
    write(path, {0: 1})
    with pytest.raises(
        UserError, match=r"with another score_threshold \(0\.3, now 0\.5\), boxes: give that command again"
    ):
        Journal.open(path, {**JOB, "score_threshold": 0.5, "boxes": "f00"})
    with pytest.raises(UserError, match="with another precision"):
        Journal.open(path, {**JOB, "precision": "bfloat16"})
    assert read(path) == {0: 1}


@pytest.mark.parametrize("content", ["mine", "mine\n", '{"images": []}\n'])
def test_another_file_is_not_touched(path: Path, content: str):
    path.write_text(content)
    with pytest.raises(UserError, match="is no journal of maskwright"):
        Journal.open(path, JOB)
    assert path.read_text() == content


@pytest.mark.skipif(os.name == "nt", reason="no locks there")
def test_two_processes_do_not_write_to_one_journal(path: Path):
    with Journal.open(path, JOB), pytest.raises(UserError, match="another process is writing to it"):
        Journal.open(path, JOB)


def test_a_full_disk_is_one_sentence_and_costs_the_last_item_only(path: Path, monkeypatch: pytest.MonkeyPatch):
    with Journal.open(path, JOB) as journal:
        journal.append(0, "kept")
        whole = journal._file

        class Full:
            def write(self, line: memoryview) -> int:
                if len(line) < 100:
                    raise OSError(28, "No space left on device")
                return whole.write(line[:50])

            def __getattr__(self, name: str) -> Any:
                return getattr(whole, name)

        monkeypatch.setattr(journal, "_file", Full())
        with pytest.raises(UserError, match="No space left on device"):
            journal.append(1, "x" * 100)
    assert read(path) == {0: "kept"}
