"""Contours: known shapes by hand, and any mask back from its contours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.ops.contours import trace_contours


def contours_of(*rows: str) -> list[list[list[int]]]:
    mask = torch.tensor([[letter == "#" for letter in row] for row in rows])
    return [contour.tolist() for contour in trace_contours(mask)]


def rotated_to_smallest(contour: list[list[int]]) -> list[list[int]]:
    start = contour.index(min(contour))
    return contour[start:] + contour[:start]


def winding(contours: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """How often the contours run clockwise around each pixel's centre: vertical edges right of it, down minus up."""
    turns = np.zeros((height, width), dtype=int)
    for contour in contours:
        for (x, y), (x_next, y_next) in zip(contour, np.roll(contour, -1, axis=0), strict=True):
            if x == x_next:
                turns[min(y, y_next) : max(y, y_next), :x] += 1 if y_next > y else -1
    return turns


def test_one_pixel_is_a_square_clockwise():
    (contour,) = contours_of("...", ".#.")
    assert rotated_to_smallest(contour) == [[1, 1], [2, 1], [2, 2], [1, 2]]


def test_a_hole_runs_the_other_way_and_comes_last():
    outer, hole = contours_of("####", "#..#", "####")
    assert rotated_to_smallest(outer) == [[0, 0], [4, 0], [4, 3], [0, 3]]
    assert rotated_to_smallest(hole) == [[1, 1], [1, 2], [3, 2], [3, 1]]


def test_pixels_that_touch_at_a_corner_are_apart():
    contours = contours_of("#.", ".#")
    assert sorted(map(rotated_to_smallest, contours)) == [
        [[0, 0], [1, 0], [1, 1], [0, 1]],
        [[1, 1], [2, 1], [2, 2], [1, 2]],
    ]


def test_every_pixel_of_a_chessboard_is_a_contour():
    contours = contours_of("#.#", ".#.", "#.#")
    assert [len(contour) for contour in contours] == [4] * 5


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 2)])
def test_an_empty_mask_has_no_contours(shape: tuple[int, int]):
    assert trace_contours(torch.zeros(shape, dtype=torch.bool)) == []


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10_000))
def test_the_contours_give_back_the_mask(height: int, width: int, seed: int):
    mask = np.random.default_rng(seed).random((height, width)) < 0.55
    contours = trace_contours(torch.from_numpy(mask))
    assert (winding(contours, height, width) == mask).all()
    for contour in contours:
        steps = np.roll(contour, -1, axis=0) - contour
        assert ((steps == 0).sum(axis=1) == 1).all()  # along one axis
        assert ((steps[:, 0] == 0) != (np.roll(steps[:, 0], 1) == 0)).all()  # which changes at each corner
