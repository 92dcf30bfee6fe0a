"""The annotation files of `maskwright study leave-classes-out`: training files without masks of some classes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from maskwright.data.annotations import index_annotations, read_normalised
from maskwright.data.categories import match_name
from maskwright.data.dataset import DataSource, split_by_hash
from maskwright.data.picture_folder import PictureFolder
from maskwright.data.segmentations import NONE
from maskwright.data.shards import ShardedInstances
from maskwright.data.union import UnionSource
from maskwright.errors import UserError
from maskwright.files import write_text
from maskwright.structures import Category
from maskwright.training.options import InstanceDataOptions

MEASURED_SHARE = 0.25
"""Of the images, where no file of images to measure on is given."""


@dataclass(frozen=True)
class LabelledImages:
    """A COCO instances file after its repairs, without the entries that are of no use.

    Attributes:
        images: entries by id.
        annotations: entries.
        categories: in file order.
        content: of the whole file; its other keys are kept in what is written.
    """

    images: Mapping[Any, dict[str, Any]]
    annotations: Sequence[dict[str, Any]]
    categories: Sequence[Category]
    content: Mapping[str, Any]

    @cached_property
    def masks(self) -> dict[str, list[int]]:
        """Positions in `annotations` of each class's instances with a mask, crowds left out.

        The order is that of a hash of the file name and the annotation's id: the first ten hold the first five.
        """
        names = {category["id"]: category["name"] for category in self.categories}
        found: dict[str, list[int]] = {name: [] for name in names.values()}
        for position, entry in enumerate(self.annotations):
            if entry.get("segmentation") and not entry.get("iscrowd"):
                found[names[entry["category_id"]]].append(position)
        return {name: sorted(positions, key=self._hash) for name, positions in found.items()}

    def of_images(self, ids: Iterable[Any]) -> LabelledImages:
        """The images with these ids and their annotations."""
        images = {identity: self.images[identity] for identity in ids}
        kept = [entry for entry in self.annotations if entry["image_id"] in images]
        return LabelledImages(images, kept, self.categories, self.content)

    def with_masks(self, numbers: Mapping[str, int]) -> LabelledImages:
        """The same where each class named in `numbers` keeps that many masks at most, and all of its boxes."""
        lost = set(chain.from_iterable(self.masks[name][number:] for name, number in numbers.items()))
        kept = [
            {key: value for key, value in entry.items() if key != "segmentation" or position not in lost}
            for position, entry in enumerate(self.annotations)
        ]
        return LabelledImages(self.images, kept, self.categories, self.content)

    def write(self, path: Path) -> None:
        """Write the file, unless it is there.

        Raises:
            UserError: a file with other content is there, or it cannot be written.
        """
        own = {"images": list(self.images.values()), "annotations": self.annotations}
        text = json.dumps({**self.content, **own}) + "\n"
        if not path.exists():
            write_text(path, text)
        elif path.read_text() != text:
            raise UserError(f"{path} is of a study of other data, folds or masks; give another --out")

    def _hash(self, position: int) -> str:
        entry = self.annotations[position]
        return stable_hash(f"{self.images[entry['image_id']]['file_name']}/{entry['id']}")


def stable_hash(text: str) -> str:
    """Orders names in a way that has nothing to do with what they say, and is the same everywhere."""
    return hashlib.sha256(text.encode()).hexdigest()


def read_sides(options: InstanceDataOptions) -> tuple[LabelledImages, LabelledImages]:
    """The images that are trained on and those that are measured on.

    The latter are those of `validation_annotations`, or else `MEASURED_SHARE` of all, by a hash of their names.

    Raises:
        UserError: a key is open or there are several sets, a file or folder cannot be used, or no mask can be measured.
    """
    training = _read(options.training_source())
    if options.validation_annotations is None:
        ids = list(training.images)
        names = [training.images[identity]["file_name"] for identity in ids]
        sides = split_by_hash(names, MEASURED_SHARE)
        training, measured = (training.of_images(ids[place] for place in side) for side in sides)
    else:
        measured = _read(options.validation_source())
    if not any(measured.masks.values()):
        raise UserError(f"none of the {len(measured.images)} images to measure on has a mask")
    used = {entry["category_id"] for entry in measured.annotations}
    names = [category["name"] for category in measured.categories if category["id"] in used]
    if unknown := [name for name in names if match_name(name, list(training.masks)) is None]:
        raise UserError(
            f"{options.validation_annotations} has classes that {options.annotations} lacks: {', '.join(unknown)}"
        )
    return training, measured


def _read(source: DataSource | UnionSource) -> LabelledImages:
    if isinstance(source, UnionSource):
        raise UserError("classes are left out of one set: give data.images and data.annotations in place of data.sets")
    if ShardedInstances.mismatch(source.annotations) is None:
        raise UserError(f"{source.annotations} is a folder of shards; classes are left out of a COCO instances file")
    pictures = PictureFolder(source.images, source.exif)
    normalised = read_normalised(source.annotations, pictures)
    index = index_annotations(normalised, str(source.annotations), pictures)
    index.refuse_unusable()
    usable = dict(zip(index.ids.tolist(), (index.segmentations.kinds != NONE).tolist(), strict=True))
    kept = [
        entry if usable[entry["id"]] else {key: value for key, value in entry.items() if key != "segmentation"}
        for entry in normalised.content["annotations"]
        if entry.get("id") in usable
    ]
    listed = {entry["id"]: entry for entry in normalised.content["images"]}
    return LabelledImages(
        {identity: listed[identity] for identity in index.image_ids.tolist()},
        kept,
        index.categories,
        normalised.content,
    )
