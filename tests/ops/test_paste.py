import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as reference_mask

from maskwright.ops.crop import crop_masks
from maskwright.ops.paste import encode_masks, paste_mask_region, paste_masks

FRAMES = ["corner", "pixel"]
IMAGE_SIZE = (60, 80)


def smooth_probability(size, seed=0):
    coarse = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")[0, 0]


def paste_one(probability, box, image_size, frame):
    """The region on a plane of the image."""
    region, (left, top) = paste_mask_region(probability, torch.as_tensor(box, dtype=torch.float32), image_size, frame)
    plane = torch.zeros(image_size)
    plane[top : top + region.shape[0], left : left + region.shape[1]] = region
    return plane


def ellipse(box, image_size):
    """A filled ellipse, 3 % of the box away from each of its edges."""
    y, x = torch.meshgrid(torch.arange(image_size[0]) + 0.5, torch.arange(image_size[1]) + 0.5, indexing="ij")
    low_x, low_y, high_x, high_y = box
    across = (2 * x - low_x - high_x) / (high_x - low_x)
    along = (2 * y - low_y - high_y) / (high_y - low_y)
    return across**2 + along**2 <= 0.94**2


def iou(first, second):
    return float((first & second).sum() / (first | second).sum())


@pytest.mark.parametrize("box", [[10.0, 8.0, 190.0, 140.0], [33.3, 20.6, 151.2, 121.9]])
def test_crop_and_paste_round_trip_needs_one_frame(box):
    image_size, boxes = (150, 200), torch.tensor([box])
    mask = ellipse(box, image_size)[None]
    overlap = {
        (crop, paste): iou(paste_masks(crop_masks(mask, boxes, 28, crop), boxes, image_size, paste), mask)
        for crop in FRAMES
        for paste in FRAMES
    }
    assert min(overlap["corner", "corner"], overlap["pixel", "pixel"]) > 0.97
    assert max(overlap["corner", "pixel"], overlap["pixel", "corner"]) < 0.95


def test_pixel_paste_on_the_pixel_grid_is_the_mask_itself():
    probability = smooth_probability(8)
    region, origin = paste_mask_region(probability, torch.tensor([3.0, 2.0, 11.0, 10.0]), (20, 20), "pixel")
    assert origin == (3, 2)
    torch.testing.assert_close(region, probability)


def test_pixel_paste_of_a_magnified_box_repeats_the_outermost_samples():
    probability = smooth_probability(5)
    region, _ = paste_mask_region(probability, torch.tensor([0.0, 0.0, 20.0, 15.0]), (20, 20), "pixel")
    expected = torch.nn.functional.interpolate(
        probability[None, None], size=(15, 20), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(region, expected[0, 0])


def test_corner_paste_of_a_whole_image_puts_the_outermost_samples_on_its_edges():
    probability = smooth_probability(5)
    region, origin = paste_mask_region(probability, torch.tensor([0.0, 0.0, 17.0, 9.0]), (9, 17), "corner")
    expected = torch.nn.functional.interpolate(
        probability[None, None], size=(9, 17), mode="bilinear", align_corners=True
    )
    assert origin == (0, 0)
    torch.testing.assert_close(region, expected[0, 0])


def test_pixel_paste_covers_the_pixels_whose_centers_are_inside():
    region, origin = paste_mask_region(torch.ones(4, 4), torch.tensor([2.5, 3.6, 5.5, 6.4]), (20, 20), "pixel")
    assert origin == (2, 4)  # columns 2 to 4 (the centre of 5 lies on the edge), rows 4 and 5
    assert region.shape == (2, 3)


def test_neighbouring_boxes_share_no_pixel():
    boxes = torch.tensor([[2.0, 2.0, 7.5, 9.0], [7.5, 2.0, 15.0, 9.0]])
    first, second = paste_masks(torch.ones(2, 4, 4), boxes, (12, 18), "pixel")
    assert not (first & second).any()
    assert torch.equal(
        first | second, paste_masks(torch.ones(1, 4, 4), torch.tensor([[2.0, 2.0, 15.0, 9.0]]), (12, 18), "pixel")[0]
    )


def corner_indices(low, high, length, size):
    """Digest of the originals: mask index of each pixel, in their order of float32 operations."""
    last_sample, last_pixel = np.float32(size - 1), np.float32(length - 1)
    low, high = np.float32(low) / np.float32(length), np.float32(high) / np.float32(length)
    extent = max(high - low, np.float32(1e-4))
    first, last = (np.float32(0) - low) / extent, (np.float32(1) - low) / extent
    step = (last - first) * last_sample / last_pixel
    return np.array([first * last_sample + np.float32(i) * step for i in range(length)])


@given(st.lists(st.floats(-40, 120, width=32), min_size=4, max_size=4), st.integers(2, 30), st.integers(2, 30))
@settings(max_examples=40, deadline=None)
def test_corner_paste_is_its_definition(box, height, width):
    probability = smooth_probability(4)
    expected, grid = np.zeros((height, width), dtype=np.float32), probability.numpy()
    for i, y in enumerate(corner_indices(box[1], box[3], height, 4)):
        for j, x in enumerate(corner_indices(box[0], box[2], width, 4)):
            if 0 <= y <= 3 and 0 <= x <= 3:
                (top, left), (bottom, right) = (int(y), int(x)), (int(np.ceil(y)), int(np.ceil(x)))
                above = grid[top, left] + (grid[top, right] - grid[top, left]) * (x - left)
                below = grid[bottom, left] + (grid[bottom, right] - grid[bottom, left]) * (x - left)
                expected[i, j] = above + (below - above) * (y - top)
    pasted = paste_one(probability, box, (height, width), "corner")
    torch.testing.assert_close(pasted, torch.from_numpy(expected), atol=1e-6, rtol=0)


def test_corner_paste_rounds_edge_pixels_as_the_originals_do():
    dropped = 0
    for length in range(2, 120):
        inside = corner_indices(0, length, length, 28)
        inside = (inside >= 0) & (inside <= 27)
        region, _ = paste_mask_region(
            torch.ones(28, 28), torch.tensor([0.0, 0.0, length, length]), (length, length), "corner"
        )
        assert region.shape == (inside.sum(), inside.sum())
        dropped += length - int(inside.sum())
    assert dropped > 0  # the originals lose the last row of some whole-image boxes


def test_corner_paste_on_an_image_of_one_row_takes_the_middle_of_the_box():
    probability = smooth_probability(5)
    region, _ = paste_mask_region(probability, torch.tensor([0.0, 0.0, 5.0, 1.0]), (1, 5), "corner")
    torch.testing.assert_close(region, probability[2:3])


def test_a_box_partly_outside_is_the_cut_of_a_larger_paste():
    probability = smooth_probability(7)
    box = torch.tensor([-11.3, -4.2, 20.9, 90.6])
    whole = paste_one(probability, box + 20, (120, 120), "pixel")
    torch.testing.assert_close(
        paste_one(probability, box, IMAGE_SIZE, "pixel"), whole[20:80, 20:100], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("box", [[90.0, 5.0, 99.0, 20.0], [-30.0, -30.0, -2.0, -2.0], [10.0, 70.0, 30.0, 99.0]])
def test_a_box_wholly_outside_covers_nothing(box, frame):
    region, origin = paste_mask_region(torch.ones(4, 4), torch.tensor(box), IMAGE_SIZE, frame)
    assert region.shape == (0, 0)
    assert origin == (0, 0)
    encoded = encode_masks(torch.ones(1, 4, 4), torch.tensor([box]), IMAGE_SIZE, frame)
    assert reference_mask.area(encoded[0]) == 0


@pytest.mark.parametrize(("frame", "most"), [("corner", 1), ("pixel", 0)])
def test_boxes_without_extent(frame, most):
    boxes = torch.tensor(
        [[10.0, 10.0, 10.0, 10.0], [5.5, 5.5, 5.5, 5.5], [0.0, 0.0, 0.0, 0.0], [80.0, 60.0, 80.0, 60.0]]
    )
    masks = paste_masks(torch.ones(4, 6, 6), boxes, IMAGE_SIZE, frame)
    assert masks.sum(dim=(1, 2)).max() <= most


def test_a_box_of_one_pixel_is_that_pixel():
    mask = paste_masks(torch.ones(1, 6, 6), torch.tensor([[10.0, 20.0, 11.0, 21.0]]), IMAGE_SIZE, "pixel")
    assert mask.nonzero().tolist() == [[0, 20, 10]]


@pytest.mark.parametrize("frame", FRAMES)
def test_no_boxes(frame):
    assert paste_masks(torch.zeros(0, 4, 4), torch.zeros(0, 4), IMAGE_SIZE, frame).shape == (0, *IMAGE_SIZE)
    assert encode_masks(torch.zeros(0, 4, 4), torch.zeros(0, 4), IMAGE_SIZE, frame) == []


def test_mixed_precision_does_not_move_a_mask():
    boxes = torch.tensor([[3.3, 7.1, 71.8, 55.5]])
    probabilities = smooth_probability(28)[None]
    expected = paste_masks(probabilities, boxes, IMAGE_SIZE, "pixel")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(paste_masks(probabilities, boxes, IMAGE_SIZE, "pixel"), expected)
    assert 0 < expected.sum() < expected.numel()


@given(st.integers(0, 100_000), st.integers(1, 12), st.integers(1, 12), st.sampled_from(FRAMES))
@settings(max_examples=80, deadline=None)
def test_encoding_equals_encoding_the_whole_plane(seed, height, width, frame):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(3, 2, 2, generator=generator) * torch.tensor([width + 6, height + 6]) - 3
    boxes = corners.sort(dim=1).values.reshape(3, 4)
    boxes[2] = torch.tensor([0, 0, width, height])  # full height: runs go on from one column to the next
    probabilities = torch.rand(3, 5, 5, generator=generator)
    encoded = encode_masks(probabilities, boxes, (height, width), frame, threshold=0.3)
    planes = paste_masks(probabilities, boxes, (height, width), frame, threshold=0.3)
    for result, plane in zip(encoded, planes, strict=True):
        expected = reference_mask.encode(np.asfortranarray(plane.numpy().astype(np.uint8)))
        assert result == {"size": [height, width], "counts": expected["counts"].decode()}


@pytest.mark.parametrize("frame", FRAMES)
def test_a_full_mask_of_a_full_image_is_one_run(frame):
    encoded = encode_masks(torch.ones(1, 4, 4), torch.tensor([[0.0, 0.0, 9.0, 5.0]]), (5, 9), frame)
    assert reference_mask.area(encoded[0]) == 45
    assert encoded[0]["counts"] == reference_mask.encode(np.ones((5, 9), dtype=np.uint8, order="F"))["counts"].decode()


def test_encoding_makes_no_plane_of_the_image():
    boxes = torch.tensor([[29_000.0, 100.0, 29_050.0, 180.0]]).repeat(20, 1)
    encoded = encode_masks(torch.ones(20, 4, 4), boxes, (30_000, 30_000), "pixel")  # 900 MB per plane
    assert encoded[0]["size"] == [30_000, 30_000]
    assert reference_mask.area(encoded).tolist() == [50 * 80] * 20


def test_unknown_frame_is_refused():
    with pytest.raises(ValueError, match="corner, pixel"):
        inspect.unwrap(encode_masks)(torch.zeros(0, 4, 4), torch.zeros(0, 4), IMAGE_SIZE, "other")
