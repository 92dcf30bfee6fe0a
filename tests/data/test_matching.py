"""Names of other systems and machines to pictures: what is clear is taken, what is not is named."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskwright.data.matching import match_names


def found(names: list[str], *pictures: str) -> list[str | None]:
    matches = match_names(names, [Path(picture) for picture in pictures])
    return [None if at is None else pictures[at] for at in matches.pictures]


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("1.jpg", "val/1.jpg"),
        ("./1.jpg", "val/1.jpg"),
        ("../val/1.jpg", "../val/1.jpg"),
        ("/data/val/1.jpg", "/data/val/1.jpg"),
        ("val\\1.jpg", "val/1.jpg"),
        ("C:\\Users\\Ann\\val\\1.jpg", "val/1.jpg"),
        ("D:/work/1.jpg", "val/1.jpg"),
        ("/home/ann/project/val/1.jpg", "val/1.jpg"),
        ("..\\..\\media\\upload\\4\\1.jpg", "val/1.jpg"),
        ("my%20house%281%29.jpg", "val/my house(1).jpg"),
        ("my house.jpg", "val/my%20house.jpg"),
        ("https://host.org/train2017/1.jpg?size=full", "train2017/1.jpg"),
        ("s3://bucket/train/1.jpg", "train/1.jpg"),
        ("/data/local-files/?d=val/1.jpg", "val/1.jpg"),
        ("file:///C:/pictures/1.jpg", "1.jpg"),
        (unicodedata.normalize("NFD", "Zürich/Straße.jpg"), unicodedata.normalize("NFC", "Zürich/Straße.jpg")),
        (unicodedata.normalize("NFC", "val/Ångström.png"), unicodedata.normalize("NFD", "val/Ångström.png")),
        ("IMG_1.JPG", "val/IMG_1.jpg"),
        ("img_1.jpg", "val/IMG_1.JPG"),
        ("100%.jpg", "val/100%.jpg"),
    ],
)
def test_one_name_and_its_picture_beside_others(name: str, picture: str):
    assert found([name], "val/other.jpg", picture, "val/1.png") == [picture]


def test_the_longest_name_that_fits_is_meant():
    assert found(["val/1.jpg", "1.jpg", "train/1.jpg"], "val/1.jpg") == ["val/1.jpg", None, None]
    assert found(["1.jpg", "val/1.jpg"], "train/1.jpg", "val/1.jpg") == ["train/1.jpg", "val/1.jpg"]
    assert found(["a.jpg", "A.jpg"], "A.jpg") == [None, "A.jpg"]


def test_the_same_path_twice_means_the_same_picture():
    assert found(["a.jpg", "b.jpg", "./a.jpg", "a.jpg"], "x/a.jpg", "x/b.jpg") == ["x/a.jpg", "x/b.jpg"] + 2 * [
        "x/a.jpg"
    ]


def test_the_longest_common_end_decides():
    names = ["/mnt/a/left/1.jpg", "/mnt/a/right/1.jpg"]
    assert found(names, "p/right/1.jpg", "p/left/1.jpg") == ["p/left/1.jpg", "p/right/1.jpg"]


@pytest.mark.parametrize(
    ("names", "pictures", "ambiguous"),
    [
        (["1.jpg"], ["train/1.jpg", "val/1.jpg"], {0: [0, 1]}),
        (["x/1.jpg", "y/1.jpg"], ["z/1.jpg"], {0: [0], 1: [0]}),
        (["/mnt/1.jpg"], ["train/1.jpg", "val/1.jpg"], {0: [0, 1]}),
        (["1.JPG"], ["1.jpg", "1.Jpg"], {0: [0, 1]}),
    ],
)
def test_what_is_not_clear_is_named_and_not_guessed(names: list[str], pictures: list[str], ambiguous: dict):
    matches = match_names(names, [Path(picture) for picture in pictures])
    assert matches.pictures == [None] * len(names)
    assert matches.ambiguous == ambiguous


def test_what_another_match_leaves_over_is_not_taken_for_want_of_others():
    assert found(["a/x/1.jpg", "b/1.jpg"], "x/1.jpg", "y/1.jpg") == ["x/1.jpg", None]


def test_a_folder_that_other_names_give_correctly_is_not_given_by_another_name():
    names = ["val/1.jpg", "train/2.jpg"]
    assert found(names, "val/1.jpg", "val/2.jpg") == ["val/1.jpg", None]
    assert match_names(["/other/1.jpg", "2.jpg"], [Path("val/1.jpg"), Path("val/2.jpg")]).other_prefix == [0]


letters = st.text("abAB%2é\\", min_size=1, max_size=3)


@given(st.lists(st.lists(letters, min_size=1, max_size=3).map("/".join), unique=True, max_size=6))
def test_files_that_are_named_as_they_are_are_found(names: list[str]):
    assert found(names, *[f"root/{name}" for name in names]) == [f"root/{name}" for name in names]
