"""Files are whole or not there."""

import json
import math
from pathlib import Path

import pytest

from maskwright.errors import UserError
from maskwright.files import write_json


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
