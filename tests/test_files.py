"""Files are whole or not there."""

import json
import math
from pathlib import Path

import pytest

from maskwright.errors import UserError
from maskwright.files import read_json_object, write_json, write_whole


def test_json_file_is_replaced_whole_or_not_at_all(tmp_path: Path):
    file = tmp_path / "out.json"
    write_json(file, {"a": 1})
    with pytest.raises(ValueError):
        write_json(file, {"a": math.nan})
    assert json.loads(file.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_a_folder_that_is_not_there_is_a_users_mistake(tmp_path: Path):
    with pytest.raises(UserError, match=r"cannot write .*out\.json: No such file"):
        write_json(tmp_path / "missing" / "out.json", {})
    with pytest.raises(UserError, match=r"cannot write .*: Is a directory"):
        write_json(tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path):
    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "a").write_text("1")

    write_whole(tmp_path / "made", write)
    assert (tmp_path / "made" / "a").read_text() == "1"

    def fail(folder: Path) -> None:
        write(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "broken", fail)
    with pytest.raises(UserError, match=r"cannot write .*made: Directory not empty"):
        write_whole(tmp_path / "made", write)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read the box file .*in.json: No such file or directory; expected boxes"),
        ("", "in.json is not a JSON file: it is empty; expected boxes"),
        ("[]", "expected a JSON object with the keys 'a', but got a list; expected boxes"),
        ('{"b": 1}', r"expected the keys 'a', but it lacks 'a' \(keys found: 'b'\); expected boxes"),
    ],
)
def test_a_json_file_that_is_no_such_object(tmp_path: Path, content: str | None, words: str):
    if content is not None:
        (tmp_path / "in.json").write_text(content)
    with pytest.raises(UserError, match=words):
        read_json_object(tmp_path / "in.json", ["a"], kind="box file", hint="expected boxes")
    (tmp_path / "in.json").write_text('{"a": 1}')
    assert read_json_object(tmp_path / "in.json", ["a"]) == {"a": 1}
