"""Contours: known shapes by hand, and any mask back from its contours."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from maskwright.ops.contours import _distances, joined, outlines, simplified, trace_contours


def contours_of(*rows: str) -> list[list[list[int]]]:
    mask = np.array([[letter == "#" for letter in row] for row in rows])
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
    assert trace_contours(np.zeros(shape, dtype=bool)) == []


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10_000))
def test_the_contours_give_back_the_mask(height: int, width: int, seed: int):
    mask = np.random.default_rng(seed).random((height, width)) < 0.55
    contours = trace_contours(mask)
    assert (winding(contours, height, width) == mask).all()
    for contour in contours:
        steps = np.roll(contour, -1, axis=0) - contour
        assert ((steps == 0).sum(axis=1) == 1).all()  # along one axis
        assert ((steps[:, 0] == 0) != (np.roll(steps[:, 0], 1) == 0)).all()  # which changes at each corner


def rasterised(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """The pixels that COCO's own tools fill."""
    rows = [polygon.ravel().astype(float).tolist() for polygon in polygons]
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(rows, height, width))).astype(bool)


shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))
masks = shapes.flatmap(lambda shape: arrays(bool, shape, elements=st.booleans(), fill=st.just(True)))


@settings(max_examples=300, deadline=None)
@given(masks, st.sampled_from([0.0, 0.5]))
def test_outlines_hold_the_same_pixels_in_cocos_tools(mask: np.ndarray, tolerance: float):
    found = outlines(mask, tolerance)
    if not mask.any():
        assert found == []
        return
    assert min(map(len, found)) >= 3  # COCO's tools take four numbers for a box
    assert (rasterised(found, *mask.shape) == mask).all()
    assert (rasterised([joined(found)], *mask.shape) == mask).all()


def test_a_hole_is_cut_open_between_the_nearest_corners():
    outer = np.array([[0, 0], [9, 0], [9, 9], [0, 9]])
    hole = np.array([[6, 6], [6, 7], [8, 7], [8, 6]])
    ring = joined([outer, hole]).tolist()
    assert ring == [[0, 0], [9, 0], [9, 9], [8, 7], [8, 6], [6, 6], [6, 7], [8, 7], [9, 9], [0, 9]]


def test_stairs_become_a_line_and_corners_stay():
    stairs = [[0, 0], [1, 0], [1, 1], [2, 1], [2, 2], [3, 2], [3, 3], [4, 3], [4, 4], [0, 4]]
    assert simplified(np.array(stairs), 0.75).tolist() == [[0, 0], [4, 4], [0, 4]]
    assert simplified(np.array(stairs), 0.0).tolist() == stairs
    square = np.array([[0, 0], [7, 0], [7, 7], [0, 7]])
    assert simplified(square, 0.5).tolist() == square.tolist()


def test_a_contour_that_meets_itself_keeps_both_sides():
    eight = np.array([[0, 0], [2, 0], [2, 2], [4, 2], [4, 4], [2, 4], [2, 2], [0, 2]])
    square = eight[[2, 3, 4, 5, 6]]  # closed: from a corner to itself
    assert _distances(square[1:-1].astype(float), *square[[0, -1]].astype(float)).tolist() == [2, 8**0.5, 2]
    assert simplified(eight, 0.5).tolist() == eight.tolist()


def test_parts_come_largest_first():
    mask = np.zeros((6, 9), dtype=bool)
    mask[0, 0] = mask[1:5, 4:8] = True
    assert [rotated_to_smallest(outline.tolist())[0] for outline in outlines(mask)] == [[4, 1], [0, 0]]
