"""A COCO annotation file as a compact index: flat arrays instead of a million dictionaries.

This module alone decides what a broken annotation means: the data set builds on its index, and
`maskwright data check` prints its problems.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maskwright.data.categories import parse_categories
from maskwright.data.json_file import is_text
from maskwright.data.normalise import Kind, Normalised, Repairs, normalise_instances, shown_value
from maskwright.data.orientation import TOLERANCE
from maskwright.data.picture_folder import ListedImage, PictureFolder, Pictures, RemoteFolder
from maskwright.data.problems import Problem, commonest, refuse_problems
from maskwright.data.segmentations import SegmentationPacker, SegmentationTable
from maskwright.errors import UserError
from maskwright.files import read_json_object
from maskwright.structures.plain import Category

COCO_KEYS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class CocoIndex:
    """What the two COCO formats share. M annotations or segments, grouped by image, in file order; no broken ones.

    source: the file.
    categories: in file order; category_rows: int64 [M], positions in it.
    file_names: of the images; image_ids: [I] as in the file; image_sizes: int64 [I, 2] (height, width).
    sampling_weights: float64 [I] or None where no image has the key.
    offsets: int64 [I + 1]; image i has the rows offsets[i] .. offsets[i + 1] - 1.
    ids: int64 [M]; iscrowd: bool [M].
    problems: of the whole file, in the order found; those that are `refused` make the index unusable.
    repairs: what was corrected while the file was read.
    """

    source: str
    categories: list[Category]
    file_names: TextTable
    image_ids: np.ndarray
    image_sizes: np.ndarray
    sampling_weights: np.ndarray | None
    offsets: np.ndarray
    category_rows: np.ndarray
    ids: np.ndarray
    iscrowd: np.ndarray
    problems: list[Problem]
    repairs: Repairs

    def refuse_unusable(self) -> None:
        """Raise the first problem that makes the file unusable, if there is one.

        Raises:
            UserError: a problem's effect is `refused`; its sentence names the entry and counts the others.
        """
        refuse_problems(self.source, self.problems)

    @property
    def skipped(self) -> dict[str, int]:
        """How many entries were dropped or are otherwise broken, by kind of reason."""
        return dict(Counter(problem.kind for problem in self.problems if problem.effect != "kept"))

    @property
    def image_rows(self) -> np.ndarray:
        """int64 [M], the image of each row."""
        return np.repeat(np.arange(len(self.image_ids)), np.diff(self.offsets))

    def image(self, row: int) -> ListedImage:
        """The entry of image `row`."""
        identity = self.image_ids[row]
        height, width = self.image_sizes[row].tolist()
        return ListedImage(
            identity if isinstance(identity, str) else int(identity), self.file_names[row], (height, width), row
        )

    def rows_of(self, row: int) -> slice:
        """The rows of image `row`."""
        return slice(int(self.offsets[row]), int(self.offsets[row + 1]))


@dataclass(frozen=True)
class AnnotationIndex(CocoIndex):
    """What a COCO instances file holds.

    boxes: float32 [M, 4], xyxy pixels, clipped to the image, not degenerate.
    segmentations: of the M annotations.
    own_ids: the file's own id of each annotation, for output; None where they are the `ids`.
    positions: int64 [M], of each annotation in the file's list.
    `category_rows` is -1 where an annotation has no class, which only a file that was read without classes has.
    """

    boxes: np.ndarray
    segmentations: SegmentationTable
    own_ids: list[Any] | None
    positions: np.ndarray

    def own_id(self, row: int) -> Any:
        """The file's own id of annotation `row`, whatever it is."""
        return int(self.ids[row]) if self.own_ids is None else self.own_ids[row]


class TextTable:
    """A read-only list of texts as one block of bytes: reading it in a forked worker copies no page."""

    def __init__(self, texts: list[str]) -> None:
        encoded = [text.encode() for text in texts]
        self._offsets = np.cumsum([0, *map(len, encoded)])
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int | np.integer) -> str:
        return self._bytes[self._offsets[index] : self._offsets[index + 1]].tobytes().decode()


def read_annotations(
    path: str | Path, pictures: Pictures | None = None, *, needs_classes: bool = True
) -> AnnotationIndex:
    """Read a COCO instances file whole, repaired where that can be done; broken entries become `problems`, not errors.

    Args:
        path: the file.
        pictures: its pictures, which are looked at where the file does not tell a name or a size.
        needs_classes: whether annotations without a class, and files without categories, are of no use.

    Raises:
        UserError: the file is not a COCO file at all (not JSON, a key missing, unusable categories).
    """
    normalised = read_normalised(path, pictures, needs_classes=needs_classes)
    return index_annotations(normalised, str(path), pictures, needs_classes=needs_classes)


def index_annotations(
    normalised: Normalised, source: str, pictures: Pictures | None = None, *, needs_classes: bool = True
) -> AnnotationIndex:
    """The same of a file's content after its repairs; `source` names it.

    Raises:
        UserError: its categories are unusable.
    """
    content, problems = normalised.content, list(normalised.problems)
    classless = not needs_classes and not content.get("categories")
    categories = [] if classless else parse_categories(content["categories"], source)
    images = read_images(content["images"], problems)
    match_pictures(images.file_names, pictures, normalised.repairs)
    rows = _Rows(images, {category["id"]: row for row, category in enumerate(categories)}, needs_classes)
    positions, columns = _read_boxes(normalised, rows, problems)
    packer = SegmentationPacker()
    sizes = images.sizes.tolist()
    for position, image_row in zip(positions, columns["image_rows"].tolist(), strict=True):
        height, width = sizes[image_row]
        reason = packer.add(content["annotations"][position].get("segmentation"), (height, width))
        if reason:
            kind = "unusable segmentation"
            problems.append(Problem("annotation", normalised.annotation_name(position), kind, reason, "box only"))
    own_ids = normalised.annotation_ids
    return AnnotationIndex(
        source=source,
        categories=categories,
        file_names=TextTable(images.file_names),
        image_ids=images.ids,
        image_sizes=images.sizes,
        sampling_weights=images.weights,
        offsets=np.searchsorted(columns["image_rows"], np.arange(len(images.ids) + 1)),
        boxes=columns["boxes"],
        category_rows=columns["category_rows"],
        ids=columns["ids"],
        iscrowd=columns["iscrowd"],
        segmentations=packer.pack(),
        problems=problems,
        repairs=normalised.repairs,
        own_ids=None if own_ids is None else [own_ids[position] for position in positions],
        positions=np.array(positions, dtype=np.int64),
    )


def read_normalised(path: str | Path, pictures: Pictures | None = None, *, needs_classes: bool = True) -> Normalised:
    """The content of a COCO instances file after its repairs; arguments as of `read_annotations`.

    Raises:
        UserError: it is not JSON, a key is missing, or is not a list.
    """
    content = read_json_object(path, COCO_KEYS if needs_classes else COCO_KEYS[:2])
    return normalise_content(content, str(path), pictures, needs_classes=needs_classes)


def normalise_content(
    content: dict[str, Any], source: str, pictures: Pictures | None, *, needs_classes: bool = True
) -> Normalised:
    """The same of what was parsed; it is not changed, and `source` names it.

    Raises:
        UserError: images or annotations are no list.
    """
    require_lists(content, source)
    if pictures is None:
        return normalise_instances(content, source, needs_classes=needs_classes)
    return normalise_instances(content, source, pictures.size_of, needs_classes=needs_classes, exif=pictures.exif)


def require_lists(content: Mapping[str, Any], source: str) -> None:
    """Refuse a COCO file whose images or annotations are no list.

    Raises:
        UserError: so.
    """
    for key in ("images", "annotations"):
        if not isinstance(content[key], list):
            raise UserError(f"{source}: {key!r} must be a list, but is a {type(content[key]).__name__}")


def match_pictures(file_names: Sequence[str], pictures: Pictures | None, repairs: Repairs) -> None:
    """Find the pictures of the names in a folder, and count those whose path is another one."""
    if isinstance(pictures, PictureFolder | RemoteFolder):
        for name in pictures.match(file_names):
            repairs.add(Kind.PICTURE_NAME, f"{name!r} is taken for {pictures.path(name)}")


class ImageColumns(NamedTuple):
    """The usable entries of `images`.

    rows: the position of each image id, and -1 for those of broken entries; ids: [I]; file_names.
    sizes: int64 [I, 2] (height, width).
    weights: float64 [I], or None where no image has a `sampling_weight`.
    """

    rows: dict[Any, int]
    ids: np.ndarray
    file_names: list[str]
    sizes: np.ndarray
    weights: np.ndarray | None


def read_images(entries: list[Any], problems: list[Problem]) -> ImageColumns:
    """The entries of `images` as columns; every broken one is added to `problems` and left out.

    It is `dropped`, and its annotations with it; a repeated id is `refused`, as its annotations may be of either image.
    """
    rows: dict[Any, int] = {}
    names: list[str] = []
    sizes: list[tuple[int, int]] = []
    weights: list[float | None] = []
    broken: dict[Any, int] = {}
    for position, entry in enumerate(entries):
        reason = _image_reason(entry, rows)
        if reason:
            identity = entry.get("id", f"#{position}") if isinstance(entry, dict) else f"#{position}"
            effect = "refused" if reason == _REPEATED_ID else "dropped"
            problems.append(Problem("image", identity, reason.partition(",")[0], reason, effect))
            if isinstance(identity, int | str):
                broken[identity] = -1
            continue
        rows[entry["id"]] = len(names)
        names.append(entry["file_name"])
        sizes.append((entry["height"], entry["width"]))
        weights.append(entry.get("sampling_weight"))
    if not names:
        cause = f"none of its {len(entries)} images can be used; {commonest(problems, len(entries))}"
        reason = cause if entries else "it lists no images"
        problems.append(Problem("file", "as a whole", "no images", reason, "refused"))
    whole = all(type(identity) is int for identity in rows)
    weighted = any(weight is not None for weight in weights)
    if weighted and names and not sum(weight or 0 for weight in weights) > 0:
        problems.append(Problem("file", "as a whole", "no weight", "every 'sampling_weight' is 0", "refused"))
    return ImageColumns(
        rows=broken | rows,
        ids=np.array(list(rows), dtype=np.int64 if whole else object),
        file_names=names,
        sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
        # An image without the key, in a file that has it elsewhere, has weight 1.
        weights=np.array([1.0 if w is None else w for w in weights], dtype=np.float64) if weighted else None,
    )


_REPEATED_ID = "image id is not unique"


def _image_reason(entry: Any, rows: dict[Any, int]) -> str | None:
    if not isinstance(entry, dict):
        return f"image entry must be an object, but is a {type(entry).__name__}"
    identity, name = entry.get("id"), entry.get("file_name")
    if type(identity) is int and abs(identity) >= 2**63:
        return f"image id is too large, {identity}: an integer must be less than 2^63 (as a text it may be any)"
    if not is_text(identity) and type(identity) is not int:
        return f"image id must be an integer or a text, but is {shown_value(identity)}"
    if identity in rows:
        return _REPEATED_ID
    if not is_text(name):
        return f"image 'file_name' must be a text, but is {shown_value(name)}"
    for key in ("height", "width"):
        if type(entry.get(key)) is not int or not 0 < entry[key] < 2**31:
            return (
                f"image {key!r} must be a positive integer, but is {shown_value(entry.get(key))} (and there is no "
                "picture to read it from)"
            )
    weight = entry.get("sampling_weight")
    if weight is not None and (type(weight) not in (int, float) or not 0 <= weight < 1e300):
        return f"image 'sampling_weight' must be a number of at least 0, but is {shown_value(weight)}"
    return None


@dataclass(frozen=True)
class _Rows:
    """The rows of images and of categories by the ids of a file."""

    images: ImageColumns
    categories: dict[int, int]
    needs_classes: bool

    def unlisted(self, entry: dict[str, Any]) -> tuple[str, str] | None:
        """Kind and reason of the problem that the image or the category of an annotation is not listed."""
        image, category = entry.get("image_id"), entry.get("category_id")
        rows = self.images.rows
        if type(image) not in (int, str) or image not in rows:
            return "unknown image_id", unlisted_reason("image_id", image, rows)
        if rows[image] < 0:
            return "unusable image", f"its image {image} cannot be used"
        if category is None and not self.needs_classes:
            return None
        if type(category) not in (int, str) or category not in self.categories:
            return "unknown category_id", unlisted_reason("category_id", category, self.categories)
        return None


def unlisted_reason(key: str, value: Any, listed: Iterable[Any]) -> str:
    """That the file does not list the `value` of `key`; and what it does list, where that is of another type."""
    ids = list(islice(listed, 4))
    if type(value) not in (int, str) or not ids or any(type(identity) is type(value) for identity in ids):
        shown = "missing" if value is None else repr(value)[:80]
        return f"{key} is {shown}, which the file does not list"
    word = "numbers" if type(value) is str else "texts"
    shown = ", ".join([*map(repr, ids[:3]), *(["..."] if len(ids) > 3 else [])])
    return f"{key} is {shown_value(value)}, the file lists the {word} {shown}"


def _read_boxes(
    normalised: Normalised, rows: _Rows, problems: list[Problem]
) -> tuple[list[int], dict[str, np.ndarray]]:
    """The positions of the usable annotations, sorted by image, and their columns (all but the segmentations)."""
    entries = normalised.content["annotations"]
    kept: list[int] = []
    found: list[tuple[int, int]] = []
    values: list[list[float]] = []
    first = len(problems)
    for position, entry in enumerate(entries):
        reason = _annotation_reason(entry, rows)
        if reason:
            problems.append(Problem("annotation", normalised.annotation_name(position), *reason, "dropped"))
            continue
        kept.append(position)
        found.append((rows.images.rows[entry["image_id"]], rows.categories.get(entry.get("category_id"), -1)))
        values.append(entry["bbox"])
    row_columns = np.array(found, dtype=np.int64).reshape(-1, 2)
    given = np.array(values, dtype=np.float64).reshape(-1, 4)
    sizes = rows.images.sizes[row_columns[:, 0]]
    boxes, usable = _clip(given, sizes)
    for index in np.flatnonzero(~usable).tolist():
        name, reason = normalised.annotation_name(kept[index]), f"bbox has no extent inside the image: {values[index]}"
        problems.append(Problem("annotation", name, "bbox without extent in the image", reason, "dropped"))
    if entries and not usable.any():
        reason = f"none of its {len(entries)} annotations can be used; {commonest(problems[first:], len(entries))}"
        problems.append(Problem("file", "as a whole", "no usable annotation", reason, "refused"))
    for index in np.flatnonzero(usable & _reaches_beyond(given, sizes)).tolist():
        name, (height, width) = normalised.annotation_name(kept[index]), sizes[index].tolist()
        reason = f"bbox reaches beyond the image of {height} x {width} pixels (height x width): {values[index]}"
        problems.append(Problem("annotation", name, "bbox beyond the image", reason, "kept"))
    order = np.flatnonzero(usable)
    order = order[np.argsort(row_columns[order, 0], kind="stable")]
    positions = [kept[index] for index in order.tolist()]
    columns = {
        "image_rows": row_columns[order, 0],
        "category_rows": row_columns[order, 1],
        "boxes": boxes[order],
        "ids": np.array([entries[position]["id"] for position in positions], dtype=np.int64),
        "iscrowd": np.array([entries[position].get("iscrowd", 0) == 1 for position in positions], dtype=bool),
    }
    return positions, columns


def _annotation_reason(entry: Any, rows: _Rows) -> tuple[str, str] | None:
    """Kind and reason of the problem that drops an annotation."""
    if not isinstance(entry, dict):
        return "annotation that is no object", f"annotation must be an object, but is {str(entry)[:80]}"
    unlisted = rows.unlisted(entry)
    if unlisted:
        return unlisted
    box = entry.get("bbox")
    if box is None:
        return "no bbox", "bbox is missing, and there is no mask to compute it from"
    if not isinstance(box, list) or len(box) != 4 or not all(type(v) in (int, float) and abs(v) < 1e9 for v in box):
        return "bbox is not 4 finite numbers", (
            f"bbox must be 4 finite numbers [x, y, width, height], but is {str(box)[:80]}"
        )
    if entry.get("iscrowd", 0) not in (0, 1):  # true and false are 1 and 0
        return "iscrowd is not 0 or 1", f"iscrowd must be 0 or 1, but is {shown_value(entry['iscrowd'])}"
    return None


def _clip(boxes: np.ndarray, image_sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """xywh float64 [N, 4] to xyxy float32 inside the images [N, 2] (height, width), and which have an extent."""
    limits = image_sizes[:, [1, 0, 1, 0]]
    corners = boxes.copy()
    corners[:, 2:] += boxes[:, :2]
    clipped = np.clip(corners, 0, limits).astype(np.float32)
    usable = np.all(clipped[:, 2:] > clipped[:, :2], axis=1)  # a negative width stays one when clipped
    return clipped, usable


def _reaches_beyond(boxes: np.ndarray, image_sizes: np.ndarray) -> np.ndarray:
    """Which of the xywh boxes [N, 4] reach beyond their images [N, 2] (height, width), by more than rounding."""
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    return np.any((low < -TOLERANCE) | (high > image_sizes[:, ::-1] + TOLERANCE), axis=1)
