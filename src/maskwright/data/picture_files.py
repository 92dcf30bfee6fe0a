"""The pictures that files, folders and patterns stand for, without those that nobody meant."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from maskwright.data.annotated_pictures import picture_suffixes
from maskwright.errors import UserError
from maskwright.files import OUTPUT_MARK

_OUTPUT_NAME = re.compile(r".+_(?:overlay\.jpg|mask_\d+\.png|panoptic\.png)", re.DOTALL)


@dataclass(frozen=True)
class PictureFiles:
    """Pictures, each file once.

    paths: in the order of the arguments; those of a folder sorted.
    left_out: (why, path) of files in folders that have the name of a picture and are none that a person means.
    """

    paths: list[Path] = field(default_factory=list)
    left_out: list[tuple[str, Path]] = field(default_factory=list)


def find_pictures(patterns: Sequence[str], out: str | Path) -> PictureFiles:
    """The pictures that files, folders (with the folders in them) and glob patterns stand for.

    Of folders and patterns: every format that `read_image` reads, but no hidden files or folders (macOS writes a
    `._NAME.jpg` beside every file) and no pictures that this package wrote: those with its mark, and in the output
    folder `out`, unless it is one of `patterns`, those that are called so. A file that is named itself is taken.

    Raises:
        UserError: a pattern stands for nothing, or a folder has no pictures.
    """
    pictures = PictureFiles()
    seen: set[str] = set()
    real_out = os.path.realpath(out)
    outputs = None if real_out in map(os.path.realpath, patterns) else real_out
    for pattern in patterns:
        before = len(pictures.left_out)
        found = list(_expand(pattern, outputs, pictures.left_out))
        if not found:
            left_out = "".join(f"; {path} is {reason}" for reason, path in pictures.left_out[before:][:1])
            raise UserError(_nothing(pattern) + left_out)
        for path in found:
            real = os.path.realpath(path)
            if real not in seen:
                seen.add(real)
                pictures.paths.append(path)
    return pictures


def _nothing(pattern: str) -> str:
    if os.path.isdir(pattern):  # noqa: PTH112
        return f"{pattern}: the folder has no images (.jpg, .png, .tif, .webp, .bmp, ... in it or in its folders)"
    return f"{pattern}: no such file or folder, and as a pattern it matches no image"


def _expand(pattern: str, outputs: str | None, left_out: list[tuple[str, Path]]) -> Iterator[Path]:
    # os.path answers False to a text that is too long for a path, where Path raises.
    if os.path.isfile(pattern):  # noqa: PTH113
        yield Path(pattern)
        return
    is_folder = os.path.isdir(pattern)  # noqa: PTH112
    files = _walk(Path(pattern)) if is_folder else map(Path, glob.glob(pattern, recursive=True))  # noqa: PTH207
    for path in sorted(files):
        if path.suffix.lower() in picture_suffixes() and path.is_file():
            reason = _reason(path, outputs)
            if reason:
                left_out.append((reason, path))
            else:
                yield path


def _walk(folder: Path) -> Iterator[Path]:
    """All files of a folder and of the folders in it, but for hidden folders; links are followed, once."""
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            yield from (Path(parent, name) for name in files)
        seen.add(real)


def _reason(path: Path, outputs: str | None) -> str | None:
    if path.name.startswith("."):
        return "a hidden file"
    return "an output of maskwright" if _OUTPUT_NAME.fullmatch(path.name) and _is_output(path, outputs) else None


def _is_output(path: Path, outputs: str | None) -> bool:
    if os.path.realpath(path.parent) == outputs:
        return True
    try:
        with Image.open(path) as picture:
            marks = (picture.info.get("comment"), picture.info.get("Comment"))
    except Exception:  # whatever it is, it is none of ours
        return False
    return OUTPUT_MARK in marks or OUTPUT_MARK.encode() in marks
