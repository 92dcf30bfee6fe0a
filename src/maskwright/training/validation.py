"""What a validation measures of a model, by what the model is for: each kind a metric and the way to feed it."""

from __future__ import annotations

from typing import Any, Protocol, cast, runtime_checkable

from torch import Tensor, nn

from maskwright.evaluation.coco_ap import CocoAP
from maskwright.evaluation.mask_iou import MaskIoU
from maskwright.evaluation.panoptic_quality import PanopticQuality
from maskwright.structures import BoxPrompted, PanopticTarget, SegmentationModel, Target


@runtime_checkable
class Validation(Protocol):
    """One kind of measurement.

    metric: with `reset`, `state`, `merge` and `compute`.
    """

    metric: Any

    def update(self, images: list[Tensor], targets: list[Any]) -> None:
        """Ask the model about a batch, and add its answers to the metric."""
        ...

    def compute(self) -> dict[str, float]:
        """The numbers to be written down; NaN where there is nothing to measure."""
        ...


def create_validations(model: nn.Module) -> list[Validation]:
    """What is measured of a model. The first number of the first says which weights of a run are the best.

    Where the model finds instances by itself that is `mask_ap`, with boxes given to it alone `mask_iou`, and of
    panoptic maps `pq`.

    Raises:
        TypeError: a model of instances cannot be prompted with boxes, so its masks cannot be validated.
    """
    if cast(SegmentationModel, model).task == "panoptic":
        return [FoundSegments(model)]
    if not isinstance(model, BoxPrompted):
        raise TypeError(f"validation needs a model with encode() and masks_from_boxes(), got {type(model).__name__}")
    masks = MasksFromBoxes(model)
    return [masks] if cast(SegmentationModel, model).needs_boxes else [FoundInstances(model), masks]


class MasksFromBoxes:
    """Masks from the ground-truth boxes, compared where the mask is known (`MaskIoU`)."""

    def __init__(self, model: nn.Module) -> None:
        """Measure `model`, in the classes that it knows."""
        family = cast(SegmentationModel, model)
        self.metric = MaskIoU(family.categories, family.mask_classes)
        self._model = cast(BoxPrompted, model)

    def update(self, images: list[Tensor], targets: list[Target]) -> None:
        """See `Validation`."""
        boxes, labels = ([target[name] for target in targets] for name in ("boxes", "labels"))
        self.metric.update(self._model.masks_from_boxes(self._model.encode(images), boxes, labels), targets)

    def compute(self) -> dict[str, float]:
        """All of `MaskIoU.compute`, `mask_iou` first."""
        return self.metric.compute()


class FoundInstances:
    """What a model with a detector finds by itself (`CocoAP`, with the data set's targets as the truth)."""

    NAMES = tuple(
        f"{kind}_{statistic}{group}"
        for kind in ("mask", "box")
        for statistic in ("ap", "ap50", "ap75")
        for group in ("", "_seen", "_unseen")
    )

    def __init__(self, model: nn.Module) -> None:
        """Measure `model`, in the classes that it knows."""
        family = cast(SegmentationModel, model)
        self.metric = CocoAP(family.categories, family.mask_classes)
        self._model = model

    def update(self, images: list[Tensor], targets: list[Target]) -> None:
        """See `Validation`."""
        self.metric.update(self._model(images, score_threshold=0.0, max_detections=100), targets)

    def compute(self) -> dict[str, float]:
        """Those of `CocoAP.compute` that are in `NAMES`, `mask_ap` first."""
        values = self.metric.compute()
        return {name: values[name] for name in self.NAMES}


class FoundSegments:
    """The panoptic maps that a model finds (`PanopticQuality`, the official one)."""

    def __init__(self, model: nn.Module) -> None:
        """Measure `model`, in the classes that it knows."""
        self.metric = PanopticQuality(cast(SegmentationModel, model).categories)
        self._model = model

    def update(self, images: list[Tensor], targets: list[PanopticTarget]) -> None:
        """See `Validation`."""
        self.metric.update(self._model(images), targets)

    def compute(self) -> dict[str, float]:
        """All of `PanopticQuality.compute`, `pq` first."""
        return self.metric.compute()
