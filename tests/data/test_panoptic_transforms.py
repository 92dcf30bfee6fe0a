"""The training pipeline: sizes, placement, what becomes of segments; the originals' numbers are in tests/parity."""

import pytest
import torch

from maskwright.data.panoptic_transforms import (
    RandomCrop,
    drop_empty_segments,
    panoptic_steps,
    panoptic_training_transforms,
    scaled_size,
)
from maskwright.data.transforms import Augmentation
from maskwright.structures import PanopticTarget, check_panoptic_targets

COLOURS = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.uint8)


def target(segmentation: torch.Tensor, count: int) -> PanopticTarget:
    return PanopticTarget(
        segmentation=segmentation.int(),
        labels=torch.arange(count),
        iscrowd=torch.zeros(count, dtype=torch.bool),
        ids=torch.arange(count) + 100,
        image_id=1,
    )


def coded(height: int, width: int) -> tuple[torch.Tensor, PanopticTarget]:
    """Quadrants in black, red, green and blue and their segments: no blend of two looks like a third, or grey."""
    rows = (torch.arange(height) >= height // 2).long()[:, None]
    columns = (torch.arange(width) >= width // 2).long()[None]
    quadrant = 2 * rows + columns
    return 255 * COLOURS[quadrant].permute(2, 0, 1), target(quadrant, 4)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("size", [33, (17, 49)])
def test_image_and_map_stay_together(seed: int, size):
    """Wherever the image shows one pure colour, the map has that quadrant; grey is void."""
    torch.manual_seed(seed)
    image, before = coded(40, 30)
    crop, after = panoptic_training_transforms(size)(image, before)
    height, width = (size, size) if isinstance(size, int) else size
    assert crop.shape == (3, height, width)
    assert crop.dtype == torch.float32
    check_panoptic_targets([crop], [after], num_classes=4)
    for row, label in enumerate(after["labels"].tolist()):
        own = after["segmentation"] == row
        assert own.any()
        pure = ((crop - COLOURS[label].view(3, 1, 1)).abs() < 1e-5).all(dim=0)
        assert (pure & own).sum() >= 0.5 * own.sum()
        assert not (pure & ~own & (after["segmentation"] >= 0)).any()
    void = after["segmentation"] == -1
    assert torch.equal(void, (crop == 0.5).all(dim=0))
    assert after["ids"].tolist() == (after["labels"] + 100).tolist()


def test_the_seed_decides():
    image, before = coded(20, 20)
    transform = panoptic_training_transforms(17, auto_augmentation=True)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(transform(image, before)[0])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_a_crop_by_hand():
    image = torch.arange(4 * 6, dtype=torch.uint8).reshape(1, 4, 6).expand(3, -1, -1)
    before = target(torch.arange(24).reshape(4, 6), 24)
    crop = RandomCrop((4, 6), (4, 6), size=(6, 3), pad=(1, 0), corner=(0, 2), flip=True)
    pixels, after = Augmentation(lambda *_: crop, panoptic_steps())(image, before)
    expected = torch.full((6, 3), -1)
    expected[1:5] = torch.arange(24).reshape(4, 6)[:, 2:5].flip(1)
    ids = torch.where(after["segmentation"] < 0, -1, after["ids"][after["segmentation"].long()] - 100)
    assert torch.equal(ids, expected)
    assert after["labels"].tolist() == sorted(expected[expected >= 0].tolist())  # half of the segments are gone
    assert torch.allclose(pixels[0] * 255, torch.where(expected < 0, 127.5, expected.float()), atol=1e-4)


def test_a_segment_that_the_crop_loses_is_dropped():
    before = target(torch.tensor([[3, -1, 0], [3, 3, 0]]), 5)
    after = drop_empty_segments(before)
    assert after["segmentation"].tolist() == [[1, -1, 0], [1, 1, 0]]
    assert after["labels"].tolist() == [0, 3]
    assert after["ids"].tolist() == [100, 103]
    assert len(after["iscrowd"]) == 2
    assert drop_empty_segments(after) is after
    nothing = drop_empty_segments(target(torch.full((2, 2), -1), 3))
    assert nothing["labels"].shape == (0,)
    assert (nothing["segmentation"] == -1).all()


def test_every_offset_is_drawn_and_none_beyond():
    """5 x 5 laid in 8 x 8 at scale 1: the margin of 3 pixels has the offsets 0, 1, 2, never 3."""
    torch.manual_seed(0)
    draws = [RandomCrop.draw((100, 100), (8, 8), torch.tensor([5 / 8]), 0.5) for _ in range(200)]
    assert {draw.scaled for draw in draws} == {(5, 5)}
    assert {draw.pad for draw in draws} == {(top, left) for top in range(3) for left in range(3)}
    assert {draw.corner for draw in draws} == {(0, 0)}
    assert 60 < sum(draw.flip for draw in draws) < 140
    draws = [RandomCrop.draw((100, 100), (8, 8), torch.tensor([1.25]), 0.0) for _ in range(100)]
    assert {draw.corner for draw in draws} == {(top, left) for top in range(3) for left in range(3)}
    assert {draw.pad for draw in draws} == {(0, 0)}


def test_scales():
    torch.manual_seed(0)
    scales = torch.linspace(0.5, 1.5, 10)
    drawn = {RandomCrop.draw((900, 900), (900, 900), scales, 0.0).scaled[0] for _ in range(300)}
    assert len(drawn) == 10
    assert (min(drawn), max(drawn)) == (450, 1350)
    assert 900 not in drawn  # the original's quirk: no crop at its own scale
    assert scaled_size((10, 3), 0.01) == (1, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"image_size": 9, "scale": (0.0, 1.0)}, "scale must be"),
        ({"image_size": 9, "scale_steps": 0}, "scale_steps must be"),
        ({"image_size": 9, "flip": 1.5}, "flip must lie in"),
    ],
)
def test_wrong_values(options: dict, words: str):
    with pytest.raises(ValueError, match=words):
        panoptic_training_transforms(**options)
