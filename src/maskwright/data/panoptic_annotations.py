"""A COCO panoptic annotation file as a compact index of flat arrays.

This module alone decides what a broken entry means: the data set builds on its index, and `maskwright data check`
prints its problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskwright.data.annotations import (
    COCO_KEYS,
    CocoIndex,
    ImageColumns,
    TextTable,
    match_pictures,
    read_images,
    require_lists,
    unlisted_reason,
)
from maskwright.data.categories import parse_categories
from maskwright.data.json_file import is_text, list_elements
from maskwright.data.normalise import normalise_panoptic, shown_value
from maskwright.data.picture_folder import PictureFolder
from maskwright.data.problems import Problem, commonest
from maskwright.errors import UserError
from maskwright.files import read_json_object
from maskwright.ops.panoptic_map import LARGEST_ID
from maskwright.structures.plain import Category

NO_AREA = -1
"""The area of a segment whose entry has none."""


@dataclass(frozen=True)
class PanopticIndex(CocoIndex):
    """What a COCO panoptic file holds: the images that have an annotation, and their segments.

    map_names: the PNG of each image.
    areas: int64 [M], as the file says; `NO_AREA` where it does not.
    Each of the `ids` is unique within its image and in 1..2^24 - 1.
    """

    map_names: TextTable
    areas: np.ndarray


def is_panoptic(path: str | Path) -> bool:
    """Whether the annotation file at `path` is of COCO's panoptic format: one of its annotations has `segments_info`.

    No more of the file is parsed than it takes, so that a large one is not read twice. Of a file that is not JSON
    nothing is known; who reads it whole will say what is wrong.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the annotation file {path}: {error.strerror or error}") from error
    if b'"segments_info"' not in content:
        return False
    return any(isinstance(entry, dict) and "segments_info" in entry for entry in list_elements(content, "annotations"))


def map_folder(annotations: str | Path, segmentations: str | Path | None, option: str = "segmentations") -> Path:
    """The folder of an annotation file's PNGs: `segmentations`, or the one named like the file that lies beside it.

    option: what the error tells the user to name it as.

    Raises:
        UserError: there is no such folder.
    """
    folder = Path(annotations).with_suffix("") if segmentations is None else Path(segmentations)
    if not folder.is_dir():
        hint = "" if segmentations is not None else f"; name the folder of its PNGs as `{option}`"
        raise UserError(f"the folder {folder} of the segmentations of {annotations} does not exist{hint}")
    return folder


def read_panoptic_annotations(path: str | Path, pictures: PictureFolder | None = None) -> PanopticIndex:
    """Read a COCO panoptic file whole, repaired where that can be done; broken entries become `problems`, not errors.

    A broken segment is left out, and its pixels are void. An image without a usable annotation is left out.
    `pictures` are looked at where the file does not tell a name or a size.

    Raises:
        UserError: the file is not a COCO panoptic file at all (not JSON, a key missing, unusable categories).
    """
    return index_panoptic_annotations(read_json_object(path, COCO_KEYS), str(path), pictures)


def index_panoptic_annotations(
    content: dict[str, Any], source: str, pictures: PictureFolder | None = None
) -> PanopticIndex:
    """The same of the content of a file, which has the `COCO_KEYS`; `source` names it.

    Raises:
        UserError: one of them is not of the right kind, or a category does not say whether it is a thing.
    """
    require_lists(content, source)
    if pictures is None:
        normalised = normalise_panoptic(content, source)
    else:
        normalised = normalise_panoptic(content, source, pictures.size_of, exif=pictures.exif)
    content = normalised.content
    categories = parse_categories(content["categories"], source)
    for category in categories:
        if "isthing" not in category:
            raise UserError(
                f"{source}: category {category['id']} ({category['name']}) has no 'isthing', which a panoptic file "
                "must say of every category: give it 1 (thing) or 0 (stuff)"
            )
    problems: list[Problem] = []
    images = read_images(content["images"], problems)
    match_pictures(images.file_names, pictures, normalised.repairs)
    annotations = _by_image(content["annotations"], images.rows, problems)
    image_rows = _annotated_images(images, annotations, problems)
    category_rows = {category["id"]: row for row, category in enumerate(categories)}
    segments = [_read_segments(annotations[row], category_rows, problems) for row in image_rows]
    columns = np.array([segment for part in segments for segment in part], dtype=np.int64).reshape(-1, 4)
    count = sum(len(entry["segments_info"]) for entry in annotations.values())
    if count and not len(columns):
        broken = [problem for problem in problems if problem.subject == "segment"]
        reason = f"none of its {count} segments can be used; {commonest(broken, count)}"
        problems.append(Problem("file", "as a whole", "no usable segment", reason, "refused"))
    return PanopticIndex(
        source=source,
        categories=categories,
        file_names=TextTable([images.file_names[row] for row in image_rows]),
        map_names=TextTable([annotations[row]["file_name"] for row in image_rows]),
        image_ids=images.ids[image_rows],
        image_sizes=images.sizes[image_rows],
        sampling_weights=None if images.weights is None else images.weights[image_rows],
        offsets=np.cumsum([0, *map(len, segments)]),
        ids=columns[:, 0],
        category_rows=columns[:, 1],
        iscrowd=columns[:, 2].astype(bool),
        areas=columns[:, 3],
        problems=problems,
        repairs=normalised.repairs,
    )


def _by_image(entries: list[Any], image_rows: dict[Any, int], problems: list[Problem]) -> dict[int, dict[str, Any]]:
    """The usable entries of `annotations` by the position of their image."""
    annotations: dict[int, dict[str, Any]] = {}
    for position, entry in enumerate(entries):
        reason = _annotation_reason(entry, image_rows, annotations)
        if reason:
            known = isinstance(entry, dict) and "image_id" in entry
            identity = f"of image {entry['image_id']}" if known else f"#{position}"
            problems.append(Problem("annotation", identity, reason.partition(",")[0], reason, "dropped"))
        else:
            annotations[image_rows[entry["image_id"]]] = entry
    problems += _shared_maps(annotations)
    return annotations


def _shared_maps(annotations: dict[int, dict[str, Any]]) -> list[Problem]:
    """Annotations whose PNG is an earlier one's: of one of the two it cannot be the map."""
    problems, owners = [], {}
    for entry in annotations.values():
        owner = owners.setdefault(entry["file_name"], entry["image_id"])
        if owner != entry["image_id"]:
            reason = f"the segmentation {entry['file_name']!r} is that of image {owner}, too"
            problems.append(
                Problem("annotation", f"of image {entry['image_id']}", "shared segmentation", reason, "refused")
            )
    return problems


def _annotation_reason(entry: Any, image_rows: dict[Any, int], seen: dict[int, dict[str, Any]]) -> str | None:
    if not isinstance(entry, dict):
        return f"annotation must be an object, but is a {type(entry).__name__}"
    image_id, name = entry.get("image_id"), entry.get("file_name")
    if type(image_id) not in (int, str) or image_id not in image_rows:
        return f"unknown image, {unlisted_reason('image_id', image_id, image_rows)}"
    if image_rows[image_id] < 0:
        return f"unusable image, its image {image_id} cannot be used"
    if image_rows[image_id] in seen:
        return "the image has an annotation already"
    if not is_text(name):
        return f"'file_name' of the segmentation must be a text, but is {shown_value(name)}"
    if not isinstance(entry.get("segments_info"), list):
        return f"'segments_info' must be a list, but is {str(entry.get('segments_info'))[:80]}"
    return None


def _annotated_images(
    images: ImageColumns, annotations: dict[int, dict[str, Any]], problems: list[Problem]
) -> list[int]:
    for row, identity in enumerate(images.ids.tolist()):
        if row not in annotations:
            reason = "the image has no usable annotation and is left out"
            problems.append(Problem("image", identity, "image without annotation", reason, "dropped"))
    if len(images.ids) and not annotations:
        broken = [problem for problem in problems if problem.subject == "annotation"]
        reason = f"none of its images ({len(images.ids)}) has a usable annotation; {commonest(broken, len(broken))}"
        problems.append(Problem("file", "as a whole", "no usable annotation", reason, "refused"))
    return sorted(annotations)


def _read_segments(
    annotation: dict[str, Any], category_rows: dict[int, int], problems: list[Problem]
) -> list[tuple[int, int, int, int]]:
    """(id, category row, iscrowd, area) of the usable segments of one image."""
    segments: dict[int, tuple[int, int, int, int]] = {}
    for position, entry in enumerate(annotation["segments_info"]):
        reason = _segment_reason(entry, segments, category_rows)
        if reason:
            place = entry["id"] if isinstance(entry, dict) and "id" in entry else f"#{position}"
            identity = f"{place} of {annotation['file_name']}"
            problems.append(Problem("segment", identity, reason.partition(",")[0], reason, "dropped"))
            continue
        area = entry.get("area")
        row = category_rows[entry["category_id"]]
        segments[entry["id"]] = (entry["id"], row, int(entry.get("iscrowd", 0)), NO_AREA if area is None else int(area))
    return list(segments.values())


def _segment_reason(entry: Any, seen: dict[int, Any], category_rows: dict[int, int]) -> str | None:
    if not isinstance(entry, dict):
        return f"segment must be an object, but is a {type(entry).__name__}"
    identity, category, area = entry.get("id"), entry.get("category_id"), entry.get("area")
    if type(identity) is not int or not 0 < identity <= LARGEST_ID:
        return f"segment id must be an integer in 1..{LARGEST_ID}, but is {identity!r}"
    if identity in seen:
        return "segment id is not unique in its image"
    if type(category) is not int or category not in category_rows:
        return f"unknown category, {unlisted_reason('category_id', category, category_rows)}"
    if entry.get("iscrowd", 0) not in (0, 1):
        return f"iscrowd must be 0 or 1, but is {repr(entry['iscrowd'])[:80]}"
    if area is not None and (type(area) not in (int, float) or not 0 <= area < 2**53 or area != int(area)):
        return f"area must be a whole number of pixels, but is {repr(area)[:80]}"
    return None


def panoptic_content(
    images: list[dict[str, Any]], annotations: list[dict[str, Any]], categories: Sequence[Category]
) -> dict[str, Any]:
    """The content of a COCO panoptic file. A category without `isthing` becomes a thing."""
    listed = [{**category, "isthing": int(category.get("isthing", True))} for category in categories]
    return {"images": images, "annotations": annotations, "categories": listed}
