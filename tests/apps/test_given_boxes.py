"""Which boxes belong to which picture: never those of another one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskwright.apps.given_boxes import boxes_of_images

BOX = [1, 2, 3, 4]


def given(content: dict, *images: str) -> list[list[list[float]]]:
    Path("boxes.json").write_text(json.dumps(content))
    return [found.boxes.tolist() for found in boxes_of_images("boxes.json", [Path(image) for image in images])]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_more_inline_boxes_than_a_file_name_has_letters():
    (found,) = boxes_of_images(";".join(["1,2,3,4"] * 1000), [Path("a.png")])
    assert found.boxes.tolist() == [BOX] * 1000
