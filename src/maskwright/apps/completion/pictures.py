"""The masks of one picture of `maskwright complete`. Runs in any process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask

import maskwright
from maskwright.apps.completion.plan import CompletionJob
from maskwright.apps.named_models import AnyPredictor, load_named, memory_error_told, predictor_of_process
from maskwright.apps.provenance import MaskSource
from maskwright.data.annotated_pictures import read_annotated_picture
from maskwright.data.orientation import ExifRule
from maskwright.data.picture_folder import RemotePicture
from maskwright.errors import UserError
from maskwright.ops.contours import TOLERANCE, outlines

CompletionRecord = dict[str, Any]
"""What the journal keeps of a picture: `failed`, a sentence or None, and `masks`, `[quality, area, segmentation]` of
each box."""


@dataclass(frozen=True)
class CompletionSettings:
    """How masks are made, the same in every process.

    source: names the annotation file in messages.
    labels: of the file's categories in the model's, -1 where it does not know one; the last is for no class.
    made_by: the model.
    software: `software()` where the command was given.
    device, precision, compile: see `Predictor`.
    exif: the frame of the boxes.
    polygons: whether masks become polygons instead of run lengths.
    """

    source: str
    labels: Sequence[int]
    made_by: MaskSource
    software: str
    device: str
    precision: str
    compile: bool
    exif: ExifRule
    polygons: bool


_COMPUTING = ("torch", "torchvision", "onnxruntime", "numpy", "pillow")


def software() -> str:
    """All that masks depend on but the weights: versions, and a hash of this package, which may be a checkout."""
    package = Path(maskwright.__file__).parent
    sources = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(package.rglob("*.py")))).hexdigest()
    installed = ((name, list(distributions(name=name))) for name in _COMPUTING)
    versions = (f"{name} {found[0].version}" for name, found in installed if found)
    return f"maskwright {maskwright.__version__} (sources {sources[:12]}) with {', '.join(versions)}"


class PictureCompleter:
    """Makes the masks of pictures; another process to which it is sent loads the model itself, once."""

    def __init__(self, settings: CompletionSettings, predictor: AnyPredictor) -> None:
        self._settings = settings
        self._predictor: AnyPredictor | None = predictor

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_predictor": None}

    def check_machine(self) -> None:
        """Refuse a machine of a cluster whose masks would not be those of the machine where the command was given.

        Raises:
            UserError: the model, this package, the device or the precision is not the same.
        """
        settings, model = self._settings, self._settings.made_by.model
        if (found := software()) != settings.software:
            raise UserError(f"{found}; expected {settings.software}, as where the command was given")
        loaded = load_named(model, settings.device, "auto")
        if loaded.weights != settings.made_by.weights:
            raise UserError(
                f"--model {model} has the weights {loaded.weights}; expected {settings.made_by.weights}, as where the "
                "command was given"
            )
        if settings.precision == "bfloat16" and loaded.predictor.precision != "bfloat16":
            raise UserError(
                f"{loaded.predictor.device} has no fast bfloat16, in which the command computes; give "
                "--precision float32, or leave this machine out of the cluster"
            )

    def __call__(self, job: CompletionJob) -> CompletionRecord:
        """The record of a picture.

        Raises:
            UserError: the device is out of memory.
        """
        settings = self._settings
        predictor = self._predictor or predictor_of_process(
            settings.made_by.model, settings.device, settings.precision, settings.compile
        )
        try:
            file = job.path.read() if isinstance(job.path, RemotePicture) else job.path
            picture = read_annotated_picture(file, job.image_size, settings.source, settings.exif)
        except UserError as error:
            return {"failed": str(error), "masks": []}
        labels = [settings.labels[row] for row in job.category_rows.tolist()]
        with memory_error_told(job.path):
            prediction = predictor.predict(picture, job.boxes, labels)
        made = _polygons(prediction) if settings.polygons else _run_lengths(prediction)
        qualities = [round(quality, 5) for quality in prediction.mask_scores.tolist()]
        return {"failed": None, "masks": [[quality, *mask] for quality, mask in zip(qualities, made, strict=True)]}


def _run_lengths(prediction: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """The area of each mask, and its compressed run lengths."""
    for entry in prediction.to_coco(0):
        yield int(coco_mask.area(entry["segmentation"])), entry["segmentation"]


def _polygons(prediction: Any) -> Iterator[tuple[int, list[list[int]]]]:
    """The area of each mask, and its polygons, which hold its pixels exactly."""
    for pixels, origin in map(prediction.region, range(len(prediction))):
        parts = [outline + np.array(origin, dtype=np.int32) for outline in outlines(pixels, TOLERANCE)]
        yield int(pixels.sum()), [part.ravel().tolist() for part in parts]
