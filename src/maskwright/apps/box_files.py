"""Files and folders of boxes, in every form that people have them, as boxes of named pictures.

JSON objects `{picture: boxes}`, COCO instances, COCO results, MegaDetector results, and folders of YOLO labels.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import yaml
from jaxtyping import Float

from maskwright.apps.run_summary import RunSummary
from maskwright.data.annotated_pictures import picture_suffixes
from maskwright.data.annotations import AnnotationIndex, read_annotations, read_images
from maskwright.data.categories import parse_categories
from maskwright.data.normalise import Kind, listed_id, normalise_instances
from maskwright.data.picture_folder import PictureList
from maskwright.errors import UserError
from maskwright.files import read_json_object
from maskwright.prompts import read_boxes

FORMS = (
    '"x1,y1,x2,y2;x1,y1,x2,y2", a JSON file {"photo.jpg": [[x1, y1, x2, y2], ...]}, a COCO file, a COCO results list, '
    "MegaDetector results or a folder of YOLO labels"
)

Naming = Literal["file", "stem", "number"]

_NO_BOX = [math.nan] * 4
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_NO_LABELS = frozenset({"classes.txt", "obj.names", "train.txt", "val.txt", "test.txt"})


@dataclass(frozen=True)
class PictureBoxes:
    """The boxes that a file gives for one picture, each in its place.

    name: of the picture; what it is, `naming` says: a file with or without folders, that without its suffix (`stem`),
        or such a stem without leading zeros (`number`).
    boxes: float32 [N, 4], xyxy, pixels of the image as `image_size` says, or of the upright one; in 0..1 of its width
        and height where `fractions` is true.
    problems: what is wrong with boxes that are none, by their place.
    category_ids: the file's own, one per box; None where it has none, also of single boxes.
    class_names: the names of the boxes' classes, likewise.
    scores: of the boxes, likewise.
    image_id: the file's own; None where it has none.
    image_size: (height, width) as the file states it, or None.
    """

    name: str
    boxes: Float[np.ndarray, "n 4"]
    problems: Mapping[int, str] = field(default_factory=dict)
    category_ids: Sequence[int | None] | None = None
    class_names: Sequence[str | None] | None = None
    scores: Sequence[float | None] | None = None
    image_id: int | str | None = None
    image_size: tuple[int, int] | None = None
    fractions: bool = False
    naming: Naming = "file"

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class _Box:
    """One box of a file: its four values as they stand there, or what is wrong with it."""

    corners: Any = None
    category_id: int | None = None
    class_name: str | None = None
    score: float | None = None
    problem: str | None = None


def read_box_file(
    path: Path, summary: RunSummary, annotations: str | None = None, pictures: PictureList | None = None
) -> list[PictureBoxes]:
    """The boxes in a file or folder, by picture, in its order; what it lacks or leaves out goes to `summary`.

    annotations: a COCO file which says what the `image_id`s and `category_id`s of a results list are.
    pictures: those of the run, whose sizes are read where a COCO file does not tell them.

    Raises:
        UserError: the file cannot be read, has another form, or its boxes are not in pixels where they must be.
    """
    if path.is_dir():
        return _yolo_labels(path)
    content = _read_json(path)
    if isinstance(content, list) and content and all(_is_result(entry) for entry in content[:100]):
        return _in_pixels(_coco_results(content, str(path), annotations, pictures), path)
    if annotations is not None:
        raise UserError(f"--annotations is for a COCO results list, which {path} is not")
    if isinstance(content, list):
        return _in_pixels([_picture("", (_row(row) for row in content))], path)
    images = content.get("images")
    if isinstance(images, list) and (not images or isinstance(images[0], dict)):
        if "annotations" in content:
            return _coco_instances(path, summary, pictures)
        if "detection_categories" in content or (images and "detections" in images[0]):
            return _megadetector(content, summary)
        raise UserError(f"{path}: a COCO file without annotations has no boxes")
    return _in_pixels(_by_name(content, path, summary), path)


def inline_boxes(text: str) -> PictureBoxes:
    """The boxes `x1,y1,x2,y2;...` of the command line, for one picture, whose name is empty.

    Raises:
        UserError: something is no number.
    """
    try:
        rows = [[float(number) for number in row.split(",")] for row in text.split(";") if row.strip()]
    except ValueError as error:
        wrong = next(row.strip() for row in text.split(";") if not _is_numbers(row))
        raise UserError(f"--boxes {text}: {wrong!r} is not a box; expected {FORMS}") from error
    return _in_pixels([_picture("", (_Box(row) for row in rows))], f"--boxes {text}")[0]


def _is_numbers(text: str) -> bool:
    try:
        return bool([float(number) for number in text.split(",")])
    except ValueError:
        return False


def _read_json(path: Path) -> Any:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        reason = "it is empty" if path.stat().st_size == 0 else str(error)
        raise UserError(f"{path}: not valid JSON ({reason}); expected boxes as {FORMS}") from error
    if not isinstance(content, dict | list) or not content:
        found = f"a {type(content).__name__}" if not isinstance(content, dict | list) else "nothing in it"
        raise UserError(f"{path}: it names no image; expected boxes as {FORMS}, but got {found}")
    return content


def _in_pixels(pictures: list[PictureBoxes], source: object) -> list[PictureBoxes]:
    """The same pictures.

    Raises:
        UserError: all boxes lie within 0..1, as fractions of the image do.
    """
    boxes = np.concatenate([np.zeros((0, 4), dtype=np.float32), *(picture.boxes for picture in pictures)])
    boxes = boxes[np.isfinite(boxes).all(axis=1)]
    if len(boxes) and bool(((boxes >= 0) & (boxes <= 1)).all()):
        raise UserError(
            f"{source}: all of its boxes lie within 0..1, as fractions of the image do: expected pixels (x times the "
            "width, y times the height of the image); YOLO labels and MegaDetector results are taken as they are"
        )
    return pictures


def _picture(name: str, boxes: Iterator[_Box], **values: Any) -> PictureBoxes:
    """Checked boxes, with a column of classes and of scores only where one of them has such."""
    rows = list(boxes)
    corners, problems = read_boxes([_NO_BOX if row.problem else row.corners for row in rows])
    problems.update({place: row.problem for place, row in enumerate(rows) if row.problem})

    def column(key: str) -> list[Any] | None:
        found = [getattr(row, key) for row in rows]
        return found if any(value is not None for value in found) else None

    columns = {"category_ids": "category_id", "class_names": "class_name", "scores": "score"}
    return PictureBoxes(name, corners, problems, **{key: column(of) for key, of in columns.items()}, **values)


# {"photo.jpg": boxes}


def _by_name(content: Mapping[str, Any], path: Path, summary: RunSummary) -> list[PictureBoxes]:
    pictures = []
    for name, value in content.items():
        rows = _rows(value)
        if rows is None:
            told = f"{path}: expected a list of boxes at {name!r}, but got {str(value)[:60]}"
            if len(content) == 1:
                raise UserError(told)
            summary.note("failed", "entry of the box file that is no list of boxes", told)
        else:
            pictures.append(_picture(name, rows))
    return pictures


def _rows(value: Any) -> Iterator[_Box] | None:
    """The boxes of one picture: a list of them, or an object of the lists `boxes`, `labels` and `scores`."""
    if isinstance(value, list):
        return (_row(row) for row in value)
    if not isinstance(value, dict) or not isinstance(value.get("boxes"), list):
        return None
    boxes = value["boxes"]
    columns = [value.get(key) or [None] * len(boxes) for key in ("labels", "scores")]
    if not all(isinstance(column, list) and len(column) == len(boxes) for column in columns):
        return None
    return (_labelled(row, label, score) for row, label, score in zip(boxes, *columns, strict=True))


def _row(row: Any) -> _Box:
    """`[x1, y1, x2, y2]`, that and a score, or an object with `box`, `label` and `score`."""
    if isinstance(row, list) and len(row) == 5:
        return _labelled(row[:4], None, row[4])
    if not isinstance(row, dict):
        return _Box(row)
    if "box" not in row and "bbox" in row:
        return _Box(problem="'bbox' may be corners or x, y, width, height: call it 'box' and give x1, y1, x2, y2")
    return _labelled(row.get("box"), row.get("label"), row.get("score"))


def _labelled(box: Any, label: Any, score: Any) -> _Box:
    if isinstance(box, dict):  # as the detection pipeline of transformers writes it
        box = [box.get(key) for key in _CORNERS]
    if score is not None and not (_is_number(score) and 0 <= score <= 1):
        return _Box(problem=f"expected a score in 0..1, but got {str(score)[:80]}")
    score = None if score is None else float(score)
    if type(label) is int:
        return _Box(box, category_id=label, score=score)
    if label is not None and not isinstance(label, str):
        return _Box(problem=f"expected a label as a text or a whole number, but got {str(label)[:80]}")
    return _Box(box, class_name=label, score=score)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# COCO


def _coco_instances(path: Path, summary: RunSummary, pictures: PictureList | None) -> list[PictureBoxes]:
    index = read_annotations(path, pictures, needs_classes=False)
    index.refuse_unusable()
    note_reading(index, summary)
    if index.iscrowd.any():
        first = index.own_id(int(index.iscrowd.argmax()))
        cause = "crowd, which is no single instance"
        summary.note("left out", cause, f"{path}, annotation {first}", int(index.iscrowd.sum()))
    return [_coco_picture(index, row) for row in range(len(index.image_ids))]


def note_reading(index: AnnotationIndex, summary: RunSummary) -> None:
    """Count what was repaired in a file, what is broken in it, and what looks wrong."""
    for kind, count in index.repairs.counts.items():
        summary.note("repaired", kind, f"{index.source}, {index.repairs.examples[kind]}", count)
    for problem in index.problems:
        if problem.effect == "dropped":
            summary.note("failed", f"annotation left out ({problem.kind})", f"{index.source}, {problem}")
        elif problem.effect == "kept":
            summary.note("noticed", problem.kind, f"{index.source}, {problem}")


def _coco_picture(index: AnnotationIndex, row: int) -> PictureBoxes:
    members = index.rows_of(row)
    kept = ~index.iscrowd[members]
    categories = [
        index.categories[position] if position >= 0 else None
        for position in index.category_rows[members][kept].tolist()
    ]
    image = index.image(row)
    names_are_numbers = Kind.NO_CATEGORIES in index.repairs.counts
    return PictureBoxes(
        name=image.file_name,
        boxes=index.boxes[members][kept],
        category_ids=[category["id"] if category else None for category in categories],
        class_names=None if names_are_numbers else [category["name"] if category else None for category in categories],
        image_id=image.id,
        image_size=image.size,
    )


def _is_result(entry: Any) -> bool:
    return isinstance(entry, dict) and "image_id" in entry and "bbox" in entry


def _coco_results(
    entries: list[Any], source: str, annotations: str | None, pictures: PictureList | None
) -> list[PictureBoxes]:
    """A list of `{image_id, category_id, bbox, score}`; without a COCO file, an id is a stem, as ultralytics has it."""
    by_image: dict[int | str, list[_Box]] = {}
    images, class_names = _names_of_ids(annotations, pictures) if annotations else ({}, {})
    for position, entry in enumerate(entries):
        identity = listed_id(entry.get("image_id"), images) if isinstance(entry, dict) else None
        if isinstance(identity, bool | None | float | list | dict) or (annotations and identity not in images):
            known = f"an image of {annotations}" if annotations else "a number or a text"
            raise UserError(f"{source}: expected {known} as the image_id of entry {position}, but got {identity!r}")
        by_image.setdefault(identity, []).append(_result(entry, class_names))
    numbers = any(type(identity) is int for identity in by_image)
    found = []
    for identity, boxes in by_image.items():
        picture = _picture(str(identity), iter(boxes), image_id=identity)
        if annotations:
            found.append(replace(picture, **images[identity]))
        elif PurePosixPath(picture.name).suffix.lower() in picture_suffixes():
            found.append(picture)
        else:
            found.append(replace(picture, naming="number" if numbers else "stem"))
    return found


def _result(entry: dict[str, Any], class_names: Mapping[int, str]) -> _Box:
    box, score, category = entry.get("bbox"), entry.get("score"), entry.get("category_id")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return _Box(problem=f"expected a bbox of four numbers x, y, width, height, but got {str(box)[:80]}")
    left, top, width, height = box
    found = _labelled([left, top, left + width, top + height], None, score)
    if category is not None and type(category) is not int:
        return _Box(problem=f"expected a whole number as category_id, but got {category!r}")
    return replace(found, category_id=category, class_name=class_names.get(category) if category is not None else None)


def _names_of_ids(annotations: str, pictures: PictureList | None) -> tuple[dict[Any, dict[str, Any]], dict[int, str]]:
    """Of a COCO file: name and size of each image id, and the name of each category id."""
    content = read_json_object(annotations, ("images",))
    if not isinstance(content["images"], list):
        raise UserError(f"{annotations}: 'images' must be a list")
    content = normalise_instances(
        {"annotations": [], **content}, annotations, pictures.size_of if pictures is not None else None
    ).content
    columns = read_images(content["images"], [])
    rows = zip(columns.ids.tolist(), columns.file_names, map(tuple, columns.sizes.tolist()), strict=True)
    categories = parse_categories(content["categories"], annotations) if content.get("categories") else []
    images = {identity: {"name": name, "image_size": size} for identity, name, size in rows}
    return images, {category["id"]: category["name"] for category in categories}


# MegaDetector


def _megadetector(content: Mapping[str, Any], summary: RunSummary) -> list[PictureBoxes]:
    """`images[].detections[]` with `bbox` as x, y, width, height in 0..1, `conf` and `category`."""
    names = content.get("detection_categories")
    names = names if isinstance(names, dict) else {}
    pictures = []
    for position, image in enumerate(content["images"]):
        if not isinstance(image, dict) or not isinstance(image.get("file"), str):
            summary.note("failed", "entry of the box file without the name of a picture", f"images[{position}]")
        elif not isinstance(image.get("detections"), list):
            reason = image.get("failure") or "no detections"
            summary.note("left out", "picture that the detector could not read", f"{image['file']}: {reason}")
        else:
            rows = (_detection(row, names) for row in image["detections"])
            pictures.append(_picture(image["file"], rows, fractions=True))
    return pictures


def _detection(row: Any, names: Mapping[str, Any]) -> _Box:
    box = row.get("bbox") if isinstance(row, dict) else None
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return _Box(problem=f"expected a detection with a bbox of four numbers, but got {str(row)[:80]}")
    left, top, width, height = box
    category = str(row.get("category", ""))
    found = _labelled([left, top, left + width, top + height], None, row.get("conf"))
    identity = int(category) if category.isdecimal() else None
    return replace(
        found, category_id=identity, class_name=names.get(category, None if identity is not None else category)
    )


# YOLO


def _yolo_labels(folder: Path) -> list[PictureBoxes]:
    """A text file per picture, with lines `class x y width height [score]` or `class x1 y1 x2 y2 x3 y3 ...` in 0..1."""
    files = sorted(file for file in folder.rglob("*.txt") if file.name not in _NO_LABELS and file.name[0] != ".")
    if not files:
        raise UserError(f"--boxes {folder}: the folder has no label files (.txt); expected {FORMS}")
    name_of = _yolo_names(folder)
    pictures = []
    for file in files:
        parts = file.relative_to(folder).with_suffix("").parts
        if "labels" in parts:  # beside which the pictures lie in a folder `images`
            parts = parts[parts.index("labels") + 1 :]
        try:
            lines = [line.split() for line in file.read_text().splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: cannot be read as text ({error})") from error
        rows = (yolo_row(line, name_of) for line in lines)
        pictures.append(_picture("/".join(parts), rows, fractions=True, naming="stem"))
    return pictures


def yolo_row(words: Sequence[str], name_of: Callable[[int], str | None]) -> _Box:
    """One line of a label file, in 0..1; a polygon gives the box around it."""
    wrong = _Box(problem=f"expected a line `class x y width height`, each in 0..1, but got {' '.join(words)[:80]!r}")
    try:
        label, *numbers = map(float, words)
    except ValueError:
        return wrong
    if not label.is_integer() or label < 0 or not all(-0.01 <= number <= 1.01 for number in numbers):
        return wrong
    score = None
    if len(numbers) in (4, 5):
        x, y, width, height, *scores = numbers
        corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        score = scores[0] if scores else None
    elif len(numbers) >= 6 and len(numbers) % 2 == 0:
        xs, ys = numbers[::2], numbers[1::2]
        corners = [min(xs), min(ys), max(xs), max(ys)]
    else:
        return wrong
    return _Box(corners, category_id=int(label), class_name=name_of(int(label)), score=score)


def _yolo_names(folder: Path) -> Callable[[int], str | None]:
    """What the classes are called, by a `data.yaml` or `classes.txt` in the folder or above it, if there is one."""
    for place in (folder, folder / "labels", *folder.absolute().parents[:3]):
        for file in (*sorted(place.glob("data*.y*ml")), place / "classes.txt"):
            if file.is_file():
                names = class_list(file)
                if names:
                    return names.get
    return {}.get


def class_list(file: Path) -> dict[int, str]:
    """The names of a `data.yaml` or `classes.txt`, by their number.

    Raises:
        UserError: it cannot be read, or has another form.
    """
    try:
        text = file.read_text()
        names = yaml.safe_load(text).get("names") if file.name != "classes.txt" else text.splitlines()
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError) as error:
        raise UserError(f"{file}: cannot be read as a list of class names ({error})") from error
    if not isinstance(names, dict | list | None):
        raise UserError(f"{file}: names must be a list of class names, or number each of them, but got {names!r}")
    pairs = names.items() if isinstance(names, dict) else enumerate(names or [])
    return {int(key): str(name).strip() for key, name in pairs if re.fullmatch(r"\d+", str(key)) and str(name).strip()}
