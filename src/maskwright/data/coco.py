"""COCO instance annotations as a data set of images and `Target`s, and what the two COCO formats share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from maskwright.data.annotated_pictures import require_file
from maskwright.data.annotations import AnnotationIndex, CocoIndex, read_annotations
from maskwright.data.categories import labels_of_categories, resolve_mask_classes
from maskwright.data.dataset import DataSource, FileDataset, Inspection, InstanceTable, Transforms
from maskwright.data.images import image_of
from maskwright.data.orientation import ExifRule
from maskwright.data.panoptic_annotations import is_panoptic
from maskwright.data.picture_folder import ListedImage, ListedPictures, PictureFolder
from maskwright.data.problems import Problem
from maskwright.data.segmentations import NONE
from maskwright.errors import UserError
from maskwright.structures import Category, EncodedMasks, Target


class CocoDataset(FileDataset):
    """What the data sets of both COCO formats share: images, label space and the columns of the file.

    Any category ids are taken; nothing has to be registered. The annotations are held in flat arrays, which forked
    loader workers share. `sampling_weights` come from the optional key `sampling_weight` of an image's entry; where
    some images have it, the others weigh 1.
    """

    def __init__(
        self,
        pictures: ListedPictures,
        index: CocoIndex,
        categories: Sequence[Category] | None,
        transforms: Transforms | None,
    ) -> None:
        """Check a file that was read; arguments as of the formats.

        Raises:
            UserError: the file is unusable, or a class that it uses is not in `categories`.
        """
        index.refuse_unusable()
        self._pictures = pictures
        self._columns = index
        self.source = index.source
        self.file_categories = index.categories
        self.categories = list(index.categories if categories is None else categories)
        used = set(np.unique(index.category_rows).tolist())
        self._row_labels = labels_of_categories(index.categories, used, self.categories, index.source)
        self.skipped, self.repaired = index.skipped, index.repairs.counts
        self.sampling_weights = None if index.sampling_weights is None else torch.from_numpy(index.sampling_weights)
        self.transforms = transforms

    def __len__(self) -> int:
        return len(self._columns.image_ids)

    @cached_property
    def file_names(self) -> list[str]:
        """The file's `file_name` of each image."""
        return list(self._columns.file_names)

    def _read_image(self, image: ListedImage) -> UInt8[Tensor, "3 h w"]:
        return image_of(self._pictures.read(image, self._columns.source))

    def _labels(self, rows: slice) -> np.ndarray:
        return self._row_labels[self._columns.category_rows[rows]]

    def _instances(self, has_mask: Bool[np.ndarray, " m"]) -> InstanceTable:
        kept = ~self._columns.iscrowd
        return InstanceTable(self._columns.image_rows[kept], self._labels(slice(None))[kept], has_mask[kept])


class InstanceDataset(CocoDataset):
    """The instances of an index, wherever it was read from, and their images.

    An instance has a mask where its `segmentation` (polygons, run lengths, compressed run lengths) is not empty
    and its class is in `mask_classes`; otherwise it keeps its box with `has_mask` false, and its mask is not
    decoded. A segmentation that is malformed or covers no pixel counts as none. Crowd annotations are kept with
    `iscrowd` true. Boxes come from `bbox`, clipped to the image; annotations without a usable box, or of an
    image or category that the file does not list, are dropped.
    """

    task = "instance"

    def __init__(
        self,
        pictures: ListedPictures,
        index: AnnotationIndex,
        *,
        categories: Sequence[Category] | None,
        mask_classes: str | Sequence[str],
        transforms: Transforms | None,
    ) -> None:
        """Check an index; arguments as of the formats.

        Raises:
            UserError: it is unusable, a class with annotations is not in `categories`, or a mask class is unknown.
        """
        super().__init__(pictures, index, categories, transforms)
        self._index = index
        self.mask_classes = resolve_mask_classes(mask_classes, self.categories)
        names = set(self.mask_classes)
        self._label_has_mask = np.array([category["name"] in names for category in self.categories], dtype=bool)

    @cached_property
    def instances(self) -> InstanceTable:
        """See `SegmentationDataset`; nothing is decoded."""
        has_segmentation = self._index.segmentations.kinds != NONE
        return self._instances(self._label_has_mask[self._labels(slice(None))] & has_segmentation)

    def read_sample(self, index: int) -> tuple[UInt8[Tensor, "3 h w"], Target]:
        """See `SegmentationDataset`."""
        image, rows = self._index.image(index), self._index.rows_of(index)
        pixels = self._read_image(image)
        labels = self._labels(rows)
        annotations = np.where(self._label_has_mask[labels], np.arange(rows.start, rows.stop), -1)
        masks = EncodedMasks(self._index.segmentations.encode(annotations.tolist(), image.size), image.size)
        return pixels, Target(
            boxes=torch.from_numpy(self._index.boxes[rows].copy()),
            labels=torch.from_numpy(labels),
            masks=masks,
            has_mask=masks.areas() > 0,
            iscrowd=torch.from_numpy(self._index.iscrowd[rows].copy()),
            ids=torch.from_numpy(self._index.ids[rows].copy()),
            image_id=image.id,
        )


class CocoInstances(InstanceDataset):
    """A COCO instances file and its folder of images."""

    format_name = "COCO instances files"

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        *,
        categories: Sequence[Category] | None = None,
        mask_classes: str | Sequence[str] = "all",
        transforms: Transforms | None = None,
        exif: ExifRule = "auto",
    ) -> None:
        """Read the annotation file.

        Args:
            images: the folder that the file's `file_name`s are relative to.
            annotations: the COCO instances file.
            categories: the label space to map the file's classes to, by name (a model's `categories`); None takes
                the file's own categories in file order.
            mask_classes: `all`, `voc`, `non_voc` or names out of the label space (`resolve_mask_classes`).
            transforms: the augmentation.
            exif: the frame of annotations of pictures with an EXIF orientation (`choose_frame`).

        Raises:
            UserError: the file is unusable, a class with annotations is not in `categories`, a mask class is
                unknown, or the folder or its first image is missing.
        """
        pictures = PictureFolder(images, exif)
        index = read_annotations(annotations, pictures)
        super().__init__(pictures, index, categories=categories, mask_classes=mask_classes, transforms=transforms)
        require_file(pictures.path(index.file_names[0]), index.source)

    @classmethod
    def mismatch(cls, annotations: str | Path) -> str | None:
        """See `FileDataset`."""
        return "is a COCO panoptic file" if is_panoptic(annotations) else None

    @classmethod
    def open(cls, source: DataSource) -> CocoInstances:
        """See `FileDataset`."""
        return cls(
            source.images,
            source.annotations,
            categories=source.categories,
            mask_classes=source.mask_classes,
            exif=source.exif,
        )

    @classmethod
    def inspect(
        cls, annotations: str | Path, segmentations: str | Path | None = None, pictures: PictureFolder | None = None
    ) -> Inspection:
        """See `FileDataset`; `segmentations` must be None."""
        if segmentations is not None:
            raise UserError(
                f"{annotations} is no panoptic file (it has no 'segments_info'): --segmentations has no use"
            )
        return inspect_instances(read_annotations(annotations, pictures), pictures)


def inspect_instances(index: AnnotationIndex, pictures: ListedPictures | None) -> Inspection:
    """All that an index holds, every mask decoded."""
    has_mask, problems = _decode_all(index)
    total, masks, crowds = len(index.ids), int(has_mask.sum()), int(index.iscrowd.sum())
    dropped = sum(problem.effect == "dropped" for problem in index.problems)
    return Inspection(
        source=index.source,
        summary=[
            f"images: {len(index.image_ids)}, of these without annotations: {(np.diff(index.offsets) == 0).sum()}",
            f"annotations: {total} (masks: {masks}, boxes without masks: {total - masks}, "
            f"crowds among them: {crowds}), dropped: {dropped}",
        ],
        classes=_class_rows(index, has_mask),
        problems=index.problems + problems,
        repairs=index.repairs,
        images=[index.image(row) for row in range(len(index.image_ids))],
        pictures=pictures,
        learnable_images=len(np.unique(index.image_rows[has_mask & ~index.iscrowd])),
        lesson="an instance, crowds apart, with a usable mask",
        boxes_without_masks=int((~has_mask & ~index.iscrowd).sum()),
    )


def _decode_all(index: AnnotationIndex) -> tuple[Bool[np.ndarray, " m"], list[Problem]]:
    """Which annotations have a usable mask, and the problems that show only in decoding."""
    has_mask = np.zeros(len(index.ids), dtype=bool)
    problems: list[Problem] = []
    for image, size in enumerate(index.image_sizes.tolist()):
        part = index.rows_of(image)
        rows = (np.flatnonzero(index.segmentations.kinds[part] != NONE) + part.start).tolist()
        masks = EncodedMasks(index.segmentations.encode(rows, tuple(size)), tuple(size))
        found = (masks.areas() > 0).tolist()
        has_mask[rows] = found
        extents = masks.extents().double().tolist()
        problems += filter(None, map(partial(_mask_problem, index), rows, found, extents))
    return has_mask, problems


def _mask_problem(index: AnnotationIndex, row: int, has_mask: bool, extent: list[float]) -> Problem | None:
    """What is wrong with the mask of annotation `row`, which reaches over the box `extent`."""
    if not has_mask:
        reason = "segmentation is malformed or covers no pixel of the image"
        return Problem("annotation", index.own_id(row), "unusable segmentation", reason, "box only")
    if box_overlap(index.boxes[row], extent) < 0.5:
        box = [round(float(number), 1) for number in index.boxes[row]]
        reason = f"bbox has the corners {box}, but its mask reaches from {extent[:2]} to {extent[2:]}"
        return Problem("annotation", index.own_id(row), "bbox that does not fit its mask", reason, "kept")
    return None


def box_overlap(box: np.ndarray, other: Sequence[float]) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2 of some extent."""
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    intersection = float(np.prod(np.maximum(sides, 0)))
    areas = [float((corners[2] - corners[0]) * (corners[3] - corners[1])) for corners in (box, other)]
    return intersection / (sum(areas) - intersection)


def _class_rows(index: AnnotationIndex, has_mask: Bool[np.ndarray, " m"]) -> list[dict[str, str]]:
    rows = []
    for position, category in enumerate(index.categories):
        own = index.category_rows == position
        counts = {
            "boxes": own.sum(),
            "masks": (own & has_mask).sum(),
            "boxes without masks": (own & ~has_mask).sum(),
            "crowds": (own & index.iscrowd).sum(),
        }
        rows.append({"class": category["name"], **{head: str(count) for head, count in counts.items()}})
    return rows
