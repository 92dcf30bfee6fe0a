"""The entries of an annotation file for COCO's own tools: kept as they stand where those can take them."""

import json
from pathlib import Path
from typing import Any

import pytest

from maskwright.data.ground_truth import read_ground_truth
from maskwright.errors import UserError

SQUARE = [[1, 1, 5, 1, 5, 5, 1, 5]]


def written(path: Path, annotations: list[dict[str, Any]]) -> Path:
    content = {
        "images": [{"id": "a", "file_name": "a.png", "height": 8, "width": 10}],
        "annotations": annotations,
        "categories": [{"id": 40, "name": "cat"}],
    }
    path.write_text(json.dumps(content))
    return path


def entry(number: int, **fields: Any) -> dict[str, Any]:
    values = {"id": number, "image_id": "a", "category_id": 40, "bbox": [1, 1, 4, 4], "area": 15.5, "iscrowd": 0}
    return {**values, "segmentation": SQUARE, **fields}


def test_what_cocos_tools_can_take_stays_as_it_is(tmp_path: Path):
    annotations = [
        entry(9, note="kept"),
        entry(3, segmentation={"size": [8, 10], "counts": [8, 72]}, iscrowd=1),
        entry(4, segmentation={"size": [8, 10], "counts": "8X2"}),
        entry(5, bbox=[20, 1, 4, 4]),
        {key: value for key, value in entry(6, bbox=[1, 1, 0, 4]).items() if key != "segmentation"},
        entry(7, segmentation=[[1, 1, 1, 1, 1, 1]]),
    ]
    assert read_ground_truth(written(tmp_path / "file.json", annotations)) == annotations


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [],
        [[1, 1, 5, 1]],
        [[1, 1, 5, 1, float("nan"), 5]],
        {"size": [8, 9], "counts": "8X2"},
        {"size": [8, 10], "counts": "8X"},
        {"size": [8, 10], "counts": [8, 71]},
        "polygon",
    ],
)
def test_a_segmentation_that_is_none_is_left_out(tmp_path: Path, segmentation: Any):
    (found,) = read_ground_truth(written(tmp_path / "file.json", [entry(1, segmentation=segmentation)]))
    assert found == {key: value for key, value in entry(1).items() if key != "segmentation"}


def test_entries_that_belong_nowhere_are_left_out_and_a_broken_file_is_refused(tmp_path: Path):
    boxes = [entry(4, bbox=None, segmentation=[]), entry(5, bbox=[1, 1, 4], segmentation=None)]
    stray = [entry(2, image_id="b"), entry(3, category_id=1), *boxes]
    assert read_ground_truth(written(tmp_path / "file.json", [*stray, entry(1)])) == [entry(1)]
    with pytest.raises(UserError, match="none of its 1 annotations can be used"):
        read_ground_truth(written(tmp_path / "file.json", [entry(1, image_id="b")]))


def test_an_unusable_image_costs_no_annotation_of_the_same_id(tmp_path: Path):
    file = written(tmp_path / "file.json", [entry(1), entry(2), entry(3)])
    content = json.loads(file.read_text())
    content["images"].append({"id": 2, "file_name": "b.png"})  # without a size
    file.write_text(json.dumps(content))
    assert [found["id"] for found in read_ground_truth(file)] == [1, 2, 3]


def test_entries_come_repaired(tmp_path: Path):
    broken = [entry(1, iscrowd="0"), entry(1, bbox=[]), entry(1, image_id="b"), entry(1, category_id=40.0)]
    assert read_ground_truth(written(tmp_path / "file.json", broken)) == [entry(1), entry(2), entry(4)]
