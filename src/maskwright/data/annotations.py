"""A COCO annotation file as a compact index: flat arrays instead of a million dictionaries.

This module alone decides what a broken annotation means: the data set builds on its index, and
`maskwright data check` prints its problems.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskwright.data.categories import parse_categories
from maskwright.data.dataset import ListedImage
from maskwright.data.json_file import is_text
from maskwright.data.problems import Problem, refuse_problems
from maskwright.data.segmentations import SegmentationPacker, Segmentations
from maskwright.errors import UserError
from maskwright.files import read_json_object
from maskwright.structures import Category


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

    def refuse_unusable(self) -> None:
        """Raise the first problem that makes the file unusable, if there is one.

        Raises:
            UserError: a problem's effect is `refused`; its sentence names the entry and counts the others.
        """
        refuse_problems(self.source, self.problems)

    @property
    def skipped(self) -> dict[str, int]:
        """How many entries were dropped or are otherwise broken, by kind of reason."""
        return dict(Counter(problem.kind for problem in self.problems))

    @property
    def image_rows(self) -> np.ndarray:
        """int64 [M], the image of each row."""
        return np.repeat(np.arange(len(self.image_ids)), np.diff(self.offsets))

    def image(self, row: int) -> ListedImage:
        """The entry of image `row`."""
        identity = self.image_ids[row]
        height, width = self.image_sizes[row].tolist()
        return ListedImage(
            identity if isinstance(identity, str) else int(identity), self.file_names[row], (height, width)
        )

    def rows_of(self, row: int) -> slice:
        """The rows of image `row`."""
        return slice(int(self.offsets[row]), int(self.offsets[row + 1]))


@dataclass(frozen=True)
class AnnotationIndex(CocoIndex):
    """What a COCO instances file holds.

    boxes: float32 [M, 4], xyxy pixels, clipped to the image, not degenerate.
    segmentations: of the M annotations.
    """

    boxes: np.ndarray
    segmentations: Segmentations


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


def read_annotations(path: str | Path) -> AnnotationIndex:
    """Read a COCO instances file whole; broken entries become `problems` of the index, not errors.

    Raises:
        UserError: the file is not a COCO file at all (not JSON, a key missing, unusable categories).
    """
    source = str(path)
    content = read_json_object(path, ("images", "annotations", "categories"))
    categories = parse_categories(content["categories"], source)
    for key in ("images", "annotations"):
        if not isinstance(content[key], list):
            raise UserError(f"{source}: {key!r} must be a list, but is a {type(content[key]).__name__}")
    problems: list[Problem] = []
    images = read_images(content["images"], problems)
    entries, columns = _read_boxes(content["annotations"], images, categories, problems)
    packer = SegmentationPacker()
    sizes = images["sizes"].tolist()
    for entry, image_row in zip(entries, columns["image_rows"].tolist(), strict=True):
        height, width = sizes[image_row]
        reason = packer.add(entry.get("segmentation"), (height, width))
        if reason:
            problems.append(Problem("annotation", entry["id"], "unusable segmentation", reason, "box only"))
    return AnnotationIndex(
        source=source,
        categories=categories,
        file_names=TextTable(images["file_names"]),
        image_ids=images["ids"],
        image_sizes=images["sizes"],
        sampling_weights=images["weights"],
        offsets=np.searchsorted(columns["image_rows"], np.arange(len(images["ids"]) + 1)),
        boxes=columns["boxes"],
        category_rows=columns["category_rows"],
        ids=columns["ids"],
        iscrowd=columns["iscrowd"],
        segmentations=packer.pack(),
        problems=problems,
    )


def read_images(entries: list[Any], problems: list[Problem]) -> dict[str, Any]:
    """The entries of `images` as columns; every broken one is added to `problems` as `refused` and stays out.

    Returns:
        rows: the position of each image id; ids, file_names; sizes: int64 [I, 2] (height, width); weights: float64
        [I], or None where no image has a `sampling_weight`.
    """
    rows: dict[Any, int] = {}
    names: dict[str, None] = {}  # in order, and quick to look up
    sizes: list[tuple[int, int]] = []
    weights: list[float | None] = []
    for position, entry in enumerate(entries):
        reason = _image_reason(entry, rows, names)
        if reason:
            identity = entry.get("id", f"#{position}") if isinstance(entry, dict) else f"#{position}"
            problems.append(Problem("image", identity, reason.partition(",")[0], reason, "refused"))
            continue
        rows[entry["id"]] = len(names)
        names[entry["file_name"]] = None
        sizes.append((entry["height"], entry["width"]))
        weights.append(entry.get("sampling_weight"))
    if not entries:
        problems.append(Problem("file", "as a whole", "no images", "it lists no images", "refused"))
    whole = all(type(identity) is int for identity in rows)
    weighted = any(weight is not None for weight in weights)
    if weighted and names and not sum(weight or 0 for weight in weights) > 0:
        problems.append(Problem("file", "as a whole", "no weight", "every 'sampling_weight' is 0", "refused"))
    return {
        "rows": rows,
        "ids": np.array(list(rows), dtype=np.int64 if whole else object),
        "file_names": list(names),
        "sizes": np.array(sizes, dtype=np.int64).reshape(-1, 2),
        # An image without the key, in a file that has it elsewhere, has weight 1.
        "weights": np.array([1.0 if w is None else w for w in weights], dtype=np.float64) if weighted else None,
    }


def _image_reason(entry: Any, rows: dict[Any, int], names: dict[str, None]) -> str | None:
    if not isinstance(entry, dict):
        return f"image entry must be an object, but is a {type(entry).__name__}"
    identity, name = entry.get("id"), entry.get("file_name")
    if not is_text(identity) and (type(identity) is not int or abs(identity) >= 2**63):
        return f"image id must be an integer or a text, but is {identity!r}"
    if identity in rows:
        return "image id is not unique"
    if not is_text(name):
        return f"image 'file_name' must be a text, but is {name!r}"
    if name in names:
        return f"image 'file_name' {name!r} is not unique"
    for key in ("height", "width"):
        if type(entry.get(key)) is not int or not 0 < entry[key] < 2**31:
            return f"image {key!r} must be a positive integer, but is {entry.get(key)!r}"
    weight = entry.get("sampling_weight")
    if weight is not None and (type(weight) not in (int, float) or not 0 <= weight < 1e300):
        return f"image 'sampling_weight' must be a number of at least 0, but is {weight!r}"
    return None


def _read_boxes(
    entries: list[Any], images: dict[str, Any], categories: list[Category], problems: list[Problem]
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """The usable annotations sorted by image, and their columns (all but the segmentations)."""
    category_rows = {category["id"]: row for row, category in enumerate(categories)}
    image_rows = images["rows"]
    seen: set[int] = set()
    kept: list[dict[str, Any]] = []
    rows: list[tuple[int, int]] = []
    values: list[list[float]] = []
    for position, entry in enumerate(entries):
        problem = _annotation_problem(entry, position, seen, image_rows, category_rows)
        if problem:
            problems.append(problem)
            continue
        seen.add(entry["id"])
        kept.append(entry)
        rows.append((image_rows[entry["image_id"]], category_rows[entry["category_id"]]))
        values.append(entry["bbox"])
    row_columns = np.array(rows, dtype=np.int64).reshape(-1, 2)
    boxes, usable = _clip(np.array(values, dtype=np.float64).reshape(-1, 4), images["sizes"][row_columns[:, 0]])
    for index in np.flatnonzero(~usable).tolist():
        reason = f"bbox has no extent inside the image: {values[index]}"
        problems.append(Problem("annotation", kept[index]["id"], "bbox without extent in the image", reason, "dropped"))
    if entries and not usable.any():
        reason = f"none of its {len(entries)} annotations can be used"
        problems.append(Problem("file", "as a whole", "no usable annotation", reason, "refused"))
    order = np.flatnonzero(usable)
    order = order[np.argsort(row_columns[order, 0], kind="stable")]
    kept = [kept[index] for index in order.tolist()]
    columns = {
        "image_rows": row_columns[order, 0],
        "category_rows": row_columns[order, 1],
        "boxes": boxes[order],
        "ids": np.array([entry["id"] for entry in kept], dtype=np.int64),
        "iscrowd": np.array([entry.get("iscrowd", 0) == 1 for entry in kept], dtype=bool),
    }
    return kept, columns


def _annotation_problem(
    entry: Any, position: int, seen: set[int], image_rows: dict[Any, int], category_rows: dict[int, int]
) -> Problem | None:
    identity = entry.get("id") if isinstance(entry, dict) else None
    if type(identity) is not int or abs(identity) >= 2**63:
        reason = f"annotation must be an object with an integer 'id', but is {str(entry)[:80]}"
        return Problem("annotation", f"#{position}", "annotation without an integer id", reason, "refused")
    if identity in seen:
        return Problem("annotation", identity, "repeated id", "annotation id is not unique", "refused")
    for key, known in (("image_id", image_rows), ("category_id", category_rows)):
        value = entry.get(key)
        if type(value) not in (int, str) or value not in known:
            return Problem(
                "annotation", identity, f"unknown {key}", f"{key} is {value!r}, which the file does not list", "dropped"
            )
    box = entry.get("bbox")
    if box is None:
        return Problem("annotation", identity, "no bbox", "bbox is missing", "dropped")
    if not isinstance(box, list) or len(box) != 4 or not all(type(v) in (int, float) and abs(v) < 1e9 for v in box):
        reason = f"bbox must be 4 finite numbers [x, y, width, height], but is {str(box)[:80]}"
        return Problem("annotation", identity, "bbox is not 4 finite numbers", reason, "dropped")
    if entry.get("iscrowd", 0) not in (0, 1):  # true and false are 1 and 0
        reason = f"iscrowd must be 0 or 1, but is {repr(entry['iscrowd'])[:80]}"
        return Problem("annotation", identity, "iscrowd is not 0 or 1", reason, "dropped")
    return None


def _clip(boxes: np.ndarray, image_sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """xywh float64 [N, 4] to xyxy float32 inside the images [N, 2] (height, width), and which have an extent."""
    limits = image_sizes[:, [1, 0, 1, 0]]
    corners = boxes.copy()
    corners[:, 2:] += boxes[:, :2]
    clipped = np.clip(corners, 0, limits).astype(np.float32)
    usable = (clipped[:, 2] > clipped[:, 0]) & (
        clipped[:, 3] > clipped[:, 1]
    )  # a negative width stays one when clipped
    return clipped, usable
