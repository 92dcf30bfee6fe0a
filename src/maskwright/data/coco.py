"""COCO instance annotations as a map-style data set of images and `Target`s."""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64, UInt8
from PIL import ExifTags, Image
from torch import Tensor

from maskwright.data.annotations import read_annotations
from maskwright.data.categories import labels_of_categories, resolve_mask_classes
from maskwright.data.images import read_image, register_heif
from maskwright.data.segmentations import NONE
from maskwright.errors import UserError
from maskwright.structures import Category, Target

Transforms = Callable[[Tensor, Target], tuple[Tensor, Target]]


class CocoInstances:
    """A COCO instances file and its folder of images; any category ids, nothing to register.

    `ds[i]` is `(uint8 RGB image [3, H, W], Target)` of the i-th image of the file; `ds[(i, seed)]` runs the
    transforms with torch's random state seeded by `seed` (and puts the state back), so that augmentation is a
    function of the sample's seed alone.

    An instance has a mask where its `segmentation` (polygons, run lengths, compressed run lengths) is not empty
    and its class is in `mask_classes`; otherwise it keeps its box with `has_mask` false, and its mask is not
    decoded. A segmentation that is malformed or covers no pixel counts as none. Crowd annotations are kept with
    `iscrowd` true. Boxes come from `bbox`, clipped to the image; annotations without a usable box, or of an
    image or category that the file does not list, are dropped.

    The annotations are held in flat arrays, which forked loader workers share.

    Attributes:
        categories: the label space (position = label).
        mask_classes: the names of the classes whose masks are used.
        skipped: how many annotations were dropped or lost their mask while the file was read, by kind of reason
            (`maskwright data check` names each, and those that show only when a mask is decoded).
        transforms: called with (image, target); may be replaced at any time.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        *,
        categories: Sequence[Category] | None = None,
        mask_classes: str | Sequence[str] = "all",
        transforms: Transforms | None = None,
    ) -> None:
        """Read the annotation file.

        Args:
            images: the folder that the file's `file_name`s are relative to.
            annotations: the COCO instances file.
            categories: the label space to map the file's classes to, by name (a model's `categories`); None takes
                the file's own categories in file order.
            mask_classes: `all`, `voc`, `non_voc` or names out of the label space (`resolve_mask_classes`).
            transforms: the augmentation.

        Raises:
            UserError: the file is unusable, a class with annotations is not in `categories`, a mask class is
                unknown, or the folder or its first image is missing.
        """
        self._images = Path(images)
        self._index = read_annotations(annotations)
        self._index.refuse_unusable()
        self._rows = np.arange(len(self._index.image_ids))
        self.categories: list[Category] = list(self._index.categories if categories is None else categories)
        used = set(np.unique(self._index.category_rows).tolist())
        self._labels = labels_of_categories(self._index.categories, used, self.categories, self._index.source)
        self.mask_classes = resolve_mask_classes(mask_classes, self.categories)
        names = set(self.mask_classes)
        self._label_has_mask = np.array([category["name"] in names for category in self.categories], dtype=bool)
        self.skipped = dict(Counter(problem.kind for problem in self._index.problems))
        self.transforms = transforms
        if not self._images.is_dir():
            raise UserError(f"the image folder {self._images} does not exist or is no folder")
        require_file(self._path(0), self._index.source)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[UInt8[Tensor, "3 h w"], Target]:
        index, seed = key if isinstance(key, tuple) else (key, None)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must lie in 0..{len(self) - 1}, but is {index}")
        image, target = self._image(index), self._target(index)
        if self.transforms is None:
            return image, target
        if seed is None:
            return self.transforms(image, target)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.transforms(image, target)

    def subset(self, indices: Sequence[int]) -> CocoInstances:
        """The images at `indices` of this data set, in that order; shares everything but `transforms` with it.

        Raises:
            UserError: `indices` is empty.
        """
        if len(indices) == 0:
            raise UserError(f"{self._index.source}: a part of the data set without any image was asked for")
        part = copy.copy(self)
        part._rows = self._rows[np.asarray(indices, dtype=np.int64)]
        return part

    def count_instances(self) -> tuple[int, int]:
        """How many instances of these images have a segmentation that is used, and how many only a box.

        Crowds are left out. Nothing is decoded: a segmentation that covers no pixel still counts as one.
        """
        chosen = np.zeros(len(self._index.image_ids), dtype=bool)
        chosen[self._rows] = True
        instances = np.repeat(chosen, np.diff(self._index.offsets)) & ~self._index.iscrowd
        labels = self._labels[self._index.category_rows]
        with_mask = instances & self._label_has_mask[labels] & (self._index.segmentations.kinds != NONE)
        return int(with_mask.sum()), int((instances & ~with_mask).sum())

    @property
    def file_names(self) -> list[str]:
        """The file's `file_name` of each image."""
        return [self._index.file_names[row] for row in self._rows]

    @property
    def sampling_weights(self) -> Float64[Tensor, " n"] | None:
        """One number per image, from the optional key `sampling_weight` of its entry; None where none has it.

        Where some images have the key and others do not, the others weigh 1.
        """
        weights = self._index.sampling_weights
        return None if weights is None else torch.from_numpy(weights[self._rows])

    def _path(self, index: int) -> Path:
        return self._images / self._index.file_names[self._rows[index]]

    def _image(self, index: int) -> UInt8[Tensor, "3 h w"]:
        height, width = self._index.image_sizes[self._rows[index]].tolist()
        return read_annotated_image(self._path(index), (height, width), self._index.source)

    def _target(self, index: int) -> Target:
        row = int(self._rows[index])
        part = slice(int(self._index.offsets[row]), int(self._index.offsets[row + 1]))
        labels = self._labels[self._index.category_rows[part]]
        height, width = self._index.image_sizes[row].tolist()
        annotations = np.where(self._label_has_mask[labels], np.arange(part.start, part.stop), -1)
        masks, has_mask = self._index.segmentations.decode(annotations.tolist(), (height, width))
        identity = self._index.image_ids[row]
        return Target(
            boxes=torch.from_numpy(self._index.boxes[part].copy()),
            labels=torch.from_numpy(labels),
            masks=masks,
            has_mask=has_mask,
            iscrowd=torch.from_numpy(self._index.iscrowd[part].copy()),
            ids=torch.from_numpy(self._index.ids[part].copy()),
            image_id=identity if isinstance(identity, str) else int(identity),
        )


def read_annotated_image(path: Path, size: tuple[int, int], source: str) -> UInt8[Tensor, "3 h w"]:
    """The image at `path` as RGB, in the (height, width) that the annotation file `source` gives for it.

    COCO annotates the pixels as stored, so an EXIF orientation is applied only where the size fits after it.

    Raises:
        UserError: the file is missing, cannot be read as an image, or has another size.
    """
    require_file(path, source)
    try:
        register_heif()
        with Image.open(path) as stored:
            if (stored.height, stored.width) == size:
                stored.getexif().pop(ExifTags.Base.Orientation, None)
            image = read_image(stored)
    except Exception as error:  # decoders report broken data in any way there is
        raise UserError(f"cannot read the image {path}: {error}") from error
    found = tuple(image.shape[1:])
    if found != size:
        raise UserError(
            f"the image {path} has {found[0]} x {found[1]} pixels (height x width), "
            f"but {source} says {size[0]} x {size[1]}"
        )
    return image


def require_file(path: Path, source: str) -> None:
    """Refuse a file of the annotation file `source` that is not there.

    Raises:
        UserError: it does not exist.
    """
    if not path.is_file():
        raise UserError(f"the image {path}, listed in {source}, does not exist")


def split_by_hash(file_names: Sequence[str], share: float) -> tuple[list[int], list[int]]:
    """Indices of the training and of the validation images, by a hash of each file name.

    An image's side depends on its own name and `share` alone (sha256), not on the other images, the order or
    the machine. At least one image lies on each side.

    Raises:
        UserError: there are fewer than two images.
        ValueError: `share` does not lie between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1, but is {share}")
    if len(file_names) < 2:
        raise UserError("at least 2 images are needed to keep some out for validation")
    places = np.array([_hash_place(name) for name in file_names])
    validation = places < share
    validation[places.argmin()] = True
    validation[places.argmax()] = False
    return np.flatnonzero(~validation).tolist(), np.flatnonzero(validation).tolist()


def _hash_place(name: str) -> float:
    """Where `name` lies in 0..1."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
