"""How well a model turns boxes into masks, or finds instances or segments, on a COCO file: `maskwright evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskwright.apps.evaluate_panoptic import evaluate_panoptic
from maskwright.apps.measure import Measurement, measure, require_instances
from maskwright.apps.outputs import check_outputs
from maskwright.data.panoptic_annotations import is_panoptic
from maskwright.errors import UserError
from maskwright.evaluation.coco_ap import CocoAP
from maskwright.evaluation.report import (
    coco_ap_summary,
    coco_ap_tables,
    mask_iou_summary,
    mask_iou_tables,
    panoptic_quality_tables,
)
from maskwright.files import write_json
from maskwright.predictor import Predictor

BOXES = ("ground-truth", "predicted")


def evaluate(
    model: str | Path | Predictor,
    images: str | Path,
    annotations: str | Path,
    *,
    boxes: str = "ground-truth",
    seen: str | Sequence[str] | None = None,
    batch_size: int = 4,
    num_workers: int = 0,
    processes: int = 1,
    save_results: str | Path | None = None,
    **loading: Any,
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
        batch_size: images that are encoded together.
        num_workers: processes that read images, for each process that computes; 0 reads them in the same one.
        processes: so many processes share the images, each with the next GPU where there are several; the numbers are
            those of one process.
        save_results: file for the predicted masks in COCO's results format; with boxes `predicted` the boxes come
            beside it, `NAME.bbox.json` for `NAME.json` (in one file they would change the sizes of the masks).
        loading: `device`, `precision` and `compile` of `maskwright.load`, where the model is loaded here.

    Broken annotations that are left out are counted on standard error.

    Returns:
        What `evaluation.report.mask_iou_summary` says; with boxes `predicted`, `coco_ap_summary`.

    Raises:
        UserError: something of the above does not exist or does not fit, or the file has no instance to measure;
            nothing is written then.
    """
    files = _results_files(save_results, boxes)
    asked = Measurement(
        model, images, annotations, boxes, seen, batch_size, num_workers, loading, processes, keep_masks=bool(files)
    )
    _check_values(asked)
    check_outputs(files, annotations)
    metric, masks = measure(asked)
    if isinstance(metric, CocoAP):
        summary, results = coco_ap_summary(metric), [metric.mask_results(), metric.box_results()]
    else:
        summary, results = mask_iou_summary(metric), [[entry for place in sorted(masks) for entry in masks[place]]]
        # Compressed run lengths that cover no pixel are known only now.
        require_instances(summary["instances"], "mask of an instance", annotations)
    for file, entries in zip(files, results, strict=False):  # no files where none are asked for
        write_json(file, entries, indent=None)
    return summary


def _check_values(asked: Measurement) -> None:
    if asked.boxes not in BOXES:
        raise UserError(f"boxes must be one of {', '.join(BOXES)}, but got {asked.boxes!r}")
    if asked.batch_size < 1 or asked.num_workers < 0 or asked.processes < 1:
        raise UserError(
            "expected batch_size >= 1, num_workers >= 0 and processes >= 1, but got "
            f"{asked.batch_size}, {asked.num_workers} and {asked.processes}"
        )


def evaluate_and_report(
    model: str | Path | Predictor,
    images: str | Path,
    annotations: str | Path,
    *,
    json: str | Path | None = None,
    segmentations: str | Path | None = None,
    panoptic_quality: str = "official",
    **options: Any,
) -> None:
    """For the command line: `evaluate`, or `evaluate_panoptic` where `annotations` is a COCO panoptic file.

    Tables on standard output, and the same numbers in the file `json`.

    Args:
        model, images, annotations, json: see above.
        segmentations, panoptic_quality: `segmentations` and `variant` of `evaluate_panoptic`.
        options: the others of those functions; `boxes` and `seen` are for instances alone.

    Raises:
        UserError: as those functions, an option that does not go with the file, or `json` cannot be written.
    """
    outputs = [] if json is None else [Path(json)]
    if is_panoptic(annotations):
        _refuse(options, {"boxes": "ground-truth", "seen": None}, f"{annotations} is a COCO panoptic file")
        check_outputs(outputs, annotations)
        options |= {"segmentations": segmentations, "variant": panoptic_quality}
        summary = evaluate_panoptic(model, images, annotations, **options)
        tables = panoptic_quality_tables(summary)
    else:
        given = {"segmentations": segmentations, "panoptic_quality": panoptic_quality}
        defaults = {"segmentations": None, "panoptic_quality": "official"}
        _refuse(given, defaults, f"{annotations} is no COCO panoptic file")
        results = _results_files(options.get("save_results"), options.get("boxes", "ground-truth"))
        check_outputs([*results, *outputs], annotations)
        summary = evaluate(model, images, annotations, **options)
        tables = coco_ap_tables(summary) if options.get("boxes") == "predicted" else mask_iou_tables(summary)
    print(tables)
    if json is not None:
        write_json(json, summary)


def _refuse(options: dict[str, Any], defaults: dict[str, Any], because: str) -> None:
    """Take the options of `defaults` out; one that was given another value is an error."""
    for name, default in defaults.items():
        if options.pop(name, default) != default:
            raise UserError(f"--{name.replace('_', '-')} cannot be given here, since {because}")


def _results_files(save_results: str | Path | None, boxes: str) -> list[Path]:
    """The files that `save_results` stands for: of the masks and, where boxes are predicted, of the boxes."""
    if save_results is None:
        return []
    path = Path(save_results)
    return [path, path.parent / f"{path.stem}.bbox{path.suffix}"] if boxes == "predicted" else [path]
