"""One picture of `maskwright predict`: read, predicted, drawn, and its record for the journal. Runs in any process."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from maskwright.apps.box_files import PictureBoxes
from maskwright.apps.named_models import AnyPredictor, memory_error_told, predictor_of_process
from maskwright.data.annotated_pictures import read_annotated_picture
from maskwright.data.categories import labels_of_names
from maskwright.data.picture_folder import picture_frame
from maskwright.drawing.captions import drawable_name
from maskwright.drawing.overlays import ClassOf, draw_overlay, draw_panoptic_overlay
from maskwright.errors import UserError
from maskwright.files import write_picture
from maskwright.ops.panoptic_map import coco_entry
from maskwright.ops.run_lengths import code_of_runs
from maskwright.pictures import read_picture
from maskwright.prompts import clip_to_picture

if TYPE_CHECKING:
    from maskwright.apps.predict import PredictOptions

Record = dict[str, Any]
"""What the journal keeps of a picture.

`failed`: (cause, sentence) of the picture or of its boxes. `usable`: whether it was predicted. Where it was: `line` for
stdout; `masks` (how many), `results` (COCO) and `capped`, whether there were as many detections as may be; or `image`
and `annotation` (COCO panoptic).
"""

_OF_ONE_PICTURE = frozenset({None, errno.ENAMETOOLONG, errno.EINVAL})
"""Errors of writing that another picture need not have; Pillow's own have no number."""


@dataclass(frozen=True)
class PictureJob:
    """A picture of a run.

    position: in the run.
    path: of the file.
    boxes: that are given for it, or None.
    image_id: of the results, if the boxes have none of their own; all different, and the `file_name` of panoptic files.
    name: what its outputs are called.
    """

    position: int
    path: Path
    boxes: PictureBoxes | None
    image_id: str
    name: str


class PicturePredictor:
    """Predicts pictures; another process to which it is sent loads the model itself, once."""

    def __init__(self, options: PredictOptions, out: Path, predictor: AnyPredictor) -> None:
        self._options = options
        self._out = out
        self._predictor: AnyPredictor | None = predictor

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_predictor": None}

    def __call__(self, job: PictureJob) -> Record:
        """Write the pictures of a job and return its record.

        Raises:
            UserError: nothing more can be written, or the device is out of memory.
        """
        options = self._options
        predictor = self._predictor or predictor_of_process(
            options.model, options.device, options.precision, options.compile
        )
        try:
            picture = _read(job, options)
        except UserError as error:
            return {"failed": [("picture that cannot be read", str(error))], "usable": False}
        with memory_error_told(job.path):
            if predictor.task == "panoptic":
                return self._panoptic(predictor, job, picture)
            return self._instances(predictor, job, picture)

    def _instances(self, predictor: AnyPredictor, job: PictureJob, picture: UInt8[np.ndarray, "h w 3"]) -> Record:
        options, given = self._options, job.boxes
        size = (picture.shape[0], picture.shape[1])
        problems: dict[int, str] = {}
        kept: list[int] = []
        if given is None:
            prediction = predictor.predict(
                picture, score_threshold=options.score_threshold, max_detections=options.max_detections
            )
        else:
            boxes, problems = _boxes_inside(given, size)
            kept = [place for place in range(len(given)) if place not in problems]
            prediction = predictor.predict(picture, boxes[kept], _labels(predictor, given, kept))
            if given.scores is not None:
                scores = [1.0 if given.scores[place] is None else given.scores[place] for place in kept]
                prediction = prediction.scored(scores)
        failed = [
            ("box that cannot be used", f"{job.path}: box {place}: {problems[place]}") for place in sorted(problems)
        ]
        if failed and not kept:
            return {"failed": failed, "usable": False}
        record: Record = {"failed": failed, "usable": True, "masks": len(prediction)}
        record["capped"] = given is None and len(prediction) >= options.max_detections
        record["results"] = _results(prediction, job, kept)
        outputs = [f"{len(prediction)} masks"]
        if options.overlays:
            classes = _classes(prediction, given, kept)
            scores = (prediction.scores * prediction.mask_scores).tolist()
            captions = [f"{name} {score:.2f}".strip() for (_, name), score in zip(classes, scores, strict=True)]
            draw = partial(draw_overlay, picture, prediction, captions, classes, options.overlay_style)
            outputs += self._write(job, f"{job.name}_overlay.jpg", draw, failed)
        if options.masks:
            for index in range(len(prediction)):
                place = kept[index] if given is not None else index
                self._write(job, f"{job.name}_mask_{place}.png", partial(_mask_picture, prediction, index), failed)
        record["line"] = "\t".join([str(job.path), *outputs])
        return record

    def _panoptic(self, predictor: AnyPredictor, job: PictureJob, picture: UInt8[np.ndarray, "h w 3"]) -> Record:
        prediction = predictor.predict(picture, score_threshold=self._options.score_threshold)
        failed: list[tuple[str, str]] = []
        ids = np.asarray(prediction.segmentation)
        colours, annotation = coco_entry(ids, prediction.segments_info, job.image_id, map_name(job))
        if not self._write(job, map_name(job), partial(Image.fromarray, colours), failed):
            return {"failed": failed, "usable": False}
        outputs = [f"{len(prediction)} segments"]
        if self._options.overlays:
            draw = partial(draw_panoptic_overlay, picture, prediction, self._options.overlay_style)
            outputs += self._write(job, f"{job.name}_overlay.jpg", draw, failed)
        height, width = prediction.image_size
        entry = {"id": job.image_id, "file_name": job.image_id, "height": height, "width": width}
        line = "\t".join([str(job.path), *outputs])
        return {"failed": failed, "usable": True, "image": entry, "annotation": annotation, "line": line}

    def _write(self, job: PictureJob, name: str, draw: Any, failed: list[tuple[str, str]]) -> list[str]:
        """Write a picture, whole; its path, or nothing and a failure where it cannot be written.

        Raises:
            UserError: others could not be written, either.
        """
        path = self._out / name
        picture: Image.Image = draw()
        try:
            write_picture(path, picture)
        except UserError as error:
            if getattr(error.__cause__, "errno", None) not in _OF_ONE_PICTURE:
                raise
            failed.append(("output picture that cannot be written", f"{job.path}: {error}"))
            return []
        return [str(path)]


def map_name(job: PictureJob) -> str:
    """The file of a panoptic map."""
    return f"{job.name}_panoptic.png"


def _read(job: PictureJob, options: PredictOptions) -> UInt8[np.ndarray, "h w 3"]:
    size = None if job.boxes is None else job.boxes.image_size
    if size is None and options.exif == "stored":
        size = picture_frame(job.path, exif=options.exif).size
    if size is None:
        return read_picture(job.path)
    return read_annotated_picture(job.path, size, str(options.annotations or options.boxes), options.exif)


def _boxes_inside(given: PictureBoxes, size: tuple[int, int]) -> tuple[Float[np.ndarray, "n 4"], dict[int, str]]:
    """The boxes in pixels of an image of (height, width), and what is wrong with those that are none of it."""
    height, width = size
    boxes = given.boxes * np.array([width, height] * 2, dtype=np.float32) if given.fractions else given.boxes
    clipped, outside = clip_to_picture(boxes, size)
    return clipped, {**outside, **given.problems}


def _labels(predictor: AnyPredictor, given: PictureBoxes, kept: Sequence[int]) -> list[int] | None:
    """The model's labels of what the boxes hold, -1 for a class that it does not know; None where nothing is told."""
    if given.class_names is None:
        return None
    names = [given.class_names[place] or "" for place in kept]
    return labels_of_names(names, predictor.categories)


def _results(prediction: Any, job: PictureJob, kept: Sequence[int]) -> list[dict[str, Any]]:
    """COCO results; of given boxes one for each, with an empty mask where the box is none."""
    given = job.boxes
    if given is None:
        return prediction.to_coco(job.image_id)
    image_id = job.image_id if given.image_id is None else given.image_id
    answered = dict(zip(kept, prediction.to_coco(image_id), strict=True))
    empty = {"segmentation": _empty_mask(prediction.image_size), "score": 0.0}
    results = []
    for place in range(len(given)):
        answer: Mapping[str, Any] = answered.get(place, empty)
        columns = {"category_id": given.category_ids, "box_score": given.scores}
        if given.category_ids is None:
            columns["category_name"] = given.class_names
        told = {
            key: column[place] for key, column in columns.items() if column is not None and column[place] is not None
        }
        results.append({"image_id": image_id, **told, "segmentation": answer["segmentation"], "score": answer["score"]})
    return results


def _empty_mask(image_size: tuple[int, int]) -> dict[str, Any]:
    return code_of_runs(np.zeros((0, 2), dtype=np.int64), image_size)


def _classes(prediction: Any, given: PictureBoxes | None, kept: Sequence[int]) -> list[ClassOf]:
    """The number of each instance's class, and its name as it can be written here."""
    if given is None:
        known = [prediction.categories[label] for label in prediction.labels.tolist() if prediction.categories]
        found = [(category["id"], category["name"]) for category in known] or [(None, "")] * len(prediction)
    else:
        numbers, names = given.category_ids or [None] * len(given), given.class_names or [None] * len(given)
        found = [(numbers[place], names[place] or "") for place in kept]
    return [(number, drawable_name(name, number)) for number, name in found]


def _mask_picture(prediction: Any, index: int) -> Image.Image:
    plane = np.zeros(prediction.image_size, dtype=bool)  # one at a time, however many instances there are
    pixels, (left, top) = prediction.region(index)
    plane[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return Image.fromarray(plane).convert("L")
