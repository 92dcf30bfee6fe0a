import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from maskwright.ops.crop import coordinate_grid, crop_and_resize, crop_around, crop_masks, gather_at_centers

FRAMES = ["corner", "pixel"]
FRAME_SIZE = (32, 48)
# Inside, whole frame, partly outside, wholly outside, no extent, flipped.
BOXES = torch.tensor(
    [[4, 3, 30, 20], [0, 0, 48, 32], [-9, -7, 20, 11], [60, 50, 80, 70], [11, 9, 11, 9], [30, 20, 4, 3]],
    dtype=torch.float32,
)


def maps_and_index(boxes=BOXES, channels=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, 8, 24, generator=generator), torch.arange(len(boxes)) % 2


def corner_crop_by_loops(plane, box, frame_size, size):
    """The definition: one bilinear sample per cell, each neighbour outside of the plane is 0."""
    (height, width), (low_x, low_y, high_x, high_y) = plane.shape, [float(value) for value in box]
    rows = [(low_y + i / (size - 1) * (high_y - low_y)) / frame_size[0] * (height - 1) for i in range(size)]
    columns = [(low_x + i / (size - 1) * (high_x - low_x)) / frame_size[1] * (width - 1) for i in range(size)]
    result = torch.zeros(size, size)
    for i, y in enumerate(rows):
        for j, x in enumerate(columns):
            for cell_y in (math.floor(y), math.floor(y) + 1):
                for cell_x in (math.floor(x), math.floor(x) + 1):
                    if 0 <= cell_y < height and 0 <= cell_x < width:
                        result[i, j] += plane[cell_y, cell_x] * (1 - abs(y - cell_y)) * (1 - abs(x - cell_x))
    return result


def test_corner_crop_is_its_definition():
    maps, index = maps_and_index()
    crops = crop_and_resize(maps, BOXES, index, FRAME_SIZE, 5, "corner")
    for crop, box, image in zip(crops, BOXES, index, strict=True):
        for channel, plane in zip(crop, maps[image], strict=True):
            torch.testing.assert_close(channel, corner_crop_by_loops(plane, box, FRAME_SIZE, 5), atol=2e-5, rtol=0)


@pytest.mark.parametrize("frame", FRAMES)
def test_boxes_of_no_numbers_read_no_memory_that_is_not_theirs(frame):
    """torchvision's RoIAlign and plain indexing end the process there; other boxes keep their crops."""
    maps, _ = maps_and_index()
    boxes = torch.tensor(
        [[math.nan] * 4, [math.inf, 2.0, -math.inf, 9.0], [1e38, -1e38, 1e38, 3.0], [4.0, 3.0, 30.0, 20.0]]
    )
    index = torch.tensor([1, 0, 1, 0])
    crops = crop_and_resize(maps, boxes, index, FRAME_SIZE, 5, frame)
    vectors = gather_at_centers(maps, boxes, index, FRAME_SIZE)
    masks = crop_masks(maps[:, 0] > 0, boxes, 5, frame, index)
    assert [len(result) for result in (crops, vectors, masks)] == [4, 4, 4]
    torch.testing.assert_close(crops[3:], crop_and_resize(maps, boxes[3:], index[3:], FRAME_SIZE, 5, frame))
    torch.testing.assert_close(vectors[0], maps[1, :, 0, 0])


def test_pixel_crop_of_a_ramp_gives_the_cell_centers():
    # Cell (y, x) of a map at strides 4 and 2 holds its own centre in frame pixels.
    ramp = torch.stack(torch.meshgrid(torch.arange(8) * 4 + 2.0, torch.arange(24) * 2 + 1.0, indexing="ij"))[None]
    crop = crop_and_resize(ramp, BOXES[:1], torch.zeros(1, dtype=torch.int64), FRAME_SIZE, 4, "pixel")[0]
    assert crop[1, 0].tolist() == pytest.approx([4 + 26 * (i + 0.5) / 4 for i in range(4)], abs=1e-4)
    assert crop[0, :, 0].tolist() == pytest.approx([3 + 17 * (i + 0.5) / 4 for i in range(4)], abs=1e-4)


@pytest.mark.parametrize("frame", FRAMES)
def test_mirroring_maps_and_boxes_mirrors_the_crops(frame):
    maps, index = maps_and_index(BOXES[:4])
    mirrored = torch.stack([48 - BOXES[:4, 2], BOXES[:4, 1], 48 - BOXES[:4, 0], BOXES[:4, 3]], dim=1)
    crops = crop_and_resize(maps, BOXES[:4], index, FRAME_SIZE, 6, frame)
    again = crop_and_resize(maps.flip(-1), mirrored, index, FRAME_SIZE, 6, frame).flip(-1)
    torch.testing.assert_close(again, crops, atol=2e-5, rtol=0)
    assert crops[:3].abs().sum() > 1


@pytest.mark.parametrize("frame", FRAMES)
def test_a_batch_is_its_boxes_one_by_one(frame):
    maps, index = maps_and_index()
    crops = crop_and_resize(maps, BOXES, index, FRAME_SIZE, 4, frame)
    for i in range(len(BOXES)):
        alone = crop_and_resize(maps[index[i] :][:1], BOXES[i : i + 1], index[:1] * 0, FRAME_SIZE, 4, frame)
        assert torch.equal(alone[0], crops[i])


@pytest.mark.parametrize("frame", FRAMES)
def test_gradient_with_respect_to_the_maps(frame):
    maps, index = maps_and_index(BOXES[:3], channels=1)
    maps = maps.double().requires_grad_()
    boxes = BOXES[:3].double()
    assert torch.autograd.gradcheck(lambda m: crop_and_resize(m, boxes, index, FRAME_SIZE, 3, frame), maps)


@pytest.mark.parametrize("frame", FRAMES)
def test_no_boxes_keep_the_graph(frame):
    maps, _ = maps_and_index()
    maps.requires_grad_()
    none = torch.zeros(0, dtype=torch.int64)
    crops = crop_and_resize(maps, torch.zeros(0, 4), none, FRAME_SIZE, 4, frame)
    vectors = gather_at_centers(maps, torch.zeros(0, 4), none, FRAME_SIZE)
    assert crops.shape == (0, 3, 4, 4)
    assert vectors.shape == (0, 3)
    (crops.sum() + vectors.sum()).backward()
    assert maps.grad is not None
    assert not maps.grad.any()


@pytest.mark.parametrize("frame", FRAMES)
def test_mixed_precision(frame):
    maps, index = maps_and_index()
    expected = crop_and_resize(maps, BOXES, index, FRAME_SIZE, 4, frame)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same = crop_and_resize(maps, BOXES, index, FRAME_SIZE, 4, frame)
        half = crop_and_resize(maps.bfloat16(), BOXES, index, FRAME_SIZE, 4, frame)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(same, expected)
    torch.testing.assert_close(half.float(), expected, atol=0.05, rtol=0)  # positions are not rounded to bfloat16


class _Crops(nn.Module):
    def __init__(self, frame):
        super().__init__()
        self.frame = frame

    def forward(self, maps, boxes, image_index):
        crops = crop_and_resize(maps, boxes, image_index, FRAME_SIZE, 4, self.frame)
        vectors = gather_at_centers(maps, boxes, image_index, FRAME_SIZE)
        return torch.cat([crops, vectors[:, :, None, None].expand_as(crops)], dim=1)


@pytest.mark.parametrize("frame", FRAMES)
def test_exports_with_any_number_of_boxes(frame):
    maps, index = maps_and_index()
    shapes = ({}, {0: torch.export.Dim.DYNAMIC}, {0: torch.export.Dim.DYNAMIC})
    model = _Crops(frame)
    exported = torch.export.export(model, (maps, BOXES, index), dynamic_shapes=shapes, strict=False).module()
    for count in (0, 1, 2, 6):
        boxes, rows = BOXES[:count], index[:count]
        assert torch.equal(exported(maps, boxes, rows), model(maps, boxes, rows))


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_corner_mask_crop_is_the_corner_crop_of_each_mask(seed):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(4, 9, 13, generator=generator) > 0.5
    boxes = torch.rand(4, 4, generator=generator) * 30 - 8
    expected = torch.stack(
        [corner_crop_by_loops(mask.float(), box, (9, 13), 5) for mask, box in zip(masks, boxes, strict=True)]
    )
    torch.testing.assert_close(crop_masks(masks, boxes, 5, "corner"), expected, atol=2e-5, rtol=0)


def test_pixel_mask_crop_on_the_pixel_grid_is_the_mask_itself():
    masks = torch.rand(2, 10, 12, generator=torch.Generator().manual_seed(0)) > 0.5
    boxes = torch.tensor([[2.0, 1.0, 9.0, 8.0], [8.0, 6.0, 15.0, 13.0]])
    crops = crop_masks(masks, boxes, 7, "pixel")
    assert torch.equal(crops[0] > 0.5, masks[0, 1:8, 2:9])
    assert torch.equal(crops[1, :4, :4] > 0.5, masks[1, 6:, 8:])
    assert set(crops.unique().tolist()) == {0.0, 1.0}
    assert not crops[1, 4:].any()  # outside of the image


def test_mask_targets_are_soft():
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, :, 2:] = True
    crop = crop_masks(mask, torch.tensor([[1.0, 1.0, 3.0, 3.0]]), 8, "pixel")
    expected = [max(0.0, min(1.0, 1 + 2 * (i + 0.5) / 8 - 0.5 - 1)) for i in range(8)]
    assert crop[0, 3].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("frame", FRAMES)
def test_planes_of_masks_are_never_copied(frame):
    planes = torch.ones(1, 1, 1, dtype=torch.bool).expand(500, 30_000, 30_000)  # 450 GB as bytes
    boxes = torch.tensor([[100.0, 100.0, 200.0, 200.0]]).expand(500, 4)
    crops = crop_masks(planes, boxes, 4, frame)
    torch.testing.assert_close(crops, torch.ones(500, 4, 4))


@pytest.mark.parametrize("frame", FRAMES)
def test_no_masks(frame):
    crops = crop_masks(torch.zeros(0, 8, 8, dtype=torch.bool), torch.zeros(0, 4), 4, frame)
    assert crops.shape == (0, 4, 4)


def test_vector_at_the_center_is_truncated_and_kept_inside():
    maps = torch.arange(2 * 1 * 4 * 6).reshape(2, 1, 4, 6).float()
    boxes = torch.tensor([[0.0, 0.0, 12.0, 8.0], [7.9, 7.9, 7.9, 7.9], [-30.0, 5.0, 10.0, 5.0], [12.0, 8.0, 12.0, 8.0]])
    vectors = gather_at_centers(maps, boxes, torch.tensor([0, 0, 1, 1]), (8, 12))
    assert vectors[:, 0].tolist() == [2 * 6 + 3, 3 * 6 + 3, 24 + 2 * 6 + 0, 24 + 3 * 6 + 5]


def test_coordinate_grid_is_y_then_x():
    grid = coordinate_grid(3)
    assert grid[0].tolist() == [[-1, -1, -1], [0, 0, 0], [1, 1, 1]]
    assert torch.equal(grid[1], grid[0].T)


@pytest.mark.parametrize("frame", ["corner", "pixel"])
def test_one_mask_can_be_cropped_in_several_boxes(frame):
    masks = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0)) > 0.5
    boxes = torch.tensor([[1.0, 2.0, 9.0, 12.0], [3.0, 4.0, 28.0, 19.0], [0.0, 0.0, 30.0, 20.0]])
    rows = torch.tensor([2, 0, 2])
    assert torch.equal(crop_masks(masks, boxes, 6, frame, rows), crop_masks(masks[rows], boxes, 6, frame))
    assert crop_masks(masks, boxes[:0], 6, frame, rows[:0]).shape == (0, 6, 6)


@given(
    box=st.tuples(*[st.floats(-300, 300, width=32)] * 4),
    context=st.floats(1, 9),
    size=st.tuples(st.integers(1, 60), st.integers(1, 80)),
)
def test_a_crop_around_a_box_is_a_part_of_the_image_with_the_box_in_the_same_place(box, context, size):
    """Of an image whose pixels say where they are."""
    image = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij"))
    crop, inside = crop_around(image, torch.tensor(box), context)
    top, left = crop[:, 0, 0].tolist()
    height, width = crop.shape[1:]
    assert torch.equal(crop, image[:, top : top + height, left : left + width])
    torch.testing.assert_close(inside + torch.tensor([left, top, left, top]), torch.tensor(box), rtol=0, atol=1e-4)
    side = max(1, round(context * max(abs(box[2] - box[0]), abs(box[3] - box[1]))))
    assert (height, width) == (min(side, size[0]), min(side, size[1]))
    columns, rows = (box[0], box[2], left, width, size[1]), (box[1], box[3], top, height, size[0])
    for low, high, start, length, whole in (columns, rows):
        off_centre = start + length / 2 - (low + high) / 2  # the image's border aside, half a pixel at most
        assert abs(off_centre) <= 0.5 or (start == 0 and off_centre > 0) or (start + length == whole and off_centre < 0)
