"""Crops of feature maps and masks inside boxes, in either box frame (`frames.py`)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor
from torchvision.ops import roi_align

from maskwright.ops.frames import BoxFrame, map_indices, sample_positions

_FAR_OUTSIDE = 1e6  # cells


def crop_and_resize(
    maps: Float[Tensor, "b c height width"],
    boxes: Float[Tensor, "n 4"],
    image_index: Int64[Tensor, " n"],
    frame_size: tuple[int, int],
    output_size: int,
    frame: BoxFrame,
) -> Float[Tensor, "n c {output_size} {output_size}"]:
    """The feature maps inside each box, resampled to `output_size` x `output_size`.

    maps: features that cover the whole of the boxes' frame (at any stride, also unequal in x and y).
    boxes: xyxy, pixels of a frame of `frame_size` = (height, width); they may be outside of it, have no
        extent, or be flipped (then the crop is flipped). N may be 0.
    image_index: the row of `maps` that each box belongs to.

    `corner` takes one bilinear sample per cell. Each of its four neighbours counts as 0 where it is outside of the
    map, so that values fade to 0 over one cell beyond the border. `pixel` is RoIAlign, the mean of 2 x 2 samples
    per cell. Differentiable with respect to the maps; the result has their dtype.

    Raises:
        ValueError: `frame` is no box frame, or `output_size` is too small for it.

    Source: `corner`: crop_and_resize_feature_map of the originals' deepmac_meta_arch.py (there: tensors
    HWC, boxes yxyx and normalised). `pixel`: He et al., Mask R-CNN, section 3.
    """
    source = maps.float() if maps.dtype in (torch.float16, torch.bfloat16) else maps
    low_x, low_y, high_x, high_y = boxes.to(source.dtype).unbind(dim=1)
    top, bottom = _map_extent(low_y, high_y, frame_size[0], maps.shape[2], output_size, frame)
    left, right = _map_extent(low_x, high_x, frame_size[1], maps.shape[3], output_size, frame)
    regions = readable_regions(torch.stack([image_index.to(source.dtype), left, top, right, bottom], dim=1))
    if frame == "corner":
        # RoIAlign repeats the border. With a border of zeros, each neighbour outside of the map counts as 0.
        source = torch.nn.functional.pad(source, (1, 1, 1, 1))
    samples = 1 if frame == "corner" else 2
    return roi_align(source, regions, output_size, sampling_ratio=samples, aligned=True).to(maps.dtype)


def readable_regions(regions: Float[Tensor, "n 5"]) -> Float[Tensor, "n 5"]:
    """Regions (image, x1, y1, x2, y2 in cells) that RoIAlign can read: NaN becomes 0, huge numbers are clamped.

    Where a sample's position is NaN, torchvision reads memory outside of the map and the process ends.
    """
    return regions.nan_to_num(0).clamp(-_FAR_OUTSIDE, _FAR_OUTSIDE)


def _map_extent(
    low: Tensor, high: Tensor, frame_length: int, map_length: int, output_size: int, frame: BoxFrame
) -> tuple[Tensor, Tensor]:
    """Both ends of the RoIAlign regions whose bins are centred on the box's samples, in map cells.

    Cell i covers [i, i + 1) there. In the `corner` frame the map has a border of one cell.
    """
    ends = sample_positions(low, high, 2, "corner")
    if frame == "pixel":
        first, last = (ends * (map_length / frame_length)).unbind(dim=1)
        return first, last
    first, last = map_indices(ends, frame_length, map_length, frame).unbind(dim=1)
    half_bin = (last - first) / (2 * (output_size - 1))
    return first - half_bin + 1.5, last + half_bin + 1.5


def crop_around(
    image: Shaped[Tensor, "c height width"], box: Float[Tensor, " 4"], context: float
) -> tuple[Shaped[Tensor, "c _ _"], Float[Tensor, " 4"]]:
    """The square part of an image around a box (a view), and the box in its pixels.

    box: xyxy, pixels of the image; it may reach beyond it or be flipped.
    context: side of the square, in longer sides of the box.

    The square has whole pixels, at least one. Where it would reach beyond the image it is moved into it; of an image
    that is less wide or high it is all of the width or height.
    """
    x1, y1, x2, y2 = box.tolist()
    side = max(1, round(context * max(abs(x2 - x1), abs(y2 - y1))))
    left, right = _part_around((x1 + x2) / 2, side, image.shape[2])
    top, bottom = _part_around((y1 + y2) / 2, side, image.shape[1])
    return image[:, top:bottom, left:right], box - box.new_tensor([left, top, left, top])


def _part_around(center: float, side: int, length: int) -> tuple[int, int]:
    side = min(side, length)
    start = round(min(max(center - side / 2, 0), length - side))
    return start, start + side


def crop_masks(
    masks: Bool[Tensor, "m height width"],
    boxes: Float[Tensor, "n 4"],
    output_size: int,
    frame: BoxFrame,
    rows: Int64[Tensor, " n"] | None = None,
) -> Float[Tensor, "n {output_size} {output_size}"]:
    """A mask inside each box, as soft float32 targets in [0, 1] on the box's grid.

    masks: the planes are read at four neighbours per sample and never copied.
    boxes: xyxy, pixels of the masks' frame; a neighbour outside of it counts as 0.
    rows: the mask of each box; None: mask n is that of box n.

    One bilinear sample per cell in either frame: `corner` at the originals' positions, `pixel` between
    pixel centres. No gradient.

    Raises:
        ValueError: `frame` is no box frame, or `output_size` is too small for it.

    Source: `corner`: crop_and_resize_instance_masks of the originals' deepmac_meta_arch.py.
    """
    low_x, low_y, high_x, high_y = boxes.float().unbind(dim=1)
    height, width = masks.shape[1:]
    index_y = map_indices(sample_positions(low_y, high_y, output_size, frame), height, height, frame)
    index_x = map_indices(sample_positions(low_x, high_x, output_size, frame), width, width, frame)
    row = (torch.arange(len(masks), device=masks.device) if rows is None else rows)[:, None, None]
    crops = torch.zeros(len(boxes), output_size, output_size, device=masks.device)
    for y, weight_y in _neighbours(index_y, height):
        for x, weight_x in _neighbours(index_x, width):
            crops += masks[row, y[:, :, None], x[:, None, :]] * (weight_y[:, :, None] * weight_x[:, None, :])
    return crops


def _neighbours(index: Tensor, length: int) -> list[tuple[Tensor, Tensor]]:
    """The two cells beside each continuous index with their bilinear weights, 0 for a cell outside of the map."""
    below = index.floor()
    above, weight_above = below + 1, index - below
    return [
        (_cell_index(cell, length), weight * ((cell >= 0) & (cell <= length - 1)))
        for cell, weight in ((below, 1 - weight_above), (above, weight_above))
    ]


def gather_at_centers(
    maps: Float[Tensor, "b c height width"],
    boxes: Float[Tensor, "n 4"],
    image_index: Int64[Tensor, " n"],
    frame_size: tuple[int, int],
) -> Float[Tensor, "n c"]:
    """The feature vector in the cell that holds each box's centre.

    maps: features that cover the whole of the boxes' frame.
    boxes: xyxy, pixels of a frame of `frame_size` = (height, width).
    image_index: the row of `maps` that each box belongs to.

    The cell is the centre times the size of the map (not times the size less one, as in the crop), truncated. A
    centre outside of the map takes the nearest cell, NaN the first. Differentiable with
    respect to the maps.

    Source: _get_instance_embeddings of the originals' deepmac_meta_arch.py. Departure: there a cell
    outside of the map is an error on the CPU.
    """
    height, width = maps.shape[2:]
    low_x, low_y, high_x, high_y = boxes.float().unbind(dim=1)
    y = _cell_index((low_y + high_y) / 2 / frame_size[0] * height, height)
    x = _cell_index((low_x + high_x) / 2 / frame_size[1] * width, width)
    return maps[image_index, :, y, x]


def _cell_index(position: Float[Tensor, "*shape"], length: int) -> Int64[Tensor, "*shape"]:
    # NaN as an integer would be an index far outside of the map.
    return position.nan_to_num(0).clamp(0, length - 1).long()


def coordinate_grid(size: int, device: torch.device | None = None) -> Float[Tensor, "2 {size} {size}"]:
    """The two coordinate channels of a mask head, y then x, each from -1 to 1 over the box (either frame).

    Source: _get_mask_head_input of the originals' deepmac_meta_arch.py.
    """
    steps = torch.linspace(-1, 1, size, device=device)
    return torch.stack(torch.meshgrid(steps, steps, indexing="ij"))


def center_offsets(
    boxes: Float[Tensor, "n 4"], frame_size: tuple[int, int], map_size: tuple[int, int]
) -> Float[Tensor, "n 2 {map_size[0]} {map_size[1]}"]:
    """The coordinate channels of a mask head that sees the whole map: y, then x, relative to the centre of each box.

    boxes: xyxy, pixels of a frame of `frame_size` = (height, width).
    map_size: (height, width) of a map that covers the frame; its first and last cells are on the frame's edges.

    The unit is the frame's height for y and its width for x.

    Source: _get_mask_head_input of the originals' deepmac_meta_arch.py, `predict_full_resolution_masks`.
    """
    low_x, low_y, high_x, high_y = boxes.unbind(dim=1)
    y = torch.linspace(0, 1, map_size[0], device=boxes.device) - ((low_y + high_y) / 2 / frame_size[0])[:, None]
    x = torch.linspace(0, 1, map_size[1], device=boxes.device) - ((low_x + high_x) / 2 / frame_size[1])[:, None]
    return torch.stack([y[:, :, None].expand(-1, -1, map_size[1]), x[:, None, :].expand(-1, map_size[0], -1)], dim=1)


def fill_boxes(
    boxes: Float[Tensor, "n 4"], frame_size: tuple[int, int], map_size: tuple[int, int]
) -> Float[Tensor, "n {map_size[0]} {map_size[1]}"]:
    """Each box as a filled rectangle on a map that covers the boxes' frame: 1 inside, edges included, and 0 outside.

    boxes: xyxy, pixels of a frame of `frame_size` = (height, width).
    map_size: (height, width). A cell is inside by its index, not by its centre.

    Source: fill_boxes of the originals' deepmac_meta_arch.py.
    """
    scale = boxes.new_tensor([map_size[1] / frame_size[1], map_size[0] / frame_size[0]])
    left, top, right, bottom = (boxes * scale.repeat(2)).unbind(dim=1)
    y = torch.arange(map_size[0], device=boxes.device)
    x = torch.arange(map_size[1], device=boxes.device)
    rows = (y >= top[:, None]) & (y <= bottom[:, None])
    columns = (x >= left[:, None]) & (x <= right[:, None])
    return (rows[:, :, None] & columns[:, None, :]).to(boxes.dtype)
