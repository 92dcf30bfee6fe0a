"""What a data set is to training, to evaluation and to `maskwright data check`, whatever its files look like."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from maskwright.data.normalise import Repairs
from maskwright.data.orientation import ExifRule
from maskwright.data.picture_folder import ListedImage, ListedPictures, PictureFolder
from maskwright.data.problems import Problem
from maskwright.errors import UserError
from maskwright.structures import Category, Task

Transforms = Callable[[Tensor, Any], tuple[Tensor, Any]]
"""(uint8 RGB image [3, H, W], its target) -> (image, target), both in another frame; masks come out as bool planes."""

Mix = Callable[[list[Tensor], list[Any]], tuple[list[Tensor], list[Any]]]
"""The images and targets of a batch, each transformed -> the same, changed by what the others hold."""


@dataclass(frozen=True)
class InstanceTable:
    """The instances (or segments) of a data set without its crowds, one row each, in the order of the images.

    images: the index of the image that each is in.
    labels: in 0..C-1.
    has_mask: whether its mask may be learnt; a mask that turns out to have no pixel when it is decoded counts, too.
    """

    images: Int64[np.ndarray, " m"]
    labels: Int64[np.ndarray, " m"]
    has_mask: Bool[np.ndarray, " m"]


class SegmentationDataset(ABC):
    """Images with their targets: the base class of every format, and of a data set of your own.

    `data[i]` is (image, target) of the i-th image: uint8 RGB [3, H, W], and a `Target` (task `instance`) or a
    `PanopticTarget` (task `panoptic`) in the frame of that image. Evaluation takes these samples as they are. Training
    takes `data[(i, seed)]`: the transforms run with torch's random state seeded by `seed` (it is put back afterwards),
    so that augmentation is a function of the sample's seed alone.

    Without transforms the masks of a `Target` are run lengths (`EncodedMasks`) or bool planes, as the data set likes:
    run lengths take little memory, however large the image. The transforms crop either to bool planes.

    A data set of your own sets `task` and `categories` and defines two methods; everything else has a default:

        class Cells(SegmentationDataset):
            task = "instance"
            categories = [{"id": 1, "name": "cell"}]

            def __len__(self): ...
            def read_sample(self, index): ...  # (image, Target)

        train_recipe(resolve_recipe("deep_mac/tiny"), data_sets=DataSets(Cells(...), Cells(...)))

    `training.engine.train_recipe` takes it in place of the recipe's files. To evaluate a model on it, feed the batches
    of `loaders.evaluation_loader` to the measurements of `evaluation.measurement`. Loader workers are forked: hold
    what is large in arrays rather than in lists of objects.

    Attributes:
        task: what its targets describe.
        categories: the label space (position = label).
        transforms: called with (image, target); may be replaced at any time. None leaves samples as they are.
        mix: called with the images and targets of a training batch, random as `transforms`; None leaves them alone.
        sampling_weights: float64 [n], how often each image is drawn relative to the others; None draws all alike.
        skipped: how many entries were dropped or lost their mask while the files were read, by kind of reason.
        repaired: how many entries were corrected while the files were read, by kind of repair.
    """

    task: Task
    categories: list[Category]
    transforms: Transforms | None = None
    mix: Mix | None = None
    sampling_weights: Tensor | None = None
    skipped: Mapping[str, int] = {}
    repaired: Mapping[str, int] = {}

    @abstractmethod
    def __len__(self) -> int:
        """The number of images."""

    @abstractmethod
    def read_sample(self, index: int) -> tuple[Tensor, Any]:
        """Image and target of the image at `index` (0..len-1), without the transforms.

        Raises:
            UserError: the image cannot be read.
        """

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Any]:
        index, seed = key if isinstance(key, tuple) else (key, None)
        if not -len(self) <= index < len(self):
            raise IndexError(f"expected an index in 0..{len(self) - 1}, but got {index}")
        image, target = self.read_sample(index % len(self))
        if self.transforms is None:
            return image, target
        if seed is None:
            return self.transforms(image, target)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.transforms(image, target)

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> list[tuple[Tensor, Any]]:
        """The samples of a batch, as a `DataLoader` asks for them; mixed where the keys have seeds."""
        samples = [self[key] for key in keys]
        seeds = [key[1] for key in keys if isinstance(key, tuple)]
        if self.mix is None or not seeds:
            return samples
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(sum(seeds) % 2**63)
            images, targets = self.mix([image for image, _ in samples], [target for _, target in samples])
        return list(zip(images, targets, strict=True))

    @cached_property
    def source(self) -> str:
        """What messages call it: its annotation file."""
        return type(self).__name__

    @cached_property
    def file_categories(self) -> list[Category]:
        """The categories as the files list them, with the ids that results are written with."""
        return self.categories

    @cached_property
    def file_names(self) -> list[str]:
        """A name for each image, unlike all others."""
        return [str(index) for index in range(len(self))]

    @cached_property
    def split_keys(self) -> list[str]:
        """What decides which images are set aside for validation; those with equal ones stay together."""
        return self.file_names

    @cached_property
    def instances(self) -> InstanceTable:
        """All instances. This default reads every sample once: define it where the files tell it sooner."""
        rows = [(index, *row) for index in range(len(self)) for row in _instances_of(self.read_sample(index)[1])]
        images, labels, has_mask = np.array(rows, dtype=np.int64).reshape(-1, 3).T
        return InstanceTable(images, labels, has_mask.astype(bool))

    @cached_property
    def mask_classes(self) -> list[str]:
        """The names of the classes whose masks may be learnt where there are any (`find_mask_classes`)."""
        found = set(self.instances.labels[self.instances.has_mask].tolist())
        return [category["name"] for label, category in enumerate(self.categories) if label in found]

    def mask_labels(self, index: int) -> set[int]:
        """The labels, crowds apart, of which the image at `index` has a mask that may be learnt.

        The masks are decoded: one without a pixel does not count. This is the rule of `maskwright data check`, too.

        Raises:
            UserError: the image cannot be read.
        """
        table = self.instances
        if not table.has_mask[slice(*np.searchsorted(table.images, [index, index + 1]))].any():
            return set()
        return {label for label, has_mask in _instances_of(self.read_sample(index)[1]) if has_mask}

    def find_mask_classes(self) -> list[str]:
        """The names of the classes with at least one mask that may be learnt.

        Few images are read: each has a mask of a class that those before it lack.

        Raises:
            UserError: one of these cannot be read.
        """
        table, found = self.instances, set[int]()
        rows = zip(table.images[table.has_mask].tolist(), table.labels[table.has_mask].tolist(), strict=True)
        for image, label in rows:
            if label not in found:
                found |= self.mask_labels(image)
        return [category["name"] for label, category in enumerate(self.categories) if label in found]

    def count_instances(self) -> tuple[int, int]:
        """How many instances have a mask that may be learnt, and how many have only a box."""
        has_mask = self.instances.has_mask
        return int(has_mask.sum()), int((~has_mask).sum())

    def contents(self) -> str:
        """How much there is to learn or to measure, in words."""
        masks, boxes = self.count_instances()
        if self.task == "panoptic":
            return f"{len(self)} images, {masks} segments; {len(self.categories)} classes"
        classes = len(np.unique(self.instances.labels[self.instances.has_mask]))
        return (
            f"{len(self)} images, {masks} instances with masks, {boxes} with boxes only; "
            f"masks of {classes} of {len(self.categories)} classes"
        )

    def weights_of(self, indices: Sequence[int] | np.ndarray) -> Tensor | None:
        """How often each of the images at `indices` is drawn where the others are left out; None draws all alike."""
        return None if self.sampling_weights is None else self.sampling_weights[indices]

    def subset(self, indices: Sequence[int]) -> SegmentationDataset:
        """The images at `indices` of this data set, in that order, with transforms of its own (at first the same).

        Raises:
            UserError: `indices` is empty.
        """
        return _Subset(self, indices)


class _Subset(SegmentationDataset):
    """Some of the images of another data set."""

    def __init__(self, whole: SegmentationDataset, indices: Sequence[int]) -> None:
        if len(indices) == 0:
            raise UserError(f"{whole.source}: a part of the data set without any image was asked for")
        self._whole = whole
        self._indices = np.asarray(indices, dtype=np.int64)
        self.task, self.categories = whole.task, whole.categories
        self.transforms, self.mix = whole.transforms, whole.mix
        self.skipped, self.repaired = whole.skipped, whole.repaired
        self.sampling_weights = whole.weights_of(self._indices)

    def __len__(self) -> int:
        return len(self._indices)

    def read_sample(self, index: int) -> tuple[Tensor, Any]:
        return self._whole.read_sample(int(self._indices[index]))

    @cached_property
    def source(self) -> str:
        return self._whole.source

    @cached_property
    def file_categories(self) -> list[Category]:
        return self._whole.file_categories

    @cached_property
    def file_names(self) -> list[str]:
        names = self._whole.file_names
        return [names[index] for index in self._indices]

    @cached_property
    def split_keys(self) -> list[str]:
        keys = self._whole.split_keys
        return [keys[index] for index in self._indices]

    def weights_of(self, indices: Sequence[int] | np.ndarray) -> Tensor | None:
        return self._whole.weights_of(self._indices[indices])

    @cached_property
    def instances(self) -> InstanceTable:
        table = self._whole.instances
        starts, ends = (np.searchsorted(table.images, self._indices, side) for side in ("left", "right"))
        rows = np.concatenate([np.arange(start, end) for start, end in zip(starts, ends, strict=True)])
        images = np.repeat(np.arange(len(self)), ends - starts)
        return InstanceTable(images, table.labels[rows], table.has_mask[rows])

    @cached_property
    def mask_classes(self) -> list[str]:
        return self._whole.mask_classes


def _instances_of(target: Mapping[str, Tensor]) -> list[tuple[int, bool]]:
    """(label, has a mask) of every instance of a target that is no crowd; a segment has one where it has a pixel."""
    labels, kept = target["labels"], ~target["iscrowd"]
    if "has_mask" in target:
        has_mask = target["has_mask"]
    else:
        has_mask = torch.isin(torch.arange(len(labels)), target["segmentation"])
    return list(zip(labels[kept].tolist(), has_mask[kept].tolist(), strict=True))


@dataclass(frozen=True)
class DataSource:
    """What a data set is opened from.

    images: the folder that the file names are relative to.
    annotations: the annotation file.
    segmentations: the folder of a panoptic file's PNGs; None takes the one beside the file that is named like it.
    categories: the label space to map the file's classes to, by name (a model's `categories`); None takes the file's.
    mask_classes: of a file of instances, whose masks may be learnt: `all`, `voc`, `non_voc` or names out of the label
        space (`resolve_mask_classes`).
    exif: the frame that the annotations of pictures with an EXIF orientation are in (`choose_frame`).
    """

    images: str | Path
    annotations: str | Path
    segmentations: str | Path | None = None
    categories: Sequence[Category] | None = None
    mask_classes: str | Sequence[str] = "all"
    exif: ExifRule = "auto"


@dataclass(frozen=True)
class Inspection:
    """What an annotation file holds and what is wrong with it, as one format tells it to `maskwright data check`.

    source: the file.
    summary: its counts, as lines of text.
    classes: a row for each class in file order, by the heads of the table's columns.
    problems: every broken entry, in the order found.
    repairs: what was corrected.
    images: all that can be used.
    pictures: theirs, where the format holds them or their folder is known.
    learnable_images: how many of them have an instance, crowds apart, that can be learnt from.
    lesson: in words, what such an image has.
    boxes_without_masks: how many annotations, crowds apart, `maskwright complete` could give a mask.
    """

    source: str
    summary: Sequence[str]
    classes: Sequence[Mapping[str, str]]
    problems: Sequence[Problem]
    repairs: Repairs
    images: Sequence[ListedImage]
    pictures: ListedPictures | None
    learnable_images: int
    lesson: str
    boxes_without_masks: int = 0


class FileDataset(SegmentationDataset):
    """A data set that is opened from files of one format: the base class of the rows of `formats.FORMATS`.

    Attributes:
        format_name: in the plural, as messages name its files: "COCO instances files".
    """

    format_name: ClassVar[str]

    @classmethod
    @abstractmethod
    def mismatch(cls, annotations: str | Path) -> str | None:
        """Why the annotation file is not of this format, as the end of a sentence about it; None where it may be.

        Raises:
            UserError: the file cannot be read.
        """

    @classmethod
    @abstractmethod
    def open(cls, source: DataSource) -> FileDataset:
        """The data set of these files.

        Raises:
            UserError: a file is missing or unusable, or a class unknown.
        """

    @classmethod
    @abstractmethod
    def inspect(
        cls, annotations: str | Path, segmentations: str | Path | None = None, pictures: PictureFolder | None = None
    ) -> Inspection:
        """All that the file holds, every mask decoded.

        Of `pictures`, only those are opened whose size or name the file does not tell.

        Raises:
            UserError: it is not a file of this format at all, or a folder does not exist.
        """


def split_by_hash(
    file_names: Sequence[str],
    share: float,
    learnable: Callable[[int], bool] = lambda _: True,
    measurable: Callable[[int], bool] = lambda _: True,
) -> tuple[list[int], list[int]]:
    """Indices of the training and of the validation images, by a hash of each file name (`split_keys`).

    An image's side depends on its own name and `share` alone (sha256), not on the other images, the order or
    the machine. Two exceptions: at least one image is on each side; and where there are two images to do it with, one
    moves to a side that otherwise had nothing to learn from, or nothing to measure.

    Args:
        file_names: of the images.
        share: of the images that are set aside, on average.
        learnable: whether the image at an index can be learnt from.
        measurable: whether it can be validated on.

    Raises:
        UserError: there are fewer than two images.
        ValueError: `share` is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1, but is {share}")
    if len(file_names) < 2:
        raise UserError("at least 2 images are needed to keep some out for validation")
    fractions = np.array([_hash_fraction(name) for name in file_names])
    validation = fractions < share
    validation[fractions.argmin()] = True
    validation[fractions.argmax()] = False
    _balance(validation, fractions.argsort(), learnable, measurable)
    return np.flatnonzero(~validation).tolist(), np.flatnonzero(validation).tolist()


def _balance(
    validation: Bool[np.ndarray, " n"],
    order: Int64[np.ndarray, " n"],
    learnable: Callable[[int], bool],
    measurable: Callable[[int], bool],
) -> None:
    """Move images between the sides until both have masks, if that can be; `order` is from validation to training.

    Images are asked about one by one, and few of them where the sides are already as they should be.
    """
    from_the_end = sorted(order[::-1].tolist(), key=validation.__getitem__)  # the training images first
    kept = next(filter(learnable, from_the_end), None)
    others = sorted(order.tolist(), key=(~validation).__getitem__)  # the validation images first
    set_aside = next((image for image in others if image != kept and measurable(image)), None)
    if kept is not None and set_aside is not None:
        validation[[kept, set_aside]] = [False, True]


def _hash_fraction(name: str) -> float:
    """A number in 0..1 that depends on `name` alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
