from typing import get_args

import pytest
import torch

from maskwright.ops.boxes import JitterMode, clip_boxes, expand_boxes, jitter_boxes

IMAGE_SIZE = (80, 100)
BOXES = torch.tensor([[20.0, 30.0, 60.0, 50.0]]).repeat(2000, 1)  # 40 x 20 in the middle of the image


def factors(mode, ratio=0.2, boxes=BOXES):
    """Per box, the four half extents (left, top, right, bottom) after jitter as parts of those before."""
    jittered = jitter_boxes(boxes, IMAGE_SIZE, mode, ratio, torch.Generator().manual_seed(1))
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    return torch.cat([(center - jittered[:, :2]) / half, (jittered[:, 2:] - center) / half], dim=1)


@pytest.mark.parametrize("mode", get_args(JitterMode))
def test_factors_fill_the_range_of_the_mode(mode):
    low = 1.0 if mode.startswith("expand") else 0.8
    high = 1.0 if mode.startswith("shrink") else 1.2
    found = factors(mode)
    assert found.amin(dim=0).tolist() == pytest.approx([low] * 4, abs=0.002)
    assert found.amax(dim=0).tolist() == pytest.approx([high] * 4, abs=0.002)


@pytest.mark.parametrize("mode", get_args(JitterMode))
def test_edges_share_a_factor_exactly_where_the_mode_says(mode):
    left, top, right, bottom = factors(mode).T
    same_axis = torch.allclose(left, right, atol=1e-4) and torch.allclose(top, bottom, atol=1e-4)
    same_box = torch.allclose(left, top, atol=1e-4)
    assert same_axis == ("symmetric" in mode)
    assert same_box == mode.endswith("_xy")


def test_symmetric_expansion_stays_inside_and_keeps_the_center():
    boxes = torch.tensor([[2.0, 30.0, 42.0, 50.0]]).repeat(500, 1)  # 2 pixels of room on the left, 22 half wide
    found = jitter_boxes(boxes, IMAGE_SIZE, "expand_symmetric", 0.5, torch.Generator().manual_seed(1))
    assert found[:, 0].min() == pytest.approx(0, abs=1e-4)
    torch.testing.assert_close((found[:, 0] + found[:, 2]) / 2, torch.full((500,), 22.0))
    assert found[:, 3].max() > 54  # the other axis is not held back
    held_back = jitter_boxes(boxes, IMAGE_SIZE, "expand_symmetric_xy", 0.5, torch.Generator().manual_seed(1))
    assert held_back[:, 3].max() == pytest.approx(51, abs=1e-3)  # by the 10 % of room on the left


def test_ratio_zero_leaves_the_smallest_extent_and_the_clipping():
    boxes = torch.tensor([[10.0, 10.0, 20.0, 30.0], [-5.0, -5.0, 120.0, 40.0], [50.0, 40.0, 50.0, 40.0]])
    found = jitter_boxes(boxes, IMAGE_SIZE, "default", 0.0)
    torch.testing.assert_close(found[0], boxes[0])
    torch.testing.assert_close(found[1], torch.tensor([0.0, 0.0, 100.0, 40.0]))
    assert (found[2, 2:] - found[2, :2]).tolist() == pytest.approx([1e-4, 8e-5], rel=0.1)  # 1e-6 of the image


def test_a_generator_makes_jitter_repeatable():
    first, second, other = (
        jitter_boxes(BOXES[:3], IMAGE_SIZE, "default", 0.1, torch.Generator().manual_seed(seed)) for seed in (7, 7, 8)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("mode", get_args(JitterMode))
def test_no_boxes(mode):
    assert jitter_boxes(torch.zeros(0, 4), IMAGE_SIZE, mode, 0.1).shape == (0, 4)


def test_clip_and_expand_by_hand():
    boxes = torch.tensor([[-4.0, 10.0, 36.0, 90.0], [110.0, 85.0, 120.0, 95.0]])
    assert clip_boxes(boxes, IMAGE_SIZE).tolist() == [[0, 10, 36, 80], [100, 80, 100, 80]]
    assert expand_boxes(boxes, 0.25).tolist() == [[-14, -10, 46, 110], [107.5, 82.5, 122.5, 97.5]]
