"""Box-frame mask probabilities to pixels, in the float32 operations of `ops/paste.py`, with numpy."""

from __future__ import annotations

import numpy as np

from maskwright.regions import Region

_COLUMNS_AT_ONCE = 64  # so that probabilities stay in the processor's cache
_SMALLEST_EXTENT = np.float32(1e-4)  # of the image, in the `corner` frame


def paste_region(
    probabilities: np.ndarray, box: np.ndarray, image_size: tuple[int, int], frame: str, threshold: float = 0.5
) -> Region:
    """The pixels of a mask on its box: where the probability exceeds a threshold.

    Args:
        probabilities: float32 [M, M], on the grid that `frame` (`corner` or `pixel`) lays on the box.
        box: float32 [4], xyxy, pixels of the picture.
        image_size: (height, width) of the picture.
        frame: of the box.
        threshold: in 0..1.
    """
    low_x, low_y, high_x, high_y = box
    (rows, top), (columns, left) = (
        _pixel_indices(low, high, length, len(probabilities), frame)
        for low, high, length in ((low_y, high_y, image_size[0]), (low_x, high_x, image_size[1]))
    )
    if len(rows) == 0 or len(columns) == 0:
        return np.zeros((0, 0), dtype=bool), (0, 0)
    grid = np.ascontiguousarray(_interpolate(probabilities, rows).T)
    mask = np.empty((len(columns), len(rows)), dtype=bool)
    for first in range(0, len(columns), _COLUMNS_AT_ONCE):
        part = slice(first, first + _COLUMNS_AT_ONCE)
        np.greater(_interpolate(grid, columns[part]), np.float32(threshold), out=mask[part])
    return mask.T, (left, top)


def _pixel_indices(low: np.float32, high: np.float32, length: int, size: int, frame: str) -> tuple[np.ndarray, int]:
    """Continuous mask indices of the pixels that the box covers along one axis, and the first such pixel."""
    pixels = np.arange(length, dtype=np.float32)
    if frame == "corner":
        indices = _corner_indices(low, high, pixels, size)
        inside = np.flatnonzero((indices >= 0) & (indices <= size - 1))
        indices = indices[inside]
    else:
        centers = pixels + np.float32(0.5)
        inside = np.flatnonzero((centers >= low) & (centers < high))
        indices = ((centers[inside] - low) / (high - low) * size - np.float32(0.5)).clip(0, size - 1)
    return indices, int(inside[0]) if len(inside) else 0


def _corner_indices(low: np.float32, high: np.float32, pixels: np.ndarray, size: int) -> np.ndarray:
    length, zero, one = len(pixels), np.float32(0), np.float32(1)
    low, high = low / np.float32(length), high / np.float32(length)
    extent = np.maximum(high - low, _SMALLEST_EXTENT)
    first, last = (zero - low) / extent, (one - low) / extent
    if length == 1:
        return (first + last) * np.float32(0.5) * (size - 1) + pixels
    return first * (size - 1) + pixels * ((last - first) * (size - 1) / (length - 1))


def _interpolate(values: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Rows of `values` at continuous indices within it, to the bit as torch's `lerp`, which rounds once."""
    below = np.floor(indices)
    row = below.astype(np.int64)
    weight = (indices - below)[:, None]
    start, end = values[row], values[(row + 1).clip(max=len(values) - 1)]
    near = weight < 0.5
    share = np.where(near, weight, weight - 1).astype(np.float64)
    return (np.where(near, start, end) + share * (end - start)).astype(np.float32)
