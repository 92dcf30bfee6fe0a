"""Overlays: every mask in a colour of its own, drawn where the mask is and nowhere else, at any size."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskwright.apps.colours import instance_colours
from maskwright.apps.visualize import draw_overlay
from maskwright.structures import InstancePrediction


def prediction_of(boxes: list[list[float]], image_size: tuple[int, int], model) -> InstancePrediction:
    features = model.encode([torch.zeros(3, *image_size)])
    return model.masks_from_boxes(features, [torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)])[0]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 256), st.integers(0, 1000))
def test_no_two_instances_share_a_colour(count: int, seed: int):
    corners = np.random.default_rng(seed).uniform(0, 100, (count, 2))
    colours = instance_colours(np.concatenate([corners, corners + 20], axis=1))
    assert len(set(colours)) == count


def test_neighbours_differ_more_than_the_palette_as_a_whole():
    """On a 10 x 10 grid of touching boxes, in any order, colours of neighbours are far apart; others may be close."""
    grid = np.array([[x, y, x + 1, y + 1] for y in range(10) for x in range(10)], dtype=float)
    order = np.random.default_rng(0).permutation(100)
    colours = np.empty((100, 3))
    colours[order] = instance_colours(grid[order])
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=2)
    gaps = np.abs(grid[:, None, :2] - grid[None, :, :2]).max(axis=2)
    assert distances[gaps == 1].min() > 100
    assert distances[gaps > 1].min() < 25


def test_only_masks_and_boxes_are_painted(ellipse_model):
    image = Image.new("RGB", (200, 100), (90, 90, 90))
    prediction = prediction_of([[20, 10, 80, 90], [120, 30, 180, 70]], (100, 200), ellipse_model)
    painted = np.asarray(draw_overlay(image, prediction))
    changed = (painted != 90).any(axis=2)
    expected = prediction.masks.any(dim=0).numpy()
    for left, top, right, bottom in prediction.boxes.int().tolist():
        outline = np.zeros_like(expected)
        outline[top:bottom, left:right] = True
        outline[top + 1 : bottom - 1, left + 1 : right - 1] = False
        expected |= outline
    assert (changed == expected).all()


def test_inside_is_a_blend_and_the_contour_is_pure(ellipse_model):
    prediction = prediction_of([[20, 10, 180, 90]], (100, 200), ellipse_model)
    painted = np.asarray(draw_overlay(Image.new("RGB", (200, 100), (90, 90, 90)), prediction))
    (colour,) = instance_colours(prediction.boxes.numpy())
    middle = painted[50, 100].astype(int)
    assert np.abs(middle - (0.55 * 90 + 0.45 * np.array(colour))).max() <= 1.5
    column = prediction.masks[0, :, 60].nonzero().flatten()
    assert column[0] > 10  # not on the outline of the box
    assert tuple(painted[column[0], 60]) == colour
    assert tuple(painted[column[-1], 60]) == colour


def test_small_instances_lie_on_top_of_large_ones(ellipse_model):
    boxes = [[80, 40, 120, 60], [0, 0, 200, 100]]
    prediction = prediction_of(boxes, (100, 200), ellipse_model)
    painted = np.asarray(draw_overlay(Image.new("RGB", (200, 100)), prediction))
    small, large = (np.array(colour) for colour in instance_colours(prediction.boxes.numpy()))
    assert np.abs(painted[50, 100] - (0.45 * small + 0.55 * 0.45 * large)).max() <= 2.5


def test_lines_grow_with_the_image(ellipse_model):
    widths = []
    for scale in (1, 8):
        height, width = 300 * scale, 400 * scale
        prediction = prediction_of([[0, 0, width, height]], (height, width), ellipse_model)
        painted = np.asarray(draw_overlay(Image.new("RGB", (width, height)), prediction))
        (colour,) = instance_colours(prediction.boxes.numpy())
        column = (painted[: height // 2, width // 2] == colour).all(axis=1)
        widths.append(int(column.sum()))
    assert 6 * widths[0] <= widths[1] <= 10 * widths[0]


def test_captions_are_written_and_counted(ellipse_model):
    image = Image.new("RGB", (200, 100))
    prediction = prediction_of([[20, 30, 80, 90]], (100, 200), ellipse_model)
    plain, named = draw_overlay(image, prediction), draw_overlay(image, prediction, ["kite"])
    different = (np.asarray(plain) != np.asarray(named)).any(axis=2)
    assert different[:30].any()
    assert not different[31:].any()
    assert draw_overlay(image, prediction, [""]) == plain
    with pytest.raises(ValueError, match="1 captions"):
        draw_overlay(image, prediction, ["kite", "dog"])


def test_an_image_of_another_size_is_refused(ellipse_model):
    prediction = prediction_of([[0, 0, 5, 5]], (100, 200), ellipse_model)
    with pytest.raises(ValueError, match=r"\(100, 200\), but got \(200, 100\)"):
        draw_overlay(Image.new("RGB", (100, 200)), prediction)


def test_no_instances_leave_the_image_as_it_is(ellipse_model):
    image = Image.new("RGB", (20, 10), (1, 2, 3))
    assert draw_overlay(image, prediction_of([], (10, 20), ellipse_model), []) == image


def test_large_images_with_many_boxes_are_fast(ellipse_model):
    """100 boxes of up to 700 pixels on 12 megapixels; whole planes would take 100 x 12 million pixels."""
    random = np.random.default_rng(0)
    centers, sizes = random.uniform((0, 0), (4000, 3000), (100, 2)), random.uniform(60, 700, (100, 2))
    boxes = np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=1).clip(0, (4000, 3000, 4000, 3000))
    prediction = prediction_of(boxes.tolist(), (3000, 4000), ellipse_model)
    image = Image.new("RGB", (4000, 3000))
    started = time.process_time()
    draw_overlay(image, prediction)
    assert time.process_time() - started < 10
