"""Panoptic quality: how well segments are found (RQ), how well they fit (SQ), and the product (PQ)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int, Int64

from maskwright.evaluation.metric import Metric
from maskwright.ops.panoptic_map import rows_of_ids
from maskwright.structures import Category, PanopticPrediction, PanopticTarget

VARIANTS = ("official", "in_house")
"""`official`: the COCO panoptic evaluation. `in_house`: the metric of the DeepLab2 trainer."""

VOID, UNLISTED = -1, -2
"""Rows of the pixels of a `SegmentMap` that are unlabelled, and of those whose id the list of segments lacks."""

_COUNTS = ("iou", "true_positives", "false_positives", "false_negatives")


@dataclass(frozen=True)
class SegmentMap:
    """The segments of one image, predicted or true.

    rows: int [H, W], each pixel's row in the fields below, `VOID` or `UNLISTED`.
    labels: int64 [S]; iscrowd: bool [S].
    areas: int64 [S], in pixels: those in `rows`, or what a file says.
    """

    rows: np.ndarray
    labels: np.ndarray
    iscrowd: np.ndarray
    areas: np.ndarray

    @classmethod
    def count(cls, rows: np.ndarray, labels: np.ndarray, iscrowd: np.ndarray | None = None) -> SegmentMap:
        """Segments with the areas that they have in the map; without `iscrowd`, no crowds."""
        crowds = np.zeros(len(labels), dtype=bool) if iscrowd is None else iscrowd
        return cls(rows, labels, crowds, np.bincount(rows[rows >= 0], minlength=len(labels)))


@dataclass(frozen=True)
class ClassPQ:
    """One class of `PanopticQuality.per_class`; pq, sq and rq are NaN where nothing counts.

    iou: the sum over its true positives.
    """

    name: str
    isthing: bool
    pq: float
    sq: float
    rq: float
    iou: float
    true_positives: int
    false_positives: int
    false_negatives: int


class PanopticQuality(Metric):
    """Panoptic quality over all, thing and stuff classes.

    A predicted and a true segment of one class match where their IoU, void pixels of the truth left out of the union,
    exceeds 0.5. Of each class, SQ is the mean IoU of its matches (0 without one),
    RQ = matches / (matches + unmatched predictions / 2 + unmatched truths / 2), and PQ = SQ RQ; means are over the
    classes that have a match, an unmatched prediction or an unmatched truth.

    `official`: crowds match nothing and are not missed. A prediction without a match does not count if more than half
    of it lies on void pixels or on the last crowd region of its class in the file's order. Pixels whose id the file's
    JSON does not list are not void.
    `in_house`: all crowds of one class are one ordinary segment, and so are all segments of one stuff class. A
    prediction without a match does not count if more than half of it lies on void pixels.

    A group without such a class (no stuff at all, say) has NaN where the originals divide by zero. A category without
    `isthing` is a thing. The truth of an image is its target; `add` takes it from elsewhere, files for instance.

    Source: panopticapi, evaluation.py (pq_compute_single_core, PQStat); deeplab2, evaluation/panoptic_quality.py.
    """

    def __init__(self, categories: Sequence[Category], variant: str = "official") -> None:
        """Start with no images.

        Raises:
            ValueError: `variant` is unknown.
        """
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, but is {variant!r}")
        self.categories = list(categories)
        self.variant = variant
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._images: set[int | str] = set()
        self._counts = np.zeros((len(self.categories), len(_COUNTS)), dtype=np.float64)

    def _add_image(self, prediction: PanopticPrediction, target: PanopticTarget) -> None:
        self.add(target["image_id"], _of_prediction(prediction), _of_target(target))

    def add(self, image_id: int | str, prediction: SegmentMap, truth: SegmentMap) -> None:
        """Add one image.

        Raises:
            ValueError: the sizes differ, the image came before, a label is out of range, or the predicted map and its
                list of segments do not agree.
        """
        self._check(image_id, prediction, truth)
        if self.variant == "in_house":
            prediction, truth = self._merged(prediction), self._merged(truth)
        self._counts += _count(prediction, truth, len(self.categories))
        self._images.add(image_id)

    def state(self) -> dict[str, Any]:
        """Everything counted so far, in plain numbers and lists, for `merge` in another process."""
        return {"images": sorted(self._images, key=str), "counts": self._counts.tolist()}

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add the `state()` of another metric of the same categories and variant.

        Raises:
            ValueError: an image was counted in both, or the number of classes differs.
        """
        counts = np.array(state["counts"], dtype=np.float64).reshape(-1, len(_COUNTS))
        if counts.shape != self._counts.shape:
            raise ValueError(f"expected a state of {len(self._counts)} classes, but got one of {len(counts)}")
        if both := self._images & set(state["images"]):
            raise ValueError(f"images were counted twice: {sorted(both, key=str)[:5]}")
        self._images |= set(state["images"])
        self._counts += counts

    def compute(self) -> dict[str, float]:
        """The numbers over all images so far.

        Returns:
            `pq`, `sq`, `rq` in 0..1 (NaN without a class) and `classes`, how many count; each also with the suffixes
            `_things` and `_stuff`. `images`: how many there are.
        """
        isthing = np.array([category.get("isthing", True) for category in self.categories], dtype=bool)
        numbers: dict[str, float] = {}
        for suffix, group in (("", isthing | True), ("_things", isthing), ("_stuff", ~isthing)):
            qualities = self._qualities()[group]
            counted = qualities[~np.isnan(qualities[:, 0])]
            means = counted.mean(axis=0) if len(counted) else np.full(3, math.nan)
            for name, value in zip(("pq", "sq", "rq"), means.tolist(), strict=True):
                numbers[name + suffix] = value
            numbers["classes" + suffix] = float(len(counted))
        return {**numbers, "images": float(len(self._images))}

    def per_class(self) -> list[ClassPQ]:
        """Panoptic quality of each class, in label order, classes where nothing counts included."""
        return [
            ClassPQ(category["name"], category.get("isthing", True), pq, sq, rq, iou, int(tp), int(fp), int(fn))
            for category, (pq, sq, rq), (iou, tp, fp, fn) in zip(
                self.categories, self._qualities().tolist(), self._counts.tolist(), strict=True
            )
        ]

    def _qualities(self) -> Float64[np.ndarray, "c 3"]:
        """PQ, SQ and RQ of each class; NaN where nothing counts."""
        iou, matches, false_positives, false_negatives = self._counts.T
        total = matches + 0.5 * false_positives + 0.5 * false_negatives
        with np.errstate(invalid="ignore"):
            quality = np.stack([iou / total, iou / np.maximum(matches, 1), matches / total], axis=1)
        quality[total == 0] = math.nan
        return quality

    def _check(self, image_id: int | str, prediction: SegmentMap, truth: SegmentMap) -> None:
        name = f"image {image_id}"
        if image_id in self._images:
            raise ValueError(f"{name}: it was counted already")
        if prediction.rows.shape != truth.rows.shape:
            raise ValueError(
                f"{name}: predictions are for an image of {prediction.rows.shape} (height, width), "
                f"targets of {truth.rows.shape}"
            )
        last = len(self.categories) - 1
        for labels in (prediction.labels, truth.labels):
            if len(labels) and not 0 <= labels.min() <= labels.max() <= last:
                raise ValueError(f"{name}: labels must lie in 0..{last}, but got {np.unique(labels).tolist()}")
        if (prediction.areas == 0).any():
            raise ValueError(f"{name}: {int((prediction.areas == 0).sum())} predicted segments have no pixel")
        if (prediction.rows == UNLISTED).any():
            raise ValueError(f"{name}: the predicted map has ids that are not in its list of segments")

    def _merged(self, segments: SegmentMap) -> SegmentMap:
        """One segment for all crowds of a class, and for all segments of a stuff class; none is a crowd."""
        isthing = np.array([category.get("isthing", True) for category in self.categories], dtype=bool)
        alone = isthing[segments.labels] & ~segments.iscrowd
        count = len(segments.labels)
        keys = np.where(alone, len(self.categories) + np.arange(count), segments.labels)
        _, first, place = np.unique(keys, return_index=True, return_inverse=True)
        rows = np.append(place, [UNLISTED, VOID])[segments.rows]  # the two negative rows are the last entries
        return SegmentMap.count(rows, segments.labels[first])


def _of_prediction(prediction: PanopticPrediction) -> SegmentMap:
    ids = np.array([info["id"] for info in prediction.segments_info], dtype=np.int64)
    labels = np.array([info["label"] for info in prediction.segments_info], dtype=np.int64)
    return SegmentMap.count(rows_of_map(prediction.segmentation.cpu().numpy(), ids), labels)


def _of_target(target: PanopticTarget) -> SegmentMap:
    labels, iscrowd = target["labels"].cpu().numpy(), target["iscrowd"].cpu().numpy()
    return SegmentMap.count(target["segmentation"].cpu().numpy(), labels, iscrowd)


def rows_of_map(ids: Int[np.ndarray, "h w"], segments: Int64[np.ndarray, " s"]) -> Int[np.ndarray, "h w"]:
    """The `rows` of a `SegmentMap` from a map of ids, in which 0 is void, and the ids of its segments."""
    rows = rows_of_ids(ids, segments)
    return np.where((rows < 0) & (ids != 0), UNLISTED, rows)


def _count(prediction: SegmentMap, truth: SegmentMap, num_classes: int) -> Float64[np.ndarray, "{num_classes} 4"]:
    """The columns `_COUNTS` of one image."""
    overlaps = _overlaps(prediction, truth)
    intersection, on_void = overlaps[:-2], overlaps[VOID]
    union = truth.areas[:, None] + prediction.areas - intersection - on_void
    same = (truth.labels[:, None] == prediction.labels) & ~truth.iscrowd[:, None]
    # Where nothing is common the union may be empty: a segment without pixels against one that is all on void.
    iou = np.divide(intersection, union, out=np.zeros(union.shape), where=same & (intersection > 0))
    match = iou > 0.5
    unlabelled = on_void.copy()
    for crowd in np.flatnonzero(truth.iscrowd).tolist():  # the last of a class stays
        own = prediction.labels == truth.labels[crowd]
        unlabelled[own] = (on_void + intersection[crowd])[own]
    false_positive = ~match.any(axis=0) & (unlabelled / prediction.areas <= 0.5)
    false_negative = ~match.any(axis=1) & ~truth.iscrowd
    true_rows = np.nonzero(match)[0]
    columns = [
        np.bincount(truth.labels[true_rows], weights=iou[match], minlength=num_classes),
        np.bincount(truth.labels[true_rows], minlength=num_classes),
        np.bincount(prediction.labels[false_positive], minlength=num_classes),
        np.bincount(truth.labels[false_negative], minlength=num_classes),
    ]
    return np.stack(columns, axis=1).astype(np.float64)


def _overlaps(prediction: SegmentMap, truth: SegmentMap) -> Int64[np.ndarray, "truths predictions"]:
    """Common pixels of each true and each predicted segment; the last two rows are `UNLISTED` and `VOID` truth."""
    height, width = len(truth.labels) + 2, len(prediction.labels) + 2
    pairs = (truth.rows % height).astype(np.int64) * width + prediction.rows % width
    return np.bincount(pairs.ravel(), minlength=height * width).reshape(height, width)[:, :-2]
