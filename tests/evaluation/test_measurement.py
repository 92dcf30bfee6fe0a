"""Asking a model and feeding its metric: what is asked, whose labels count, and where metrics run."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from painter import Painter
from torch import nn

from maskwright.evaluation.coco_ap import CocoAP
from maskwright.evaluation.mask_iou import MaskIoU
from maskwright.evaluation.measurement import DetectedInstances, MasksFromBoxes, PanopticMaps, measurements_of
from maskwright.evaluation.panoptic_quality import PanopticQuality
from maskwright.structures import Category, InstancePrediction, PanopticTarget, Target

CATEGORIES = [Category(id=5, name="dog"), Category(id=9, name="cat")]
IMAGE = torch.zeros(3, 8, 8)


def target_of(labels: list[int], crowds: list[bool]) -> Target:
    """Each box is the left half of the image, and wholly its instance."""
    count = len(labels)
    masks = torch.zeros(count, 8, 8, dtype=torch.bool)
    masks[:, :, :4] = True
    return {
        "boxes": torch.tensor([[0.0, 0.0, 4.0, 8.0]]).repeat(count, 1),
        "labels": torch.tensor(labels),
        "masks": masks,
        "has_mask": torch.ones(count, dtype=torch.bool),
        "iscrowd": torch.tensor(crowds),
        "ids": torch.arange(count) + 1,
        "image_id": 1,
    }


class Finder(nn.Module):
    """Finds the left half of each image twice: as its class 0 and, with less certainty, as its class 1."""

    task, needs_boxes = "instance", False

    def forward(self, images, *, score_threshold, max_detections):
        assert (score_threshold, max_detections) == (0.0, 100)
        found = InstancePrediction(
            boxes=torch.tensor([[0.0, 0.0, 4.0, 8.0]] * 2),
            labels=torch.tensor([0, 1]),
            scores=torch.tensor([0.9, 0.8]),
            mask_scores=torch.ones(2),
            mask_probabilities=torch.ones(2, 4, 4),
            image_size=(8, 8),
            frame="pixel",
        )
        return [found] * len(images)


def test_masks_are_asked_without_crowds_in_the_labels_of_the_model(ellipse_model):
    metric = MaskIoU(CATEGORIES, seen=["dog"])
    measurement = MasksFromBoxes(ellipse_model, metric, model_labels=torch.tensor([7, -1]))
    (prediction,) = measurement.update([IMAGE], [target_of([1, 0, 0], [False, True, False])])
    assert ellipse_model.told == [[-1, 7]]
    assert prediction.labels.tolist() == [1, 0]  # the metric's
    assert [metric.compute()[f"instances{group}"] for group in ("", "_seen", "_unseen")] == [2, 1, 1]


def test_detections_get_the_labels_of_the_metric_and_unknown_classes_are_left_out():
    metric = CocoAP(CATEGORIES, seen=["cat"])
    measurement = DetectedInstances(Finder(), metric, metric_labels=torch.tensor([-1, 0]))
    (prediction,) = measurement.update([IMAGE], [target_of([0], [False])])
    assert (prediction.labels.tolist(), prediction.scores.tolist()) == ([0], [pytest.approx(0.8)])
    numbers = measurement.compute()
    assert next(iter(numbers)) == "mask_ap"
    assert len(numbers) == 18
    assert numbers["mask_ap"] == numbers["box_ap50_unseen"] == 1


def test_segments_of_classes_without_a_category_become_void():
    painter = Painter(CATEGORIES)  # the left half is a dog, the right half a cat
    truth = PanopticTarget(
        segmentation=torch.zeros(8, 8, dtype=torch.int32),
        labels=torch.tensor([0]),
        iscrowd=torch.tensor([False]),
        ids=torch.tensor([1]),
        image_id=1,
    )
    measurement = PanopticMaps(painter, PanopticQuality(CATEGORIES), category_ids={0: 77})
    (prediction,) = measurement.update([IMAGE], [truth])
    assert [info["category_id"] for info in prediction.segments_info] == [77]
    assert (prediction.segmentation[:, :4] != 0).all()
    assert (prediction.segmentation[:, 4:] == 0).all()
    assert next(iter(measurement.compute())) == "pq"


def test_the_model_runs_in_the_inference_context_and_the_metric_outside_of_it(ellipse_model):
    events = []

    @contextmanager
    def inference():
        events.append("begins")
        yield
        events.append("ends")

    class Watched(MaskIoU):
        def update(self, predictions, targets):
            events.append("metric")
            super().update(predictions, targets)

    MasksFromBoxes(ellipse_model, Watched(CATEGORIES, []), inference).update([IMAGE], [target_of([0], [False])])
    assert events == ["begins", "ends", "metric"]


def test_what_a_validation_measures(ellipse_model):
    ellipse_model.categories, ellipse_model.mask_classes = CATEGORIES, ["dog"]
    (masks,) = measurements_of(ellipse_model)
    assert next(iter(masks.compute())) == "mask_iou"
    ellipse_model.needs_boxes = False
    assert [next(iter(found.compute())) for found in measurements_of(ellipse_model)] == ["mask_ap", "mask_iou"]
    assert [next(iter(found.compute())) for found in measurements_of(Painter(CATEGORIES))] == ["pq"]
    with pytest.raises(TypeError, match="encode"):
        measurements_of(Finder())
