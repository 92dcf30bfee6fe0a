"""The masks of a COCO file that a model made: what there is to review."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeGuard

from maskwright.apps.provenance import PROVENANCE, is_completed
from maskwright.apps.run_summary import RunSummary
from maskwright.data.annotations import ImageColumns, match_pictures, read_images, read_normalised
from maskwright.data.categories import parse_categories
from maskwright.data.orientation import ExifRule, Size
from maskwright.data.picture_folder import PictureFolder
from maskwright.data.problems import refuse_problems
from maskwright.data.segmentations import SegmentationPacker
from maskwright.errors import UserError
from maskwright.files import read_content
from maskwright.structures import EncodedMasks

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class CompletedMask:
    """An annotation whose mask a model made.

    position: in the file's list of annotations.
    id: the file's own, whatever it is.
    image: row of the picture in `CompletedFile.image_names`.
    category: name of the class, empty where it has none.
    quality: of the mask, in 0..1.
    model, weights: the model's name and the hash of its weights, as far as the file says them.
    box: xyxy, pixels of the picture in the frame of the annotations.
    segmentation: as in the file.
    review: the verdict that an earlier review wrote into the file, or None.
    """

    position: int
    id: Any
    image: int
    category: str
    quality: float
    model: str
    weights: str
    box: Box
    segmentation: Any
    review: str | None


@dataclass(frozen=True)
class CompletedFile:
    """A completed COCO file and its pictures.

    path: of the file.
    pictures: where they are.
    image_names, image_sizes: the pictures' names in the file, and their (height, width).
    masks: those whose picture is there, the lowest quality first.
    """

    path: Path
    pictures: PictureFolder
    image_names: Sequence[str]
    image_sizes: Sequence[Size]
    masks: Sequence[CompletedMask]

    @cached_property
    def categories(self) -> list[str]:
        """The names of the masks' classes, in order."""
        return sorted({mask.category for mask in self.masks})

    @cached_property
    def by_position(self) -> dict[int, CompletedMask]:
        """The masks by their position in the file's list of annotations."""
        return {mask.position: mask for mask in self.masks}

    def encoded(self, segmentation: Any, image: int) -> EncodedMasks:
        """One segmentation of picture `image`; an empty mask where it is malformed."""
        packer = SegmentationPacker()
        packer.add(segmentation, self.image_sizes[image])
        return EncodedMasks(packer.pack().encode([0], self.image_sizes[image]), self.image_sizes[image])


def content_hash(path: Path) -> str:
    """The hash of the file, by which a journal knows it again.

    Raises:
        UserError: it cannot be read.
    """
    return blake2b(read_content(path), digest_size=16).hexdigest()


def read_completed(
    path: Path, folder: str | Path, summary: RunSummary, classes: Sequence[str] = (), exif: ExifRule = "auto"
) -> CompletedFile:
    """The masks that a model made of the file at `path`, worst first.

    Args:
        path: a COCO file in which completed annotations have an object `PROVENANCE`.
        folder: of its pictures.
        summary: counts the pictures that are missing, and the annotations that cannot be shown.
        classes: names of those that are reviewed; empty for all.
        exif: the frame of annotations of pictures with an EXIF orientation.

    Raises:
        UserError: the file or the folder cannot be read, the file has no completed mask (of these classes), or the
            pictures of all are missing.
    """
    pictures = PictureFolder(folder, exif)
    content = read_normalised(path, pictures, needs_classes=False)
    problems = list(content.problems)
    images = read_images(content.content["images"], problems)
    refuse_problems(str(path), problems)
    match_pictures(images.file_names, pictures, content.repairs)
    reader = _Reader(images, _category_names(content.content, str(path)), content.annotation_ids, summary)
    annotations = content.content["annotations"]
    found = [mask for position, entry in enumerate(annotations) if (mask := reader.read(position, entry))]
    _refuse_none(path, found, len(annotations), classes)
    chosen = [mask for mask in found if not classes or mask.category in classes]
    shown = _with_pictures(chosen, images.file_names, pictures, summary)
    if not shown:
        raise UserError(f"{folder} has none of the pictures of {path}, such as {images.file_names[chosen[0].image]}")
    sizes = [(height, width) for height, width in images.sizes.tolist()]
    shown.sort(key=lambda mask: (mask.quality, mask.position))
    return CompletedFile(path, pictures, images.file_names, sizes, shown)


def _category_names(content: dict[str, Any], source: str) -> dict[Any, str]:
    entries = content.get("categories")
    return {category["id"]: category["name"] for category in parse_categories(entries, source)} if entries else {}


def _refuse_none(path: Path, found: Sequence[CompletedMask], count: int, classes: Sequence[str]) -> None:
    """Refuse a file without a completed mask.

    Raises:
        UserError: so, or a class has none.
    """
    if not found:
        raise UserError(
            f"{path}: none of its {count} annotations has a mask that a model made; expected an object {PROVENANCE!r} "
            'with its "quality" in each that has'
        )
    known = {mask.category for mask in found}
    for name in classes:
        if name not in known:
            raise UserError(f"{path}: no completed mask is of the class {name!r}; expected {', '.join(sorted(known))}")


def _with_pictures(
    masks: Sequence[CompletedMask], names: Sequence[str], pictures: PictureFolder, summary: RunSummary
) -> list[CompletedMask]:
    """The masks whose picture is there; the pictures that are not are counted."""
    missing = set()
    for image in {mask.image for mask in masks}:
        if not os.path.isfile(pictures.path(names[image])):  # noqa: PTH113 (Path.is_file raises: name too long)
            missing.add(image)
            summary.note("failed", "picture that is missing", names[image])
    return [mask for mask in masks if mask.image not in missing]


@dataclass(frozen=True)
class _Reader:
    """Reads annotations one by one."""

    images: ImageColumns
    categories: dict[Any, str]
    own_ids: Sequence[Any] | None
    summary: RunSummary

    def read(self, position: int, entry: Any) -> CompletedMask | None:
        """The annotation, if a model made its mask; what is broken is counted."""
        provenance = entry.get(PROVENANCE) if isinstance(entry, dict) else None
        if not isinstance(provenance, dict) or not entry.get("segmentation"):
            return None
        identity = entry.get("id") if self.own_ids is None else self.own_ids[position]
        quality, box, image = provenance.get("quality"), _corners(entry.get("bbox")), self._image(entry)
        told = f"annotation {f'#{position}' if identity is None else identity}"
        if not _is_number(quality) or not 0 <= quality <= 1 or box is None or image is None:
            self.summary.note("failed", "completed annotation without a usable quality, box or image", told)
            return None
        if not is_completed(entry):
            cause = f"annotation with a key {PROVENANCE!r} that is no provenance of a mask"
            self.summary.note("failed", cause, told)
            return None
        return CompletedMask(
            position=position,
            id=identity,
            image=image,
            category=self.categories.get(_hashable(entry.get("category_id")), ""),
            quality=float(quality),
            model=str(provenance.get("model", "")),
            weights=str(provenance.get("weights", "")),
            box=box,
            segmentation=entry["segmentation"],
            review=provenance.get("review"),
        )

    def _image(self, entry: dict[str, Any]) -> int | None:
        row = self.images.rows.get(_hashable(entry.get("image_id")), -1)
        return row if row >= 0 else None


def _hashable(value: Any) -> int | str | None:
    return value if isinstance(value, int | str) else None


def _corners(bbox: Any) -> Box | None:
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        return None
    x, y, width, height = map(float, bbox)
    return (x, y, x + width, y + height) if width > 0 and height > 0 else None


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
