"""What a COCO panoptic file and its PNGs hold and what is wrong with them: `maskwright data check`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskwright.data.annotations import Problem
from maskwright.data.check_images import check_images
from maskwright.data.panoptic import read_id_map
from maskwright.data.panoptic_annotations import NO_AREA, PanopticIndex, map_folder, read_panoptic_annotations
from maskwright.errors import UserError


@dataclass(frozen=True)
class SegmentCounts:
    """The usable segments of one class, the crowds among them, and its share of all pixels (void included)."""

    name: str
    isthing: bool
    segments: int
    crowds: int
    pixels: float


@dataclass(frozen=True)
class PanopticReport:
    """The contents of a COCO panoptic file, counted.

    source: the file.
    images: of all those with an annotation; images_without_segments: of these.
    segments: usable ones; things and crowds among them.
    dropped: segments and annotations that are left out because they are broken.
    void: share of all pixels that belong to no usable segment.
    classes: in file order.
    problems: every broken entry and PNG, with its reason and what it leads to.
    """

    source: str
    images: int
    images_without_segments: int
    segments: int
    things: int
    crowds: int
    dropped: int
    void: float
    classes: Sequence[SegmentCounts]
    problems: Sequence[Problem]

    @property
    def usable(self) -> bool:
        """Whether `maskwright train` takes the file, and can set images aside for validation."""
        return not any(problem.effect in ("refused", "not for training") for problem in self.problems)

    def __str__(self) -> str:
        """The report as lines of text: counts, a table of classes, all problems, the verdict."""
        lines = [
            f"{self.source}",
            f"images: {self.images}, of these without segments: {self.images_without_segments}",
            f"segments: {self.segments} (things: {self.things}, stuff: {self.segments - self.things}, "
            f"crowds among them: {self.crowds}), dropped: {self.dropped}",
            f"void: {self.void:.1%} of all pixels",
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
        head = f"{'class':<{width}}  {'':>5}  {'segments':>8}  {'crowds':>8}  {'pixels':>8}"
        rows = [
            f"{row.name:<{width}}  {'thing' if row.isthing else 'stuff':>5}  {row.segments:>8}  {row.crowds:>8}  "
            f"{row.pixels:>8.1%}"
            for row in self.classes
        ]
        return [head, *rows]


def check_panoptic(
    annotations: str | Path, images: str | Path | None = None, segmentations: str | Path | None = None
) -> PanopticReport:
    """Read a COCO panoptic file as `CocoPanoptic` does, compare every PNG with it, and report all that is found.

    Named by PNG and id: pixels whose id has no segment, segments without a pixel, areas that the pixels do not have,
    unknown categories; and PNGs that are missing, unreadable or of another size. With `images`, each image is also
    read and its size compared with the file's.

    Raises:
        UserError: the file is not a COCO panoptic file at all, or a folder does not exist.
    """
    index = read_panoptic_annotations(annotations)
    problems = list(index.problems)
    dropped = sum(problem.effect == "dropped" and problem.subject != "image" for problem in problems)
    areas, void, map_problems = _check_maps(index, map_folder(annotations, segmentations))
    problems += map_problems
    if not any(problem.effect == "refused" for problem in problems):
        problems += _check_training(index, areas)
    if images is not None:
        problems += check_images(index.image_ids.tolist(), index.file_names, index.image_sizes, images, index.source)
    classes = _count_classes(index, areas, int(areas.sum()) + void)
    return PanopticReport(
        source=index.source,
        images=len(index.image_ids),
        images_without_segments=int((np.diff(index.offsets) == 0).sum()),
        segments=len(index.ids),
        things=sum(row.segments for row in classes if row.isthing),
        crowds=int(index.iscrowd.sum()),
        dropped=dropped,
        void=void / max(int(areas.sum()) + void, 1),
        classes=classes,
        problems=problems,
    )


def _check_maps(index: PanopticIndex, folder: Path) -> tuple[np.ndarray, int, list[Problem]]:
    """The pixels of each segment (int64 [M]), those of none, and what the PNGs have wrong."""
    areas = np.zeros(len(index.ids), dtype=np.int64)
    void = 0
    problems: list[Problem] = []
    for row, (height, width) in enumerate(index.image_sizes.tolist()):
        name = index.map_names[row]
        try:
            id_map = read_id_map(folder / name, (height, width), index.source)
        except UserError as error:
            problems.append(Problem("image", index.image_ids[row], "unusable segmentation", str(error), "refused"))
            continue
        found = dict(zip(*(column.tolist() for column in np.unique(id_map, return_counts=True)), strict=True))
        void += found.pop(0, 0)
        for segment in range(int(index.offsets[row]), int(index.offsets[row + 1])):
            areas[segment] = found.pop(int(index.ids[segment]), 0)
            problems += _segment_problems(index, segment, int(areas[segment]), name)
        for identity, count in found.items():
            void += count
            reason = f"{count} pixels have this id, but no usable segment has it"
            problems.append(Problem("segment", f"{identity} of {name}", "id without a segment", reason, "void"))
    return areas, void, problems


def _segment_problems(index: PanopticIndex, segment: int, area: int, name: str) -> list[Problem]:
    identity, listed = f"{index.ids[segment]} of {name}", int(index.areas[segment])
    if area == 0:
        return [Problem("segment", identity, "segment without pixels", "no pixel has this id", "dropped")]
    if listed not in (NO_AREA, area):
        return [Problem("segment", identity, "wrong area", f"area is {listed}, but {area} pixels have this id", "kept")]
    return []


def _check_training(index: PanopticIndex, areas: np.ndarray) -> list[Problem]:
    """Training needs an image with a segment to learn from, and another one to validate on."""
    rows = np.repeat(np.arange(len(index.image_ids)), np.diff(index.offsets))
    with_segment = len(np.unique(rows[(areas > 0) & ~index.iscrowd]))
    if with_segment >= 2:
        return []
    reason = (
        f"{'only 1' if with_segment else 'none'} of its images ({len(index.image_ids)}) has a segment, crowds apart; "
        "training needs at least 2: one to learn from and one set aside for validation"
    )
    return [Problem("file", "as a whole", "too few images with segments", reason, "not for training")]


def _count_classes(index: PanopticIndex, areas: np.ndarray, pixels: int) -> list[SegmentCounts]:
    counts = []
    for row, category in enumerate(index.categories):
        own = index.category_rows == row
        share = float(areas[own].sum()) / max(pixels, 1)
        isthing = category.get("isthing", True)
        crowds = int((own & index.iscrowd).sum())
        counts.append(SegmentCounts(category["name"], isthing, int(own.sum()), crowds, share))
    return counts
