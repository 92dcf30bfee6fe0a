"""The masks of one picture of `maskwright complete`. Runs in any process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from faster_coco_eval.core import mask as coco_mask

from maskwright.apps.completion.plan import CompletionJob
from maskwright.apps.predict_pictures import load_in_worker
from maskwright.data.images import read_annotated_image
from maskwright.data.orientation import ExifRule
from maskwright.errors import UserError
from maskwright.predictor import Predictor

CompletionRecord = dict[str, Any]
"""What the journal keeps of a picture: `failed`, a sentence or None, and `masks`, `[quality, area, segmentation]` of
each box."""


@dataclass(frozen=True)
class CompletionSettings:
    """How masks are made, the same in every process.

    source: names the annotation file in messages.
    labels: of the file's categories in the model's, -1 where it does not know one; the last is for no class.
    model, device, precision, compile: see `Predictor`.
    exif: the frame of the boxes.
    """

    source: str
    labels: Sequence[int]
    model: str
    device: str
    precision: str
    compile: bool
    exif: ExifRule


class PictureCompleter:
    """Makes the masks of pictures; another process to which it is sent loads the model itself, once."""

    def __init__(self, settings: CompletionSettings, predictor: Predictor) -> None:
        self._settings = settings
        self._predictor: Predictor | None = predictor

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_predictor": None}

    def __call__(self, job: CompletionJob) -> CompletionRecord:
        """The record of a picture.

        Raises:
            UserError: the device is out of memory.
        """
        settings = self._settings
        predictor = self._predictor or load_in_worker(
            settings.model, settings.device, settings.precision, settings.compile
        )
        try:
            image = read_annotated_image(job.path, job.image_size, settings.source, settings.exif)
        except UserError as error:
            return {"failed": str(error), "masks": []}
        labels = [settings.labels[row] for row in job.category_rows.tolist()]
        try:
            prediction = predictor.predict(image, job.boxes, labels)
        except torch.OutOfMemoryError as error:
            raise UserError(f"{job.path}: out of memory ({str(error).splitlines()[0]})") from error
        segmentations = [entry["segmentation"] for entry in prediction.to_coco(0)]
        qualities = [round(quality, 5) for quality in prediction.mask_scores.tolist()]
        areas = [int(coco_mask.area(segmentation)) for segmentation in segmentations]
        return {"failed": None, "masks": list(zip(qualities, areas, segmentations, strict=True))}
