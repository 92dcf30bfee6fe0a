"""Tables and JSON: empty groups and order."""

import json

import pytest
import torch

from maskwright.evaluation.coco_ap import CocoAP
from maskwright.evaluation.mask_iou import MaskIoU
from maskwright.evaluation.report import format_table, summarize, tables_of
from maskwright.structures import InstancePrediction, Target


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
    content = json.loads(json.dumps(summarize(metric_of_two_classes()), allow_nan=False))
    assert content["mask_iou_seen"] == pytest.approx(0.75)
    assert content["mask_iou_large"] is None
    assert content["instances"] == 3
    assert isinstance(content["instances"], int)
    assert content["classes"] == [
        {"name": "cat", "seen": True, "instances": 2, "mask_iou": pytest.approx(0.75)},
        {"name": "dog", "seen": False, "instances": 1, "mask_iou": pytest.approx(0.25)},
    ]


def test_tables_show_groups_then_classes_with_the_worst_first():
    groups, classes = tables_of(metric_of_two_classes()).split("\n\n")
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


def detections_of_two_classes() -> CocoAP:
    """cat, seen: found; dog, unseen: not found, and one without a mask; owl: only one without a mask."""
    metric = CocoAP([{"id": index, "name": name} for index, name in enumerate(("cat", "dog", "owl"))], seen=["cat"])
    box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    guess = InstancePrediction(
        box, torch.tensor([0]), torch.ones(1), torch.ones(1), torch.ones(1, 4, 4), (8, 8), frame="pixel"
    )
    masks = torch.zeros(4, 8, 8, dtype=torch.bool)
    masks[:2, :4, :4] = True
    target: Target = {
        "boxes": box.repeat(4, 1),
        "labels": torch.tensor([0, 1, 1, 2]),
        "masks": masks,
        "has_mask": torch.tensor([True, True, False, False]),
        "iscrowd": torch.zeros(4, dtype=torch.bool),
        "ids": torch.arange(4),
        "image_id": 1,
    }
    metric.update([guess], [target])
    return metric


def test_detections_are_summed_up_without_nan_and_with_whole_counts():
    content = json.loads(json.dumps(summarize(detections_of_two_classes()), allow_nan=False))
    assert content["mask_ap"] == pytest.approx(0.5)
    assert content["mask_ap_seen"] == 1
    assert content["mask_ap_large"] is None
    assert (content["images"], content["instances"], content["instances_without_mask"]) == (1, 4, 2)
    assert isinstance(content["instances"], int)
    assert [list(row.values()) for row in content["classes"]] == [
        ["cat", True, 1, 0, pytest.approx(1), pytest.approx(1)],
        ["dog", False, 2, 1, 0, 0],
        ["owl", False, 1, 1, 0, None],
    ]


def test_tables_of_detections_show_groups_then_classes_and_how_many_were_ignored():
    precision, recall, classes, ignored = tables_of(detections_of_two_classes()).split("\n\n")
    lines = [line.split() for line in precision.split("\n")]
    assert lines[0] == ["AP", "AP50", "AP75", "small", "medium", "large"]
    assert ["masks,", "all", "classes", "0.500", "0.500", "0.500", "0.500", "-", "-"] in lines
    assert ["boxes,", "all", "classes", "0.333", "0.333", "0.333", "0.333", "-", "-"] in lines
    assert recall.split("\n")[0].split()[:3] == ["AR1", "AR10", "AR100"]
    assert [line.split() for line in classes.split("\n")[2:]] == [
        ["dog", "0.000", "0.000", "2", "unseen"],
        ["cat", "1.000", "1.000", "1", "seen"],
        ["owl", "-", "0.000", "1", "unseen"],
    ]
    assert ignored.startswith("1 images, 4 instances; 2 of them have no mask")
