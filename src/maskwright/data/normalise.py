"""COCO files as tools write them -> COCO files as the readers take them, with every repair counted.

One step before any reader: parsed JSON in, parsed JSON out. What is unambiguous is taken and counted by kind; what is
ambiguous stays as it is, and the reader names it. Files are opened by the caller's `SizeOf` alone.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from itertools import chain
from types import NoneType
from typing import Any
from urllib.parse import unquote, urlsplit

import faster_coco_eval.core.mask as coco_mask
import numpy as np
from jaxtyping import Bool, Float64, Int64

from maskwright.data.orientation import TOLERANCE, ExifRule, Size, shows_upright_pictures
from maskwright.data.problems import Problem
from maskwright.errors import UserError
from maskwright.ops.run_lengths import extent_of_runs, runs_of_code

SizeOf = Callable[[str], Size | None]
"""The (height, width) of the picture that a `file_name` means, as a viewer shows it; None where there is none."""


class Kind(StrEnum):
    """What can be repaired, in the words of the report."""

    WHOLE_FLOAT = "whole number written as a float"
    NUMBER_AS_TEXT = "number written as a text"
    ID_AS_LISTED = "id written in another form than the file lists it"
    ANNOTATION_ID = "annotation id that is no number of its own, replaced inside"
    PICTURE_NAME = "file_name spelled in another way than the path of its picture"
    NAME_OF_URL = "file_name missing, taken from coco_url"
    CITYSCAPES_NAME = "file_name of Cityscapes' panoptic files, turned into that of the picture"
    SIZE_OF_PICTURE = "image size missing or impossible, read from the picture"
    SWAPPED_SIZE = "image height and width swapped"
    LISTED_TWICE = "picture listed twice, taken as two images"
    REPEATED_ENTRY = "entry repeated word for word, left out"
    CATEGORY_NAME = "category name that is no text"
    UNUSED_CATEGORY = "unused category with the name of another one, left out"
    NO_CATEGORIES = "no categories listed, named by their numbers"
    ISTHING = "isthing in another form than 0 or 1"
    ISCROWD = "iscrowd in another form than 0 or 1"
    ALL_CROWDS = "crowds taken as instances, as all annotations are crowds"
    POLYGON_FORM = "polygon in another form than [[x1, y1, ...]]"
    POLYGON_PART = "polygon part of fewer than 3 points, left out"
    RUN_LENGTHS_IN_LIST = "run lengths inside a list"
    BOX_OF_MASK = "bbox missing or without extent, computed from the mask"
    CORNER_BOX = "bbox given as corners [x1, y1, x2, y2], as all masks show"
    SEGMENT_AREA = "area of a segment that is no count of pixels, left out"


class Repairs:
    """How often each kind of repair was made, and an example of each."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.examples: dict[str, str] = {}

    def add(self, kind: Kind, example: str, count: int = 1) -> None:
        """Count a repair; `example` is told if it is the first of its kind."""
        self.counts[kind] = self.counts.get(kind, 0) + count
        self.examples.setdefault(kind, example.encode(errors="backslashreplace").decode())

    def __bool__(self) -> bool:
        return bool(self.counts)

    @property
    def lines(self) -> list[str]:
        """One line of text for each kind: how often, and the first example."""
        return [f"{kind}: {count}, the first: {self.examples[kind]}" for kind, count in self.counts.items()]


@dataclass(frozen=True)
class Normalised:
    """A file's content after the repairs.

    content: the given object itself where nothing was repaired; else a new one, which shares what is unchanged.
    repairs: by kind.
    problems: what looks wrong in the file as a whole, but cannot be repaired.
    annotation_ids: the file's own id of each entry of `annotations` (None where it has none); None where all are as
        they were.
    """

    content: dict[str, Any]
    repairs: Repairs
    problems: list[Problem]
    annotation_ids: list[Any] | None = None

    def annotation_name(self, position: int) -> Any:
        """What messages call an annotation: the file's own id, with its image where that may not be enough."""
        return _name(self.content["annotations"][position], position, self.annotation_ids)


class _Entries:
    """One list of a file, copied where it is changed.

    own_ids: the file's own ids, where `items` have others.
    """

    def __init__(self, subject: str, given: object, repairs: Repairs, within: str = "") -> None:
        self._subject, self._repairs, self._within = subject, repairs, within
        self._given: list[Any] = given if isinstance(given, list) else []
        self._all_objects = set(map(type, self._given)) <= {dict}
        self.items = self._given
        self.own_ids: list[Any] | None = None

    def column(self, key: str) -> list[Any]:
        """The value of `key` of each entry; None where it has none."""
        if self._all_objects:
            return [entry.get(key) for entry in self.items]
        return [entry.get(key) if isinstance(entry, dict) else None for entry in self.items]

    def objects(self) -> Iterable[tuple[int, dict[str, Any]]]:
        """The entries that are JSON objects, with their positions; they may be changed on the way."""
        return ((position, entry) for position, entry in enumerate(self.items) if isinstance(entry, dict))

    def set(self, position: int, key: str, value: Any) -> None:
        """Put `value` in place of the entry's own."""
        if self.items is self._given:
            self.items = list(self.items)
        self.items[position] = {**self.items[position], key: value}

    def repair(self, position: int, key: str, value: Any, kind: Kind, reason: str) -> None:
        """`set` and `count`."""
        self.count(position, kind, reason)
        self.set(position, key, value)

    def count(self, position: int, kind: Kind, reason: str) -> None:
        """Count a repair of the entry."""
        self._repairs.add(kind, f"{self.name(position)}: {reason}")

    def name(self, position: int) -> str:
        """What the entry is called in a message."""
        return f"{self._subject} {_name(self.items[position], position, self.own_ids)}{self._within}"

    def leave_out(self, positions: set[int]) -> None:
        """Keep the other entries only."""
        if positions:
            self.items = [entry for position, entry in enumerate(self.items) if position not in positions]

    @property
    def changed(self) -> bool:
        """Whether `items` are no longer the given ones."""
        return self.items is not self._given


def _name(entry: Any, position: int, own_ids: list[Any] | None) -> Any:
    if not isinstance(entry, dict):
        return f"#{position}"
    identity = entry.get("id") if own_ids is None else own_ids[position]
    if own_ids is None and identity is not None:
        return identity
    of_image = f" of image {entry['image_id']}" if "image_id" in entry else ""
    return f"{f'#{position}' if identity is None else identity}{of_image}"


@dataclass
class _File:
    """A file in the middle of its repairs."""

    content: dict[str, Any]
    source: str
    size_of: SizeOf | None
    exif: ExifRule
    repairs: Repairs = field(default_factory=Repairs)
    problems: list[Problem] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.images = _Entries("image", self.content.get("images"), self.repairs)
        self.annotations = _Entries("annotation", self.content.get("annotations"), self.repairs)
        self.categories = _Entries("category", self.content.get("categories"), self.repairs)

    @cached_property
    def image_rows(self) -> Int64[np.ndarray, " n"]:
        """The position of each annotation's image; -1 where the file does not list it."""
        ids = [identity if type(identity) in (int, str) else None for identity in self.images.column("id")]
        rows: dict[Any, int] = {identity: row for row, identity in enumerate(ids) if identity is not None}
        column = self.annotations.column("image_id")
        return np.array([rows.get(value, -1) if type(value) in (int, str) else -1 for value in column], dtype=np.int64)

    def image_size(self, row: int) -> Size | None:
        """(height, width) of image `row`, where that is known."""
        if row < 0:
            return None
        height, width = (self.images.items[row].get(key) for key in ("height", "width"))
        return (height, width) if type(height) is type(width) is int else None

    def normalised(self) -> Normalised:
        lists = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        changed = {key: entries.items for key, entries in lists.items() if entries.changed}
        content = {**self.content, **changed} if changed else self.content
        return Normalised(content, self.repairs, self.problems, self.annotations.own_ids)


def normalise_instances(
    content: dict[str, Any],
    source: str,
    size_of: SizeOf | None = None,
    *,
    needs_classes: bool = True,
    exif: ExifRule = "auto",
) -> Normalised:
    """Repair what is unambiguous in a COCO instances file.

    Args:
        content: the parsed file; it is not changed.
        source: names the file in errors.
        size_of: gives the size of a picture. None where there are no pictures; then no size and no name is repaired
            that takes a look at them.
        needs_classes: whether a file without categories is of no use; where it is of use, they are made up from the
            `category_id`s.
        exif: `upright` and `stored` say in which frame the annotations are, `auto` leaves it to the evidence.

    Returns:
        A file without a repair comes back as it was, the same object.

    Raises:
        UserError: every bbox lies within 0..1.
    """
    file = _File(content, source, size_of, exif)
    _repair_images(file)
    _repair_categories(file)
    _number_annotations(file.annotations)
    if not needs_classes:
        _name_categories(file)
    _repair_listed_ids(file.annotations, "image_id", file.images)
    _repair_listed_ids(file.annotations, "category_id", file.categories)
    _repair_crowds(file.annotations)
    _repair_segmentations(file.annotations)
    boxes = _repair_boxes(file)
    _refuse_normalised_boxes(file, boxes)
    _repair_corner_boxes(file, boxes)
    _swap_sizes(file, boxes)
    return file.normalised()


def normalise_panoptic(
    content: dict[str, Any], source: str, size_of: SizeOf | None = None, *, exif: ExifRule = "auto"
) -> Normalised:
    """The same of a COCO panoptic file; see `normalise_instances`."""
    file = _File(content, source, size_of, exif)
    _repair_images(file)
    _repair_categories(file)
    _repair_listed_ids(file.annotations, "image_id", file.images)
    _repair_segments(file)
    _swap_sizes(file, np.full((len(file.annotations.items), 4), np.nan))
    return file.normalised()


def normalise_categories(content: dict[str, Any]) -> Any:
    """The `categories` of a COCO file after their repairs; what uses them is left as it is."""
    file = _File(content, "", None, "auto")
    _repair_categories(file)
    return file.normalised().content["categories"]


# Numbers and ids

_DECIMAL = re.compile(r"\s*([+-]?\d+)(?:\.0*)?\s*")


def _whole(value: Any) -> Any:
    """`value` as an integer where it is a whole float, else `value`."""
    return int(value) if type(value) is float and value.is_integer() else value


def _integer(value: Any) -> int | None:
    """The integer that `value` is or spells, or None."""
    value = _whole(value)
    if type(value) is str and len(value) < 100 and (match := _DECIMAL.fullmatch(value)):
        return int(match[1])
    return value if type(value) is int else None


def _kind_of_number(value: Any) -> Kind:
    return Kind.NUMBER_AS_TEXT if isinstance(value, str) else Kind.WHOLE_FLOAT


def shown_value(value: Any) -> str:
    """A value of a file in the words of a message: `0`, `the text '0'`, `missing` (or null)."""
    if value is None:
        return "missing"
    return ("the text " if isinstance(value, str) else "") + repr(value)[:80]


def _typed(value: Any) -> str:
    """A text or a number, and which of them it is."""
    return shown_value(value) if isinstance(value, str) else f"the number {value!r}"


def listed_id(value: Any, listed: Mapping[Any, Any]) -> Any:
    """The one of the `listed` ids that `value` means, or `value` itself where there is none."""
    number = _integer(value)
    if (type(value) in (int, str) and value in listed) or number is None:
        return value
    return next((identity for identity in (number, str(number)) if identity in listed), value)


def _repair_listed_ids(entries: _Entries, key: str, owners: _Entries) -> None:
    """Give the references `key` the form of the ids that `owners` list."""
    column, ids = entries.column(key), owners.column("id")
    types = set(map(type, ids))
    if len(types) == 1 and set(map(type, column)) <= types & {int, str}:
        return
    listed = {identity: None for identity in ids if type(identity) in (int, str)}
    for position, _ in entries.objects():
        value, means = column[position], listed_id(column[position], listed)
        if type(means) is type(value):
            continue
        if isinstance(value, float) and isinstance(means, int):
            entries.repair(position, key, means, Kind.WHOLE_FLOAT, f"{key} is {shown_value(value)}")
        else:
            reason = f"{key} is {_typed(value)}, the file lists {_typed(means)}"
            entries.repair(position, key, means, Kind.ID_AS_LISTED, reason)


# Images


def _repair_images(file: _File) -> None:
    images = file.images
    identities = images.column("id")
    if float in set(map(type, identities)):
        for position, _ in images.objects():
            value = identities[position]
            if type(whole := _whole(value)) is not type(value):
                images.repair(position, "id", whole, Kind.WHOLE_FLOAT, f"id is {shown_value(value)}")
    _repair_file_names(file)
    _repair_sizes(file)
    _repair_repeated_images(images)


def _repair_file_names(file: _File) -> None:
    names, images = file.images.column("file_name"), file.images
    if not all(names):
        urls = images.column("coco_url")
        named = {
            position: _parts_of_url(urls[position])
            for position, _ in images.objects()
            if not names[position] and isinstance(urls[position], str)
        }
        repeated = {base for base, count in Counter(base for _, base in named.values()).items() if count > 1}
        in_folders: dict[str, bool] = {}
        for position, (folder, base) in named.items():
            if folder not in in_folders:
                in_folders[folder] = _is_in_folder(folder, base, file.size_of)
            name = f"{folder}/{base}" if in_folders[folder] or (base in repeated and folder) else base
            if base:
                images.repair(position, "file_name", name, Kind.NAME_OF_URL, f"its coco_url is {urls[position]}")
    _repair_cityscapes_names(file)


def _parts_of_url(url: str) -> tuple[str, str]:
    """The last folder and the file name of a URL."""
    try:
        parts = unquote(urlsplit(url).path).split("/")
    except ValueError:  # no URL at all
        return "", ""
    return (parts[-2] if len(parts) > 1 else ""), parts[-1]


def _is_in_folder(folder: str, base: str, size_of: SizeOf | None) -> bool:
    """Whether the picture `base` lies in a folder named like the URL's, and not beside it."""
    return bool(folder and size_of and size_of(base) is None and size_of(f"{folder}/{base}"))


_CITYSCAPES = re.compile(r"_gt(?:Fine|Coarse)_leftImg8bit(?=\.\w+$)")


def _repair_cityscapes_names(file: _File) -> None:
    """`CITY_..._gtFine_leftImg8bit.png` is written for the picture `CITY/CITY_..._leftImg8bit.png`."""
    if file.size_of is None:
        return
    for position, name in enumerate(file.images.column("file_name")):
        if not isinstance(name, str) or "_leftImg8bit" not in name or not _CITYSCAPES.search(name):
            continue
        if file.size_of(name) is not None:
            continue
        picture = _CITYSCAPES.sub("_leftImg8bit", name)
        city = picture.rpartition("/")[2].partition("_")[0]
        found = next((path for path in (picture, f"{city}/{picture}") if file.size_of(path) is not None), None)
        if found:
            file.images.repair(position, "file_name", found, Kind.CITYSCAPES_NAME, f"{name} is taken as {found}")


def _repair_sizes(file: _File) -> None:
    images = file.images
    heights, widths = images.column("height"), images.column("width")
    if set(map(type, chain(heights, widths))) <= {int} and min(chain(heights, widths), default=1) > 0:
        return
    for position, _ in images.objects():
        given = {"height": heights[position], "width": widths[position]}
        sizes = {key: _integer(value) for key, value in given.items()}
        usable = {key: size for key, size in sizes.items() if size is not None and size > 0}
        if len(usable) < len(given):
            _size_of_picture(file, position, given, usable)
            continue
        for key, size in usable.items():
            if type(given[key]) is not int:
                reason = f"{key} is {shown_value(given[key])}"
                images.repair(position, key, size, _kind_of_number(given[key]), reason)


def _size_of_picture(file: _File, position: int, given: dict[str, Any], usable: dict[str, int]) -> None:
    """Give an image the size of its picture; `usable` is what its entry says already."""
    name = file.images.items[position].get("file_name")
    size = file.size_of(name) if file.size_of and isinstance(name, str) else None
    if size is None:
        return
    found = {"height": size[0], "width": size[1]}
    if usable.items() <= found.items():
        wrong = ", ".join(f"{key} is {shown_value(value)}" for key, value in given.items() if key not in usable)
        reason = f"{wrong}; the picture has {size[0]} x {size[1]} pixels (height x width)"
        file.images.repair(position, "height", size[0], Kind.SIZE_OF_PICTURE, reason)
        file.images.set(position, "width", size[1])


def _repair_repeated_images(images: _Entries) -> None:
    names = images.column("file_name")
    if set(map(type, names)) <= {str} and len(set(names)) == len(names):
        return
    first: dict[str, int] = {}
    repeated: set[int] = set()
    for position, entry in images.objects():
        name = names[position]
        if not isinstance(name, str) or first.setdefault(name, position) == position:
            continue
        earlier = images.items[first[name]]
        if earlier == entry:
            images.count(position, Kind.REPEATED_ENTRY, "an earlier entry is the same")
            repeated.add(position)
        elif earlier.get("id") != entry.get("id"):
            images.count(position, Kind.LISTED_TWICE, f"{name!r} is the picture of image {earlier.get('id')}, too")
    images.leave_out(repeated)


def _swap_sizes(file: _File, boxes: Float64[np.ndarray, "n 4"]) -> None:
    """Swap a height and a width where the picture has them so, and something says that the picture is right.

    Label Studio lists the sizes as stored of pictures that it shows upright. In other files, boxes that reach beyond
    the size listed, and fit the swapped one, say it: of their own image, and of all others if none says the opposite.
    Where the frame was asked for, the picture is right in it.
    """
    images, size_of = file.images, file.size_of
    if size_of is None or not images.items:
        return
    names, sizes = images.column("file_name"), _image_sizes(images)
    fit, fit_swapped = (_images_that_fit(file, boxes, part) for part in (sizes, sizes[:, ::-1]))
    possible = (sizes > 0).all(1) & (sizes[:, 0] != sizes[:, 1])

    def has_swapped_picture(position: int) -> bool:
        height, width = sizes[position].tolist()
        return isinstance(names[position], str) and size_of(names[position]) == (width, height)

    def with_swapped_pictures(chosen: Bool[np.ndarray, " i"]) -> list[int]:
        return [position for position in np.flatnonzero(possible & chosen).tolist() if has_swapped_picture(position)]

    swapped = with_swapped_pictures(~fit & fit_swapped)
    asked = file.exif != "auto" or shows_upright_pictures(file.content)
    if asked or (swapped and not with_swapped_pictures(fit & ~fit_swapped)):
        swapped = with_swapped_pictures(fit_swapped)
    for position in swapped:
        height, width = sizes[position].astype(int).tolist()
        reason = f"height x width is {height} x {width}, the picture has {width} x {height} pixels"
        images.repair(position, "height", width, Kind.SWAPPED_SIZE, reason)
        images.set(position, "width", height)


def _image_sizes(images: _Entries) -> Float64[np.ndarray, "i 2"]:
    """(height, width) of each image; 0 where one is unusable."""
    columns = (images.column(key) for key in ("height", "width"))
    usable = [[size if type(size) is int and 0 < size < 2**31 else 0 for size in column] for column in columns]
    return np.array(usable, dtype=np.float64).T


def _images_that_fit(
    file: _File, boxes: Float64[np.ndarray, "n 4"], sizes: Float64[np.ndarray, "i 2"]
) -> Bool[np.ndarray, " i"]:
    """Whether all boxes of each image lie inside its size (height, width), but for `TOLERANCE`."""
    fit = np.ones(len(sizes), dtype=bool)
    fit[file.image_rows[_reaches_beyond(file, boxes, sizes)]] = False
    return fit


def _reaches_beyond(
    file: _File, boxes: Float64[np.ndarray, "n 4"], sizes: Float64[np.ndarray, "i 2"]
) -> Bool[np.ndarray, " n"]:
    """Which boxes reach beyond the size (height, width) of their image."""
    rows = file.image_rows
    return (rows >= 0) & (boxes[:, :2] + boxes[:, 2:] > sizes[rows, ::-1] + TOLERANCE).any(1)


# Categories


def _repair_categories(file: _File) -> None:
    categories = file.categories
    for position, entry in categories.objects():
        identity, name, isthing = (entry.get(key) for key in ("id", "name", "isthing"))
        number = _integer(identity)
        if number is not None and type(identity) is not int:
            reason = f"id is {shown_value(identity)}"
            categories.repair(position, "id", number, _kind_of_number(identity), reason)
        if (name is None and number is not None) or (isinstance(name, int | float) and not isinstance(name, bool)):
            text = str(number if name is None else _whole(name))
            categories.repair(position, "name", text, Kind.CATEGORY_NAME, f"name is {shown_value(name)}")
        if "isthing" in entry and not isinstance(isthing, bool | int) and _integer(isthing) in (0, 1):
            categories.repair(
                position, "isthing", _integer(isthing), Kind.ISTHING, f"isthing is {shown_value(isthing)}"
            )
    _leave_out_categories(file)


def _leave_out_categories(file: _File) -> None:
    """Categories that repeat an earlier one word for word, or that nothing uses and that have a used one's name."""
    categories = file.categories
    names = [name for name in categories.column("name") if isinstance(name, str)]
    if len(set(names)) == len(names):
        return
    used = set(_used_categories(file))
    numbers = categories.column("id")
    is_used = [type(number) is int and number in used for number in numbers]
    kept: dict[str, int] = {}
    left_out: set[int] = set()
    for position, entry in sorted(categories.objects(), key=lambda item: not is_used[item[0]]):
        name = entry.get("name")
        if not isinstance(name, str) or kept.setdefault(name, position) == position:
            continue
        if entry == categories.items[kept[name]]:
            categories.count(position, Kind.REPEATED_ENTRY, "another entry is the same")
            left_out.add(position)
        elif not is_used[position] and numbers[position] != numbers[kept[name]]:
            reason = f"no annotation uses it, and {categories.name(kept[name])} has its name {name!r}, too"
            categories.count(position, Kind.UNUSED_CATEGORY, reason)
            left_out.add(position)
    categories.leave_out(left_out)


def _used_categories(file: _File) -> Iterable[Any]:
    """The ids that annotations, or their segments, give as their category; integers where they spell one."""
    for entry in file.annotations.items:
        if isinstance(entry, dict):
            segments = entry.get("segments_info")
            for part in segments if isinstance(segments, list) else [entry]:
                if isinstance(part, dict):
                    number = _integer(part.get("category_id"))
                    yield number


def _name_categories(file: _File) -> None:
    """Make up the categories of a file that lists none."""
    if file.content.get("categories"):
        return
    column = file.annotations.column("category_id")
    for position, _ in file.annotations.objects():
        number = _integer(column[position])
        if number is not None and type(column[position]) is not int:
            reason = f"category_id is {shown_value(column[position])}"
            file.annotations.repair(position, "category_id", number, _kind_of_number(column[position]), reason)
    used = dict.fromkeys(number for number in _used_categories(file) if number is not None)
    made_up = [{"id": number, "name": str(number)} for number in used]
    file.categories.items = made_up
    example = (
        f"category_id {made_up[0]['id']} gets this number for its name" if made_up else "no annotation has a class"
    )
    file.repairs.add(Kind.NO_CATEGORIES, example, max(len(made_up), 1))


# Annotations of instances


def _number_annotations(annotations: _Entries) -> None:
    """Give annotations numbers of their own where the file's are none, and remember the file's."""
    column = annotations.column("id")
    if set(map(type, column)) <= {int} and len(set(column)) == len(column) and _in_range(column):
        return
    for position, _ in annotations.objects():
        value = column[position]
        if type(whole := _whole(value)) is not type(value):
            annotations.repair(position, "id", whole, Kind.WHOLE_FLOAT, f"id is {shown_value(value)}")
    numbers = [entry.get("id") for _, entry in annotations.objects()]
    sound = [number for number in numbers if type(number) is int and _in_range([number])]
    if len(set(sound)) == len(numbers):
        return
    annotations.own_ids = own_ids = annotations.column("id")
    seen: set[int] = set()
    for position, _ in annotations.objects():
        reason = _reason_to_number(own_ids[position], seen)
        if reason:
            annotations.count(position, Kind.ANNOTATION_ID, reason)
        annotations.set(position, "id", position + 1)


def _in_range(numbers: list[int]) -> bool:
    return all(abs(number) < 2**63 for number in (min(numbers, default=0), max(numbers, default=0)))


def _reason_to_number(value: Any, seen: set[int]) -> str | None:
    if type(value) is not int:
        return f"id is {shown_value(value)}"
    if not _in_range([value]):
        return f"id {value} is larger than 2^63 - 1"
    if value in seen:
        return "an earlier annotation has the same id"
    seen.add(value)
    return None


def _repair_crowds(annotations: _Entries) -> None:
    column = annotations.column("iscrowd")
    if set(map(type, column)) != {int}:
        for position, entry in annotations.objects():
            if "iscrowd" in entry and type(column[position]) is not int:
                flag = _flag(column[position])
                if flag is not None:
                    reason = (
                        "iscrowd is null" if column[position] is None else f"iscrowd is {shown_value(column[position])}"
                    )
                    annotations.repair(position, "iscrowd", flag, Kind.ISCROWD, reason)
        column = annotations.column("iscrowd")
    if column and all(type(value) is int and value == 1 for value in column):
        reason = "iscrowd is 1, as it is of all; CVAT writes the masks of its brush so"
        for position, _ in annotations.objects():
            annotations.repair(position, "iscrowd", 0, Kind.ALL_CROWDS, reason)


def _flag(value: Any) -> int | None:
    """0 or 1 for every way to write one; null is 0. None for anything else."""
    if value is None or isinstance(value, bool):
        return int(bool(value))
    number = _integer(value)
    return number if number in (0, 1) else None


def _repair_segmentations(annotations: _Entries) -> None:
    column = annotations.column("segmentation")
    lists = [value for value in column if type(value) is list]
    parts = list(chain.from_iterable(lists))
    sound = set(map(type, parts)) <= {list} and min(map(len, parts), default=6) >= 6
    sound = sound and set(map(type, (part[0] for part in parts))) <= {int, float}
    for position, value in enumerate(column):
        if type(value) is list and not sound:
            _repair_polygons(annotations, position, value)
        elif type(value) is dict:
            _repair_run_lengths(annotations, position, value)


def _repair_polygons(annotations: _Entries, position: int, parts: list[Any]) -> None:
    """Put the parts of a mask into the form of polygons, and leave out those that are none beside one that is."""
    if parts and all(isinstance(part, dict) for part in parts):
        if len(parts) == 1:
            reason = "segmentation is a list with the run lengths in it"
            annotations.repair(position, "segmentation", parts[0], Kind.RUN_LENGTHS_IN_LIST, reason)
            _repair_run_lengths(annotations, position, parts[0])
        return
    polygons = _as_polygons(parts)
    if polygons != parts:
        reason = f"segmentation is {repr(parts)[:60]}"
        annotations.repair(position, "segmentation", polygons, Kind.POLYGON_FORM, reason)
    if not all(isinstance(part, list) for part in polygons):
        return
    kept = [part for part in polygons if len(part) >= 6]
    if 0 < len(kept) < len(polygons):
        short = next(part for part in polygons if len(part) < 6)
        annotations.repair(position, "segmentation", kept, Kind.POLYGON_PART, f"a part is {short}")


def _as_polygons(parts: list[Any]) -> list[Any]:
    """[x1, y1, ...], [[x1, y1], ...] and [[[x1, y1], ...], ...] as [[x1, y1, ...], ...]; all else as it is."""
    if len(parts) >= 6 and set(map(type, parts)) <= {int, float}:
        return [parts]
    if len(parts) >= 3 and all(_is_point(part) for part in parts):
        return [list(chain.from_iterable(parts))]
    if any(isinstance(part, list) and len(part) >= 3 and all(map(_is_point, part)) for part in parts):
        return [
            list(chain.from_iterable(part)) if isinstance(part, list) and all(map(_is_point, part)) else part
            for part in parts
        ]
    return parts


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and set(map(type, value)) <= {int, float}


def _repair_run_lengths(annotations: _Entries, position: int, value: dict[str, Any]) -> None:
    """Make the whole floats of uncompressed run lengths, and of their size, integers."""
    repaired = {}
    for key in ("counts", "size"):
        numbers = value.get(key)
        if isinstance(numbers, list) and not set(map(type, numbers)) <= {int}:
            whole = [_whole(number) for number in numbers]
            if set(map(type, whole)) <= {int}:
                repaired[key] = whole
    if repaired:
        reason = f"{' and '.join(repaired)} of the run lengths hold floats"
        annotations.repair(position, "segmentation", {**value, **repaired}, Kind.WHOLE_FLOAT, reason)


def _repair_boxes(file: _File) -> Float64[np.ndarray, "n 4"]:
    """The boxes of all annotations, as x, y, width and height, after repair; NaN where one is unusable."""
    annotations = file.annotations
    column = annotations.column("bbox")
    boxes = _box_array(column)
    unusable = ~(boxes[:, 2:] > 0).all(1)
    if unusable.any():
        rows = file.image_rows
        for position in np.flatnonzero(unusable).tolist():
            box = _repair_box(file, position, column[position], int(rows[position]))
            boxes[position] = math.nan if box is None else box
    return boxes


def _box_array(column: list[Any]) -> Float64[np.ndarray, "n 4"]:
    if set(map(type, column)) <= {list} and set(map(len, column)) <= {4}:
        numbers = list(chain.from_iterable(column))
        if set(map(type, numbers)) <= {int, float}:
            try:
                boxes = np.array(numbers, dtype=np.float64).reshape(-1, 4)
            except OverflowError:  # an integer beyond all floats
                pass
            else:
                boxes[~np.isfinite(boxes).all(1)] = np.nan
                return boxes
    return np.array([_box_numbers(value) or [math.nan] * 4 for value in column], dtype=np.float64).reshape(-1, 4)


def _box_numbers(value: Any) -> list[int | float] | None:
    """The four numbers of a `bbox`, or None where it is none."""
    if not isinstance(value, list) or len(value) != 4 or not set(map(type, value)) <= {int, float}:
        return None
    return value if all(abs(number) < 1e9 for number in value) else None


def _repair_box(file: _File, position: int, value: Any, image_row: int) -> list[int | float] | None:
    """Replace an unusable `bbox`, where that can be done."""
    entry = file.annotations.items[position]
    if not isinstance(entry, dict):
        return None
    if isinstance(value, list) and any(isinstance(number, str) for number in value):
        numbers = _box_numbers([_number(number) for number in value])
        if numbers and min(numbers[2:]) > 0:
            reason = f"bbox is {repr(value)[:80]}"
            file.annotations.repair(position, "bbox", numbers, Kind.NUMBER_AS_TEXT, reason)
            return numbers
    corners = mask_corners(entry.get("segmentation"), file.image_size(image_row))
    if corners is None:
        return None
    box = [corners[0], corners[1], corners[2] - corners[0], corners[3] - corners[1]]
    reason = "bbox is missing" if value is None else f"bbox is {repr(value)[:80]}"
    file.annotations.repair(position, "bbox", box, Kind.BOX_OF_MASK, reason)
    return box


def _number(value: Any) -> Any:
    """The number that a text spells; all else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return _whole(float(value))
    except ValueError:
        return value


def mask_corners(segmentation: Any, image_size: Size | None) -> list[int | float] | None:
    """The corners x1, y1, x2, y2 of a mask's extent; None where it has none, or is of another size than the image."""
    if isinstance(segmentation, list):
        numbers = list(chain.from_iterable(part for part in segmentation if isinstance(part, list)))
        whole = all(isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 for part in segmentation)
        if not whole or not numbers or not set(map(type, numbers)) <= {int, float}:
            return None
        corners = [min(numbers[0::2]), min(numbers[1::2]), max(numbers[0::2]), max(numbers[1::2])]
    elif isinstance(segmentation, dict):
        corners = _run_length_corners(segmentation, image_size)
    else:
        return None
    if corners is None or not all(abs(number) < 1e9 for number in corners):
        return None
    return corners if corners[2] > corners[0] and corners[3] > corners[1] else None


def _run_length_corners(segmentation: dict[str, Any], image_size: Size | None) -> list[int | float] | None:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if image_size is None or not isinstance(size, list) or size != list(image_size):
        return None
    if isinstance(counts, list):
        if not set(map(type, counts)) <= {int} or min(counts, default=-1) < 0 or sum(counts) != size[0] * size[1]:
            return None
        segmentation = coco_mask.segmToRle({"size": size, "counts": counts}, size[1], size[0])
    elif not isinstance(counts, str):
        return None
    try:
        return list(extent_of_runs(runs_of_code(segmentation), size[0]))
    except ValueError:  # the counts are malformed
        return None


def _refuse_normalised_boxes(file: _File, boxes: Float64[np.ndarray, "n 4"]) -> None:
    known = np.flatnonzero(~np.isnan(boxes[:, 0]))
    numbers = boxes[known]
    if len(known) == 0 or numbers.max() > 1 or numbers.min() < 0 or (numbers == np.round(numbers)).all():
        return
    example = f"{file.annotations.name(int(known[0]))} has {file.annotations.items[known[0]]['bbox']}"
    raise UserError(
        f"{file.source}: bbox must be in pixels, but all of them lie within 0..1 ({example}); multiply x and width by "
        "the width of the image, y and height by its height"
    )


def _repair_corner_boxes(file: _File, boxes: Float64[np.ndarray, "n 4"]) -> None:
    """Turn corners into x, y, width and height where every mask of the file shows that its box is given so.

    Corners x1, y1, x2, y2 have x2 > x1 and y2 > y1, which most boxes of most files do not have by chance. Where most
    boxes look like corners but not every mask agrees, or there is none, that is named as a problem.
    """
    known = np.flatnonzero(~np.isnan(boxes[:, 0]))
    ordered = (boxes[known, 2:] > boxes[known, :2]).all(1)
    if 2 * ordered.sum() <= len(known):
        return
    segmentations = file.annotations.column("segmentation")
    found = {
        row: mask_corners(segmentations[row], file.image_size(int(file.image_rows[row]))) for row in known.tolist()
    }
    masked = [row for row, corners in found.items() if corners is not None]
    corners = np.array([found[row] for row in masked], dtype=np.float64).reshape(-1, 4)
    given = boxes[masked]
    as_corners = (abs(given - corners) <= TOLERANCE).all(1)
    as_sizes = (abs(given + np.tile(given[:, :2], 2) * [0, 0, 1, 1] - corners) <= TOLERANCE).all(1)
    decided = as_corners & ~as_sizes
    if ordered.all() and as_corners.all() and decided.any():
        boxes[known, 2:] -= boxes[known, :2]
        for row in known.tolist():
            reason = f"bbox is {file.annotations.items[row]['bbox']}"
            file.annotations.repair(row, "bbox", boxes[row].tolist(), Kind.CORNER_BOX, reason)
    elif masked and 2 * decided.sum() > len(masked):
        _name_corner_boxes(file, np.array(masked)[decided], len(masked), "fit their masks as corners only")
    elif not masked and file.images.items:
        beyond = known[_reaches_beyond(file, boxes, _image_sizes(file.images))[known] & ordered]
        if 2 * len(beyond) > len(known):
            _name_corner_boxes(file, beyond, len(known), "reach beyond their images")


def _name_corner_boxes(file: _File, rows: Int64[np.ndarray, " k"], total: int, evidence: str) -> None:
    first = int(rows[0])
    reason = (
        f"bbox must be [x, y, width, height], but {len(rows)} of {total} {evidence}: they look like corners "
        f"[x1, y1, x2, y2] (annotation {_name(file.annotations.items[first], first, file.annotations.own_ids)} has "
        f"{file.annotations.items[first]['bbox']})"
    )
    file.problems.append(Problem("file", "as a whole", "boxes that look like corners", reason, "kept"))


# Segments of panoptic files


def _repair_segments(file: _File) -> None:
    annotations = file.annotations
    column = annotations.column("segments_info")
    segments = [segment for value in column if type(value) is list for segment in value]
    if set(map(type, segments)) <= {dict} and all(
        {type(segment.get(key)) for segment in segments} <= types for key, types in _CLEAN_SEGMENT.items()
    ):
        return
    listed = {identity: None for identity in file.categories.column("id") if type(identity) is int}
    for position, entry in annotations.objects():
        value = column[position]
        if not isinstance(value, list):
            continue
        part = _Entries("segment", value, file.repairs, f" of {entry.get('file_name')}")
        for row, segment in part.objects():
            _repair_segment(part, row, segment, listed)
        if part.changed:
            annotations.set(position, "segments_info", part.items)


_CLEAN_SEGMENT = {"id": {int}, "category_id": {int}, "iscrowd": {int}, "area": {int, NoneType}}


def _repair_segment(part: _Entries, row: int, segment: dict[str, Any], listed: Mapping[Any, Any]) -> None:
    identity, category, area = (segment.get(key) for key in ("id", "category_id", "area"))
    number = _integer(identity)
    if number is not None and type(identity) is not int:
        part.repair(row, "id", number, _kind_of_number(identity), f"id is {shown_value(identity)}")
    means = listed_id(category, listed)
    if type(means) is not type(category):
        kind = Kind.WHOLE_FLOAT if isinstance(category, float) else Kind.ID_AS_LISTED
        reason = f"category_id is {_typed(category)}, the file lists {_typed(means)}"
        part.repair(row, "category_id", means, kind, reason)
    if "iscrowd" in segment and type(segment["iscrowd"]) is not int and (flag := _flag(segment["iscrowd"])) is not None:
        shown = "null" if segment["iscrowd"] is None else shown_value(segment["iscrowd"])
        part.repair(row, "iscrowd", flag, Kind.ISCROWD, f"iscrowd is {shown}")
    if area is not None and type(area) is not int:
        if isinstance(area, float) and area.is_integer():
            part.repair(row, "area", int(area), Kind.WHOLE_FLOAT, f"area is {shown_value(area)}")
        else:
            part.repair(row, "area", None, Kind.SEGMENT_AREA, f"area is {shown_value(area)}")
