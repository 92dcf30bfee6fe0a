"""The one way to measure a model: ask it about images, and compare its answers with the targets by a metric.

Validation during training and `maskwright evaluate` both measure with these classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from maskwright.evaluation.coco_ap import CocoAP
from maskwright.evaluation.mask_iou import MaskIoU
from maskwright.evaluation.metric import Metric
from maskwright.evaluation.panoptic_quality import PanopticQuality
from maskwright.structures import (
    BoxPrompted,
    InstancePrediction,
    PanopticPrediction,
    PanopticTarget,
    SegmentationModel,
    SegmentInfo,
    Target,
    select_rows,
)

MAX_DETECTIONS = 100
"""Per image; COCO counts no more."""

Inference = Callable[[], AbstractContextManager[Any]]
"""Makes the context in which a model runs (no gradients, a precision); metrics run outside of it."""


@dataclass(frozen=True)
class Measurement(ABC):
    """One way to ask a model, and the metric that compares its answers with the targets.

    Attributes:
        model: the model.
        metric: the metric; `reset`, `state` and `merge` are its own.
        inference: see `Inference`.
    """

    model: nn.Module
    metric: Metric
    inference: Inference = nullcontext

    @abstractmethod
    def update(self, images: list[Tensor], targets: list[Any]) -> Sequence[Any]:
        """Ask the model about a batch, and add its answers to the metric.

        Args:
            images: on the model's device.
            targets: of these images.

        Returns:
            The predictions that the metric was given, one per image.
        """

    def compute(self) -> dict[str, float]:
        """The numbers that a validation records; the first decides which weights are the best."""
        return self.metric.compute()


@dataclass(frozen=True)
class MasksFromBoxes(Measurement):
    """Masks of the ground-truth boxes (`MaskIoU`). Crowds are left out.

    Attributes:
        model_labels: for each label of the targets the model's own label of that class, or -1; None where both have
            one label space.
    """

    model_labels: Int64[Tensor, " c"] | None = None

    def update(self, images: list[Tensor], targets: list[Target]) -> list[InstancePrediction]:
        """See `Measurement`; predictions have the boxes and labels of their targets, without crowds."""
        targets = [select_rows(target, ~target["iscrowd"]) for target in targets]
        boxes, labels = ([target[name] for target in targets] for name in ("boxes", "labels"))
        known = labels if self.model_labels is None else [self.model_labels[rows] for rows in labels]
        model = cast(BoxPrompted, self.model)
        with self.inference():
            found = model.masks_from_boxes(model.encode(images), boxes, known)
        predictions = [replace(prediction, labels=rows) for prediction, rows in zip(found, labels, strict=True)]
        self.metric.update(predictions, targets)
        return predictions


@dataclass(frozen=True)
class DetectedInstances(Measurement):
    """Instances that a model with a detector finds by itself (`CocoAP`).

    Attributes:
        metric_labels: for each label of the model the metric's label of that class, or -1, whose instances are left
            out; None where both have one label space.
    """

    metric_labels: Int64[Tensor, " c"] | None = None

    RECORDED: ClassVar[Sequence[str]] = tuple(
        f"{kind}_{statistic}{group}"
        for kind in ("mask", "box")
        for statistic in ("ap", "ap50", "ap75")
        for group in ("", "_seen", "_unseen")
    )
    """The numbers of `CocoAP` that a validation records."""

    def update(self, images: list[Tensor], targets: list[Target]) -> list[InstancePrediction]:
        """See `Measurement`; labels are the metric's."""
        with self.inference():
            predictions = self.model(images, score_threshold=0.0, max_detections=MAX_DETECTIONS)
        if self.metric_labels is not None:
            predictions = [_relabel(prediction, self.metric_labels) for prediction in predictions]
        self.metric.update(predictions, targets)
        return predictions

    def compute(self) -> dict[str, float]:
        """The numbers `RECORDED`, `mask_ap` first."""
        numbers = self.metric.compute()
        return {name: numbers[name] for name in self.RECORDED}


@dataclass(frozen=True)
class PanopticMaps(Measurement):
    """Panoptic maps of whole images (`PanopticQuality`, in the label space of the model).

    Attributes:
        category_ids: the category ids of the truth by the model's labels; segments of labels without one become void.
            None keeps all segments and the model's own ids.
    """

    category_ids: Mapping[int, int] | None = None

    def update(self, images: list[Tensor], targets: list[PanopticTarget]) -> list[PanopticPrediction]:
        """See `Measurement`; category ids are the truth's."""
        with self.inference():
            predictions = self.model(images)
        if self.category_ids is not None:
            predictions = [_with_category_ids(prediction, self.category_ids) for prediction in predictions]
        self.metric.update(predictions, targets)
        return predictions


def measurements_of(model: nn.Module) -> list[Measurement]:
    """What a validation measures of a model, in the classes that the model knows.

    The first number of the first measurement decides which weights of a run are the best: `pq` for a panoptic model,
    `mask_ap` for a model with a detector, `mask_iou` for one that needs boxes.

    Raises:
        TypeError: a model of instances cannot be prompted with boxes, so its masks cannot be validated.
    """
    family = cast(SegmentationModel, model)
    if family.task == "panoptic":
        return [PanopticMaps(model, PanopticQuality(family.categories))]
    if not isinstance(model, BoxPrompted):
        raise TypeError(f"validation needs a model with encode() and masks_from_boxes(), got {type(model).__name__}")
    masks = MasksFromBoxes(model, MaskIoU(family.categories, family.mask_classes))
    if family.needs_boxes:
        return [masks]
    return [DetectedInstances(model, CocoAP(family.categories, family.mask_classes)), masks]


def _relabel(prediction: InstancePrediction, new_labels: Int64[Tensor, " c"]) -> InstancePrediction:
    """The instances with the label `new_labels[label]` for each label; those where it is -1 are left out."""
    labels = new_labels[prediction.labels.cpu()]
    keep = (labels >= 0).to(prediction.boxes.device)
    rows = {name: value[keep] for name, value in vars(prediction).items() if isinstance(value, Tensor)}
    return replace(prediction, **{**rows, "labels": labels[labels >= 0]})


def _with_category_ids(prediction: PanopticPrediction, category_ids: Mapping[int, int]) -> PanopticPrediction:
    """The prediction with other category ids; segments whose label has none become void."""
    kept = [info for info in prediction.segments_info if info["label"] in category_ids]
    segmentation = prediction.segmentation
    if len(kept) < len(prediction):
        ids = torch.tensor([info["id"] for info in kept], device=segmentation.device)
        segmentation = segmentation * torch.isin(segmentation, ids.to(segmentation.dtype))
    infos = [SegmentInfo(**{**info, "category_id": category_ids[info["label"]]}) for info in kept]
    return replace(prediction, segmentation=segmentation, segments_info=infos)
