"""How good a model's masks, detections or panoptic maps are on a COCO file: `maskwright evaluate`."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from maskwright.apps.compare_panoptic import compare_panoptic_files, tell_reading
from maskwright.apps.named_models import memory_error_told
from maskwright.apps.outputs import check_outputs
from maskwright.apps.processes import device_of_process, run_jobs
from maskwright.data.categories import labels_of_names, match_name, read_categories, resolve_mask_classes
from maskwright.data.dataset import DataSource, FileDataset
from maskwright.data.formats import format_of, open_data_set
from maskwright.data.ground_truth import read_ground_truth
from maskwright.data.loaders import evaluation_loader
from maskwright.data.orientation import ExifRule, exif_rule
from maskwright.data.panoptic import PanopticEntry, new_map_folder, new_map_names, write_panoptic
from maskwright.data.picture_folder import PictureFolder
from maskwright.drawing.reliability import draw_reliability
from maskwright.errors import UserError
from maskwright.evaluation.coco_ap import CocoAP
from maskwright.evaluation.mask_iou import MaskIoU, ScoreQuality
from maskwright.evaluation.measurement import DetectedInstances, MasksFromBoxes, Measurement, PanopticMaps
from maskwright.evaluation.metric import Metric
from maskwright.evaluation.panoptic_quality import VARIANTS, PanopticQuality
from maskwright.evaluation.report import summarize, tables_of
from maskwright.files import write_json, write_picture
from maskwright.predictor import Predictor, load
from maskwright.structures import BoxPrompted, Category, InstancePrediction, PanopticPrediction

BOXES = ("ground-truth", "predicted")

Case = Literal["masks", "detections", "panoptic", "files"]
"""What is compared with the annotations: a model's masks of their boxes, its detections, its panoptic maps, or the
panoptic maps of another file."""


@dataclass(frozen=True)
class EvaluateOptions:
    """What `maskwright evaluate` is asked for.

    Attributes:
        model: bundled model (see `maskwright models`), weights folder or Hub repository; in Python also a `Predictor`.
            Or a .json file of panoptic predictions, which is compared without a model.
        annotations: COCO instances or COCO panoptic file.
        images: folder that the file names are relative to; required unless MODEL is a .json file.
        boxes: ground-truth measures mask IoU in the annotated boxes; predicted measures the COCO AP of the instances
            that the model detects.
        seen: classes whose masks the model was trained on: all, voc, non_voc, or names with commas; by default the
            model's own `mask_classes`.
        segmentations: folder of a panoptic file's PNGs; by default the one beside the file, named like it.
        predicted_segmentations: the same for a .json file of panoptic predictions.
        panoptic_quality: official is the COCO evaluation; in_house counts like the DeepLab2 trainer.
        exif: frame of the annotations of images with an EXIF orientation, where you know it: upright or stored; auto
            decides by sizes, boxes and polygons.
        json: file to write all numbers to.
        reliability: PNG to draw: mean mask IoU above the mask score, for ground-truth boxes.
        save_results: file to write the predictions to. Masks and detections are COCO results; detected boxes go to
            NAME.bbox.json beside NAME.json, since they would change the sizes of the masks. Panoptic maps are a COCO
            panoptic file and its folder of PNGs, with the ids of the annotations.
        batch_size: images encoded together.
        num_workers: processes that read images, for each process that computes; 0 reads in the process that computes.
        processes: processes that share the images, each with its own GPU where there are several; the numbers are those
            of one process.
        device: cpu, cuda, or auto for a GPU where there is one.
        precision: float32, bfloat16, or auto for bfloat16 where the processor or GPU computes it fast.
        compile: compile the network first, which takes minutes and pays off for many images.
    """

    model: str | Path | Predictor
    annotations: str | Path
    images: str | Path | None = None
    boxes: str = "ground-truth"
    seen: str | Sequence[str] | None = None
    segmentations: str | Path | None = None
    predicted_segmentations: str | Path | None = None
    panoptic_quality: str = "official"
    exif: ExifRule = "auto"
    json: str | Path | None = None
    reliability: str | Path | None = None
    save_results: str | Path | None = None
    batch_size: int = 4
    num_workers: int = 0
    processes: int = 1
    device: str | None = "auto"
    precision: str = "float32"
    compile: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("boxes", BOXES), ("panoptic_quality", VARIANTS)):
            if (given := getattr(self, name)) not in choices:
                raise UserError(f"{name} must be one of {', '.join(choices)}, but got {given!r}")
        exif_rule(self.exif)
        if self.reliability is not None and Path(self.reliability).suffix.lower() != ".png":
            raise UserError(f"reliability must name a .png file, but got {self.reliability}")
        if self.batch_size < 1 or self.num_workers < 0 or self.processes < 1:
            raise UserError(
                "expected batch_size >= 1, num_workers >= 0 and processes >= 1, but got "
                f"{self.batch_size}, {self.num_workers} and {self.processes}"
            )

    @cached_property
    def case(self) -> Case:
        """What is compared with what; `UserError` if the annotation file cannot be read, or `images` is missing."""
        if not isinstance(self.model, Predictor) and Path(self.model).suffix == ".json":
            return "files"
        if self.images is None:
            raise UserError(
                "evaluate needs --images, the folder of the images, unless MODEL is a .json file of predictions"
            )
        if format_of(self.annotations).task == "panoptic":
            return "panoptic"
        return "detections" if self.boxes == "predicted" else "masks"

    @property
    def results_files(self) -> list[Path]:
        """The files that `save_results` stands for."""
        if self.save_results is None:
            return []
        path = Path(self.save_results)
        return [path, path.with_name(f"{path.stem}.bbox{path.suffix}")] if self.boxes == "predicted" else [path]


def evaluate(model: str | Path | Predictor, **given: Any) -> Metric:
    """Compare a model's predictions with a COCO file's annotations, as `maskwright evaluate` does.

        metric = maskwright.evaluate("deep-mac-tiny", images="photos", annotations="held_out.json")
        metric.compute()["mask_iou"]

    Images are compared at their own resolution. `compute()` of the metric gives the numbers of all instances and of
    groups by name, `per_class()` those of each class.

    The files decide which metric is returned:

    - COCO instances, boxes `ground-truth`: `MaskIoU` in the file's categories; a model that is prompted with boxes
      needs no label space.
    - COCO instances, boxes `predicted`: `CocoAP` against the file's own entries, so that pycocotools gives the same
      numbers. The model's classes are matched with the file's by name.
    - COCO panoptic: `PanopticQuality`. Areas of true segments are counted in pixels. Predicted segments of classes that
      the file does not list count as void. The file decides which classes are things.
    - a `.json` file of predictions as the model: `compare_panoptic_files`.

    Broken annotations are skipped and counted on standard error.

    Args:
        model: a bundled model, a weights folder, a Hub repository, or what `maskwright.load` returned; or a `.json`
            file of panoptic predictions, which is compared without any model.
        given: `annotations`, `images` and the other fields of `EvaluateOptions`, all named like the command's options;
            one that does not apply to the files is refused.

    Raises:
        UserError: an option, a file or a model cannot be used, or the file has nothing to compare; nothing is written.
    """
    options = EvaluateOptions(model, **given)
    _refuse(options, {"model": model, **given})
    outputs, inputs = options.results_files, [options.annotations]
    outputs += [Path(path) for path in (options.json, options.reliability) if path is not None]
    if options.case == "files":
        inputs.append(str(options.model))
    check_outputs(outputs, *inputs)
    if options.case == "files":
        maps = options.segmentations, options.predicted_segmentations
        metric = compare_panoptic_files(options.annotations, str(options.model), *maps, options.panoptic_quality)
    else:
        metric = _evaluate_model(options)
    if options.json is not None:
        write_json(options.json, summarize(metric))
    if options.reliability is not None and isinstance(metric, MaskIoU):
        write_picture(options.reliability, _reliability_picture(metric, options))
    return metric


def _reliability_picture(metric: MaskIoU, options: EvaluateOptions) -> Image.Image:
    quality = cast("ScoreQuality", metric.score_quality())  # the masks of a model have scores
    bins = [(row.mean_score, row.mean_iou, row.masks) for row in quality.bins]
    title = f"{Path(options.annotations).name}: calibration error {quality.error:.3f}, Spearman {quality.spearman:.2f}"
    return draw_reliability(bins, title)


OPTIONS = EvaluateOptions


def run(**given: Any) -> int:
    """Print the numbers as tables."""
    print(tables_of(evaluate(**given)))
    return 0


def _refuse(options: EvaluateOptions, given: Mapping[str, Any]) -> None:
    """Refuse options that do not apply, and files that do not go together."""
    for_maps = {"segmentations", "predicted_segmentations", "panoptic_quality"}
    if options.case == "files":
        others = given.keys() - for_maps - {"model", "annotations", "json"}
        reason = f"{options.model} is a file of predictions"
    elif options.case == "panoptic":
        others = given.keys() & {"boxes", "seen", "reliability", "predicted_segmentations"}
        reason = f"a model is evaluated on {options.annotations}, which is a COCO panoptic file"
    else:
        others = given.keys() & for_maps
        reason = f"{options.annotations} is no COCO panoptic file"
    if options.case == "detections" and options.reliability is not None:
        raise UserError("--reliability cannot be given here: it draws the masks of ground-truth boxes")
    if others:
        names = [f"--{name.replace('_', '-')}" for name in given if name in others]  # in the order given
        raise UserError(f"{', '.join(names)} cannot be given here, since {reason}")
    if options.case == "files" and format_of(options.annotations).task != "panoptic":
        raise UserError(
            f"{options.annotations} is no COCO panoptic file; a file of predictions can only be compared with one"
        )


def _evaluate_model(options: EvaluateOptions) -> Metric:
    """Share the images among processes, merge what they measure, and save the predictions."""
    if options.case == "panoptic" and options.save_results is not None:
        new_map_folder(options.save_results)
    shares = [Share(options, rank) for rank in range(options.processes)]
    measured = {share.rank: result for share, result in run_jobs(measure_share, shares, options.processes)}
    metric, saved = measured[0]
    for rank in range(1, options.processes):
        metric.merge(measured[rank].metric.state())
        saved.update(measured[rank].saved)
    if isinstance(metric, MaskIoU):
        # Only now is it known which compressed run lengths cover no pixel.
        _require_instances(int(metric.compute()["instances"]), "mask of an instance", options.annotations)
    if options.save_results is not None:
        _save(options, metric, [saved[place] for place in sorted(saved)])
    return metric


def _save(options: EvaluateOptions, metric: Metric, saved: list[Any]) -> None:
    if isinstance(metric, PanopticQuality):
        entries = (predicted.entry() for predicted in saved)
        write_panoptic(options.results_files[0], entries, read_categories(options.annotations))
    elif isinstance(metric, CocoAP):
        for file, results in zip(options.results_files, (metric.mask_results(), metric.box_results()), strict=True):
            write_json(file, results, indent=None)
    else:
        write_json(options.results_files[0], [result for results in saved for result in results], indent=None)


@dataclass(frozen=True)
class Share:
    """The images rank, rank + processes, ... of the file, for one of the processes."""

    options: EvaluateOptions
    rank: int


class Measured(NamedTuple):
    """What one process has measured.

    metric: of its images.
    saved: what `save_results` needs of each image, by the image's place in the file; detections are in the metric.
    """

    metric: Metric
    saved: dict[int, Any]


class _Prepared(NamedTuple):
    """How one process measures: the images, the measurement, and what is saved of the prediction at a place."""

    dataset: FileDataset
    measurement: Measurement
    to_save: Callable[[int, Any, Any], Any] | None


def measure_share(share: Share) -> Measured:
    """Measure the images of one process; the first process shows its progress on standard error.

    Raises:
        UserError: as `evaluate`.
    """
    options, predictor = share.options, share.options.model
    if not isinstance(predictor, Predictor):
        device = device_of_process(options.device)
        predictor = load(str(options.model), device, options.precision, options.compile)
    if (predictor.task == "panoptic") != (options.case == "panoptic"):
        raise UserError(
            f"{options.annotations} is a panoptic file, but the model finds single instances only"
            if predictor.task == "instance"
            else f"{options.annotations} is no COCO panoptic file, which a panoptic model is evaluated on: it has no "
            "`segments_info`"
        )
    prepare = {"masks": _prepare_masks, "detections": _prepare_detections, "panoptic": _prepare_panoptic}
    dataset, measurement, to_save = prepare[options.case](share, predictor)
    loader = evaluation_loader(
        dataset,
        batch_size=options.batch_size,
        rank=share.rank,
        world_size=options.processes,
        num_workers=options.num_workers,
    )
    places = range(share.rank, len(dataset), options.processes)
    title = "evaluate" if options.processes == 1 else f"evaluate (process 1 of {options.processes})"
    hidden = None if share.rank == 0 else True  # None: unless standard error is no terminal
    saved: dict[int, Any] = {}
    with tqdm(total=len(places), unit="image", file=sys.stderr, desc=title, disable=hidden) as progress:
        unsaved = iter(places)
        for images, targets in loader:
            with memory_error_told(f"batch size {len(images)}"):
                predictions = measurement.update([image.to(predictor.device) for image in images], targets)
            if options.save_results is not None and to_save is not None:
                for prediction, target, place in zip(predictions, targets, unsaved, strict=False):
                    saved[place] = to_save(place, prediction, target)
            progress.update(len(images))
    return Measured(measurement.metric, saved)


def _open(share: Share, **label_space: Any) -> FileDataset:
    """The annotated images, in the label space of the arguments; says once what was repaired and skipped."""
    options = share.options
    source = DataSource(
        str(options.images), options.annotations, options.segmentations, exif=options.exif, **label_space
    )
    dataset = open_data_set(source)
    if share.rank == 0:
        tell_reading(options.annotations, dataset.skipped, dataset.repaired)
    return dataset


def _prepare_masks(share: Share, predictor: Predictor) -> _Prepared:
    """Mask IoU with the boxes of the ground truth, in the file's categories."""
    options, model = share.options, predictor.model
    dataset = _open(share)
    _require_instances(dataset.count_instances()[0], "mask of an instance", options.annotations)
    if not isinstance(model, BoxPrompted):
        raise UserError(f"{options.model}: this model cannot be prompted with boxes")
    categories = dataset.categories
    metric = MaskIoU(categories, _seen_classes(options, predictor, categories))
    names = [category["name"] for category in categories]
    model_labels = torch.tensor(labels_of_names(names, predictor.model.categories))

    def to_save(_: int, prediction: InstancePrediction, target: Any) -> list[dict[str, Any]]:
        ids = [categories[label]["id"] for label in prediction.labels.tolist()]
        return prediction.to_coco(target["image_id"], ids)

    return _Prepared(dataset, MasksFromBoxes(model, metric, predictor.inference, model_labels), to_save)


def _prepare_detections(share: Share, predictor: Predictor) -> _Prepared:
    """COCO's AP of what the model finds, in the file's categories."""
    options, model = share.options, predictor.model
    if predictor.needs_boxes:
        raise UserError(
            f"{options.model}: this model has no detector; it takes the boxes of the file (`--boxes ground-truth`)"
        )
    # No mask of the data set is decoded: the metric takes the truth from the file.
    dataset = _open(share, categories=model.categories, mask_classes=[])
    _require_instances(sum(dataset.count_instances()), "instance", options.annotations)
    categories = read_categories(options.annotations)
    truth = read_ground_truth(options.annotations, PictureFolder(str(options.images), options.exif))
    metric = CocoAP(categories, _seen_classes(options, predictor, categories), truth)
    metric_labels = torch.tensor(labels_of_names([category["name"] for category in model.categories], categories))
    return _Prepared(dataset, DetectedInstances(model, metric, predictor.inference, metric_labels), None)


def _prepare_panoptic(share: Share, predictor: Predictor) -> _Prepared:
    """Panoptic quality in the model's categories; predictions get the file's category ids."""
    model = predictor.model
    dataset = _open(share, categories=model.categories)
    listed = {category["name"]: category for category in dataset.file_categories}
    names = [match_name(category["name"], list(listed)) for category in model.categories]
    matches = {label: listed[name] for label, name in enumerate(names) if name is not None}
    categories = [  # a class is a thing where the file says so
        Category(id=own["id"], name=own["name"], isthing=matches.get(label, own).get("isthing", True))
        for label, own in enumerate(model.categories)
    ]
    category_ids = {label: category["id"] for label, category in matches.items()}
    file_names, map_names = dataset.file_names, new_map_names(dataset.file_names)

    def to_save(place: int, prediction: PanopticPrediction, target: Any) -> PredictedMap:
        (height, width), image_id = prediction.image_size, target["image_id"]
        colours, annotation = prediction.to_coco(image_id, map_names[place])
        png = io.BytesIO()
        Image.fromarray(colours).save(png, "PNG")
        image = {"id": image_id, "file_name": file_names[place], "height": height, "width": width}
        return PredictedMap(image, png.getvalue(), annotation)

    metric = PanopticQuality(categories, share.options.panoptic_quality)
    return _Prepared(dataset, PanopticMaps(model, metric, predictor.inference, category_ids), to_save)


class PredictedMap(NamedTuple):
    """The panoptic prediction of one image, small enough to keep those of a whole data set.

    image: its entry of `images`; png: the file of its map; annotation: its entry of `annotations`.
    """

    image: dict[str, Any]
    png: bytes
    annotation: dict[str, Any]

    def entry(self) -> PanopticEntry:
        """As `write_panoptic` takes it."""
        with Image.open(io.BytesIO(self.png)) as stored:
            return PanopticEntry(self.image, np.asarray(stored), self.annotation)


def _seen_classes(options: EvaluateOptions, predictor: Predictor, categories: Sequence[Category]) -> list[str]:
    """The names among `categories` of the classes that count as seen."""
    if options.seen is not None:
        return resolve_mask_classes(options.seen, categories)
    names = [category["name"] for category in categories]
    matches = {match_name(name, names) for name in predictor.model.mask_classes}
    return [name for name in names if name in matches]


def _require_instances(count: int, what: str, annotations: str | Path) -> None:
    """Refuse a file that has nothing to compare."""
    if count == 0:
        raise UserError(
            f"{annotations}: nothing to measure, it has no usable {what} (crowds do not count); "
            "`maskwright data check` lists what it holds"
        )
