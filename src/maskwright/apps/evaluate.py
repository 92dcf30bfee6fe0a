"""How well a model turns boxes into masks, on a COCO file: `maskwright evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from maskwright.data.categories import match_name, resolve_mask_classes
from maskwright.data.coco import CocoInstances
from maskwright.data.loaders import evaluation_loader
from maskwright.errors import UserError
from maskwright.evaluation.mask_iou import MaskIoU
from maskwright.evaluation.report import mask_iou_summary, mask_iou_tables, write_json
from maskwright.predictor import Predictor, load
from maskwright.structures import BoxPrompted, Category, Target

BOXES = ("ground-truth",)


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
    """Masks from the boxes of a COCO file, compared with its masks at the images' own resolution.

    The categories are the file's own: a model that is prompted with boxes needs no label space.

    Args:
        model: name, weights folder, or what `maskwright.load` returned.
        images: the folder that the file's `file_name`s are relative to.
        annotations: COCO instances.
        boxes: whose boxes; only `ground-truth` so far.
        seen: classes whose masks the model was trained on, as `resolve_mask_classes` takes them; by default
            those classes of the file that the model itself names in `mask_classes` (none, where it names none).
        device: where the model runs, if it is loaded here; by default the GPU if there is one.
        batch_size: images that are encoded together.
        num_workers: processes that read images; 0 reads them in this one.
        save_results: file for the predicted masks in COCO's results format.

    Returns:
        What `evaluation.report.mask_iou_summary` says.

    Raises:
        UserError: something of the above does not exist or does not fit; nothing is written then.
    """
    if boxes not in BOXES:
        raise UserError(f"boxes must be one of {', '.join(BOXES)}, but got {boxes!r}")
    if batch_size < 1 or num_workers < 0:
        raise UserError(f"expected batch_size >= 1 and num_workers >= 0, but got {batch_size} and {num_workers}")
    check_folder_of(save_results)
    dataset = CocoInstances(images, annotations)
    predictor = model if isinstance(model, Predictor) else load(model, device=device)
    if not isinstance(predictor.model, BoxPrompted):
        raise UserError(f"{model}: this model cannot be prompted with boxes")
    metric = MaskIoU(dataset.categories, seen_classes(seen, predictor.model, dataset.categories))
    results: list[dict[str, Any]] = []
    loader = evaluation_loader(dataset, batch_size=batch_size, rank=0, world_size=1, num_workers=num_workers)
    with tqdm(total=len(dataset), unit="image", file=sys.stderr, desc="evaluate") as progress, torch.inference_mode():
        for batch, targets in loader:
            targets = [without_crowds(target) for target in targets]
            features = predictor.model.encode([image.to(predictor.device) for image in batch])
            predictions = predictor.model.masks_from_boxes(features, [target["boxes"] for target in targets])
            metric.update(predictions, targets)
            if save_results is not None:
                for prediction, target in zip(predictions, targets, strict=True):
                    category_ids = [dataset.categories[label]["id"] for label in target["labels"].tolist()]
                    results += prediction.to_coco(target["image_id"], category_ids)
            progress.update(len(batch))
    if save_results is not None:
        write_json(save_results, results, indent=None)
    return mask_iou_summary(metric)


def evaluate_and_report(
    model: str | Path, images: str | Path, annotations: str | Path, *, json: str | Path | None = None, **options: Any
) -> None:
    """`evaluate` for the command line: tables on standard output, and the same numbers in the file `json`.

    `options` are those of `evaluate`.

    Raises:
        UserError: as `evaluate`, or `json` cannot be written.
    """
    check_folder_of(json)
    summary = evaluate(model, images, annotations, **options)
    print(mask_iou_tables(summary))
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
    keep = ~target["iscrowd"]
    fields: dict[str, Any] = {k: v[keep] if isinstance(v, Tensor) else v for k, v in target.items()}
    return Target(**fields)


def check_folder_of(file: str | Path | None) -> None:
    """Refuse an output file whose folder does not exist, before any work is done.

    Raises:
        UserError: so.
    """
    if file is not None and not Path(file).parent.is_dir():
        raise UserError(f"cannot write {file}: the folder {Path(file).parent} does not exist")
