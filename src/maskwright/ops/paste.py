"""Box-frame mask probabilities to image pixels: inside the box only, as planes, or as COCO's RLE."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from maskwright.ops.frames import BoxFrame, check_frame
from maskwright.ops.run_lengths import compress_counts
from maskwright.regions import counts_of_region

_SMALLEST_EXTENT = 1e-4  # of the image, in the `corner` frame: the originals' guard against a division by 0
_COLUMNS_AT_ONCE = 64


def paste_masks(
    probabilities: Float[Tensor, "n m m"],
    boxes: Float[Tensor, "n 4"],
    image_size: tuple[int, int],
    frame: BoxFrame,
    threshold: float = 0.5,
) -> Bool[Tensor, "n {image_size[0]} {image_size[1]}"]:
    """Binary masks at the size of the image: where the pasted probability exceeds `threshold`.

    Makes N planes of the whole image; `encode_masks` does not. Arguments as in `paste_mask_region`.

    Raises:
        ValueError: `frame` is no box frame.
    """
    planes = torch.zeros(len(boxes), *image_size, dtype=torch.bool, device=probabilities.device)
    for plane, probability, box in zip(planes, probabilities, boxes, strict=True):
        columns, (left, top) = _mask_columns(probability, box, image_size, frame, threshold)
        width, height = columns.shape
        plane[top : top + height, left : left + width] = columns.T
    return planes


def paste_mask_region(
    probability: Float[Tensor, "m m"], box: Float[Tensor, " 4"], image_size: tuple[int, int], frame: BoxFrame
) -> tuple[Float[Tensor, "height width"], tuple[int, int]]:
    """The probabilities of the image's pixels that one box covers, and the (x, y) of their first pixel.

    probability: on the M x M grid that `frame` lays on the box.
    box: xyxy, pixels of the image, whose `image_size` is (height, width). Pixels outside of the returned
        region are 0; a box that covers no pixel gives a region of shape (0, 0) at (0, 0).

    `corner`: pixel index i of `size` stands at `i / (size - 1)` of the image, and the first and last sample
    of the mask on the box's edges; the originals' float32 arithmetic decides which pixels exactly on an edge
    are covered. A box is at least 1e-4 of the image wide and high.
    `pixel`: the centre of pixel i is at i + 0.5, and centres in [low, high) are covered. Samples are at
    (i + 0.5) / M of the box; the first and the last are repeated up to the box's edges.

    Raises:
        ValueError: `frame` is no box frame.

    Source: `corner`: reframe_box_masks_to_image_masks of the originals' utils/ops.py.
    """
    rows, columns, origin = _covered_pixels(box, image_size, probability.shape[-1], frame)
    return _interpolate(_interpolate(probability.float(), rows).T, columns).T, origin


def paste_binary_region(
    probability: Float[Tensor, "m m"],
    box: Float[Tensor, " 4"],
    image_size: tuple[int, int],
    frame: BoxFrame,
    threshold: float = 0.5,
) -> tuple[Bool[Tensor, "height width"], tuple[int, int]]:
    """Where `paste_mask_region` exceeds `threshold`, without its float32 region, which may be as large as the image.

    Raises:
        ValueError: `frame` is no box frame.
    """
    columns, origin = _mask_columns(probability, box, image_size, frame, threshold)
    return columns.T, origin


def _mask_columns(
    probability: Tensor, box: Tensor, image_size: tuple[int, int], frame: BoxFrame, threshold: float
) -> tuple[Tensor, tuple[int, int]]:
    """Which pixels of `paste_mask_region` exceed the threshold: bool [width, height], and their origin.

    Column by column, the order of COCO's run lengths, and few columns at a time, so that probabilities
    stay in the processor's cache.
    """
    rows, columns, origin = _covered_pixels(box, image_size, probability.shape[-1], frame)
    grid = _interpolate(probability.float(), rows).T.contiguous()
    mask = torch.empty(len(columns), len(rows), dtype=torch.bool, device=grid.device)
    for part, indices in zip(mask.split(_COLUMNS_AT_ONCE), columns.split(_COLUMNS_AT_ONCE), strict=True):
        torch.gt(_interpolate(grid, indices), threshold, out=part)
    return mask, origin


def _covered_pixels(
    box: Tensor, image_size: tuple[int, int], size: int, frame: BoxFrame
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Continuous mask indices of the rows and of the columns that the box covers, and their first (x, y)."""
    check_frame(frame)
    low_x, low_y, high_x, high_y = box.unbind()
    rows, top = _pixel_indices(low_y, high_y, image_size[0], size, frame)
    columns, left = _pixel_indices(low_x, high_x, image_size[1], size, frame)
    if len(rows) == 0 or len(columns) == 0:
        return rows[:0], columns[:0], (0, 0)
    return rows, columns, (left, top)


def _pixel_indices(low: Tensor, high: Tensor, length: int, size: int, frame: BoxFrame) -> tuple[Tensor, int]:
    """Continuous mask indices of the pixels that the box covers along one axis, and the first such pixel."""
    pixels = torch.arange(length, device=low.device, dtype=torch.float32)
    if frame == "corner":
        indices = _corner_indices(low, high, pixels, size)
        covered = (indices >= 0) & (indices <= size - 1)
    else:
        centers = pixels + 0.5
        covered = (centers >= low) & (centers < high)
        indices = ((centers - low) / (high - low) * size - 0.5).clamp(0, size - 1)
    inside = covered.nonzero()[:, 0]
    return indices[inside], int(inside[0]) if len(inside) else 0


def _corner_indices(low: Tensor, high: Tensor, pixels: Tensor, size: int) -> Tensor:
    """Mask indices of pixels, in the order of float32 operations that decides the originals' edge pixels."""
    length = len(pixels)
    low, high = (low / length).float(), (high / length).float()
    extent = (high - low).clamp(min=_SMALLEST_EXTENT)
    first, last = (0 - low) / extent, (1 - low) / extent
    if length == 1:
        return (first + last) * 0.5 * (size - 1) + pixels
    return first * (size - 1) + pixels * ((last - first) * (size - 1) / (length - 1))


def _interpolate(values: Tensor, indices: Tensor) -> Tensor:
    """Rows of `values` at continuous indices within it."""
    below = indices.floor()
    row = below.long()
    above = (row + 1).clamp(max=len(values) - 1)
    return torch.lerp(values[row], values[above], (indices - below)[:, None])


def encode_masks(
    probabilities: Float[Tensor, "n m m"],
    boxes: Float[Tensor, "n 4"],
    image_size: tuple[int, int],
    frame: BoxFrame,
    threshold: float = 0.5,
) -> list[dict[str, Any]]:
    """The masks of `paste_masks` as COCO's compressed RLE, without making their planes.

    Returns `{"size": [height, width], "counts": str}` per instance, equal to encoding its whole plane.
    Arguments as in `paste_mask_region`.

    Raises:
        ValueError: `frame` is no box frame.
    """
    check_frame(frame)
    encoded = []
    for probability, box in zip(probabilities.detach().cpu(), boxes.detach().cpu(), strict=True):
        columns, origin = _mask_columns(probability, box, image_size, frame, threshold)
        encoded.append(compress_counts(counts_of_region((columns.T.numpy(), origin), image_size), image_size))
    return encoded
