"""Tables and JSON: empty groups, order, and files that are whole or not there."""

import json
import math
from pathlib import Path

import pytest
import torch

from maskwright.errors import UserError
from maskwright.evaluation.mask_iou import MaskIoU
from maskwright.evaluation.report import format_table, mask_iou_summary, mask_iou_tables, write_json
from maskwright.structures import Target


def metric_of_two_classes() -> MaskIoU:
    """cat, seen: IoU 0.75 twice; dog, unseen: 0.25; owl, unseen: no instance. All of 100 pixels."""
    metric = MaskIoU([{"id": index, "name": name} for index, name in enumerate(("cat", "dog", "owl"))], seen=["cat"])
    truth = torch.ones(3, 4, 25, dtype=torch.bool)
    predicted = truth.clone()
    predicted[:2, 3:], predicted[2, 1:] = False, False
    target: Target = {
        "boxes": torch.zeros(3, 4),
        "labels": torch.tensor([0, 0, 1]),
        "masks": truth,
        "has_mask": torch.ones(3, dtype=torch.bool),
        "iscrowd": torch.zeros(3, dtype=torch.bool),
        "ids": torch.arange(3),
        "image_id": 1,
    }
    metric.update([predicted], [target])
    return metric


def test_table_is_aligned_and_shows_no_mean_as_a_dash():
    assert format_table(["name", "value"], [["long name", 0.5], ["x", None], ["y", 12]]).split("\n") == [
        "name       value",
        "---------  -----",
        "long name  0.500",
        "x              -",
        "y             12",
    ]
    with pytest.raises(ValueError, match="2 cells"):
        format_table(["name", "value"], [["x"]])


def test_summary_has_null_for_an_empty_group_and_whole_numbers_for_counts():
    content = json.loads(json.dumps(mask_iou_summary(metric_of_two_classes()), allow_nan=False))
    assert content["mask_iou_seen"] == pytest.approx(0.75)
    assert content["mask_iou_large"] is None
    assert content["instances"] == 3
    assert isinstance(content["instances"], int)
    assert content["classes"] == [
        {"name": "cat", "seen": True, "instances": 2, "mask_iou": pytest.approx(0.75)},
        {"name": "dog", "seen": False, "instances": 1, "mask_iou": pytest.approx(0.25)},
    ]


def test_tables_show_groups_then_classes_with_the_worst_first():
    groups, classes = mask_iou_tables(mask_iou_summary(metric_of_two_classes())).split("\n\n")
    assert [line.split() for line in groups.split("\n")[2:]] == [
        ["all", "classes", "0.583", "0.500", "3"],
        ["seen", "classes", "0.750", "0.750", "2"],
        ["unseen", "classes", "0.250", "0.250", "1"],
        ["small", "objects", "0.583"],
        ["medium", "objects", "-"],
        ["large", "objects", "-"],
    ]
    assert [line.split() for line in classes.split("\n")[2:]] == [
        ["dog", "0.250", "1", "unseen"],
        ["cat", "0.750", "2", "seen"],
    ]


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
