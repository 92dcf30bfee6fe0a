"""`maskwright data label-studio`: the masks that a model made as tasks with predictions, for import."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tqdm import tqdm

from maskwright.apps.label_studio import BrushTags, model_version
from maskwright.apps.review_page.completed import CompletedFile, CompletedMask, read_completed
from maskwright.apps.run_summary import RunSummary
from maskwright.data.orientation import exif_rule
from maskwright.data.picture_folder import picture_frame
from maskwright.errors import UserError
from maskwright.files import write_whole

_LARGEST_FILE = 100_000_000  # bytes; Label Studio takes 250 MB at once
_BUCKETS = ("s3", "gs", "azure-blob")  # whose addresses Label Studio takes as they are


def write_label_studio_tasks(
    completed: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    url: str = "/data/local-files/?d={name}",
    exif: str = "auto",
) -> RunSummary:
    """Write the masks of a completed file as Label Studio's tasks, one per picture, and a labelling configuration.

    Each mask that a model made is a brush stroke with its quality as score; the score of the prediction is that of its
    worst mask. Masks that people drew are not in it.

    Args:
        completed: COCO file in which each annotation with a model's mask has an object "maskwright" with its "quality".
        images: folder of its pictures.
        out: new folder for `label_config.xml` and `tasks_1.json`, `tasks_2.json`, ..., of at most 100 MB each.
        url: address of a picture for Label Studio, where {name} stands for its path in the folder of pictures.
        exif: frame of the annotations of images with an EXIF orientation, where you know it: upright or stored; auto
            decides by sizes.

    Raises:
        UserError: the file or the folder of pictures cannot be used, an option is wrong, or the output cannot be
            written.
    """
    if "{name}" not in url:
        raise UserError(f"--url must hold {{name}}, which stands for the path of the picture, but got {url!r}")
    rule = exif_rule(exif)
    if Path(out).exists():
        raise UserError(f"{out} is there already; expected a new folder")
    summary = RunSummary()
    file = read_completed(Path(completed), images, summary, exif=rule)
    tags = BrushTags("mask", "image", "image", sorted({_label(mask) for mask in file.masks}))

    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "label_config.xml").write_text(tags.configuration(), encoding="utf-8")
        for number, part in enumerate(_parts(_tasks(file, tags, url, summary)), 1):
            (folder / f"tasks_{number}.json").write_text("[\n" + ",\n".join(part) + "\n]\n")

    write_whole(out, write)
    return summary


OPTIONS = write_label_studio_tasks


def run(**given: Any) -> int:
    """Write the tasks; print what was left out, and the folder; returns the exit code."""
    summary = write_label_studio_tasks(**given)
    summary.print()
    print(given["out"])
    return summary.exit_code


def _tasks(file: CompletedFile, tags: BrushTags, url: str, summary: RunSummary) -> Iterator[str]:
    """The task of each picture as JSON, in the file's order."""
    of_image: dict[int, list[CompletedMask]] = {}
    for mask in file.masks:
        of_image.setdefault(mask.image, []).append(mask)
    for image in tqdm(sorted(of_image), unit="image", file=sys.stderr, desc="label-studio", disable=None):
        name = file.image_names[image]
        path = file.pictures.path(name)
        try:
            upright = picture_frame(path, file.image_sizes[image], file.pictures.exif).upright
        except UserError as error:
            summary.note("failed", "picture that cannot be read", str(error))
            continue
        if not path.is_relative_to(file.pictures.folder):
            summary.note("failed", f"picture that does not lie in {file.pictures.folder}", name)
        elif not upright:
            summary.note("failed", "picture annotated as stored, which Label Studio shows upright", name)
        elif strokes := _strokes(file, of_image[image], tags, summary):
            place = path.relative_to(file.pictures.folder).as_posix()
            address = url.replace("{name}", place if url.partition("://")[0] in _BUCKETS else quote(place))
            prediction = {
                "model_version": ", ".join(
                    sorted({model_version(mask.model, mask.weights) for mask in of_image[image]})
                ),
                "score": min(stroke["score"] for stroke in strokes),
                "result": strokes,
            }
            yield json.dumps({"data": {tags.key: address, "file_name": name}, "predictions": [prediction]})


def _strokes(
    file: CompletedFile, masks: list[CompletedMask], tags: BrushTags, summary: RunSummary
) -> list[dict[str, Any]]:
    """The regions of one picture; masks that cannot be shown are counted."""
    names = [str(mask.id) for mask in masks]
    if len(set(names)) < len(names):
        names = [f"#{mask.position}" for mask in masks]
    strokes = []
    for mask, name in zip(masks, names, strict=True):
        encoded = file.encoded(mask.segmentation, mask.image)
        if encoded.areas()[0] == 0:
            summary.note("failed", "mask that is malformed or has no pixel", f"annotation {name}")
        else:
            strokes.append(tags.stroke(encoded, _label(mask), mask.quality, name))
    return strokes


def _label(mask: CompletedMask) -> str:
    return mask.category or "object"


def _parts(tasks: Iterable[str]) -> Iterator[list[str]]:
    """The tasks in groups that fit into one file."""
    part, size = [], 0
    for task in tasks:
        if part and size + len(task) > _LARGEST_FILE:
            yield part
            part, size = [], 0
        part.append(task)
        size += len(task)
    if part:
        yield part
