"""COCO segmentations, packed into a few flat arrays and turned into masks when asked for."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import faster_coco_eval.core.mask as coco_mask
import numpy as np

from maskwright.ops.run_lengths import Runs, runs_of_code

NONE, POLYGONS, RUN_LENGTHS = 0, 1, 2

_NO_RUNS = np.zeros((0, 2), dtype=np.int64)


@runtime_checkable
class SegmentationTable(Protocol):
    """The segmentations of M annotations, wherever they are held.

    kinds: uint8 [M], NONE, POLYGONS or RUN_LENGTHS.
    """

    @property
    def kinds(self) -> np.ndarray: ...  # noqa: D102

    def encode(self, rows: Sequence[int], image_size: tuple[int, int]) -> list[Runs]:
        """The runs of the masks of annotations `rows` of one image of `image_size` (height, width).

        A negative row stands for no segmentation. A segmentation that is malformed or holds no pixel gives an empty
        mask, as none does.
        """
        ...


@dataclass(frozen=True)
class Segmentations:
    """A `SegmentationTable` of flat arrays, which forked loader workers share without copies.

    kinds: uint8 [M].
    ranges: int64 [M, 2], a range of polygons, or of bytes in `counts`.
    polygon_ranges: int64 [P, 2], a range of numbers in `coordinates`.
    coordinates: float64, x and y in turn. (float32 would round the tenths differently from the COCO tools.)
    counts: uint8, the compressed counts of all run lengths.
    """

    kinds: np.ndarray
    ranges: np.ndarray
    polygon_ranges: np.ndarray
    coordinates: np.ndarray
    counts: np.ndarray

    def encode(self, rows: Sequence[int], image_size: tuple[int, int]) -> list[Runs]:
        """See `SegmentationTable`."""
        return [self._runs(row, image_size) for row in rows]

    def _runs(self, row: int, image_size: tuple[int, int]) -> Runs:
        if row < 0 or self.kinds[row] == NONE:
            return _NO_RUNS
        try:
            return runs_of_code(self._code(row, image_size))
        except ValueError:  # the counts are malformed
            return _NO_RUNS

    def _code(self, row: int, image_size: tuple[int, int]) -> dict[str, Any]:
        """One annotation as compressed run lengths of `image_size`."""
        height, width = image_size
        start, end = self.ranges[row]
        if self.kinds[row] == POLYGONS:
            polygons = [self.coordinates[first:last].tolist() for first, last in self.polygon_ranges[start:end]]
            return coco_mask.segmToRle(polygons, width, height)
        return {"size": [height, width], "counts": self.counts[start:end].tobytes()}


class SegmentationPacker:
    """Collects segmentations one by one; `pack()` returns them as `Segmentations`."""

    def __init__(self) -> None:
        self._kinds = array("B")
        self._ranges = array("q")
        self._polygon_ranges = array("q")
        self._coordinates = array("d")
        self._counts = bytearray()

    def add(self, segmentation: object, image_size: tuple[int, int]) -> str | None:
        """Append the value of one annotation's `segmentation` key (null and empty values have no mask).

        Returns the reason why it cannot be used, or None where it can; then it is stored as NONE. Compressed
        counts are not read here (`Segmentations.encode` does).
        """
        kind, start, end, reason = NONE, 0, 0, None
        if not segmentation:
            pass
        elif isinstance(segmentation, list):
            kind, start = POLYGONS, len(self._polygon_ranges) // 2
            reason = self._add_polygons(segmentation, image_size)
            end = len(self._polygon_ranges) // 2
        elif isinstance(segmentation, dict):
            kind, start = RUN_LENGTHS, len(self._counts)
            reason = self._add_run_lengths(segmentation, image_size)
            end = len(self._counts)
        else:
            reason = f"segmentation must be polygons or run lengths, but is a {type(segmentation).__name__}"
        self._kinds.append(NONE if reason else kind)
        self._ranges.extend((start, end))
        return reason

    def _add_polygons(self, polygons: list, image_size: tuple[int, int]) -> str | None:
        reach = max(image_size)  # the rasteriser walks along edges, and allocates as much: no far points
        for polygon in polygons:
            if not isinstance(polygon, list):
                return f"segmentation must be a list of polygons [[x1, y1, ...]], but holds a {type(polygon).__name__}"
            if len(polygon) < 6 or len(polygon) % 2:
                return f"polygon must have an even count of at least 6 numbers, but has {len(polygon)}"
            start = len(self._coordinates)
            try:
                self._coordinates.extend(polygon)
                sound = math.isfinite(sum(polygon)) and min(polygon) >= -reach and max(polygon) <= 2 * reach
            except (TypeError, OverflowError):
                return "polygon holds something that is not a number"
            if not sound:
                return "polygon holds NaN or lies far outside of the image"
            self._polygon_ranges.extend((start, len(self._coordinates)))
        return None

    def _add_run_lengths(self, segmentation: dict, image_size: tuple[int, int]) -> str | None:
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if size != list(image_size):
            return f"run-length size is {size}, but the image has [height, width] {list(image_size)}"
        if isinstance(counts, list):
            if not all(type(count) is int and count >= 0 for count in counts):
                return "run-length counts must be integers of at least 0"
            if sum(counts) != image_size[0] * image_size[1]:
                return f"run-length counts add up to {sum(counts)} pixels instead of {image_size[0] * image_size[1]}"
            counts = coco_mask.segmToRle({"size": size, "counts": counts}, image_size[1], image_size[0])["counts"]
        if isinstance(counts, str):
            counts = counts.encode(errors="replace")
        if not isinstance(counts, bytes):
            return f"run-length counts must be a list or a text, but are a {type(counts).__name__}"
        self._counts += counts
        return None

    def pack(self) -> Segmentations:
        """All that was added, in the order of adding."""
        return Segmentations(
            kinds=np.asarray(self._kinds),
            ranges=np.asarray(self._ranges).reshape(-1, 2),
            polygon_ranges=np.asarray(self._polygon_ranges).reshape(-1, 2),
            coordinates=np.asarray(self._coordinates),
            counts=np.frombuffer(bytes(self._counts), dtype=np.uint8),
        )
