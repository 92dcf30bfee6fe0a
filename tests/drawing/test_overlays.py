"""Overlays: every mask in a colour of its own, drawn where the mask is and nowhere else, at any size."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskwright.drawing import captions
from maskwright.drawing.captions import drawable_name, font_file
from maskwright.drawing.colours import instance_colours
from maskwright.drawing.overlays import OverlayStyle, draw_overlay
from maskwright.errors import UserError
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


def grid_boxes(count: int, side: float = 20.0, columns: int = 100) -> list[list[float]]:
    places = [(index % columns * side, index // columns * side) for index in range(count)]
    return [[x, y, x + 0.9 * side, y + 0.9 * side] for x, y in places]


def test_any_number_of_boxes_has_colours_that_neighbours_do_not_share():
    boxes = np.array(grid_boxes(5000))
    colours = np.array(instance_colours(boxes), dtype=float).reshape(50, 100, 3)
    assert np.linalg.norm(np.diff(colours, axis=0), axis=2).min() > 60
    assert np.linalg.norm(np.diff(colours, axis=1), axis=2).min() > 60


def test_boxes_that_all_lie_on_one_another_have_colours():
    assert len(instance_colours(np.array([[0.0, 0, 9, 9]] * 2000))) == 2000


def test_labels_and_frames_of_small_objects_step_back(ellipse_model):
    image = Image.new("RGB", (400, 400), (90, 90, 90))
    prediction = prediction_of(grid_boxes(400, columns=20), (400, 400), ellipse_model)
    captions = ["nucleus 0.75"] * 400
    automatic = draw_overlay(image, prediction, captions)
    assert automatic == draw_overlay(image, prediction, captions, style=OverlayStyle(labels="off"))
    changed = (np.asarray(automatic) != 90).any(axis=2)
    assert (changed == prediction.masks.any(dim=0).numpy()).all()
    assert automatic != draw_overlay(image, prediction, captions, style=OverlayStyle(labels="on"))


def test_automatic_labels_do_not_lie_on_one_another(ellipse_model):
    image = Image.new("RGB", (300, 300))
    twins = prediction_of([[50, 50, 250, 250], [52, 52, 248, 248]], (300, 300), ellipse_model)
    off = np.asarray(draw_overlay(image, twins, ["a", "b"], style=OverlayStyle(labels="off"))).astype(int)
    both = [np.asarray(draw_overlay(image, twins, names)).astype(int) for names in (["kite", ""], ["kite", "kite"])]
    assert (both[0] != off).any()
    assert (both[0] == both[1]).all()


def test_outline_and_opacity(ellipse_model):
    image = Image.new("RGB", (200, 100), (90, 90, 90))
    prediction = prediction_of([[20, 10, 180, 90]], (100, 200), ellipse_model)
    (colour,) = instance_colours(prediction.boxes.numpy())
    outline = np.asarray(draw_overlay(image, prediction, style=OverlayStyle(outline=True)))
    assert outline[50, 100].tolist() == [90, 90, 90]
    assert (outline == colour).all(axis=2).any()
    full = np.asarray(draw_overlay(image, prediction, style=OverlayStyle(opacity=1.0)))
    assert tuple(full[50, 100]) == colour


def test_colours_by_class_are_the_same_in_every_picture_and_have_a_legend(ellipse_model):
    image = Image.new("RGB", (400, 300), (90, 90, 90))
    boxes = [[100, 100, 180, 180], [200, 100, 280, 180], [300, 100, 380, 180]]
    prediction = prediction_of(boxes, (300, 400), ellipse_model)
    by_class = OverlayStyle(color_by="class")
    cat, kite = (7, "cat"), (None, "kite")
    first = np.asarray(draw_overlay(image, prediction, classes=[cat, kite, cat], style=by_class))
    middles = [first[140, x].tolist() for x in (140, 240, 340)]
    assert middles[0] == middles[2] != middles[1]
    assert (first[:30, :40] != 90).any()
    second = np.asarray(draw_overlay(image, prediction, classes=[kite, (None, ""), cat], style=by_class))
    assert [second[140, x].tolist() for x in (140, 340)] == [middles[1], middles[0]]


@pytest.mark.parametrize("wrong", [{"labels": "some"}, {"color_by": "size"}, {"opacity": 2.0}])
def test_styles_that_there_are_not(wrong: dict):
    with pytest.raises(UserError, match=r"--(labels|color-by|opacity): expected"):
        OverlayStyle(**wrong)


class TestLetters:
    @pytest.fixture(autouse=True)
    def forgotten(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(captions, "_warned", [])
        yield
        for cached in (captions.font_file, captions._system_fonts):
            cached.cache_clear()

    def without_fonts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(captions, "FONT_FOLDERS", ())
        for cached in (captions.font_file, captions._system_fonts):
            cached.cache_clear()

    def test_pillow_s_own_font_has_the_plain_letters_and_no_squares_for_others(self):
        assert font_file("kite 0.93 (x)") == ""
        assert not captions._has("", "圆")
        assert not captions._has("", "ж")

    @pytest.mark.parametrize(
        ("name", "number", "written"),
        [
            ("naïve", 3, "naive"),
            ("Größe", 3, "Groe"),
            ("圆盘", 3, "class 3"),
            ("кот", None, "class"),
            ("猫cat", 5, "cat"),
        ],
    )
    def test_without_a_font_names_are_written_in_ascii_or_as_numbers(self, monkeypatch, name, number, written):
        self.without_fonts(monkeypatch)
        if font_file(name) is not None:
            pytest.skip("Pillow's own font has these letters")
        with pytest.warns(UserWarning, match=f"no font of this system has the letters of '{name}'"):
            assert drawable_name(name, number) == written
        assert drawable_name("圆", 8) == "class 8"  # without another warning

    def test_a_font_of_the_system_is_found_for_other_scripts(self):
        if not any("DejaVuSans.ttf" in file for file in captions._system_fonts()):
            pytest.skip("no font to be found here")
        for name in ("кот", "naïve", "Ωμέγα"):
            assert drawable_name(name, 1) == name
            assert font_file(name) is not None
