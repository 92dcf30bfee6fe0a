"""What an annotation file holds and what is wrong with it: `maskwright data check`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskwright.data.annotations import AnnotationIndex, Problem, read_annotations
from maskwright.data.check_images import check_images
from maskwright.data.check_panoptic import PanopticReport, check_panoptic
from maskwright.data.panoptic_annotations import is_panoptic
from maskwright.data.segmentations import NONE
from maskwright.errors import UserError


@dataclass(frozen=True)
class ClassCounts:
    """The usable annotations of one class; `boxes` counts all, `boxes_without_masks` those without a usable mask."""

    name: str
    boxes: int
    masks: int
    boxes_without_masks: int
    crowds: int


@dataclass(frozen=True)
class AnnotationReport:
    """The contents of a COCO instances file, counted.

    source: the file.
    images, images_without_annotations: of all listed images.
    annotations: usable ones, crowds among them; boxes = masks + boxes_without_masks = annotations.
    dropped: annotations that are left out because they are broken.
    classes: in file order.
    problems: every broken annotation, image or file-wide flaw, with its reason and what it leads to.
    """

    source: str
    images: int
    images_without_annotations: int
    annotations: int
    masks: int
    boxes_without_masks: int
    crowds: int
    dropped: int
    classes: Sequence[ClassCounts]
    problems: Sequence[Problem]

    @property
    def usable(self) -> bool:
        """Whether `maskwright train` takes the file: `CocoInstances` can be built from it (and read to its end, if the
        images were checked), and masks are left to learn from when some images are set aside for validation.
        """
        return not any(problem.effect in ("refused", "not for training") for problem in self.problems)

    def __str__(self) -> str:
        """The report as lines of text: counts, a table of classes, all problems, the verdict."""
        lines = [
            f"{self.source}",
            f"images: {self.images}, of these without annotations: {self.images_without_annotations}",
            f"annotations: {self.annotations} (masks: {self.masks}, boxes without masks: {self.boxes_without_masks}, "
            f"crowds among them: {self.crowds}), dropped: {self.dropped}",
            "",
            *self._class_table(),
            "",
            f"problems: {len(self.problems)}",
            *(f"  {problem} [{problem.effect}]" for problem in self.problems),
            "usable for training: " + ("yes" if self.usable else "no"),
        ]
        return "\n".join(lines)

    def _class_table(self) -> list[str]:
        width = max([len("class"), *(len(row.name) for row in self.classes)])
        head = f"{'class':<{width}}  {'boxes':>8}  {'masks':>8}  {'boxes without masks':>19}  {'crowds':>8}"
        rows = [
            f"{row.name:<{width}}  {row.boxes:>8}  {row.masks:>8}  {row.boxes_without_masks:>19}  {row.crowds:>8}"
            for row in self.classes
        ]
        return [head, *rows]


def check_file(
    annotations: str | Path, images: str | Path | None = None, segmentations: str | Path | None = None
) -> AnnotationReport | PanopticReport:
    """The report of a COCO instances file (`check_annotations`) or of a COCO panoptic file (`check_panoptic`).

    The file's content tells which it is; `segmentations` is for a panoptic file only.

    Raises:
        UserError: the file is neither, a folder does not exist, or an instances file came with `segmentations`.
    """
    if is_panoptic(annotations):
        return check_panoptic(annotations, images, segmentations)
    if segmentations is not None:
        raise UserError(f"{annotations} is no panoptic file (it has no 'segments_info'): --segmentations has no use")
    return check_annotations(annotations, images)


def check_annotations(annotations: str | Path, images: str | Path | None = None) -> AnnotationReport:
    """Read a COCO instances file as `CocoInstances` does, decode every mask, and report all that is found.

    With `images`, each image is also read and its size compared with the file's.

    Raises:
        UserError: the file is not a COCO file at all (not JSON, a key missing, unusable categories), or the folder
            `images` does not exist.
    """
    index = read_annotations(annotations)
    problems = list(index.problems)
    dropped = sum(problem.effect == "dropped" for problem in problems)
    has_mask, mask_problems = _check_masks(index)
    problems += mask_problems
    if not any(problem.effect == "refused" for problem in problems):
        problems += _check_training(index, has_mask)
    if images is not None:
        problems += check_images(index.image_ids.tolist(), index.file_names, index.image_sizes, images, index.source)
    return AnnotationReport(
        source=index.source,
        images=len(index.image_ids),
        images_without_annotations=int((np.diff(index.offsets) == 0).sum()),
        annotations=len(index.ids),
        masks=int(has_mask.sum()),
        boxes_without_masks=int((~has_mask).sum()),
        crowds=int(index.iscrowd.sum()),
        dropped=dropped,
        classes=_count_classes(index, has_mask),
        problems=problems,
    )


def _check_masks(index: AnnotationIndex) -> tuple[np.ndarray, list[Problem]]:
    """Which annotations have a usable mask (bool [M]), and the problems that show only in decoding."""
    has_mask = np.zeros(len(index.ids), dtype=bool)
    problems: list[Problem] = []
    for row, (height, width) in enumerate(index.image_sizes.tolist()):
        part = range(int(index.offsets[row]), int(index.offsets[row + 1]))
        for annotation in part:
            if index.segmentations.kinds[annotation] == NONE:
                continue
            has_mask[annotation] = index.segmentations.covers_pixels(annotation, (height, width))
            if not has_mask[annotation]:
                identity = int(index.ids[annotation])
                reason = "segmentation is malformed or covers no pixel of the image"
                problems.append(Problem("annotation", identity, "unusable segmentation", reason, "box only"))
    return has_mask, problems


def _check_training(index: AnnotationIndex, has_mask: np.ndarray) -> list[Problem]:
    """Training needs an image with a mask to learn from, and another one to validate on."""
    rows = np.repeat(np.arange(len(index.image_ids)), np.diff(index.offsets))
    with_mask = len(np.unique(rows[has_mask & ~index.iscrowd]))
    if with_mask >= 2:
        return []
    images = len(index.image_ids)
    reason = (
        f"{'only 1' if with_mask else 'none'} of its images ({images}) has an instance, crowds apart, with a usable "
        "mask; training needs at least 2: one to learn from and one set aside for validation"
    )
    return [Problem("file", "as a whole", "too few images with masks", reason, "not for training")]


def _count_classes(index: AnnotationIndex, has_mask: np.ndarray) -> list[ClassCounts]:
    counts = []
    for row, category in enumerate(index.categories):
        own = index.category_rows == row
        boxes, masks = int(own.sum()), int((own & has_mask).sum())
        counts.append(ClassCounts(category["name"], boxes, masks, boxes - masks, int((own & index.iscrowd).sum())))
    return counts
