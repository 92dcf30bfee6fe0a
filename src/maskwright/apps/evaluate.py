"""How well a model turns boxes into masks, or finds instances or segments, on a COCO file: `maskwright evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskwright.apps.evaluate_panoptic import compare_panoptic_files, evaluate_panoptic
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
    panoptic_quality_summary,
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
    images: str | Path | None,
    annotations: str | Path,
    *,
    json: str | Path | None = None,
    **options: Any,
) -> None:
    """For the command line: `evaluate`; or, where `annotations` is a COCO panoptic file, `evaluate_panoptic`.

    Tables on standard output, and the same numbers in the file `json`.

    Args:
        model: see above; or a `.json` file of panoptic predictions, for `compare_panoptic_files`.
        images: the folder of the images; None for predictions in a file.
        annotations, json: see above.
        options: the others of those functions, `variant` being `panoptic_quality`.

    Raises:
        UserError: as those functions, an option that does not go with the files, or `json` cannot be written.
    """
    given, outputs = {**options, "images": images}, [] if json is None else [Path(json)]
    if not isinstance(model, Predictor) and Path(model).suffix == ".json":
        summary, tables = _compare_files(model, annotations, outputs, given)
    elif images is None:
        raise UserError(
            "evaluate needs --images, the folder of the images, unless MODEL is a .json file of predictions"
        )
    elif is_panoptic(annotations):
        summary, tables = _evaluate_panoptic(model, annotations, outputs, given)
    else:
        summary, tables = _evaluate_instances(model, annotations, outputs, given)
    if json is not None:
        write_json(json, summary)
    print(tables)


_FOR_INSTANCES = {"boxes": "ground-truth", "seen": None}
_FOR_MAPS = {"segmentations": None, "panoptic_quality": "official"}
_FOR_FILES = {"predicted_segmentations": None}
_FOR_MODELS = {
    "images": None,
    "save_results": None,
    "batch_size": 4,
    "num_workers": 0,
    "processes": 1,
    "device": "auto",
    "precision": "float32",
    "compile": False,
}


def _compare_files(
    predictions: str | Path, annotations: str | Path, outputs: list[Path], options: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    _refuse(options, {**_FOR_INSTANCES, **_FOR_MODELS}, f"{predictions} is a file of predictions")
    if not is_panoptic(annotations):
        raise UserError(f"{annotations} is no COCO panoptic file, which alone a file of predictions is compared with")
    check_outputs(outputs, annotations, predictions)
    variant = options.pop("panoptic_quality", "official")
    summary = panoptic_quality_summary(compare_panoptic_files(annotations, predictions, variant=variant, **options))
    return summary, panoptic_quality_tables(summary)


def _evaluate_panoptic(
    model: str | Path | Predictor, annotations: str | Path, outputs: list[Path], options: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    _refuse(options, _FOR_INSTANCES, f"{annotations} is a COCO panoptic file")
    _refuse(options, _FOR_FILES, "MODEL is no .json file of predictions")
    check_outputs([*_results_files(options.get("save_results"), ""), *outputs], annotations)
    variant = options.pop("panoptic_quality", "official")
    summary = evaluate_panoptic(model, annotations=annotations, variant=variant, **options)
    return summary, panoptic_quality_tables(summary)


def _evaluate_instances(
    model: str | Path | Predictor, annotations: str | Path, outputs: list[Path], options: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    _refuse(options, {**_FOR_MAPS, **_FOR_FILES}, f"{annotations} is no COCO panoptic file")
    boxes = options.get("boxes", "ground-truth")
    check_outputs([*_results_files(options.get("save_results"), boxes), *outputs], annotations)
    summary = evaluate(model, annotations=annotations, **options)
    return summary, coco_ap_tables(summary) if boxes == "predicted" else mask_iou_tables(summary)


def _refuse(options: dict[str, Any], defaults: dict[str, Any], because: str) -> None:
    """Take the options of `defaults` out; one that was given another value is an error."""
    for name, default in defaults.items():
        if options.pop(name, default) != default:
            raise UserError(f"--{name.replace('_', '-')} cannot be given here, since {because}")


def _results_files(save_results: str | Path | None, boxes: str) -> list[Path]:
    """The files that `save_results` stands for: of the masks or maps and, where boxes are predicted, of the boxes."""
    if save_results is None:
        return []
    path = Path(save_results)
    return [path, path.parent / f"{path.stem}.bbox{path.suffix}"] if boxes == "predicted" else [path]
