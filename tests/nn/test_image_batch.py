"""Resizing, padding and normalisation: sizes, conventions computed by hand, and the way back of boxes."""

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskwright.nn.image_batch import ImageBatch, boxes_to_input, boxes_to_original, resize_image

NEUTRAL = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        # A ramp 0, 1 of two samples stretched to four.
        ("tf1", [0.0, 0.5, 1.0, 1.0]),
        ("half_pixel", [0.0, 0.25, 0.75, 1.0]),
        ("antialias", [0.0, 0.25, 0.75, 1.0]),
        ("align_corners", [0.0, 1 / 3, 2 / 3, 1.0]),
    ],
)
def test_each_convention_on_a_ramp(method, expected):
    ramp = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    result = resize_image(ramp, (4, 4), method)
    torch.testing.assert_close(result[0], torch.tensor(expected).expand(4, 4))


def test_antialias_averages_where_half_pixel_skips():
    stripes = torch.tensor([0.0, 0.0, 1.0, 0.0] * 8).expand(1, 32, 32)
    smooth = resize_image(stripes, (8, 8), "antialias")[0, 4, 2:-2]
    skipping = resize_image(stripes, (8, 8), "half_pixel")[0, 4, 2:-2]
    torch.testing.assert_close(smooth, torch.full((4,), 0.25), atol=0.05, rtol=0)
    torch.testing.assert_close(skipping, torch.full((4,), 0.5))


def test_padding_is_black_before_normalisation():
    batcher = ImageBatch(8, "half_pixel", (0.5, 0.25, 0.125), (0.5, 0.5, 0.25))
    batch, (geometry,) = batcher([torch.full((3, 4, 8), 255, dtype=torch.uint8)])
    assert geometry.resized_size == (4, 8)
    torch.testing.assert_close(batch[0, :, 0, 0], torch.tensor([1.0, 1.5, 3.5]))
    torch.testing.assert_close(batch[0, :, 7, 7], torch.tensor([-1.0, -0.5, -0.5]))


def test_padding_with_the_mean_is_zero_after_normalisation():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    for order in ("rgb", "bgr"):
        batcher = ImageBatch(8, "half_pixel", mean, std, order, padding=mean)
        batch, _ = batcher([torch.full((3, 8, 4), 255, dtype=torch.uint8)] * 2)
        assert (batch[:, :, :, 4:] == 0).all()
        assert (batch[:, :, :, :4] > 1).all()


def test_padding_may_differ_by_channel():
    batch, _ = ImageBatch(4, "half_pixel", *NEUTRAL, padding=(0.1, 0.2, 0.3))([torch.ones(3, 2, 4)])
    torch.testing.assert_close(batch[0, :, 3, 0], torch.tensor([0.1, 0.2, 0.3]))


def test_bgr_reverses_channels_after_normalisation():
    image = torch.arange(3, dtype=torch.float32).view(3, 1, 1).expand(3, 4, 4) / 4
    rgb, _ = ImageBatch(4, "half_pixel", (0.1, 0.2, 0.3), (1.0, 2.0, 4.0))([image])
    bgr, _ = ImageBatch(4, "half_pixel", (0.1, 0.2, 0.3), (1.0, 2.0, 4.0), "bgr")([image])
    torch.testing.assert_close(bgr, rgb.flip(1))


def test_small_images_are_enlarged_and_a_batch_equals_one_by_one():
    batcher = ImageBatch(32, "antialias", *NEUTRAL)
    images = [torch.rand(3, 10, 20), torch.rand(3, 64, 31), torch.rand(3, 32, 32)]
    batch, geometry = batcher(images)
    assert [lies.resized_size for lies in geometry] == [(16, 32), (32, 16), (32, 32)]
    for image, row in zip(images, batch, strict=True):
        torch.testing.assert_close(batcher([image])[0][0], row)


def test_uint8_and_float_images_agree():
    image = torch.randint(0, 256, (3, 9, 7), dtype=torch.uint8)
    batcher = ImageBatch(16, "antialias", *NEUTRAL)
    torch.testing.assert_close(batcher([image])[0], batcher([image.float() / 255])[0])


@given(height=st.integers(1, 700), width=st.integers(1, 700))
def test_boxes_come_back(height, width):
    geometry = ImageBatch(64, "antialias", *NEUTRAL).geometry(torch.empty(3, height, width))
    boxes = torch.tensor([[0.0, 0.0, width, height], [width / 4, height / 3, width / 2, height / 1.5]])
    there = boxes_to_input(boxes, geometry)
    resized_height, resized_width = geometry.resized_size
    torch.testing.assert_close(there[0], torch.tensor([0.0, 0.0, resized_width, resized_height]))
    torch.testing.assert_close(boxes_to_original(there, geometry), boxes, rtol=1e-5, atol=1e-4)


def test_a_batch_may_have_another_size():
    image = torch.rand(3, 30, 50)
    batch, (geometry,) = ImageBatch(64, "antialias", *NEUTRAL)([image], 32)
    expected, (placement,) = ImageBatch(32, "antialias", *NEUTRAL)([image])
    assert torch.equal(batch, expected)
    assert geometry == placement


def test_the_other_size_rule_rounds_down_twice():
    """333 * (1025 / 500) = 682.65."""
    once, twice = (ImageBatch(1025, "align_corners", *NEUTRAL, size_rule=rule) for rule in ("round", "floor_twice"))
    image = torch.empty(3, 333, 500)
    assert once.geometry(image).resized_size == (683, 1025)
    assert twice.geometry(image).resized_size == (682, 1025)


def test_the_padding_is_normalised_with_the_image():
    batcher = ImageBatch(5, "align_corners", [0.5] * 3, [0.5] * 3, padding=0.5)
    batch, _ = batcher([torch.ones(3, 2, 4)])
    assert (batch[:, :, :2] == 1).all()
    assert (batch[:, :, 2:] == 0).all()


def build_unchecked(*arguments):
    """Values come from JSON, too, and only tests check types: the constructor without that check."""
    batcher = ImageBatch.__new__(ImageBatch)
    inspect.unwrap(ImageBatch.__init__)(batcher, *arguments)
    return batcher


def test_whole_numbers_are_good_means():
    batch, _ = build_unchecked(4, "half_pixel", [0, 0, 0], [1, 1, 1])([torch.full((3, 4, 4), 0.5)])
    torch.testing.assert_close(batch, torch.full((1, 3, 4, 4), 0.5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, "tf1", [0.5, 0.5], [0.5] * 3), "mean and std must be three finite numbers each"),
        ((8, "tf1", [0.5] * 3, [0.5, 0.5, float("nan")]), "mean and std must be three finite numbers each"),
        ((8, "tf1", [0.5] * 3, [0.5, 0.0, 0.5]), "std .* must be three numbers above 0"),
    ],
)
def test_values_without_a_meaning_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_unchecked(*arguments)
