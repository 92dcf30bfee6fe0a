"""Every family and every mask head as ONNX files, run by onnxruntime, against torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import small_deep_mac
import small_deep_marc
import small_max_deeplab
import torch
from jaxtyping import config
from onnx import TensorProto, checker, helper, numpy_helper
from torch import nn

import maskwright.onnx as exported_models
from maskwright.errors import UserError
from maskwright.export.files import ExportOptions, describe, export_model, reduce_weights, save_models
from maskwright.export.graphs import GraphOptions
from maskwright.models.calibration import MaskCalibration
from maskwright.models.max_deeplab.config import ENCODER_SIZES
from maskwright.nn.mask_heads import MASK_HEADS
from maskwright.predictor import Predictor

SIZES = [(40, 64), (90, 50), (64, 64)]  # of pictures, (height, width)
COUNTS = (0, 1, 2, 100)
SECOND_LOOK = {"second_look_below": 24.0, "second_look_size": 32}
CURVE = MaskCalibration([0.0, 0.4, 0.6, 1.0], [0.1, 0.2, 0.7, 0.9])


def export(model: Any, folder: Path, **options: Any) -> exported_models.Predictor:
    precision = options.pop("precision", "float32")
    config.update("jaxtyping_disable", True)  # to compare the sizes of shapes would make constants of them
    try:
        models = export_model(model, ExportOptions(GraphOptions(**options), precision))
    finally:
        config.update("jaxtyping_disable", False)
    save_models(models, folder / "model.onnx")
    return exported_models.Predictor(folder / "model.onnx", "cpu")


def settled(model: Any, size: int) -> Any:
    """The model with statistics of its norms and weights that make masks of all kinds, not of one value."""
    generator = torch.Generator().manual_seed(2)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            layer.train().momentum = 1.0
    with torch.no_grad():
        model.masks_from_boxes(
            model.encode([torch.rand(3, size, size, generator=generator)]), [random_boxes((size, size), 8)]
        )
    return model.eval()


def random_boxes(size: tuple[int, int], count: int) -> torch.Tensor:
    height, width = size
    generator = torch.Generator().manual_seed(count)
    corners = torch.rand(count, 2, 2, generator=generator) * torch.tensor([width, height])
    return torch.cat([corners.amin(dim=1), corners.amax(dim=1) + 2], dim=1)


def pictures() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def check_boxes_to_masks(torch_predictor: Predictor, exported: exported_models.Predictor, labels: bool = False) -> None:
    varied = []
    for picture, count in zip([*pictures(), pictures()[0]], COUNTS, strict=True):
        boxes = random_boxes(picture.shape[:2], count)
        classes = torch.arange(count) % 4 - 1 if labels else None
        expected = torch_predictor.predict(picture, boxes, classes)
        found = exported.masks_from_boxes(exported.encode(picture), boxes.numpy(), classes)
        assert isinstance(found, exported_models.InstancePrediction)
        assert found.mask_probabilities.shape == tuple(expected.mask_probabilities.shape)
        np.testing.assert_allclose(found.mask_probabilities, expected.mask_probabilities, rtol=0, atol=1e-3)
        np.testing.assert_allclose(found.mask_scores, expected.mask_scores, rtol=0, atol=1e-3)
        np.testing.assert_allclose(found.boxes, expected.boxes, rtol=0, atol=1e-4)
        assert found.labels.tolist() == expected.labels.tolist()
        assert (found.masks != expected.masks.numpy()).mean() < 1e-2 if count else found.masks.shape[0] == 0
        varied += expected.mask_probabilities.flatten().tolist()
    assert np.std(varied) > 0.02  # the masks are not all of one value, which would be equal in any case


def both(model: Any, folder: Path, **options: Any) -> tuple[Predictor, exported_models.Predictor]:
    """torch's predictor of a copy, and that of the exported files."""
    return Predictor(model, "cpu"), export(model, folder, **options)


def test_deep_mac_as_a_pair(tmp_path):
    crops = {"use_image_crop": True, "box_frame": "pixel", "box_margin": 0.1}
    model = settled(small_deep_mac.build(mask_head="resnet4", mask_quality=True, **crops, **SECOND_LOOK), 64)
    model.mask_calibration = CURVE
    torch_predictor, exported = both(model, tmp_path)
    check_boxes_to_masks(torch_predictor, exported)
    check_second_look(exported)
    check_batch(torch_predictor.model, exported)
    (tmp_path / "model.encoder.onnx").unlink()
    with pytest.raises(UserError, match=r"model.encoder.onnx: no such file"):
        exported_models.Predictor(tmp_path / "model.onnx")


def check_batch(model: Any, exported: exported_models.Predictor) -> None:
    """Two images in one batch, whose boxes come in any order: the files alone, without our predictor."""
    batch = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    boxes, index = random_boxes((64, 64), 5), torch.tensor([1, 0, 0, 1, 1])
    names = [each.name for each in exported._encoder.get_outputs()]
    maps = dict(zip(names, exported._encoder.run(None, {"image": batch.numpy()}), strict=True))
    given = {**maps, "image": batch.numpy(), "boxes": boxes.numpy(), "image_index": index.numpy()}
    probabilities, _ = exported._session.run(["mask_probabilities", "mask_scores"], given)
    with torch.inference_mode():
        expected = model.on_boxes(model.mask_logits(model.maps(batch), boxes, index)).sigmoid()
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_deep_mac_as_one_file(tmp_path):
    """Whose masks have no quality of their own, and whose network does not read the image again."""
    model = settled(small_deep_mac.build(mask_head="resnet4", **SECOND_LOOK), 64)
    model.mask_calibration = CURVE
    torch_predictor, exported = both(model, tmp_path, single=True)
    check_boxes_to_masks(torch_predictor, exported)
    check_second_look(exported)


def check_second_look(exported: exported_models.Predictor) -> None:
    """Small boxes alone are seen again: of the first look alone, their masks and scores are others."""
    boxes = np.array([[30, 20, 40, 26], [2, 2, 60, 38], [58, 30, 64, 40]], dtype=np.float32)
    features = exported.encode(pictures()[0])
    twice = exported.masks_from_boxes(features, boxes)
    with_it, exported.metadata = exported.metadata, replace(exported.metadata, second_look=None)
    once = exported.masks_from_boxes(features, boxes)
    exported.metadata = with_it
    changes = np.abs(twice.mask_probabilities - once.mask_probabilities).max(axis=(1, 2))
    assert (changes > 1e-2).tolist() == [True, False, True]
    assert (np.abs(twice.mask_scores - once.mask_scores) > 1e-5).tolist() == [True, False, True]


@pytest.mark.parametrize("form", [{"raw_image": True}, {"single": True, "raw_image": True}, {"detector": True}])
def test_a_form_that_takes_no_crops_has_no_second_look(form):
    model = settled_detector(**SECOND_LOOK)
    told = [describe(model, "", "", ExportOptions(GraphOptions(**options))) for options in (form, {}, {"single": True})]
    looks = {"below": 24.0, "context": 1.5, "size": 32}
    assert [each.second_look for each in told] == [None, looks, looks]


def test_deep_mac_as_one_file_of_raw_pictures(tmp_path):
    model = settled(small_deep_mac.build(resize="tf1", channel_order="bgr", mask_head="resnet4"), 64)
    torch_predictor, exported = both(model, tmp_path, single=True, raw_image=True)
    assert not (tmp_path / "model.encoder.onnx").exists()
    check_boxes_to_masks(torch_predictor, exported)


@pytest.mark.parametrize(("precision", "smaller", "tolerance"), [("float16", 1.9, 2e-2), ("int8", 3.5, 0.2)])
def test_weights_in_a_smaller_precision(precision, smaller, tolerance):
    weights = np.random.default_rng(0).standard_normal((96, 64)).astype(np.float32)
    weights[3] *= 100  # each row has steps of its own
    small = np.ones(64, dtype=np.float32) / 3
    nodes = [helper.make_node("MatMul", ["x", "weights"], ["y"]), helper.make_node("Add", ["y", "small"], ["z"])]
    ends = [
        helper.make_tensor_value_info(*end)
        for end in (("x", TensorProto.FLOAT, [1, 96]), ("z", TensorProto.FLOAT, [1, 64]))
    ]
    stored = [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(small, "small")]
    model = helper.make_model(helper.make_graph(nodes, "product", ends[:1], ends[1:], stored), ir_version=10)
    whole = model.ByteSize()
    reduce_weights(model, precision)
    checker.check_model(model)
    assert whole / model.ByteSize() > smaller
    x = np.random.default_rng(1).standard_normal((1, 96)).astype(np.float32)
    x[0, 3] = 0.01
    (z,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    error = np.abs(z - (x @ weights + small)).max()
    assert 0 < error < tolerance


@pytest.mark.slow
def test_deep_mac_of_full_resolution(tmp_path):
    full = {"predict_full_resolution_masks": True, "postprocess_crop_size": 24, "mask_head": "hourglass10"}
    model = settled(small_deep_mac.build(**full), 64)
    check_boxes_to_masks(*both(model, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("mask_head", MASK_HEADS)
def test_every_mask_head(mask_head, tmp_path):
    model = settled(small_deep_mac.build(mask_head=mask_head), 64)
    check_boxes_to_masks(*both(model, tmp_path))


def test_the_detector(tmp_path):
    model = settled_detector(mask_head="resnet4")
    torch_predictor, exported = both(model, tmp_path, detector=True, max_detections=20)
    for picture in pictures():
        expected = torch_predictor.predict(picture, score_threshold=0.05, max_detections=20)
        found = exported.predict(picture, score_threshold=0.05)
        assert len(expected) >= 3
        np.testing.assert_allclose(found.boxes, expected.boxes, rtol=0, atol=1e-2)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-4)
        np.testing.assert_allclose(found.mask_probabilities, expected.mask_probabilities, rtol=0, atol=1e-3)
        assert found.labels.tolist() == expected.labels.tolist()
    assert len(exported.predict(pictures()[0], score_threshold=0.05, max_detections=2)) == 2
    with pytest.raises(UserError, match="takes no boxes"):
        exported.predict(pictures()[0], [[1, 2, 30, 40]])


def settled_detector(**values: Any) -> Any:
    """A detector whose peaks have an extent of some 20 pixels."""
    categories = [{"id": 1, "name": "cat"}, {"id": 5, "name": "dog"}]
    model = settled(small_deep_mac.build(detector="centernet", categories=categories, **values), 64)
    for heads in model.network.detector:
        nn.init.constant_(heads.size[-1].bias, 5.0)
        nn.init.normal_(heads.center[-1].weight, std=0.5, generator=torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize(
    "raw_image", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["prepared", "raw pictures"]
)
def test_deep_marc_with_a_mask_per_class(raw_image, tmp_path):
    looks = {} if raw_image else {"second_look_below": 40.0, "second_look_size": 64}
    model = settled(small_deep_marc.build(class_agnostic_masks=False, **looks), 128)
    torch_predictor, exported = both(model, tmp_path, raw_image=raw_image)
    check_boxes_to_masks(torch_predictor, exported, labels=True)
    check_boxes_to_masks(torch_predictor, exported)


@pytest.mark.slow
def test_deep_marc_of_any_class(tmp_path):
    check_boxes_to_masks(*both(settled(small_deep_marc.build(mask_quality=True), 128), tmp_path))


@pytest.mark.parametrize(
    ("backbone", "whole"),
    [
        ("max_deeplab_s", False),
        pytest.param("max_deeplab_s", True, marks=pytest.mark.slow),
        pytest.param("efficientnet_lite0", True, marks=pytest.mark.slow),
    ],
    ids=["few blocks", "all blocks", "trunk"],
)
def test_max_deeplab(backbone, whole, tmp_path, monkeypatch):
    if not whole:
        few = replace(ENCODER_SIZES["max_deeplab_s"], blocks={2: 1, 3: 1, 4: 1, 5: 1}, extra_blocks=0)
        monkeypatch.setitem(ENCODER_SIZES, "max_deeplab_s", few)
    values = {"class_threshold": 0.2, "pixel_threshold": 0.1, "thing_area_limit": 0, "stuff_area_limit": 0}
    model = small_max_deeplab.small_model(backbone=backbone, **values).eval()
    torch_predictor, exported = both(model, tmp_path)
    for picture in pictures():
        expected = torch_predictor.predict(picture, score_threshold=0.0)
        found = exported.predict(picture, score_threshold=0.0)
        assert isinstance(found, exported_models.PanopticPrediction)
        assert (found.segmentation != expected.segmentation.numpy()).mean() < 1e-2
        assert len(found) == len(expected)
