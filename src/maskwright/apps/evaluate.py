"""How well a model turns boxes into masks, or finds instances, on a COCO file: `maskwright evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Int64
from torch import Tensor
from tqdm import tqdm

from maskwright.data.categories import match_name, read_categories, resolve_mask_classes
from maskwright.data.coco import CocoInstances
from maskwright.data.ground_truth import read_ground_truth
from maskwright.data.loaders import Batch, evaluation_loader
from maskwright.errors import UserError
from maskwright.evaluation.coco_ap import CocoAP
from maskwright.evaluation.mask_iou import MaskIoU
from maskwright.evaluation.report import (
    coco_ap_summary,
    coco_ap_tables,
    mask_iou_summary,
    mask_iou_tables,
    write_json,
)
from maskwright.predictor import Predictor, load
from maskwright.structures import BoxPrompted, Category, InstancePrediction, SegmentationModel, Target, select_rows

BOXES = ("ground-truth", "predicted")

MAX_DETECTIONS = 100
"""Per image; COCO counts no more."""


def evaluate(
    model: str | Path | Predictor,
    images: str | Path,
    annotations: str | Path,
    *,
    boxes: str = "ground-truth",
    seen: str | Sequence[str] | None = None,
    device: str | None = None,
    batch_size: int = 4,
    num_workers: int = 0,
    save_results: str | Path | None = None,
) -> dict[str, Any]:
    """The model on the images of a COCO file, compared with its annotations at the images' own resolution.

    With boxes `ground-truth` each annotated box is turned into a mask, and the masks are compared; the categories
    are the file's own, since a model that is prompted with boxes needs no label space. With boxes `predicted` the
    model finds the instances by itself, and COCO's AP of its boxes and masks is measured (`CocoAP`, with the truth
    of the file, so that pycocotools gives the same); its classes are those of the file with the same names.

    Args:
        model: name, weights folder, or what `maskwright.load` returned.
        images: the folder that the file's `file_name`s are relative to.
        annotations: COCO instances.
        boxes: whose boxes, one of `BOXES`.
        seen: classes whose masks the model was trained on, as `resolve_mask_classes` takes them; by default
            those classes of the file that the model itself names in `mask_classes` (none, where it names none).
        device: where the model runs, if it is loaded here; by default the GPU if there is one.
        batch_size: images that are encoded together.
        num_workers: processes that read images; 0 reads them in this one.
        save_results: file for the predicted masks in COCO's results format; with boxes `predicted` the boxes come
            beside it, `NAME.bbox.json` for `NAME.json` (in one file they would change the sizes of the masks).

    Broken annotations that are left out are counted on standard error.

    Returns:
        What `evaluation.report.mask_iou_summary` says; with boxes `predicted`, `coco_ap_summary`.

    Raises:
        UserError: something of the above does not exist or does not fit, or the file has no instance to measure;
            nothing is written then.
    """
    if boxes not in BOXES:
        raise UserError(f"boxes must be one of {', '.join(BOXES)}, but got {boxes!r}")
    if batch_size < 1 or num_workers < 0:
        raise UserError(f"expected batch_size >= 1 and num_workers >= 0, but got {batch_size} and {num_workers}")
    check_outputs(_results_files(save_results, boxes), annotations)
    if boxes == "predicted":
        predictor = model if isinstance(model, Predictor) else load(model, device=device)
        if predictor.needs_boxes:
            raise UserError(
                f"{model}: this model has no detector; it takes the boxes of the file (`--boxes ground-truth`)"
            )
        return _evaluate_detections(predictor, images, annotations, seen, batch_size, num_workers, save_results)
    dataset = CocoInstances(images, annotations)
    _tell_skipped(dataset, annotations)
    _require_instances(dataset.count_instances()[0], "mask of an instance", annotations)
    predictor = model if isinstance(model, Predictor) else load(model, device=device)
    if not isinstance(predictor.model, BoxPrompted):
        raise UserError(f"{model}: this model cannot be prompted with boxes")
    return _evaluate_masks(predictor, dataset, annotations, seen, batch_size, num_workers, save_results)


@torch.inference_mode()
def _evaluate_masks(
    predictor: Predictor,
    dataset: CocoInstances,
    annotations: str | Path,
    seen: str | Sequence[str] | None,
    batch_size: int,
    num_workers: int,
    save_results: str | Path | None,
) -> dict[str, Any]:
    """Mask IoU with the boxes of the ground truth; arguments as of `evaluate`."""
    model = cast(BoxPrompted, predictor.model)
    metric = MaskIoU(dataset.categories, seen_classes(seen, model, dataset.categories))
    results: list[dict[str, Any]] = []
    for batch, targets in _batches(dataset, batch_size, num_workers):
        targets = [without_crowds(target) for target in targets]
        features = model.encode([image.to(predictor.device) for image in batch])
        predictions = model.masks_from_boxes(features, [target["boxes"] for target in targets])
        metric.update(predictions, targets)
        if save_results is not None:
            for prediction, target in zip(predictions, targets, strict=True):
                category_ids = [dataset.categories[label]["id"] for label in target["labels"].tolist()]
                results += prediction.to_coco(target["image_id"], category_ids)
    summary = mask_iou_summary(metric)
    # Compressed run lengths that cover no pixel are known only now.
    _require_instances(summary["instances"], "mask of an instance", annotations)
    if save_results is not None:
        write_json(save_results, results, indent=None)
    return summary


@torch.inference_mode()
def _evaluate_detections(
    predictor: Predictor,
    images: str | Path,
    annotations: str | Path,
    seen: str | Sequence[str] | None,
    batch_size: int,
    num_workers: int,
    save_results: str | Path | None,
) -> dict[str, Any]:
    """COCO's AP of what the model finds; arguments as of `evaluate`."""
    model = predictor.model
    known = cast(SegmentationModel, model).categories
    # No mask of the data set is decoded: the metric takes the truth from the file.
    dataset = CocoInstances(images, annotations, categories=known, mask_classes=[])
    _tell_skipped(dataset, annotations)
    _require_instances(sum(dataset.count_instances()), "instance", annotations)
    categories = read_categories(annotations)
    metric = CocoAP(categories, seen_classes(seen, model, categories), read_ground_truth(annotations))
    names = [category["name"] for category in categories]
    matches = [match_name(category["name"], names) for category in known]
    label_of = torch.tensor([-1 if match is None else names.index(match) for match in matches])
    for batch, targets in _batches(dataset, batch_size, num_workers):
        pixels = [image.to(predictor.device) for image in batch]
        predictions = model(pixels, score_threshold=0.0, max_detections=MAX_DETECTIONS)
        metric.update([_relabelled(prediction, label_of) for prediction in predictions], targets)
    if save_results is not None:
        masks_file, boxes_file = _results_files(save_results, "predicted")
        write_json(masks_file, metric.mask_results(), indent=None)
        write_json(boxes_file, metric.box_results(), indent=None)
    return coco_ap_summary(metric)


def _relabelled(prediction: InstancePrediction, label_of: Int64[Tensor, " c"]) -> InstancePrediction:
    """The instances whose label l has a new one, `label_of[l]`; those where that is -1 are left out."""
    labels = label_of[prediction.labels.cpu()]
    keep = (labels >= 0).to(prediction.boxes.device)
    rows = {name: value[keep] for name, value in vars(prediction).items() if isinstance(value, Tensor)}
    return replace(prediction, **{**rows, "labels": labels[labels >= 0]})


def _batches(dataset: CocoInstances, batch_size: int, num_workers: int) -> Iterator[Batch]:
    """The images of the data set in order, once each, with progress on standard error."""
    loader = evaluation_loader(dataset, batch_size=batch_size, rank=0, world_size=1, num_workers=num_workers)
    with tqdm(total=len(dataset), unit="image", file=sys.stderr, desc="evaluate", disable=None) as progress:
        for batch in loader:
            yield batch
            progress.update(len(batch[0]))


def evaluate_and_report(
    model: str | Path | Predictor,
    images: str | Path,
    annotations: str | Path,
    *,
    json: str | Path | None = None,
    **options: Any,
) -> None:
    """`evaluate` for the command line: tables on standard output, and the same numbers in the file `json`.

    `options` are those of `evaluate`.

    Raises:
        UserError: as `evaluate`, or `json` cannot be written.
    """
    results = _results_files(options.get("save_results"), options.get("boxes", "ground-truth"))
    check_outputs([*results, *([] if json is None else [Path(json)])], annotations)
    summary = evaluate(model, images, annotations, **options)
    print(coco_ap_tables(summary) if options.get("boxes") == "predicted" else mask_iou_tables(summary))
    if json is not None:
        write_json(json, summary)


def seen_classes(spec: str | Sequence[str] | None, model: Any, categories: Sequence[Category]) -> list[str]:
    """The names among `categories` of the classes that count as seen; `spec` None means the model's own."""
    if spec is not None:
        return resolve_mask_classes(spec, categories)
    names = [category["name"] for category in categories]
    matches = {match_name(name, names) for name in model.mask_classes}
    return [name for name in names if name in matches]


def without_crowds(target: Target) -> Target:
    """The rows that are single objects."""
    return select_rows(target, ~target["iscrowd"])


def check_outputs(files: Sequence[Path], annotations: str | Path) -> None:
    """Refuse output files that cannot be written, or would overwrite the annotations or one another; before any work.

    Raises:
        UserError: so.
    """
    taken = {Path(annotations).resolve()}
    for file in files:
        if not file.parent.is_dir():
            raise UserError(f"cannot write {file}: the folder {file.parent} does not exist")
        if file.is_dir():
            raise UserError(f"cannot write {file}: it is a folder; expected the name of a file")
        if file.resolve() in taken:
            raise UserError(f"cannot write {file}: it is the annotation file or another output; give another name")
        taken.add(file.resolve())


def _results_files(save_results: str | Path | None, boxes: str) -> list[Path]:
    """The files that `save_results` stands for: of the masks and, where boxes are predicted, of the boxes."""
    if save_results is None:
        return []
    path = Path(save_results)
    return [path, path.parent / f"{path.stem}.bbox{path.suffix}"] if boxes == "predicted" else [path]


def _tell_skipped(dataset: CocoInstances, annotations: str | Path) -> None:
    if dataset.skipped:
        counts = ", ".join(f"{count} {kind}" for kind, count in dataset.skipped.items())
        print(f"skipped in {annotations}: {counts} (`maskwright data check` names each)", file=sys.stderr)


def _require_instances(count: int, what: str, annotations: str | Path) -> None:
    if count == 0:
        raise UserError(
            f"{annotations}: nothing to measure, it has no usable {what} (crowds do not count); "
            "`maskwright data check` says what it holds"
        )
