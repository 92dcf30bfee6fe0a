"""Make the mask scores of a weights folder the IoU that is to be expected: `maskwright calibrate`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from maskwright.apps.compare_panoptic import tell_reading
from maskwright.apps.named_models import memory_error_told
from maskwright.apps.outputs import check_can_make
from maskwright.data.categories import labels_of_names
from maskwright.data.dataset import DataSource
from maskwright.data.formats import open_data_set
from maskwright.data.loaders import evaluation_loader
from maskwright.data.orientation import ExifRule, exif_rule
from maskwright.errors import UserError
from maskwright.evaluation.calibration import (
    Scores,
    cross_validated,
    expected_calibration_error,
    fit_monotone,
    rank_correlation,
)
from maskwright.evaluation.mask_iou import MaskIoU
from maskwright.evaluation.measurement import MasksFromBoxes
from maskwright.evaluation.tables import format_table
from maskwright.models.calibration import MaskCalibration
from maskwright.models.family import BoxPromptedFamily
from maskwright.models.hub import BUNDLED, store_calibration
from maskwright.predictor import Predictor, load

MIN_MASKS = 50
"""Fewer say nothing about the curve between score and IoU."""


@dataclass(frozen=True)
class CalibrateOptions:
    """What `maskwright calibrate` is asked for.

    Attributes:
        weights: weights folder, bundled model (see `maskwright models`) or Hub repository.
        images: folder that the file names are relative to.
        annotations: COCO file with masks that the model was not trained on.
        exif: frame of the annotations of images with an EXIF orientation, where you know it: upright or stored; auto
            decides by sizes, boxes and polygons.
        out: new weights folder for the calibrated copy; by default the folder WEIGHTS itself is calibrated.
        device: cpu, cuda, or auto for a GPU where there is one.
    """

    weights: str | Path
    images: str | Path
    annotations: str | Path
    exif: ExifRule = "auto"
    out: str | Path | None = None
    device: str | None = "auto"

    def __post_init__(self) -> None:
        exif_rule(self.exif)
        if self.out is None:
            return
        out = Path(self.out)
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise UserError(f"--out {out} exists already; give the name of a new folder")
        check_can_make(out.parent)


class Calibration(NamedTuple):
    """What `calibrate` has fitted and measured.

    curve: what the weights folder holds now.
    images, masks: how many the curve was fitted on.
    error, spearman: of the raw scores, the expected calibration error and the rank correlation with the IoU.
    held_out_error, held_out_spearman: of calibrated scores, where each half of the images is measured with the curve
        that was fitted on the other.
    """

    curve: MaskCalibration
    images: int
    masks: int
    error: float
    held_out_error: float
    spearman: float
    held_out_spearman: float


OPTIONS = CalibrateOptions


def run(**given: Any) -> int:
    """Calibrate, and print the numbers as a table."""
    options = CalibrateOptions(**given)
    found = calibrate(options)
    before, after = (found.error, found.spearman), (found.held_out_error, found.held_out_spearman)
    print(
        format_table(
            ["mask scores", "calibration error", "Spearman"],
            [["raw", *before], ["calibrated, on the half of the images that was not fitted", *after]],
        )
    )
    print(f"\nfitted on {found.masks} masks of {found.images} images: {len(found.curve.scores)} knots")
    print(f"stored in {options.out or options.weights}")
    return 0


def calibrate(options: CalibrateOptions) -> Calibration:
    """Ask the model for the masks of all annotated boxes, fit a monotone curve score -> IoU, and store it.

    A calibration that the weights have already is replaced. Crowds and boxes without a mask are left out.

    Raises:
        UserError: a file or the model cannot be used, the model takes no boxes, there are fewer than `MIN_MASKS` masks
            or only one image has some, or the weights are not the user's own and `out` is missing; nothing is written.
    """
    predictor = load(str(options.weights), options.device)
    if not isinstance(predictor.model, BoxPromptedFamily):
        raise UserError(
            f"{options.weights}: expected weights of a model that takes boxes, to calibrate their mask scores"
        )
    if options.out is None and not _is_own_folder(Path(options.weights)):
        raise UserError(f"{options.weights} is no folder of yours: name a new one for the calibrated copy with --out")
    images, scores, ious = _measure(options, predictor, predictor.model)
    if len(scores) < MIN_MASKS or len(set(images)) < 2:
        raise UserError(
            f"{options.annotations}: a calibration needs at least {MIN_MASKS} masks on 2 or more images, but there are "
            f"{len(scores)} on {len(set(images))}"
        )
    curve = MaskCalibration(*fit_monotone(scores, ious))
    held_out = cross_validated(scores, ious, _halves(images))
    store_calibration(options.weights, curve, options.out)
    return Calibration(
        curve,
        images=len(set(images)),
        masks=len(scores),
        error=expected_calibration_error(scores, ious),
        held_out_error=expected_calibration_error(held_out, ious),
        spearman=rank_correlation(scores, ious),
        held_out_spearman=rank_correlation(held_out, ious),
    )


def _is_own_folder(path: Path) -> bool:
    return path.is_dir() and path.resolve().parent != BUNDLED.resolve()


def _measure(
    options: CalibrateOptions, predictor: Predictor, model: BoxPromptedFamily[Any]
) -> tuple[list[str], Scores, Scores]:
    """Of each mask the name of its image, its raw score, and its IoU with the truth."""
    dataset = open_data_set(DataSource(str(options.images), str(options.annotations), exif=options.exif))
    tell_reading(options.annotations, dataset.skipped, dataset.repaired)
    model.mask_calibration = None
    metric = MaskIoU(dataset.categories, seen=[])
    labels = labels_of_names([category["name"] for category in dataset.categories], model.categories)
    measurement = MasksFromBoxes(model, metric, predictor.inference, torch.tensor(labels))
    names: list[str] = []
    file_names = tqdm(dataset.file_names, unit="image", desc="calibrate", disable=None)  # None: unless no terminal
    for file_name, (images, targets) in zip(file_names, evaluation_loader(dataset, batch_size=1), strict=True):
        with memory_error_told(file_name):
            measurement.update([image.to(predictor.device) for image in images], targets)
        names += [file_name] * (len(metric.state()) - len(names))
    _, ious, _, scores = metric.state().numpy().T
    return names, scores, ious


def _halves(images: list[str]) -> np.ndarray:
    """Which half of the images each mask belongs to: every other one, in the order of the hashes of their names.

    Not by the hash itself (`split_by_hash`): images that it has set aside before would all be on one side.
    """
    ordered = sorted(set(images), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    first = set(ordered[::2])
    return np.array([name in first for name in images], dtype=bool)
