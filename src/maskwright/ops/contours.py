"""Masks to polygons: the edges between set and unset pixels, chained into closed contours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

_RIGHT, _DOWN, _LEFT, _UP = range(4)  # each is a right turn after the one before

_Corner = tuple[int, int]  # (x, y)

TOLERANCE = 0.5
"""How far a simplified outline may be from the edges of the pixels: up to this, no pixel's centre changes sides."""


def trace_contours(mask: Bool[np.ndarray, "h w"]) -> list[Int[np.ndarray, "k 2"]]:
    """The contours of a mask along the edges of its pixels, the one that encloses the largest area first.

    Filled by the even-odd or the non-zero rule, they cover exactly the pixels of the mask. Pixels that touch only at a
    corner are apart.

    Returns:
        The corners (x, y) of each contour, int32, in pixels of the mask: pixel (0, 0) covers [0, 1) x [0, 1). As one
        sees them, outer contours run clockwise and holes counter-clockwise. Two neighbouring corners differ in one
        coordinate, and no three lie on one line.
    """
    pixels = np.pad(mask, 1).astype(np.int8)
    # The four pixels around each corner of the pixel grid.
    upper_left, upper_right = pixels[:-1, :-1], pixels[:-1, 1:]
    lower_left, lower_right = pixels[1:, :-1], pixels[1:, 1:]
    # Edges have the mask on their right-hand side, so the sign of the step from pixel to pixel is their direction.
    rows = _edges(lower_left - upper_left, lower_right - upper_right, (_RIGHT, _LEFT))
    columns = _edges((upper_left - upper_right).T, (lower_left - lower_right).T, (_DOWN, _UP))
    swapped = {((y, x), direction): (y_end, x_end) for ((x, y), direction), (x_end, y_end) in columns.items()}
    contours = _chain(rows | swapped)
    return sorted(contours, key=lambda contour: -abs(_area(contour)))


def outlines(mask: Bool[np.ndarray, "h w"], tolerance: float = 0.0) -> list[Int[np.ndarray, "k 2"]]:
    """One closed outline for each part of a mask, the largest first; its holes are cut open (`joined`).

    Args:
        mask: parts touch along the edges of pixels.
        tolerance: how far an outline may be from the edges of the pixels, in pixels (`simplified`).

    Returns:
        The corners (x, y) of each, as in `trace_contours`. Filled by the even-odd rule they cover the centres of
        the mask's pixels and no others, if the tolerance is at most `TOLERANCE`.
    """
    parts, _ = cast("tuple[np.ndarray, int]", ndimage.label(mask))
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1):
        contours = trace_contours(parts[rows, columns] == number)
        outline = joined([simplified(contour, tolerance) for contour in contours])
        found.append(outline + np.array([columns.start, rows.start], dtype=np.int32))
    return sorted(found, key=lambda outline: -abs(_area(outline)))


def joined(contours: Sequence[Int[np.ndarray, "_ 2"]]) -> Int[np.ndarray, "k 2"]:
    """One contour out of several: each is joined to those before it by a line to and fro between their nearest corners.

    Filled by the even-odd rule it covers what they cover, as the lines have no width.
    """
    ring = contours[0]
    for contour in contours[1:]:
        distances = ((ring[:, None].astype(np.int64) - contour) ** 2).sum(axis=2)
        here, there = np.unravel_index(distances.argmin(), distances.shape)
        detour = np.roll(contour, -there, axis=0)
        ring = np.concatenate([ring[: here + 1], detour, detour[:1], ring[here:]])
    return ring


def simplified(contour: Int[np.ndarray, "_ 2"], tolerance: float) -> Int[np.ndarray, "k 2"]:
    """Some of the corners of a closed contour, such that none of the others is farther than `tolerance` from it.

    Source: Ramer, Douglas and Peucker, on the two halves between the first corner and the one farthest from it.
    """
    if tolerance <= 0:
        return contour
    points = np.concatenate([contour, contour[:1]]).astype(np.float64)
    farthest = int(((points - points[0]) ** 2).sum(axis=1).argmax())
    kept = np.zeros(len(points), dtype=bool)
    kept[[0, farthest]] = True
    chains = [(0, farthest), (farthest, len(points) - 1)]
    while chains:
        first, last = chains.pop()
        distances = _distances(points[first + 1 : last], points[first], points[last])
        if len(distances) and distances.max() > tolerance:
            middle = first + 1 + int(distances.argmax())
            kept[middle] = True
            chains += [(first, middle), (middle, last)]
    return contour[kept[:-1]]


def _distances(
    points: Float[np.ndarray, "k 2"], start: Float[np.ndarray, " 2"], end: Float[np.ndarray, " 2"]
) -> Float[np.ndarray, " k"]:
    """How far the points are from the line between `start` and `end`."""
    along = end - start
    length = float(along @ along) or 1.0  # 0 where a contour meets itself
    share = ((points - start) @ along / length).clip(0, 1)
    return np.linalg.norm(points - start - share[:, None] * along, axis=1)


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
