"""What of an annotation file is to be completed: the boxes without a mask, picture by picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from jaxtyping import Float, Int64

from maskwright.apps.box_files import note_reading
from maskwright.apps.provenance import PROVENANCE, is_completed
from maskwright.apps.run_summary import RunSummary, Section
from maskwright.data.annotations import COCO_KEYS, AnnotationIndex, index_annotations, normalise_content
from maskwright.data.categories import resolve_mask_classes
from maskwright.data.json_text import json_text
from maskwright.data.picture_folder import PictureFolder, PicturePlace, RemoteFolder
from maskwright.data.segmentations import POLYGONS, Segmentations
from maskwright.errors import UserError
from maskwright.files import parse_json_object

REPLACEABLE = ("rectangles", "rejected", "unreviewed")
"""What `--replace` names: rectangles in place of masks, and completed masks that a review rejected or did not see."""


@dataclass(frozen=True)
class Choice:
    """Which annotations to complete.

    classes: names (`resolve_mask_classes`), or empty for all.
    replace: which of `REPLACEABLE` are completed, too.
    """

    classes: str = ""
    replace: frozenset[str] = frozenset()


@dataclass(frozen=True)
class CompletionJob:
    """A picture with boxes that need masks.

    position: in the run.
    name: of the picture in the file; path: where it is.
    image_size: its (height, width) in the frame of the annotations.
    rows: int64 [N], of the annotations in the index.
    boxes: float32 [N, 4], xyxy pixels.
    category_rows: int64 [N], positions in the file's categories; -1 for no class.
    """

    position: int
    name: str
    path: PicturePlace
    image_size: tuple[int, int]
    rows: Int64[np.ndarray, " n"]
    boxes: Float[np.ndarray, "n 4"]
    category_rows: Int64[np.ndarray, " n"]


@dataclass(frozen=True)
class CompletionPlan:
    """A file and what is to be completed in it.

    source: names the file in messages.
    content: the file.
    index: its annotations.
    jobs: the pictures, in the order of the file; those that are missing are not among them.
    has_mask: bool [M], which annotations of the index have a mask already.
    wanted: bool [M], which are to be completed, also in pictures that are missing.
    """

    source: str
    content: bytes
    index: AnnotationIndex
    jobs: Sequence[CompletionJob]
    has_mask: np.ndarray
    wanted: np.ndarray

    @property
    def class_names(self) -> list[str]:
        """The names of the file's categories; the last one, at -1, is for annotations without a class."""
        return [*(category["name"] for category in self.index.categories), "(no class)"]


def plan_completion(
    content: bytes, source: str, pictures: PictureFolder | RemoteFolder, choice: Choice, summary: RunSummary
) -> CompletionPlan:
    """Find the annotations that are to be completed.

    Crowds stay as they are, and so does every annotation with a mask, unless the choice says otherwise.

    Args:
        content: of a COCO file.
        source: its name.
        pictures: where its pictures are.
        choice: which annotations.
        summary: counts what is repaired, what is broken and stays as it is, and the pictures that are missing.

    Raises:
        UserError: the file cannot be used, a class is unknown, or there is no picture of those that need masks.
    """
    json_text(content, source)  # refuses what could not be edited at the end
    parsed = parse_json_object(content, source, COCO_KEYS[:2])
    normalised = normalise_content(parsed, source, pictures, needs_classes=False)
    index = index_annotations(normalised, source, pictures, needs_classes=False)
    index.refuse_unusable()
    note_reading(index, summary)
    entries = [parsed["annotations"][position] for position in index.positions.tolist()]
    states = np.array(list(_states(entries, index)))
    _note_states(states, index, choice, summary)
    wanted = np.isin(states, [_MISSING, *choice.replace])
    if choice.classes:
        names = resolve_mask_classes(choice.classes, index.categories)
        chosen = [row for row, category in enumerate(index.categories) if category["name"] in names]
        wanted &= np.isin(index.category_rows, chosen)
    jobs = list(_jobs(index, wanted, pictures, summary))
    if wanted.any() and not jobs:
        name = index.image(int(index.image_rows[wanted.argmax()])).file_name
        raise UserError(f"{pictures.folder} has none of the pictures of {source} that need masks, such as {name}")
    return CompletionPlan(source, content, index, jobs, np.isin(states, _WITH_MASK) & ~wanted, wanted)


_MISSING, _CROWD, _FOREIGN, _MASK, _REVIEWED = "missing", "crowd", "foreign", "mask", "reviewed"
_RECTANGLE, _REJECTED, _UNREVIEWED = REPLACEABLE
_WITH_MASK = (_MASK, _REVIEWED, _RECTANGLE, _UNREVIEWED)


def _states(entries: Sequence[dict[str, Any]], index: AnnotationIndex) -> Iterator[str]:
    """Of each annotation what it has for a mask: one of the words above."""
    for row, (entry, iscrowd) in enumerate(zip(entries, index.iscrowd.tolist(), strict=True)):
        # Where all are crowds, other commands take them as instances.
        crowd = iscrowd or entry.get("iscrowd") == 1
        if _is_empty(entry.get("segmentation")):
            shape = _CROWD if crowd else _MISSING
        else:
            shape = _RECTANGLE if not crowd and _is_rectangle(row, index) else _MASK
        yield _with_provenance(shape, entry) if PROVENANCE in entry else shape


def _with_provenance(shape: str, entry: dict[str, Any]) -> str:
    """The state of an annotation with provenance, which would be in the state `shape` without it."""
    if not is_completed(entry):
        return _FOREIGN
    review = entry[PROVENANCE].get("review")
    if review == "rejected":  # and nobody has drawn a mask since
        return _REJECTED if shape in (_MISSING, _RECTANGLE) else shape
    if review is None:
        return shape if shape == _MISSING else _UNREVIEWED
    return _REVIEWED


def _note_states(states: np.ndarray, index: AnnotationIndex, choice: Choice, summary: RunSummary) -> None:
    causes: dict[str, tuple[Section, str]] = {
        _CROWD: ("left out", "crowd, which is no single instance"),
        _FOREIGN: ("failed", f"annotation with a key {PROVENANCE!r} that is no provenance of a mask"),
    }
    if _REJECTED not in choice.replace:
        told = "annotation whose mask a review rejected; --replace rejected completes it again"
        causes[_REJECTED] = ("left out", told)
    for state, (section, cause) in causes.items():
        met = states == state
        if met.any():
            first = f"{index.source}, annotation {index.own_id(int(met.argmax()))}"
            summary.note(section, cause, first, int(met.sum()))
    for problem in index.problems:
        if problem.effect == "box only":
            summary.note("noticed", "mask that cannot be used; it stays as it is", f"{index.source}, {problem}")


def _is_empty(segmentation: Any) -> bool:
    """Whether a `segmentation` holds nothing: null, or an empty list, object or text, or a list of such."""
    return not segmentation or (isinstance(segmentation, list) and not any(segmentation))


def _is_rectangle(row: int, index: AnnotationIndex) -> bool:
    """Whether the mask of an annotation is its box: one polygon of four corners, the first one repeated or not."""
    segmentations = cast("Segmentations", index.segmentations)  # those of a COCO file
    first, last = segmentations.ranges[row]
    if segmentations.kinds[row] != POLYGONS or last - first != 1:
        return False
    start, end = segmentations.polygon_ranges[first]
    if end - start not in (8, 10):
        return False
    points = segmentations.coordinates[start:end].reshape(-1, 2)
    height, width = index.image_sizes[np.searchsorted(index.offsets, row, side="right") - 1]
    return is_box_outline(np.clip(points, 0, [width, height]), index.boxes[row])


def is_box_outline(points: Float[np.ndarray, "k 2"], box: Float[np.ndarray, " 4"]) -> bool:
    """Whether four points, and the first one again if there are five, are the corners of a box, to within a pixel."""
    corners = box[[0, 1, 2, 1, 2, 3, 0, 3]].reshape(4, 2)
    distances = np.abs(points[:, None] - corners).max(axis=2)
    nearest = distances.argmin(axis=1)
    steps = {int(step) for step in np.diff(nearest[[0, 1, 2, 3, 0]]) % 4}
    closed = len(points) == 4 or nearest[4] == nearest[0]
    return bool(closed and distances.min(axis=1).max() < 1 and steps in ({1}, {3}))


def _jobs(
    index: AnnotationIndex, wanted: np.ndarray, pictures: PictureFolder | RemoteFolder, summary: RunSummary
) -> Iterator[CompletionJob]:
    position = 0
    for image_row in np.unique(index.image_rows[wanted]).tolist():
        image, span = index.image(image_row), index.rows_of(image_row)
        path = pictures.path(image.file_name)
        if not pictures.has(image.file_name):
            summary.note("failed", "picture that is missing", path)
            continue
        rows = np.flatnonzero(wanted[span]) + span.start
        yield CompletionJob(
            position, image.file_name, path, image.size, rows, index.boxes[rows], index.category_rows[rows]
        )
        position += 1
