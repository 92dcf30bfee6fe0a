"""CVAT's own driver and mask codec with the functions of `maskwright.cvat`."""

from __future__ import annotations

import logging
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tool_scene import CLASSES, Scene, interop_python

from maskwright.cvat import create
from maskwright.errors import UserError
from maskwright.structures import Category, InstancePrediction

pytestmark = pytest.mark.interop


IMAGE_SIZE = (60, 90)
BOXES = [[10.0, 10, 30, 30], [40.0, 5, 80, 55]]


@pytest.fixture
def cvat_sdk(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library out of the environment of the annotation tools, behind all that this one has."""
    asked = [interop_python(), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    folder = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.setattr(sys, "path", [*sys.path, folder])
    import cvat_sdk.auto_annotation
    import cvat_sdk.masks

    return cvat_sdk


class TestInteraction:
    def test_every_box_is_answered_and_an_image_is_encoded_once(self, scene: Scene, cvat_sdk: Any, ellipse_model):
        function = create()
        assert function.spec.min_bounding_boxes == 1
        assert (function.spec.min_pos_points, function.spec.min_neg_points) == (0, None)
        for name in scene.masks:
            expected = scene.predicted(name)
            before = ellipse_model.encoded
            with Image.open(scene.images / name) as image:
                features = function.preprocess_image(context(cvat_sdk), image)
            for box, mask in zip(scene.boxes(name).tolist(), expected, strict=True):
                (shape,) = function.detect(context(cvat_sdk), features, prompts(cvat_sdk, box))
                assert shape.type == "mask"
                np.testing.assert_array_equal(decode(cvat_sdk, shape.points, mask.shape), mask)
                assert [(value.spec_id, value.value) for value in shape.attributes] == [(0, "0.75000")]
            assert ellipse_model.encoded == before + 1

    def test_a_box_without_pixels_has_no_shape(self, scene: Scene, cvat_sdk: Any):
        function = create()
        features = function.preprocess_image(context(cvat_sdk), Image.new("RGB", (90, 60)))
        assert function.detect(context(cvat_sdk), features, prompts(cvat_sdk, [3.1, 3.1, 3.2, 3.2])) == []

    def test_a_box_outside_of_the_image(self, scene: Scene, cvat_sdk: Any):
        function = create()
        features = function.preprocess_image(context(cvat_sdk), Image.new("RGB", (90, 60)))
        with pytest.raises(UserError, match="lies outside of the image"):
            function.detect(context(cvat_sdk), features, prompts(cvat_sdk, [100, 3, 120, 20]))

    def test_a_model_that_takes_no_boxes(self, detector: None, cvat_sdk: Any):
        with pytest.raises(UserError, match="needs a model that takes boxes"):
            create()


class TestDetection:
    """A model that finds an ellipse of class plate with the score 0.4 and a ring of class washer with 0.9."""

    pytestmark = pytest.mark.usefixtures("detector")

    @pytest.mark.parametrize(("threshold", "rows"), [(None, [0, 1]), (0.3, [0, 1]), (0.35, [1]), (0.7, [])])
    def test_masks(self, scene: Scene, cvat_sdk: Any, monkeypatch: pytest.MonkeyPatch, threshold, rows: list[int]):
        """The score is that of the class times that of the mask, 0.75."""
        shapes = annotate(cvat_sdk, monkeypatch, scene, conf_threshold=threshold)
        planes = Detecting.found().masks.numpy()
        assert [shape.label_id for shape in shapes] == [(71, 70)[row] for row in rows]
        for shape, row in zip(shapes, rows, strict=True):
            assert (shape.frame, shape.source, str(shape.type)) == (3, "auto", "mask")
            assert shape.score == pytest.approx((0.3, 0.675)[row])
            np.testing.assert_array_equal(decode(cvat_sdk, shape.points, IMAGE_SIZE), planes[row])

    def test_polygons(self, scene: Scene, cvat_sdk: Any, monkeypatch: pytest.MonkeyPatch):
        """Outlines, which fill the hole of the ring."""
        shapes = annotate(cvat_sdk, monkeypatch, scene, conv_mask_to_poly=True)
        ellipse, ring = Detecting.found().masks.numpy()
        filled = np.logical_or.accumulate(ring, 1) & np.logical_or.accumulate(ring[:, ::-1], 1)[:, ::-1]
        assert filled.sum() > ring.sum()
        assert [str(shape.type) for shape in shapes] == ["polygon", "polygon"]
        assert [area(shape.points) for shape in shapes] == [ellipse.sum(), filled.sum()]

    def test_a_model_without_a_detector(
        self, scene: Scene, cvat_sdk: Any, monkeypatch: pytest.MonkeyPatch, ellipse_model
    ):
        monkeypatch.setattr("maskwright.predictor.from_pretrained", lambda _: ellipse_model)
        with pytest.raises(UserError, match="needs a model with a detector"):
            create(kind="detection")


def test_a_kind_that_there_is_not():
    with pytest.raises(UserError, match="kind must be one of interaction, detection, but got 'tracking'"):
        create(kind="tracking")


class Detecting(torch.nn.Module):
    needs_boxes, task = False, "instance"
    categories = (Category(id=3, name="washer"), Category(id=8, name="plate"))

    @staticmethod
    def found() -> InstancePrediction:
        steps = (torch.arange(32) + 0.5) / 16 - 1
        distance = (steps[:, None] ** 2 + steps[None] ** 2).sqrt()
        return InstancePrediction(
            boxes=torch.tensor(BOXES),
            labels=torch.tensor([1, 0]),
            scores=torch.tensor([0.4, 0.9]),
            mask_scores=torch.full((2,), 0.75),
            mask_probabilities=torch.stack([(distance < 1).float(), ((distance < 1) & (distance > 0.5)).float()]),
            image_size=IMAGE_SIZE,
            frame="pixel",
            categories=Detecting.categories,
        )

    def forward(self, images, *, score_threshold, max_detections):
        assert images[0].shape[1:] == IMAGE_SIZE
        return [self.found()]


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch, _ellipses: None) -> None:
    monkeypatch.setattr("maskwright.predictor.from_pretrained", lambda _: Detecting())


def annotate(cvat_sdk: Any, monkeypatch: pytest.MonkeyPatch, scene: Scene, **options: Any) -> list[Any]:
    """The shapes that CVAT's driver sends for a task with one picture, its frame 3; only the server is made up."""
    kind = "polygon" if options.get("conv_mask_to_poly") else "mask"
    image = Image.open(scene.images / "a.png")
    sample = SimpleNamespace(frame_name="a.png", frame_index=3, media=SimpleNamespace(load_image=lambda: image))
    labels = [
        SimpleNamespace(id=70 + row, name=name, type=kind, attributes=[], sublabels=[])
        for row, name in enumerate(CLASSES)
    ]
    task = SimpleNamespace(labels=labels, samples=[sample])
    monkeypatch.setattr(cvat_sdk.auto_annotation.driver, "TaskDataset", lambda *_, **__: task)
    sent = []

    def upload(action: str, task_id: int, patched_labeled_data_request: Any) -> None:
        assert (action, task_id) == ("create", 137)
        sent.extend(patched_labeled_data_request.shapes)

    api = SimpleNamespace(partial_update_annotations=upload)
    client = SimpleNamespace(logger=logging.getLogger("cvat"), tasks=SimpleNamespace(api=api))
    cvat_sdk.auto_annotation.annotate_task(client, 137, create(kind="detection"), **options)
    return sent


def context(cvat_sdk: Any) -> Any:
    return cvat_sdk.auto_annotation.InteractionFunctionContext()


def prompts(cvat_sdk: Any, box: list[float]) -> Any:
    """What a person gives: a box, and no points."""
    x1, y1, x2, y2 = box

    class Prompts(cvat_sdk.auto_annotation.InteractionPrompts):
        pos_points, neg_points, bounding_box = (), (), ((x1, y1), (x2, y2))

    return Prompts()


def decode(cvat_sdk: Any, points: list[float], image_size: tuple[int, int]) -> np.ndarray:
    height, width = image_size
    return cvat_sdk.masks.decode_mask(points, image_width=width, image_height=height)


def area(points: list[float]) -> float:
    x, y = np.array(points).reshape(-1, 2).T
    return (x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
