"""A model on the images of a COCO file, compared with its annotations: in one process, or shared by several."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Int64
from torch import Tensor
from tqdm import tqdm

from maskwright.apps.processes import in_processes, loading_of
from maskwright.data.categories import labels_of_names, match_name, read_categories, resolve_mask_classes
from maskwright.data.coco import CocoInstances
from maskwright.data.ground_truth import read_ground_truth
from maskwright.data.loaders import Batch, evaluation_loader
from maskwright.errors import UserError
from maskwright.evaluation.coco_ap import CocoAP
from maskwright.evaluation.mask_iou import MaskIoU
from maskwright.predictor import Predictor, load
from maskwright.structures import BoxPrompted, Category, InstancePrediction, SegmentationModel, select_rows

MAX_DETECTIONS = 100
"""Per image; COCO counts no more."""


@dataclass(frozen=True)
class Measurement:
    """What is compared with what; arguments as of `evaluate.evaluate`.

    keep_masks: whether `Measured.masks` is wanted.
    rank: which of the `processes` this is; it takes the images rank, rank + processes, ... of the file.
    """

    model: str | Path | Predictor
    images: str | Path
    annotations: str | Path
    boxes: str = "ground-truth"
    seen: str | Sequence[str] | None = None
    batch_size: int = 4
    num_workers: int = 0
    loading: dict[str, Any] = field(default_factory=dict)
    processes: int = 1
    keep_masks: bool = False
    rank: int = 0


class Measured(NamedTuple):
    """What came out.

    metric: of the images of one process, or of all.
    masks: with ground-truth boxes, if they are to be kept, the entries of COCO's results format of each image by its
        place in the file. With predicted boxes the metric has them.
    """

    metric: MaskIoU | CocoAP
    masks: dict[int, list[dict[str, Any]]]


def measure(measurement: Measurement) -> Measured:
    """Measure all images, each once, with `measurement.processes` processes.

    Raises:
        UserError: as `evaluate.evaluate`, or a process was killed.
    """
    count = measurement.processes
    shares = [
        replace(measurement, rank=rank, loading=loading_of(measurement.loading, rank, count)) for rank in range(count)
    ]
    first, *others = in_processes(_measure_share, shares)
    for other in others:
        cast(Any, first.metric).merge(other.metric.state())
        first.masks.update(other.masks)
    return first


def _measure_share(measurement: Measurement) -> Measured:
    """What one process measures."""
    return (_measure_detections if measurement.boxes == "predicted" else _measure_masks)(measurement)


def _measure_masks(measurement: Measurement) -> Measured:
    """Mask IoU with the boxes of the ground truth."""
    dataset = CocoInstances(measurement.images, measurement.annotations)
    _tell_skipped(dataset, measurement)
    require_instances(dataset.count_instances()[0], "mask of an instance", measurement.annotations)
    predictor = _predictor(measurement)
    if not isinstance(predictor.model, BoxPrompted):
        raise UserError(f"{measurement.model}: this model cannot be prompted with boxes")
    model = predictor.model
    metric = MaskIoU(dataset.categories, seen_classes(measurement.seen, model, dataset.categories))
    known = cast(SegmentationModel, model).categories
    label_of = torch.tensor(labels_of_names([category["name"] for category in dataset.categories], known))
    masks: dict[int, list[dict[str, Any]]] = {}
    for batch, targets in _batches(dataset, measurement):
        targets = [select_rows(target, ~target["iscrowd"]) for target in targets]
        with predictor.inference():
            features = model.encode([image.to(predictor.device) for image in batch])
            labels = [label_of[target["labels"]] for target in targets]
            predictions = model.masks_from_boxes(features, [target["boxes"] for target in targets], labels)
        metric.update(predictions, targets)
        if not measurement.keep_masks:
            continue
        for prediction, target in zip(predictions, targets, strict=True):
            category_ids = [dataset.categories[label]["id"] for label in target["labels"].tolist()]
            place = measurement.rank + len(masks) * measurement.processes
            masks[place] = prediction.to_coco(target["image_id"], category_ids)
    return Measured(metric, masks)


def _measure_detections(measurement: Measurement) -> Measured:
    """COCO's AP of what the model finds."""
    predictor = _predictor(measurement)
    if predictor.needs_boxes:
        raise UserError(
            f"{measurement.model}: this model has no detector; it takes the boxes of the file (`--boxes ground-truth`)"
        )
    model, annotations = predictor.model, measurement.annotations
    known = cast(SegmentationModel, model).categories
    # No mask of the data set is decoded: the metric takes the truth from the file.
    dataset = CocoInstances(measurement.images, annotations, categories=known, mask_classes=[])
    _tell_skipped(dataset, measurement)
    require_instances(sum(dataset.count_instances()), "instance", annotations)
    categories = read_categories(annotations)
    metric = CocoAP(categories, seen_classes(measurement.seen, model, categories), read_ground_truth(annotations))
    label_of = torch.tensor(labels_of_names([category["name"] for category in known], categories))
    for batch, targets in _batches(dataset, measurement):
        pixels = [image.to(predictor.device) for image in batch]
        with predictor.inference():
            predictions = model(pixels, score_threshold=0.0, max_detections=MAX_DETECTIONS)
        metric.update([_relabelled(prediction, label_of) for prediction in predictions], targets)
    return Measured(metric, {})


def _predictor(measurement: Measurement) -> Predictor:
    model = measurement.model
    predictor = model if isinstance(model, Predictor) else load(model, **measurement.loading)
    if predictor.task != "instance":
        raise UserError(
            f"{measurement.annotations} is no COCO panoptic file, which a panoptic model is evaluated on: it has no "
            "`segments_info`"
        )
    return predictor


def _relabelled(prediction: InstancePrediction, label_of: Int64[Tensor, " c"]) -> InstancePrediction:
    """The instances whose label l has a new one, `label_of[l]`; those where that is -1 are left out."""
    labels = label_of[prediction.labels.cpu()]
    keep = (labels >= 0).to(prediction.boxes.device)
    rows = {name: value[keep] for name, value in vars(prediction).items() if isinstance(value, Tensor)}
    return replace(prediction, **{**rows, "labels": labels[labels >= 0]})


def _batches(dataset: CocoInstances, measurement: Measurement) -> Iterator[Batch]:
    """The images of this process in order, once each; the first process shows its progress on standard error."""
    rank, count = measurement.rank, measurement.processes
    loader = evaluation_loader(
        dataset,
        batch_size=measurement.batch_size,
        rank=rank,
        world_size=count,
        num_workers=measurement.num_workers,
    )
    title = "evaluate" if count == 1 else f"evaluate (process 1 of {count})"
    total = len(range(rank, len(dataset), count))
    with tqdm(total=total, unit="image", file=sys.stderr, desc=title, disable=None if rank == 0 else True) as progress:
        for batch in loader:
            yield batch
            progress.update(len(batch[0]))


def seen_classes(spec: str | Sequence[str] | None, model: Any, categories: Sequence[Category]) -> list[str]:
    """The names among `categories` of the classes that count as seen; `spec` None means the model's own."""
    if spec is not None:
        return resolve_mask_classes(spec, categories)
    names = [category["name"] for category in categories]
    matches = {match_name(name, names) for name in model.mask_classes}
    return [name for name in names if name in matches]


def _tell_skipped(dataset: CocoInstances, measurement: Measurement) -> None:
    if dataset.skipped and measurement.rank == 0:
        counts = ", ".join(f"{count} {kind}" for kind, count in dataset.skipped.items())
        print(f"skipped in {measurement.annotations}: {counts} (`maskwright data check` names each)", file=sys.stderr)


def require_instances(count: int, what: str, annotations: str | Path) -> None:
    """Refuse a file that gives nothing to measure.

    Raises:
        UserError: `count` is 0.
    """
    if count == 0:
        raise UserError(
            f"{annotations}: nothing to measure, it has no usable {what} (crowds do not count); "
            "`maskwright data check` says what it holds"
        )
