"""`maskwright data shards`: the pictures and annotations of a COCO file as tars with an index, to train from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from maskwright.data.annotations import AnnotationIndex
from maskwright.data.coco import CocoInstances
from maskwright.data.orientation import exif_rule
from maskwright.data.picture_folder import PictureFolder
from maskwright.data.problems import reading_notes
from maskwright.data.segmentations import NONE
from maskwright.data.shard_writer import UNREADABLE, write_shards
from maskwright.errors import UserError
from maskwright.files import write_whole


def shard_data(
    annotations: str | Path, images: str | Path, out: str | Path, *, shard_size: int = 256, exif: str = "auto"
) -> AnnotationIndex:
    """Write the shards of a COCO instances file and its pictures, all or none of them; returns their index.

    The bytes of the pictures are copied as they are. The folder is read by the recipe key `data.shards`, and checked by
    `maskwright data check`. A picture that cannot be read is left out with its annotations.

    Args:
        annotations: COCO instances file.
        images: folder of its pictures.
        out: folder to write; it must be new, or empty.
        shard_size: of a tar at most, in MB; a sample that is larger has a tar of its own.
        exif: frame of the annotations of pictures with an EXIF orientation, where you know it: upright or stored; auto
            decides by sizes, boxes and polygons.

    Raises:
        UserError: the file or all of its pictures cannot be used, or `out` is there already or cannot be written.
    """
    folder = Path(out)
    mismatch = CocoInstances.mismatch(annotations)
    if mismatch:
        raise UserError(f"{annotations} {mismatch}; shards are made of {CocoInstances.format_name}")
    rule = exif_rule(exif)
    if shard_size < 1:
        raise UserError(f"--shard-size must be at least 1 MB, but is {shard_size}")
    if folder.exists() and not (folder.is_dir() and next(folder.iterdir(), None) is None):
        raise UserError(f"{folder} exists already and is not overwritten; choose another name with --out")
    if not folder.parent.is_dir():
        raise UserError(f"cannot write {folder}: the folder {folder.parent} does not exist")
    pictures = PictureFolder(images, rule)
    written: list[AnnotationIndex] = []

    def write(temporary: Path) -> None:
        temporary.mkdir()
        written.append(write_shards(annotations, pictures, temporary, shard_size * 10**6))

    write_whole(folder, write)
    return written[0]


OPTIONS = shard_data


def run(**given: Any) -> int:
    """Write the shards; print what is in them and their folder. The exit code is 3 where a picture was left out."""
    index = shard_data(**given)
    for note in reading_notes(given["annotations"], index.skipped, index.repairs.counts):
        print(f"maskwright: {note}", file=sys.stderr)
    masks = int((index.segmentations.kinds != NONE).sum())
    print(f"images: {len(index.image_ids)}; annotations: {len(index.ids)} (masks: {masks})")
    left_out = [problem for problem in index.problems if problem.kind == UNREADABLE]
    if left_out:
        print(f"images left out: {len(left_out)}, the first: {left_out[0]}")
    print(given["out"])
    return 3 if left_out else 0
