"""Which boxes belong to which picture: never those of another one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskwright.apps.given_boxes import boxes_of_images
from maskwright.errors import UserError

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


@pytest.mark.parametrize(
    ("keys", "image", "expected"),
    [
        (["1.jpg"], "val/1.jpg", "1.jpg"),
        (["./1.jpg"], "val/1.jpg", "./1.jpg"),
        (["val/1.jpg", "1.jpg", "train/1.jpg"], "val/1.jpg", "val/1.jpg"),
        (["val/1.jpg", "train/1.jpg"], "deep/val/1.jpg", "val/1.jpg"),
        (["1.jpg", "train/1.jpg"], "val/1.jpg", "1.jpg"),
        (["../val/1.jpg"], "../val/1.jpg", "../val/1.jpg"),
        (["/data/val/1.jpg"], "/data/val/1.jpg", "/data/val/1.jpg"),
    ],
)
def test_a_key_means_the_pictures_whose_path_ends_with_it(keys: list[str], image: str, expected: str):
    content = {key: [[0, 0, 9, 9]] for key in keys} | {expected: [BOX]}
    assert given(content, image) == [[BOX]]


@pytest.mark.parametrize(
    ("keys", "image", "words"),
    [
        (
            ["train/1.jpg"],
            "val/1.jpg",
            r"boxes\.json: has no entry for the image val/1\.jpg \(it has 1: train/1\.jpg\)",
        ),
        (["/data/train/1.jpg"], "1.jpg", r"no entry for the image 1\.jpg"),
        (["1.jpg", "./1.jpg"], "val/1.jpg", r"val/1\.jpg may be any of 1\.jpg, \./1\.jpg"),
        (["2.jpg", ""], "1.jpg", r"no entry for the image 1\.jpg"),
    ],
)
def test_boxes_of_another_picture_are_not_taken(keys: list[str], image: str, words: str):
    with pytest.raises(UserError, match=words):
        given({key: [BOX] for key in keys}, image)


def test_two_pictures_do_not_share_an_entry():
    with pytest.raises(UserError, match=r"'1\.jpg' may mean train/1\.jpg and val/1\.jpg; .*folder"):
        given({"1.jpg": [BOX]}, "train/1.jpg", "val/1.jpg")
    assert given({"1.jpg": [BOX], "val/1.jpg": []}, "train/1.jpg", "val/1.jpg") == [[BOX], []]


def coco(*file_names: str) -> dict:
    images = [{"id": i, "file_name": name, "width": 9, "height": 9} for i, name in enumerate(file_names)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [i, 0, 1, 1]} for i in range(len(images))]
    return {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}


def test_a_coco_file_is_matched_alike():
    assert given(coco("train/1.jpg", "val/1.jpg"), "deep/val/1.jpg", "train/1.jpg") == [[[1, 0, 2, 1]], [[0, 0, 1, 1]]]
    with pytest.raises(UserError, match=r"no entry for the image 1\.jpg"):
        given(coco("train/1.jpg"), "1.jpg")
    with pytest.raises(UserError, match="may mean"):
        given(coco("1.jpg"), "train/1.jpg", "val/1.jpg")
    with pytest.raises(UserError, match=r"image 1: image 'file_name' 'a\.jpg' is not unique"):
        given(coco("a.jpg", "a.jpg"), "a.jpg")


def test_no_boxes_at_all_in_a_file():
    with pytest.raises(UserError, match=r"boxes\.json: it names no image; expected"):
        given({}, "a.jpg")


@pytest.mark.parametrize("number", ["1" + "0" * 308, "1" + "0" * 400])
def test_a_number_too_large_for_a_box(number: str):
    Path("boxes.json").write_text(f'{{"a.jpg": [[0, 0, {number}, 5]]}}')
    with pytest.raises(UserError, match=r"at 'a\.jpg', box 0: expected finite numbers"):
        boxes_of_images("boxes.json", [Path("a.jpg")])
