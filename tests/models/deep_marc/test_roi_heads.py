"""Box crops of a pyramid: the level that fits a box, the frame of the crop; and the samples of the second stage."""

import math

import pytest
import torch

from maskwright.models.deep_marc.roi_heads import BoxPredictor, crop_levels
from maskwright.models.family import image_indices
from maskwright.nn.inference import store_weights


def ramps(levels, size=256):
    """Maps of three channels: x and y of the pixel on which each cell lies, and the level."""
    maps = []
    for level in levels:
        stride = 2**level
        pixels = torch.arange(size // stride) * float(stride)
        y, x = torch.meshgrid(pixels, pixels, indexing="ij")
        maps.append(torch.stack([x, y, torch.full_like(x, level)])[None])
    return maps


@pytest.mark.parametrize(
    ("width", "height", "level"),
    [
        (20.0, 20.0, 2),
        (111.99, 111.99, 2),
        (112.0, 112.0, 3),
        (223.9, 223.9, 3),
        (224.0, 224.0, 4),
        (448.0, 448.0, 5),
        (470.0, 470.0, 5),
        (900.0, 900.0, 5),  # 6 is not there
        (896.0, 56.0, 4),  # the area counts
        (56.0, 892.0, 3),
        (0.0, 0.0, 2),
        (300.0, 0.0, 2),
        (300.0, -300.0, 2),
        (-300.0, -300.0, 4),  # flipped, it is as large
    ],
)
def test_a_box_is_cropped_from_the_level_that_fits_its_size(width, height, level):
    maps = [torch.full((1, 1, 2 ** (11 - level), 2 ** (11 - level)), float(level)) for level in (2, 3, 4, 5)]
    boxes = torch.tensor([[400.0, 400.0, 400.0 + width, 400.0 + height]])
    crop = crop_levels(maps, boxes, torch.tensor([0]), 1, finest_level=2)
    assert crop.item() == level


def test_a_backbone_without_level_2_takes_its_finest():
    maps = ramps((3, 4))
    crops = crop_levels(maps, torch.tensor([[60.0, 60.0, 70.0, 70.0]]), torch.tensor([0]), 1, finest_level=3)
    assert crops[0, 2].item() == 3


def test_crops_sample_the_centres_of_their_cells_on_every_level():
    boxes = torch.tensor([[40.0, 50.0, 80.0, 74.0], [40.0, 24.0, 200.0, 200.0]])
    crops = crop_levels(ramps((2, 3, 4)), boxes, torch.tensor([0, 0]), 4, finest_level=2)
    steps = (torch.arange(4) + 0.5) / 4
    for crop, (x1, y1, x2, y2) in zip(crops, boxes, strict=True):
        torch.testing.assert_close(crop[0], (x1 + steps * (x2 - x1)).expand(4, 4))
        torch.testing.assert_close(crop[1], (y1 + steps * (y2 - y1))[:, None].expand(4, 4))
    assert crops[:, 2, 0, 0].tolist() == [2, 3]


def test_a_box_smaller_than_a_cell_is_not_enlarged():
    crop = crop_levels(ramps((2,)), torch.tensor([[40.0, 40.0, 41.0, 42.0]]), torch.tensor([0]), 2, finest_level=2)
    torch.testing.assert_close(crop[0, 0], torch.tensor([[40.25, 40.75], [40.25, 40.75]]))
    torch.testing.assert_close(crop[0, 1], torch.tensor([[40.5, 40.5], [41.5, 41.5]]))


def test_a_cell_of_a_crop_is_one_sample_at_its_centre_not_a_mean():
    level = torch.zeros(1, 1, 16, 16)
    level[0, 0, 4, 6] = 1.0
    boxes = torch.tensor([[8.0, 8.0, 40.0, 24.0]])  # 2..10 and 2..6 in cells: the samples lie 8 / 3 and 4 / 3 apart
    crop = crop_levels([level], boxes, torch.tensor([0]), 3, finest_level=2)[0, 0]
    expected = torch.zeros(3, 3)
    expected[1, 1] = 1.0
    torch.testing.assert_close(crop, expected)


def test_the_border_goes_on_for_one_cell():
    level = torch.full((1, 1, 16, 16), 3.0)
    boxes = torch.tensor([[-16.0, 8.0, 16.0, 12.0], [48.0, 8.0, 80.0, 12.0]])
    crops = crop_levels([level], boxes, torch.tensor([0, 0]), 8, finest_level=2)[:, 0, 0]
    # Samples 1 cell apart from -3.5 and from 12.5: on -0.5 the border counts, at 16.5 and beyond -1 nothing does.
    assert crops.tolist() == [[0, 0, 0, 3, 3, 3, 3, 3], [3, 3, 3, 3, 0, 0, 0, 0]]


def test_boxes_that_are_no_numbers_are_read_from_somewhere():
    """torchvision's RoIAlign ends the process on them."""
    boxes = torch.tensor([[math.nan, 0.0, 9.0, 9.0], [0.0, 0.0, math.inf, 9.0], [0.0, -math.inf, 9.0, math.inf]])
    assert crop_levels(ramps((2, 3)), boxes, torch.zeros(3, dtype=torch.int64), 2, finest_level=2).shape == (3, 3, 2, 2)


def test_positions_are_not_rounded_to_half_precision():
    level = ramps((2,))[0][:, :1]
    boxes = torch.tensor([[200.3, 200.3, 210.1, 211.7]])
    exact = crop_levels([level], boxes, torch.tensor([0]), 4, finest_level=2)
    half = crop_levels([level.bfloat16()], boxes, torch.tensor([0]), 4, finest_level=2)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, exact.bfloat16())


def test_each_box_reads_its_own_image_whatever_the_order():
    maps = [torch.cat([level, level + 1000]) for level in ramps((2, 3))]
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0], [8.0, 8.0, 200.0, 200.0], [16.0, 8.0, 40.0, 60.0]])
    index = torch.tensor([1, 0, 1])
    crops = crop_levels(maps, boxes, index, 2, finest_level=2)
    assert (crops[:, 0].mean(dim=(1, 2)) > 1000).tolist() == [True, False, True]
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(crop_levels(maps, boxes[order], index[order], 2, finest_level=2), crops[order])


def test_image_indices_count_images_without_boxes():
    boxes = [torch.zeros(2, 4), torch.zeros(0, 4), torch.zeros(1, 4)]
    assert image_indices(boxes).tolist() == [0, 0, 2]
    assert image_indices([torch.zeros(0, 4)]).tolist() == []


def test_boxes_are_predicted_in_float32_from_features_in_bfloat16():
    predictor, features = BoxPredictor(6, 3), torch.randn(4, 6).bfloat16()
    expected = predictor(features.float())
    store_weights(predictor, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        results = predictor(features)
    for ours, exact in zip(results, expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, exact)
