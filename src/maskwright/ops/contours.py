"""Masks to polygons: the edges between set and unset pixels, chained into closed contours."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

_RIGHT, _DOWN, _LEFT, _UP = range(4)  # each is a right turn after the one before

_Corner = tuple[int, int]  # (x, y)


def trace_contours(mask: Bool[Tensor, "h w"]) -> list[Int[np.ndarray, "k 2"]]:
    """The contours of a mask along the edges of its pixels, the one that encloses the largest area first.

    Filled by the even-odd or the non-zero rule, they cover exactly the pixels of the mask. Pixels that touch only at a
    corner are apart.

    Returns:
        The corners (x, y) of each contour, int32, in pixels of the mask: pixel (0, 0) covers [0, 1) x [0, 1). As one
        sees them, outer contours run clockwise and holes counter-clockwise. Two neighbouring corners differ in one
        coordinate, and no three lie on one line.
    """
    pixels = np.pad(mask.numpy(force=True), 1).astype(np.int8)
    # The four pixels around each corner of the pixel grid.
    upper_left, upper_right = pixels[:-1, :-1], pixels[:-1, 1:]
    lower_left, lower_right = pixels[1:, :-1], pixels[1:, 1:]
    # Edges have the mask on their right-hand side, so the sign of the step from pixel to pixel is their direction.
    rows = _edges(lower_left - upper_left, lower_right - upper_right, (_RIGHT, _LEFT))
    columns = _edges((upper_left - upper_right).T, (lower_left - lower_right).T, (_DOWN, _UP))
    swapped = {((y, x), direction): (y_end, x_end) for ((x, y), direction), (x_end, y_end) in columns.items()}
    contours = _chain(rows | swapped)
    return sorted(contours, key=lambda contour: -abs(_area(contour)))


def _edges(
    before: Int[np.ndarray, "lines corners"], after: Int[np.ndarray, "lines corners"], directions: tuple[int, int]
) -> dict[tuple[_Corner, int], _Corner]:
    """The longest straight edges along the lines: (corner where it starts, its direction) -> corner where it ends.

    before, after: the edge before and after each corner of a line, 1 along the line, -1 against it, 0 where none is.
    directions: along a line and against it.
    """
    turns = before != after
    first, last = np.argwhere(turns & (after != 0)), np.argwhere(turns & (before != 0))
    edges = {}
    for (line, low), (_, high) in zip(first.tolist(), last.tolist(), strict=True):
        if after[line, low] > 0:
            edges[(low, line), directions[0]] = (high, line)
        else:
            edges[(high, line), directions[1]] = (low, line)
    return edges


def _chain(edges: dict[tuple[_Corner, int], _Corner]) -> list[Int[np.ndarray, "k 2"]]:
    """The closed contours that the edges form; where two meet at a corner, each turns right."""
    contours = []
    while edges:
        start = edge = next(iter(edges))
        contour = []
        while not contour or edge != start:
            contour.append(edge[0])
            corner, direction = edges.pop(edge), edge[1]
            right, left = (corner, (direction + 1) % 4), (corner, (direction - 1) % 4)
            edge = right if right in edges or right == start else left
        contours.append(np.array(contour, dtype=np.int32))
    return contours


def _area(contour: Int[np.ndarray, "k 2"]) -> float:
    """Enclosed area; negative where the contour runs counter-clockwise as one sees it."""
    x, y = contour.astype(float).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)
