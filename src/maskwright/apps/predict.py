"""`maskwright predict`: pictures in; COCO results, overlays and mask pictures out."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from PIL import Image
from tqdm import tqdm

from maskwright.apps.given_boxes import GivenBoxes, boxes_of_images
from maskwright.apps.outputs import check_can_make, make_folder
from maskwright.apps.predict_panoptic import predict_panoptic
from maskwright.apps.visualize import draw_overlay
from maskwright.data.categories import labels_of_names
from maskwright.data.images import IMAGE_SUFFIXES, read_annotated_image, read_image
from maskwright.errors import UserError
from maskwright.files import write_json, write_whole
from maskwright.ops.paste import paste_masks
from maskwright.predictor import DEFAULT_MODEL, Predictor, check_score_threshold, load
from maskwright.structures import InstancePrediction, SegmentationModel

PREDICTIONS = "predictions.json"
"""The file of all results in the output folder."""


@dataclass(frozen=True)
class PredictOptions:
    """What `maskwright predict` is asked for.

    Attributes:
        boxes: the boxes: `x1,y1,x2,y2;...` for one image, a JSON file `{file name: [[x1, y1, x2, y2], ...]}`,
            or a COCO file; in pixels of the upright image (a COCO file: of the image as it gives its size).
        model: a bundled model, a weights folder, or a Hub repository.
        out: folder for `predictions.json` and the pictures; made, where it is missing, with the first of them.
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one.
        masks: also write every mask as a black-and-white PNG.
        score_threshold: without boxes, the smallest score of a detection, in 0..1.
        precision: see `Predictor`.
        compile: see `Predictor`.
    """

    boxes: str | None = None
    model: str = DEFAULT_MODEL
    out: str = "masks"
    device: str = "auto"
    masks: bool = False
    score_threshold: float = 0.3
    precision: str = "float32"
    compile: bool = False


def predict_files(images: Sequence[str], options: PredictOptions) -> None:
    """Predict every image and write the results; one line per image on stdout: file, masks, overlay.

    In the options' folder `out`: `predictions.json` (COCO results: compressed RLE, instances in the order of
    the boxes, with the `image_id` and `category_id` of a COCO box file; else the image's file name and 1),
    `NAME_overlay.jpg` per image and, if asked for, `NAME_mask_K.png` per instance. Each file appears whole. A panoptic
    model writes what `predict_panoptic` says.

    Args:
        images: files, folders and glob patterns.
        options: see `PredictOptions`.

    Raises:
        UserError: an image, box, model, device or output that cannot be used. Where only some of the images cannot,
            the others are predicted and written first.
    """
    check_score_threshold(options.score_threshold)
    paths = find_images(images)
    given = boxes_of_images(options.boxes, paths) if options.boxes is not None else [None] * len(paths)
    predictor = load(options.model, options.device, options.precision, options.compile)
    if options.boxes is None and predictor.needs_boxes:
        raise UserError(
            f"{options.model} has no detector and needs boxes: add --boxes, as "
            '"x1,y1,x2,y2;...", as a JSON file {"photo.jpg": [[x1, y1, x2, y2], ...]} or as a COCO file'
        )
    out = _output_folder(options)
    identities = _image_ids(paths)
    if predictor.task == "panoptic":
        if options.boxes is not None or options.masks:
            raise UserError(f"{options.model} finds all segments by itself: it takes no --boxes and has no --masks")
        names = dict(zip(paths, _output_names(paths, out), strict=True))
        return predict_panoptic(predictor, names, identities, out, options.score_threshold)
    results: list[dict[str, Any]] = []
    failures: list[str] = []
    jobs = zip(paths, given, _output_names(paths, out), strict=True)
    for path, boxes, name in tqdm(jobs, total=len(paths), unit="image", disable=None):
        try:
            prediction = _predict_one(predictor, path, boxes, out / name, options)
        except UserError as error:
            if len(paths) == 1:
                raise
            failures.append(str(error))
            tqdm.write(f"left out: {error}", file=sys.stderr)
            continue
        image_id = boxes.image_id if boxes is not None and boxes.image_id is not None else identities[path]
        results += prediction.to_coco(image_id, boxes.category_ids if boxes is not None else None)
    if len(failures) < len(paths):
        write_json(out / PREDICTIONS, results, indent=None)
        print(f"{len(results)} masks in {out / PREDICTIONS}", file=sys.stderr)
    if failures:
        raise UserError(f"{len(failures)} of {len(paths)} images were left out, the first because: {failures[0]}")
    return None


def find_images(patterns: Sequence[str]) -> list[Path]:
    """The image files that files, folders (their own files only) and glob patterns stand for, each once.

    Raises:
        UserError: a pattern stands for nothing, or a folder has no images.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        for path in _expand(pattern):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _expand(pattern: str) -> list[Path]:
    path = Path(pattern)
    # os.path answers False to a text that is too long for a path, where Path raises.
    if os.path.isfile(pattern):  # noqa: PTH113
        return [path]
    if os.path.isdir(pattern):  # noqa: PTH112
        images = _only_images(path.iterdir())
        if not images:
            raise UserError(f"{pattern}: the folder has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        return images
    matches = glob.glob(pattern, recursive=True)  # noqa: PTH207 (Path.glob takes no absolute patterns)
    images = _only_images(map(Path, matches))
    if not images:
        raise UserError(f"{pattern}: no such file or folder, and as a pattern it matches no image")
    return images


def _only_images(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _output_folder(options: PredictOptions) -> Path:
    folder = Path(options.out)
    predictions = folder / PREDICTIONS
    if predictions.is_dir():
        raise UserError(f"--out {folder}: {PREDICTIONS} in it is a folder; expected to write a file of this name")
    if options.boxes is not None and os.path.realpath(options.boxes) == str(predictions.resolve()):
        raise UserError(f"--out {folder}: its {PREDICTIONS} would overwrite the boxes; give another folder")
    check_can_make(folder)
    return folder


def _image_ids(paths: Sequence[Path]) -> dict[Path, str]:
    """The file name where it is unique among the images, else the path."""
    counts = Counter(path.name for path in paths)
    return {path: path.name if counts[path.name] == 1 else path.as_posix() for path in paths}


def _output_names(paths: Sequence[Path], out: Path) -> list[str]:
    """A name per image for its outputs: its stem, numbered where that would overwrite an output or an input."""
    inputs = {path.stem.casefold() for path in paths if path.resolve().parent == out.resolve()}
    taken: set[str] = set()
    names: list[str] = []
    for path in paths:
        name, number = path.stem, 1
        while _clashes(name.casefold(), taken, inputs):
            number += 1
            name = f"{path.stem}_{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _clashes(name: str, taken: set[str], inputs: set[str]) -> bool:
    outputs = (f"{name}_overlay", f"{name}_mask_", f"{name}_panoptic")
    return name in taken or any(stem.startswith(outputs) for stem in inputs)


def _predict_one(
    predictor: Predictor, path: Path, given: GivenBoxes | None, output: Path, options: PredictOptions
) -> InstancePrediction:
    if given is None or given.image_size is None:
        image = read_image(path)
    else:
        image = read_annotated_image(path, given.image_size, str(options.boxes))
    try:
        boxes = given.boxes if given is not None else None
        labels = _labels(predictor, given)
        prediction = predictor.predict(image, boxes, labels, score_threshold=options.score_threshold)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    make_folder(output.parent)
    overlay = output.with_name(f"{output.name}_overlay.jpg")
    captions = _captions(prediction, given)
    picture = draw_overlay(image, prediction, captions)
    write_whole(overlay, lambda temporary: picture.save(temporary, "JPEG", quality=92))
    if options.masks:
        _write_masks(prediction, output)
    with tqdm.external_write_mode(file=sys.stdout):
        print(f"{path}\t{len(prediction)} masks\t{overlay}", flush=True)
    return prediction


def _labels(predictor: Predictor, given: GivenBoxes | None) -> list[int] | None:
    """The model's labels of what the boxes hold, -1 for a class that it does not know; None where nothing is told."""
    if given is None or given.names is None:
        return None
    return labels_of_names(given.names, cast(SegmentationModel, predictor.model).categories)


def _captions(prediction: InstancePrediction, given: GivenBoxes | None) -> list[str] | None:
    if given is not None:
        return list(given.names) if given.names is not None else None
    names = {label: category["name"] for label, category in enumerate(prediction.categories)}
    pairs = zip(prediction.labels.tolist(), prediction.scores.tolist(), strict=True)
    return [f"{names.get(label, '')} {score:.2f}".strip() for label, score in pairs]


def _write_masks(prediction: InstancePrediction, output: Path) -> None:
    for index in range(len(prediction)):
        one = slice(index, index + 1)  # a plane at a time, however many instances there are
        probabilities, box = prediction.mask_probabilities[one], prediction.boxes[one]
        plane = paste_masks(probabilities, box, prediction.image_size, prediction.frame)[0]
        picture = Image.fromarray(plane.numpy()).convert("L")
        write_whole(output.with_name(f"{output.name}_mask_{index}.png"), partial(picture.save, format="PNG"))
