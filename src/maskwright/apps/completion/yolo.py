"""A YOLO detection data set as a COCO file, and the masks of that as a folder of YOLO segmentation labels."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Num

from maskwright.apps.box_files import class_list, yolo_row
from maskwright.apps.provenance import NewMask
from maskwright.apps.run_summary import RunSummary
from maskwright.data.picture_files import find_pictures
from maskwright.data.picture_folder import picture_frame
from maskwright.errors import UserError
from maskwright.files import write_whole
from maskwright.ops.contours import TOLERANCE, joined, outlines
from maskwright.ops.run_lengths import region_of_runs, runs_of_code

_SPLITS = ("train", "val", "valid", "test")


@dataclass(frozen=True)
class YoloLabels:
    """A label file.

    path: as seen from the folder of the data set; never absolute.
    lines: as they stand there.
    positions: of each line's object in the COCO file's annotations; None for a line that is none.
    image_size: (height, width) of its picture.
    """

    path: Path
    lines: Sequence[str]
    positions: Sequence[int | None]
    image_size: tuple[int, int]


@dataclass(frozen=True)
class YoloDataset:
    """A detection data set.

    root: the folder of it all, which pictures and labels are relative to.
    labels: its label files.
    content: the same as a COCO file. Ids of images and annotations count from 1; categories keep their numbers.
    """

    root: Path
    labels: Sequence[YoloLabels]
    content: bytes


def read_yolo(path: Path, root: str | Path | None, summary: RunSummary) -> YoloDataset:
    """The data set that a `data.yaml` describes.

    Args:
        path: of the YAML file.
        root: folder of the data set; None takes the file's `path`, where that exists, else the folder that the file is
            in.
        summary: counts pictures that cannot be read and lines that are no object.

    Raises:
        UserError: the file, its classes or all of its pictures cannot be found or read.
    """
    values = _read_yaml(path)
    folder = _root(path, values) if root is None else Path(root)
    pictures = list(dict.fromkeys(picture for split in _SPLITS for picture in _pictures(folder, values.get(split))))
    if not pictures:
        raise UserError(
            f"{path}: expected folders or lists of pictures in {folder} as train, val or test, but found no picture; "
            "give the folder of the data set as --images"
        )
    reader = _Reader(folder, summary)
    for picture in pictures:
        reader.add(picture)
    used = sorted({entry["category_id"] for entry in reader.annotations})
    names = {**{number: str(number) for number in used}, **class_list(path)}
    content = {
        "images": reader.images,
        "annotations": reader.annotations,
        "categories": [{"id": number, "name": names[number]} for number in sorted(names)],
    }
    return YoloDataset(folder, reader.labels, json.dumps(content).encode())


def write_yolo(data_set: YoloDataset, masks: Mapping[int, NewMask], folder: Path) -> None:
    """Write the label files, in the folders that they have in the data set, with polygons for boxes.

    An object with a new mask becomes one polygon, its parts and holes joined by lines without width. A box without one
    becomes its four corners, as a label file holds boxes or polygons, and not both. All else stays as it is.

    Args:
        data_set: with boxes.
        masks: by the position of the annotation.
        folder: to make; it appears whole.

    Raises:
        UserError: it cannot be written.
    """

    def write(temporary: Path) -> None:
        for labels in data_set.labels:
            file = temporary / labels.path
            file.parent.mkdir(parents=True, exist_ok=True)
            pairs = zip(labels.lines, labels.positions, strict=True)
            lines = [_line(line, None if at is None else masks.get(at), labels.image_size) for line, at in pairs]
            file.write_text("".join(f"{line}\n" for line in lines))

    write_whole(folder, write)


@dataclass
class _Reader:
    """Reads pictures and their labels one by one."""

    root: Path
    summary: RunSummary
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    labels: list[YoloLabels] = field(default_factory=list)

    def add(self, picture: Path) -> None:
        try:
            height, width = picture_frame(picture, exif="upright").size
        except UserError as error:
            self.summary.note("failed", "picture that cannot be read", error)
            return
        file_name = _relative(picture, self.root).as_posix()
        self.images.append({"id": len(self.images) + 1, "file_name": file_name, "height": height, "width": width})
        file = _label_file(picture)
        if file.is_file():
            lines = [line for line in _read_text(file).splitlines() if line.strip()]
            positions = [self._object(line, file, (height, width)) for line in lines]
            place = _relative(file, self.root)
            inside = place.relative_to(place.anchor)  # never a file of the data set itself
            self.labels.append(YoloLabels(inside, lines, positions, (height, width)))

    def _object(self, line: str, file: Path, image_size: tuple[int, int]) -> int | None:
        """The position of the annotation that a line becomes."""
        words = line.split()
        row = yolo_row(words, {}.get)
        if row.problem is not None:
            self.summary.note("failed", "line of a label file that is no object", f"{file}: {row.problem}")
            return None
        scale = np.array([image_size[1], image_size[0]])
        left_top, right_bottom = np.array(row.corners).reshape(2, 2) * scale
        box = [*left_top, *(right_bottom - left_top)]
        entry = {"id": len(self.annotations) + 1, "image_id": len(self.images), "category_id": row.category_id}
        entry |= {"bbox": [round(float(number), 3) for number in box], "iscrowd": 0}
        if _is_polygon(words):
            points = np.array(words[1:], dtype=float).reshape(-1, 2) * scale
            entry["segmentation"] = [[round(number, 3) for number in points.ravel().tolist()]]
        self.annotations.append(entry)
        return len(self.annotations) - 1


def _is_polygon(words: Sequence[str]) -> bool:
    return len(words) > 6


def _line(line: str, mask: NewMask | None, image_size: tuple[int, int]) -> str:
    """A line of a label file with the mask of its object, if there is one, for its box."""
    words = line.split()
    if mask is not None:
        height, width = image_size
        corners = joined(_outlines(mask.segmentation, image_size)) / [width, height]
    elif yolo_row(words, {}.get).problem is None and not _is_polygon(words):
        corners = np.array(yolo_row(words, {}.get).corners)[[0, 1, 2, 1, 2, 3, 0, 3]].clip(0, 1)
    else:
        return line
    return " ".join([words[0], *(f"{number:.6f}" for number in corners.ravel().tolist())])


def _outlines(segmentation: Any, image_size: tuple[int, int]) -> list[Num[np.ndarray, "_ 2"]]:
    """The outlines of a new mask, be it polygons or run lengths."""
    if isinstance(segmentation, list):
        return [np.array(polygon).reshape(-1, 2) for polygon in segmentation]
    pixels, origin = region_of_runs(runs_of_code(segmentation), image_size[0])
    return [outline + np.array(origin, dtype=np.int32) for outline in outlines(pixels, TOLERANCE)]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(_read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not a YAML file: {error}") from error
    if not isinstance(values, dict) or not any(split in values for split in _SPLITS):
        raise UserError(f"{path}: expected the data.yaml of a YOLO data set, with folders of pictures as train and val")
    return values


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from error


def _root(path: Path, values: Mapping[str, Any]) -> Path:
    """The folder of the data set; a `path` that is not there is one of another machine."""
    named = path.parent / str(values.get("path") or "")
    return named if named.is_dir() else path.parent


def _pictures(root: Path, entry: Any) -> Iterator[Path]:
    """The pictures of one split: of a folder, of a text file that lists them, or of several of these."""
    for name in entry if isinstance(entry, list) else [entry]:
        if not isinstance(name, str):
            continue
        # Roboflow writes `../train/images` for what is beside the file.
        found = next((place for place in (root / name, root / name.removeprefix("../")) if place.exists()), None)
        if found is not None and found.suffix == ".txt":
            listed = (line.strip() for line in _read_text(found).splitlines())
            yield from (found.parent / line for line in listed if line)
        elif found is not None:
            with suppress(UserError):  # it has no pictures
                yield from find_pictures([str(found)], "").paths


def _label_file(picture: Path) -> Path:
    """`labels/NAME.txt` for `images/NAME.jpg`: the last folder of that name counts."""
    parts = list(picture.with_suffix(".txt").parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts)


def _relative(path: Path, root: Path) -> Path:
    """The path as seen from the data set; of what lies elsewhere the whole path."""
    path, root = _absolute(path), _absolute(root)
    return path.relative_to(root) if path.is_relative_to(root) else path


def _absolute(path: Path) -> Path:
    """Without `..`, and with links as they are: labels lie beside the link to the pictures."""
    return Path(os.path.abspath(path))  # noqa: PTH100
