"""What the torch-free predictor does itself, against the parts of the package that do the same with torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from small_max_deeplab import CATEGORIES, config_of

from maskwright.errors import UserError
from maskwright.models.max_deeplab.post_processing import PanopticMerging
from maskwright.nn.image_batch import ImageBatch
from maskwright.onnx.merging import merge_masks
from maskwright.onnx.metadata import Metadata
from maskwright.onnx.paste import _interpolate, paste_region
from maskwright.onnx.predictions import InstancePrediction, encode_region
from maskwright.onnx.preparation import network_input, resized_size
from maskwright.onnx.second_look import mean_of_looks, small_rows, square_around
from maskwright.ops import crop as ops
from maskwright.ops import paste as ops_paste
from maskwright.ops.paste import paste_binary_region, paste_masks
from maskwright.prompts import boxes_on_picture
from maskwright.structures import ImageGeometry

RESIZING = [
    ("antialias", "round", "rgb"),
    ("half_pixel", "round", "bgr"),
    ("tf1", "round", "rgb"),
    ("align_corners", "floor_twice", "rgb"),
]


def metadata(**values) -> Metadata:
    defaults = {
        "id": "0",
        "graph": "panoptic",
        "family": "max_deeplab",
        "raw_image": False,
        "image_size": 65,
        "resize": "antialias",
        "size_rule": "round",
        "channel_order": "rgb",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "padding": [0.1, 0.2, 0.3],
        "precision": "float32",
        "categories": [dict(category) for category in CATEGORIES],
        "mask_classes": [],
    }
    return Metadata(**{**defaults, **values})


@pytest.mark.parametrize(("resize", "size_rule", "channel_order"), RESIZING)
@pytest.mark.parametrize("size", [(1, 1), (5, 90), (48, 64), (200, 333), (65, 65), (170, 9)])
def test_the_network_s_input_is_that_of_the_model(resize, size_rule, channel_order, size):
    told = metadata(resize=resize, size_rule=size_rule, channel_order=channel_order)
    batch = ImageBatch(65, resize, told.mean, told.std, channel_order, size_rule, told.padding)
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected, (geometry,) = batch([torch.from_numpy(picture).permute(2, 0, 1).contiguous()])
    assert resized_size(size, told) == geometry.resized_size
    np.testing.assert_allclose(network_input(picture, told), expected.numpy(), rtol=0, atol=2e-4)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["corner", "pixel"]))
def test_masks_are_pasted_as_with_torch(seed, frame):
    random = np.random.default_rng(seed)
    size = tuple(random.integers(1, 60, 2).tolist())
    corners = random.uniform(-0.2, 1.2, (1, 2, 2)) * np.array([size[1], size[0]])
    if random.random() < 0.3:
        corners = corners.round()  # on the edges of pixels
    box = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)
    probabilities = random.random((1, 7, 7), dtype=np.float32)
    threshold = float(random.choice([0.2, 0.5, 0.9]))
    pixels, origin = paste_region(probabilities[0], box[0], size, frame, threshold)
    expected, its_origin = paste_binary_region(
        torch.from_numpy(probabilities[0]), torch.from_numpy(box[0]), size, frame, threshold
    )
    assert origin == its_origin
    assert np.array_equal(pixels, expected.numpy())  # to the bit: both round a sample once


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="torch rounds twice there")
def test_samples_are_those_of_torch_to_the_bit():
    random = np.random.default_rng(0)
    values = random.random((56, 333), dtype=np.float32)
    indices = (random.random(500, dtype=np.float32) * 55).astype(np.float32)
    expected = ops_paste._interpolate(torch.from_numpy(values), torch.from_numpy(indices))
    assert np.array_equal(_interpolate(values, indices), expected.numpy())


def test_large_masks_are_pasted_as_with_torch():
    random = np.random.default_rng(0)
    probabilities = random.random((56, 56), dtype=np.float32)
    box = np.array([3.3, -7.7, 801.2, 611.9], dtype=np.float32)
    for frame in ("corner", "pixel"):
        pixels, _ = paste_region(probabilities, box, (600, 900), frame)
        expected, _ = paste_binary_region(torch.from_numpy(probabilities), torch.from_numpy(box), (600, 900), frame)
        assert np.array_equal(pixels, expected.numpy())


def test_a_prediction_s_masks_regions_and_results_agree():
    random = np.random.default_rng(1)
    boxes = np.array([[2, 3, 20, 18], [-5, -5, 60, 50], [70, 2, 80, 8]], dtype=np.float32)
    ones, labels = np.ones(3, dtype=np.float32), np.array([0, -1, 0])
    values = random.random((3, 9, 9), dtype=np.float32)
    found = InstancePrediction(boxes, labels, ones, ones, values, (30, 40), "pixel", CATEGORIES)
    expected = paste_masks(torch.from_numpy(values), torch.from_numpy(boxes), (30, 40), "pixel").numpy()
    assert np.array_equal(found.masks, expected)
    assert expected[:2].any(axis=(1, 2)).all()
    for entry, mask in zip(found.scored([0.5, 1.0, 0.25]).to_coco("a.jpg"), expected, strict=True):
        assert np.array_equal(coco_mask.decode(entry["segmentation"]), mask)
    assert [entry["score"] for entry in found.scored([0.5, 1.0, 0.25]).to_coco(1)] == [0.5, 1, 0.25]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.02, 0.5, 1.0]))
def test_run_lengths_are_those_of_coco(seed, share):
    random = np.random.default_rng(seed)
    plane = random.random(tuple(random.integers(1, 90, 2))) < share
    code = encode_region((plane, (0, 0)), plane.shape)
    assert code["counts"] == coco_mask.encode(np.asfortranarray(plane.astype(np.uint8)))["counts"].decode()
    assert np.array_equal(coco_mask.decode(code), plane)


def test_long_runs_take_several_characters():
    plane = np.zeros((1000, 900), dtype=bool)
    plane[500:, 450:] = True
    assert np.array_equal(coco_mask.decode(encode_region((plane, (0, 0)), plane.shape)), plane)


@given(
    corners=st.tuples(*[st.floats(0, 1, width=32)] * 4),
    context=st.floats(1, 9),
    size=st.tuples(st.integers(1, 60), st.integers(1, 80)),
)
def test_the_square_around_a_box_is_that_of_torch(corners, context, size):
    places = np.array(corners, dtype=np.float32).reshape(2, 2)
    box = np.concatenate([places.min(axis=0), places.max(axis=0)]) * np.array([size[1], size[0]] * 2, np.float32)
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected, inside = ops.crop_around(torch.from_numpy(picture).permute(2, 0, 1), torch.from_numpy(box), context)
    found, found_inside = square_around(picture, box, context)
    assert np.array_equal(found, expected.permute(1, 2, 0).numpy())
    assert np.array_equal(found_inside, inside.numpy())


def test_boxes_with_a_longer_side_below_the_limit_are_small():
    told = metadata(second_look={"below": 10.0, "context": 1.5, "size": 32})
    boxes = np.array([[0, 0, 9, 9], [0, 0, 10, 2], [1, 1, 2, 10.9], [0, 0, 1, 50], [3, 3, 4, 4]], dtype=np.float32)
    assert [rows.tolist() for rows in small_rows(boxes, told, 2)] == [[0, 2], [4]]
    assert small_rows(boxes[:0], told, 2) == []
    assert small_rows(boxes, metadata(), 2) == []


def test_two_looks_as_one():
    curve = {"scores": [0.2, 0.7], "ious": [0.1, 0.6]}
    raw, calibrated = metadata(), metadata(mask_calibration=curve)
    first = {"mask_probabilities": np.array([[[0.9, 0.2]]], np.float32), "mask_scores": np.array([0.3], np.float32)}
    second = {"mask_probabilities": np.array([[[0.7, 0.6]]], np.float32), "mask_scores": np.array([0.4], np.float32)}
    found = mean_of_looks(first, second, raw)
    np.testing.assert_allclose(found["mask_probabilities"], [[[0.8, 0.4]]], rtol=1e-6)
    np.testing.assert_allclose(found["mask_scores"], [0.8 / (1 + 0.4)], rtol=1e-6)
    np.testing.assert_allclose(mean_of_looks(first, second, calibrated)["mask_scores"], [0.8 / 1.4 - 0.1], rtol=1e-6)
    logits = ({"mask_quality_logits": np.array([value], np.float32)} for value in (-2.0, 2.0))
    first, second = ({**look, **quality} for look, quality in zip((first, second), logits, strict=True))
    np.testing.assert_allclose(mean_of_looks(first, second, raw)["mask_scores"], [0.5], rtol=1e-6)
    np.testing.assert_allclose(mean_of_looks(first, second, calibrated)["mask_scores"], [0.4], rtol=1e-6)


@pytest.mark.parametrize("merging", ["pixelwise", "maskwise"])
@pytest.mark.parametrize("seed", range(4))
def test_masks_are_merged_as_with_torch(merging, seed):
    values = {"merging": merging, "class_threshold": 0.3, "pixel_threshold": 0.3, "overlap_threshold": 0.2}
    limits = {"thing_area_limit": 20, "stuff_area_limit": 40, "stuff_class_threshold": 0.35}
    config = config_of(categories=CATEGORIES, image_size=65, **values, **limits)
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 6, 4, 4, generator=generator) * 4
    logits = torch.nn.functional.interpolate(coarse, size=(17, 17), mode="bilinear", align_corners=True)[0]
    classes = torch.randn(6, 4, generator=generator) * 2
    classes[5, 3] = 9.0  # a slot that shows nothing
    size = (50, 80)
    told = metadata(
        resize="align_corners",
        size_rule="floor_twice",
        merging={name: getattr(config, name) for name in (*values, *limits, "class_exponent", "mask_exponent")},
    )
    geometry = ImageGeometry(size, resized_size(size, told), (65, 65))
    expected = PanopticMerging(config)(logits, classes, geometry, 0.2)
    found = merge_masks(logits.numpy(), classes.numpy(), size, told, 0.2)
    assert len(expected) >= 2
    assert (found.segmentation != expected.segmentation.numpy()).mean() < 1e-3
    for own, other in zip(found.segments_info, expected.segments_info, strict=True):
        assert {**own, "score": 0, "area": 0} == {**other, "score": 0, "area": 0}
        assert own["score"] == pytest.approx(other["score"], abs=1e-3)


def test_nothing_detected_is_void():
    told = metadata(
        merging={
            "merging": "pixelwise",
            "class_threshold": 0.7,
            "stuff_class_threshold": None,
            "pixel_threshold": 0.4,
            "thing_area_limit": 0,
            "stuff_area_limit": 0,
        }
    )
    classes = np.zeros((2, 4), dtype=np.float32)
    found = merge_masks(np.zeros((2, 17, 17), dtype=np.float32), classes, (30, 40), told, 0.0)
    assert len(found) == 0
    assert not found.segmentation.any()
    assert found.segmentation.shape == (30, 40)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[1, 2, 3]], r"box 0: expected four numbers x1, y1, x2, y2, but got \[1, 2, 3\]"),
        ([[1, 2, 3, "x"]], "box 0: expected four numbers"),
        ([[1, 2, 3, 4], [5, 6]], "box 1: expected four numbers"),
        ([[0, 0, 4, 4], [3, 1, 2, 5]], "box 1: expected corners x1, y1, x2, y2 with x1 < x2 and y1 < y2"),
        ([[0, 0, float("nan"), 4]], "box 0: expected finite numbers"),
        ([[50, 0, 60, 4]], "box 0: .* lies outside of the image, which is 40 wide and 30 high"),
        (np.zeros((2, 3)), r"expected shape \[N, 4\]"),
    ],
)
def test_what_is_no_box_is_named(boxes, message):
    with pytest.raises(UserError, match=message):
        boxes_on_picture(boxes, (30, 40))


def test_boxes_are_cut_off_at_the_picture():
    assert boxes_on_picture([[-5, 2, 90, 8]], (30, 40)).tolist() == [[0, 2, 40, 8]]
    assert boxes_on_picture([], (30, 40)).shape == (0, 4)
