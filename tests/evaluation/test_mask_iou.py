"""Mask IoU: hand-computed cases, groups, and the region-only computation against whole planes."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.evaluation.mask_iou import MaskIoU
from maskwright.structures import Category, EncodedMasks, InstancePrediction, Target

CATEGORIES: list[Category] = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 9, "name": "owl"}]


def target_of(masks: torch.Tensor | EncodedMasks, labels: list[int], **fields: Any) -> Target:
    count = len(masks)
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(count, 1)
    target: Target = {
        "boxes": boxes,
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": masks,
        "has_mask": torch.ones(count, dtype=torch.bool),
        "iscrowd": torch.zeros(count, dtype=torch.bool),
        "ids": torch.arange(count),
        "image_id": 5,
    }
    return {**target, **fields}  # type: ignore[typeddict-item]


def rectangle(size: tuple[int, int], x1: int, y1: int, x2: int, y2: int) -> torch.Tensor:
    mask = torch.zeros(1, *size, dtype=torch.bool)
    mask[0, y1:y2, x1:x2] = True
    return mask


def prediction_of(probabilities: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int], **fields: Any):
    count = len(boxes)
    return InstancePrediction(
        **{
            "boxes": boxes,
            "labels": torch.full((count,), -1),
            "scores": torch.ones(count),
            "mask_scores": torch.ones(count),
            "mask_probabilities": probabilities,
            "image_size": size,
            "frame": "pixel",
            **fields,
        }
    )


def test_iou_of_two_known_rectangles():
    metric = MaskIoU(CATEGORIES, seen=[])
    truth = rectangle((20, 30), 2, 3, 12, 13)  # 10 x 10
    predicted = rectangle((20, 30), 7, 3, 17, 13)  # half of it, and as much beside it
    metric.update([predicted], [target_of(truth, [1])])
    assert metric.compute()["mask_iou"] == pytest.approx(50 / 150)


def test_a_prediction_counts_the_true_mask_outside_its_box():
    metric = MaskIoU(CATEGORIES, seen=[])
    truth = rectangle((20, 30), 0, 0, 20, 10)  # 200 pixels, of which the box covers the left half
    filled = prediction_of(torch.ones(1, 4, 4), torch.tensor([[0.0, 0.0, 10.0, 10.0]]), (20, 30))
    metric.update([filled], [target_of(truth, [0])])
    assert metric.compute()["mask_iou"] == pytest.approx(0.5)


def test_means_over_instances_and_over_classes_seen_and_unseen():
    metric = MaskIoU(CATEGORIES, seen=["dog"])
    truth = rectangle((10, 10), 0, 0, 10, 10).repeat(4, 1, 1)
    shares = [10, 5, 4, 1]  # rows predicted of ten: IoU 1, 0.5, 0.4, 0.1
    predicted = torch.cat([rectangle((10, 10), 0, 0, 10, rows) for rows in shares])
    metric.update([predicted], [target_of(truth, [0, 0, 1, 1])])
    result = metric.compute()
    expected = {
        "mask_iou": 0.5,
        "mask_iou_seen": 0.25,
        "mask_iou_unseen": 0.75,
        "class_mask_iou": 0.5,
        "class_mask_iou_seen": 0.25,
        "class_mask_iou_unseen": 0.75,
        "instances": 4,
        "instances_seen": 2,
        "instances_unseen": 2,
    }
    assert {key: result[key] for key in expected} == pytest.approx(expected)
    assert [(row.name, row.seen, row.instances) for row in metric.per_class()] == [
        ("cat", False, 2),
        ("dog", True, 2),
        ("owl", False, 0),
    ]


def test_class_mean_weighs_classes_not_instances():
    metric = MaskIoU(CATEGORIES, seen=["cat", "dog"])
    truth = rectangle((10, 10), 0, 0, 10, 10).repeat(3, 1, 1)
    predicted = torch.cat([rectangle((10, 10), 0, 0, 10, rows) for rows in (10, 10, 4)])
    metric.update([predicted], [target_of(truth, [0, 0, 1])])
    result = metric.compute()
    assert result["mask_iou"] == pytest.approx(0.8)
    assert result["class_mask_iou"] == result["class_mask_iou_seen"] == pytest.approx(0.7)
    assert math.isnan(result["class_mask_iou_unseen"])


def test_crowds_and_rows_without_a_mask_do_not_count():
    metric = MaskIoU(CATEGORIES, seen=[])
    truth = rectangle((10, 10), 0, 0, 10, 10).repeat(3, 1, 1)
    predicted = torch.cat([rectangle((10, 10), 0, 0, 10, rows) for rows in (6, 1, 1)])
    flags = {"has_mask": torch.tensor([True, False, True]), "iscrowd": torch.tensor([False, False, True])}
    metric.update([predicted], [target_of(truth, [0, 0, 0], **flags)])
    result = metric.compute()
    assert result["instances"] == 1
    assert result["mask_iou"] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("side", "key"), [(31, "small"), (32, "medium"), (95, "medium"), (96, "large")], ids=["31", "32", "95", "96"]
)
def test_size_classes_are_cocos(side: int, key: str):
    metric = MaskIoU(CATEGORIES, seen=[])
    truth = rectangle((100, 100), 0, 0, side, side)
    metric.update([truth], [target_of(truth, [0])])
    result = metric.compute()
    sizes = {name: result[f"mask_iou_{name}"] for name in ("small", "medium", "large")}
    assert sizes.pop(key) == 1
    assert all(math.isnan(value) for value in sizes.values())


def test_nothing_at_all_is_nan_with_the_documented_keys():
    metric = MaskIoU(CATEGORIES, seen=["cat"])
    metric.update([torch.zeros(0, 4, 4, dtype=torch.bool)], [target_of(torch.zeros(0, 4, 4, dtype=torch.bool), [])])
    result = metric.compute()
    means = ["mask_iou", "mask_iou_seen", "mask_iou_unseen"]
    means += [f"class_{key}" for key in means] + [f"mask_iou_{size}" for size in ("small", "medium", "large")]
    counts = ["instances", "instances_seen", "instances_unseen"]
    assert set(result) == {*means, *counts}
    assert all(math.isnan(result[key]) for key in means)
    assert all(result[key] == 0 for key in counts)


def test_an_empty_prediction_of_an_empty_mask_scores_zero():
    metric = MaskIoU(CATEGORIES, seen=[])
    empty = torch.zeros(1, 4, 4, dtype=torch.bool)
    metric.update([empty], [target_of(empty, [0])])
    assert metric.compute()["mask_iou"] == 0


@settings(max_examples=40, deadline=None)
@given(
    corners=st.lists(st.tuples(*[st.floats(-8, 40)] * 4), min_size=1, max_size=4),
    frame=st.sampled_from(["corner", "pixel"]),
    seed=st.integers(0, 99),
)
def test_regions_score_like_pasted_planes(corners: list[tuple[float, ...]], frame: str, seed: int):
    """Boxes may reach over the image's edge, or lie outside of it."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor([[min(a, c), min(b, d), max(a, c) + 1, max(b, d) + 1] for a, b, c, d in corners])
    probabilities = torch.rand(len(boxes), 6, 6, generator=generator)
    prediction = prediction_of(probabilities, boxes, (24, 32), frame=frame)
    truth = torch.rand(len(boxes), 24, 32, generator=generator) > 0.5
    target = target_of(truth, [0] * len(boxes))
    by_region, by_plane = MaskIoU(CATEGORIES, seen=[]), MaskIoU(CATEGORIES, seen=[])
    by_region.update([prediction], [target])
    by_plane.update([prediction.masks], [target])
    by_run_lengths = MaskIoU(CATEGORIES, seen=[])
    by_run_lengths.update([prediction], [target_of(EncodedMasks.from_planes(truth), [0] * len(boxes))])
    assert torch.equal(by_region.state()[:, :3], by_plane.state()[:, :3])  # planes have no scores
    assert torch.equal(by_region.state(), by_run_lengths.state())


def test_merged_states_are_the_whole_and_reset_forgets():
    generator = torch.Generator().manual_seed(0)
    whole, parts = MaskIoU(CATEGORIES, seen=["cat"]), [MaskIoU(CATEGORIES, seen=["cat"]) for _ in range(2)]
    for index in range(40):
        truth, predicted = (torch.rand(2, 8, 8, generator=generator) > 0.5 for _ in range(2))
        target = target_of(truth, [index % 3, 0])
        whole.update([predicted], [target])
        parts[index % 2].update([predicted], [target])
    parts[0].merge(parts[1].state())
    # To the last digit, though the instances are summed in another order.
    assert parts[0].compute() == pytest.approx(whole.compute(), nan_ok=True, abs=0, rel=0)
    assert parts[0].compute()["instances"] == 80
    parts[0].reset()
    assert parts[0].compute()["instances"] == 0


def test_wrong_input_is_refused_with_the_image_named():
    metric = MaskIoU(CATEGORIES, seen=[])
    masks = rectangle((10, 10), 0, 0, 5, 5)
    with pytest.raises(ValueError, match="one prediction per target, but got 1 and 2"):
        metric.update([masks], [target_of(masks, [0])] * 2)
    with pytest.raises(ValueError, match="image 5: expected a prediction for each of the 1 target rows, but got 2"):
        metric.update([masks.repeat(2, 1, 1)], [target_of(masks, [0])])
    with pytest.raises(ValueError, match=r"image 5: predictions are for an image of \(9, 10\)"):
        metric.update([masks[:, :9]], [target_of(masks, [0])])
    with pytest.raises(ValueError, match="not: unicorn"):
        MaskIoU(CATEGORIES, seen=["cat", "unicorn"])
