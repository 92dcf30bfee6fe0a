"""The two conventions for the place of a box's M x M grid on the image.

A model uses exactly one of them, for the feature crop, for the crop of the training mask and for the
paste: `crop.py` and `paste.py` take all their geometry from here.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

BoxFrame = Literal["corner", "pixel"]
"""`corner`: first and last sample on the box edges (the originals). `pixel`: sample centres at (i + 0.5) / M."""


def check_frame(frame: str) -> None:
    """Refuse a name that is no box frame.

    Raises:
        ValueError: `frame` is neither `corner` nor `pixel`.
    """
    if frame not in get_args(BoxFrame):
        raise ValueError(f"box frame must be one of {', '.join(get_args(BoxFrame))}, but got {frame!r}")


def sample_positions(
    low: Float[Tensor, " n"], high: Float[Tensor, " n"], size: int, frame: BoxFrame
) -> Float[Tensor, "n {size}"]:
    """The positions of the `size` samples along one axis of each box, in the units and the frame of `low` and `high`.

    `corner`: `low + i / (size - 1) * (high - low)`.
    `pixel`: `low + (i + 0.5) / size * (high - low)`. A flipped box (`high < low`) is sampled backwards.

    Raises:
        ValueError: `frame` is no box frame, or `size` is less than 1 (`corner`: 2).

    Source: `corner` is `_get_mask_head_input`'s crop of the originals' deepmac_meta_arch.py.
    """
    check_frame(frame)
    smallest = 2 if frame == "corner" else 1
    if size < smallest:
        raise ValueError(f"a {frame} grid must have at least {smallest} samples per axis, but got {size}")
    steps = torch.arange(size, device=low.device, dtype=low.dtype)
    fractions = steps / (size - 1) if frame == "corner" else (steps + 0.5) / size
    return low[:, None] + fractions * (high - low)[:, None]


def map_indices(
    positions: Float[Tensor, "*shape"], frame_length: int, map_length: int, frame: BoxFrame
) -> Float[Tensor, "*shape"]:
    """Continuous indices, along one axis of a map, of positions in pixels of the frame that the map covers.

    positions: pixels; the frame is `frame_length` pixels long, the map has `map_length` cells on it.
    `corner`: `position / frame_length * (map_length - 1)`, so that the frame's two edges are the first and
    the last cell. `pixel`: `position * map_length / frame_length - 0.5`, so that index i is cell i's centre.

    Raises:
        ValueError: `frame` is no box frame.

    Source: `corner` is the originals' crop, which multiplies normalised coordinates by the size less one.
    """
    check_frame(frame)
    if frame == "corner":
        return positions / frame_length * (map_length - 1)
    return positions * (map_length / frame_length) - 0.5


def margin_crop_matrix(size: int, margin: float, frame: BoxFrame) -> Float[Tensor, "{size} {size}"]:
    """The matrix A for which `A @ grid @ A.T` is the box's own grid, cut bilinearly from a widened box's grid.

    The widened box exceeds the box by `margin` times its size on every side; both grids have `size`
    samples along each axis.

    Raises:
        ValueError: `frame` is no box frame.
    """
    low, high = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    positions = sample_positions(low, high, size, frame)[0]
    widened = (positions + margin) / (1 + 2 * margin)
    indices = widened * (size - 1) if frame == "corner" else widened * size - 0.5
    # A linear interpolation is a row of two weights: a triangle of width one about the sample's index.
    columns = torch.arange(size, dtype=torch.float64)
    indices = indices.clamp(0, size - 1)
    return (1 - (indices[:, None] - columns).abs()).clamp(min=0).float()


def cells_in_box(size: int, margin: float, frame: BoxFrame) -> Bool[Tensor, "{size} {size}"]:
    """Which samples of a widened box's grid lie inside the box itself, its edges included.

    The widened box exceeds the box by `margin` times its size on every side.

    Raises:
        ValueError: `frame` is no box frame.
    """
    low, high = torch.tensor([-margin]), torch.tensor([1 + margin])
    (positions,) = sample_positions(low.double(), high.double(), size, frame)
    inside = (positions >= 0) & (positions <= 1)
    return inside[:, None] & inside
