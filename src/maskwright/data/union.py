"""Several data sets as one: their classes united by name, and each with its share of the draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskwright.data.categories import labels_of_names, unite_categories
from maskwright.data.dataset import DataSource, InstanceTable, SegmentationDataset
from maskwright.data.formats import open_data_set
from maskwright.errors import UserError
from maskwright.structures import Category, Task


class UnionDataset(SegmentationDataset):
    """The images of several data sets, one set after the other, in one label space.

    Classes are united by name, with the usual synonyms (`unite_categories`); one may have masks in one set and boxes
    alone in another. Annotation ids stay those of the sets; names and ids of images have the set's name before them.

    Attributes:
        sets: the data sets by name.
    """

    def __init__(self, sets: Mapping[str, SegmentationDataset], shares: Mapping[str, float] | None = None) -> None:
        """Unite the sets.

        Args:
            sets: by name; their own transforms have no use.
            shares: of the draws that come from each set, relative to one another, however many images it has; None
                draws all images alike. A set's own `sampling_weights` divide its share.

        Raises:
            UserError: the sets have different tasks.
        """
        self.sets = dict(sets)
        parts = list(self.sets.values())
        tasks = {part.task for part in parts}
        if len(tasks) != 1:
            raise UserError(f"data sets of one task can be united, but these have the tasks {sorted(tasks)}")
        self.task = parts[0].task
        self.categories = unite_categories([part.categories for part in parts])
        self._labels = [
            np.array(labels_of_names([category["name"] for category in part.categories], self.categories))
            for part in parts
        ]
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self._part_of_image = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        self._shares = None if shares is None else np.array([shares[name] for name in self.sets], dtype=np.float64)
        self._weights = _own_weights(parts)
        self.sampling_weights = self.weights_of(np.arange(len(self)))
        self.skipped = sum((Counter(part.skipped) for part in parts), Counter())
        self.repaired = sum((Counter(part.repaired) for part in parts), Counter())

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read_sample(self, index: int) -> tuple[Tensor, Any]:
        """See `SegmentationDataset`."""
        place = int(self._part_of_image[index])
        name, part = list(self.sets.items())[place]
        image, target = part.read_sample(index - int(self._starts[place]))
        labels = torch.from_numpy(self._labels[place])[target["labels"]]
        return image, {**target, "labels": labels, "image_id": f"{name}/{target['image_id']}"}

    def weights_of(self, indices: Sequence[int] | np.ndarray) -> Tensor | None:
        """See `SegmentationDataset`: each set keeps its share, however many of its images are left."""
        if self._shares is None and self._weights is None:
            return None
        parts = self._part_of_image[indices]
        counts = np.bincount(parts, minlength=len(self.sets))
        weights = np.ones(len(parts)) if self._weights is None else self._weights[indices]
        shares = counts if self._shares is None else self._shares
        sums = np.bincount(parts, weights, minlength=len(self.sets))
        return torch.from_numpy(weights * (shares / np.where(sums > 0, sums, 1))[parts])

    @cached_property
    def source(self) -> str:
        """The sets by name."""
        return f"the sets {', '.join(self.sets)}"

    @cached_property
    def file_names(self) -> list[str]:
        """The set's name and the image's own."""
        return [f"{name}/{file_name}" for name, part in self.sets.items() for file_name in part.file_names]

    @cached_property
    def split_keys(self) -> list[str]:
        """Of the sets: a picture of one name is on one side, in whichever sets it is."""
        return [key for part in self.sets.values() for key in part.split_keys]

    @cached_property
    def instances(self) -> InstanceTable:
        """See `SegmentationDataset`."""
        tables = [part.instances for part in self.sets.values()]
        return InstanceTable(
            np.concatenate([table.images + start for table, start in zip(tables, self._starts, strict=False)]),
            np.concatenate([labels[table.labels] for table, labels in zip(tables, self._labels, strict=True)]),
            np.concatenate([table.has_mask for table in tables]),
        )

    @cached_property
    def mask_classes(self) -> list[str]:
        """Those of any set, by their names in the union."""
        names = [name for part in self.sets.values() for name in part.mask_classes]
        found = set(labels_of_names(names, self.categories))
        return [category["name"] for label, category in enumerate(self.categories) if label in found]


def _own_weights(parts: Sequence[SegmentationDataset]) -> np.ndarray | None:
    """How often each image is drawn, relative to the others of its set; None: all alike."""
    if all(part.sampling_weights is None for part in parts):
        return None
    weights = [
        np.ones(len(part)) if part.sampling_weights is None else part.sampling_weights.double().numpy()
        for part in parts
    ]
    return np.concatenate(weights)


@dataclass(frozen=True)
class UnionSource:
    """What a union is opened from.

    sets: what each set is opened from, by its name; their `mask_classes` are classes of their own files, or of
        `categories` where there are such.
    shares: of the draws, by the name of the set; None draws all images alike.
    categories: the label space to map all classes to, by name (a model's `categories`); None unites the files'.
    """

    sets: Mapping[str, DataSource]
    shares: Mapping[str, float] | None = None
    categories: Sequence[Category] | None = None


def open_union(source: UnionSource, task: Task | None = None) -> UnionDataset:
    """The union of all sets of `source`; `task` as of `open_data_set`.

    Raises:
        UserError: as `open_data_set`, for any of the sets.
    """
    sets = {
        name: open_data_set(replace(files, categories=source.categories), task) for name, files in source.sets.items()
    }
    return UnionDataset(sets, source.shares)
