"""What the head of a training forward refuses."""

import pytest
import torch

from maskwright.structures import PanopticTarget, check_panoptic_targets

IMAGE = torch.zeros(3, 2, 3, dtype=torch.uint8)


def target(**changes) -> PanopticTarget:
    fields = {
        "segmentation": torch.tensor([[0, 0, -1], [1, 1, -1]], dtype=torch.int32),
        "labels": torch.tensor([4, 0]),
        "iscrowd": torch.tensor([False, True]),
        "ids": torch.tensor([11, 12]),
        "image_id": 5,
        **changes,
    }
    return PanopticTarget(**{key: value for key, value in fields.items() if value is not None})


def test_good_targets():
    nothing = torch.zeros(0, dtype=torch.int64)
    empty = target(segmentation=torch.full((2, 3), -1).int(), labels=nothing, iscrowd=nothing.bool(), ids=nothing)
    whole = target(segmentation=torch.zeros(2, 3).int())  # and a segment without a pixel
    check_panoptic_targets([IMAGE] * 3, [target(), empty, whole], num_classes=5)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"segmentation": torch.zeros(2, 3)}, TypeError, "'segmentation' must be a tensor of torch.int32, but got"),
        ({"segmentation": torch.zeros(3, 3).int()}, ValueError, r"'segmentation' must be \[2, 3\], but got \[3, 3\]"),
        ({"segmentation": torch.full((2, 3), 2).int()}, ValueError, r"rows of the 2 segments, but got 2\.\.2"),
        ({"segmentation": torch.full((2, 3), -2).int()}, ValueError, r"-1 \(void\)"),
        ({"segmentation": None}, TypeError, "but got NoneType"),
        ({"labels": torch.tensor([4, 5])}, ValueError, r"labels must lie in 0\.\.4, but got \[4, 5\]"),
        ({"labels": torch.tensor([4])}, ValueError, "'iscrowd' must have 1 dimensions and 1 rows"),
        ({"ids": torch.tensor([1.0, 2.0])}, TypeError, "'ids' must be torch.int64"),
        ({"image_id": None}, TypeError, "'image_id' is missing"),
    ],
)
def test_broken_targets(changes, error, words):
    with pytest.raises(error, match=f"target 1 .*{words}"):
        check_panoptic_targets([IMAGE, IMAGE], [target(), target(**changes)], num_classes=5)


def test_one_target_per_image():
    with pytest.raises(ValueError, match="2 images and 1 targets"):
        check_panoptic_targets([IMAGE, IMAGE], [target()])
