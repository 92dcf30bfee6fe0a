"""Average precision and recall of detected boxes and masks, as the COCO challenge measures them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as coco_mask
from jaxtyping import Float
from torch import Tensor

from maskwright.evaluation.metric import Metric, check_image_size, seen_labels
from maskwright.structures import Category, InstancePrediction, Target, encoded_masks

Overlap = Literal["bbox", "segm"]

_OVERLAPS: dict[str, Overlap] = {"box": "bbox", "mask": "segm"}

# Of each statistic: COCO's table, IoU threshold (None: the mean over 0.50, 0.55, ..., 0.95), size class, and how
# many detections per image and class count.
_STATISTICS: dict[str, tuple[Literal["precision", "recall"], float | None, str, int]] = {
    "ap": ("precision", None, "all", 100),
    "ap50": ("precision", 0.5, "all", 100),
    "ap75": ("precision", 0.75, "all", 100),
    "ap_small": ("precision", None, "small", 100),
    "ap_medium": ("precision", None, "medium", 100),
    "ap_large": ("precision", None, "large", 100),
    "ar1": ("recall", None, "all", 1),
    "ar10": ("recall", None, "all", 10),
    "ar100": ("recall", None, "all", 100),
    "ar_small": ("recall", None, "small", 100),
    "ar_medium": ("recall", None, "medium", 100),
    "ar_large": ("recall", None, "large", 100),
}


@dataclass(frozen=True)
class _Tables:
    """What COCO's evaluation gives, and what its axes mean; -1 where there is nothing to count.

    precision: [threshold, recall, class, area, detections]; recall: [threshold, class, area, detections].
    class_positions: the place of each label on the class axis.
    """

    precision: np.ndarray
    recall: np.ndarray
    thresholds: np.ndarray
    areas: list[str]
    detections: list[int]
    class_positions: np.ndarray


@dataclass(frozen=True)
class ImageRecord:
    """What `CocoAP` keeps of one image; masks only as run lengths or polygons.

    results: COCO result entries, each with `bbox` (xywh) and `segmentation`.
    annotations: COCO annotation entries; one without a mask has no, or an empty, `segmentation`.
    """

    image_id: int | str
    image_size: tuple[int, int]
    results: list[dict[str, Any]]
    annotations: list[Mapping[str, Any]]


@dataclass(frozen=True)
class ClassAP:
    """One class of `CocoAP.per_class`.

    instances: how many there are, crowds left out; instances_without_mask: those of them that mask AP ignores.
    box_ap, mask_ap: NaN where nothing counts.
    """

    name: str
    seen: bool
    instances: int
    instances_without_mask: int
    box_ap: float
    mask_ap: float


class CocoAP(Metric):
    """COCO's box AP and mask AP of detections, over all, seen and unseen classes.

    Every number equals, to 1e-14, what pycocotools gives for `box_results()` and `mask_results()`; a mask has the score
    of its box. Where an annotation lacks what pycocotools needs, these rules hold:

    - For mask AP, the filled box of an instance without a mask is a region to be ignored, like a crowd. Detections in
      it are neither right nor wrong.
    - The size class of an annotation without `area` comes from its mask, or else from its box.
    - Annotations are numbered from 1, whatever their ids: pycocotools takes a match with annotation 0 for no match.

    The truth of an image is its target. If `annotations` are given, the truth is instead what they say of its
    `image_id`, and of targets only the ids and sizes are read. The numbers are then exactly those of the file: the
    boxes of a `Target` are float32 and clipped to the image, and it has no areas.
    Only images that were given to `update` count, each once. Labels of predictions are positions in `categories`.

    Source: pycocotools' COCOeval, by way of faster-coco-eval; the ignored regions are ours.
    """

    def __init__(
        self,
        categories: Sequence[Category],
        seen: Sequence[str],
        annotations: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Start with no images.

        Args:
            categories: the label space of the predictions (and of the targets), in label order.
            seen: names of categories.
            annotations: COCO annotation entries as pycocotools takes them, but that `segmentation`, `area` and
                `iscrowd` may be missing; entries of categories that are not in `categories` do not count.

        Raises:
            ValueError: `seen` has names that are not in `categories`.
        """
        self.categories = list(categories)
        self.seen = seen_labels(categories, seen)
        self._file: dict[Any, list[Mapping[str, Any]]] | None = None
        if annotations is not None:
            known = {category["id"] for category in categories}
            self._file = {}
            for entry in annotations:
                if entry["category_id"] in known:
                    self._file.setdefault(entry["image_id"], []).append(entry)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._records: dict[int | str, ImageRecord] = {}
        self._tables: dict[Overlap, _Tables] = {}

    def _add_image(self, prediction: InstancePrediction, target: Target) -> None:
        check_image_size(prediction.image_size, target)
        image_id, labels = target["image_id"], prediction.labels
        if ((labels < 0) | (labels >= len(self.categories))).any():
            raise ValueError(
                f"image {image_id}: labels must lie in 0..{len(self.categories) - 1}, "
                f"but got {labels.unique().tolist()}"
            )
        truth = self._annotations_of(target) if self._file is None else self._file.get(image_id, [])
        self.merge([ImageRecord(image_id, prediction.image_size, self._results_of(prediction, image_id), truth)])

    def state(self) -> list[ImageRecord]:
        """All images so far; what `merge` takes."""
        return list(self._records.values())

    def merge(self, state: Sequence[ImageRecord]) -> None:
        """Add the images of another process's `state()`.

        Raises:
            ValueError: an image is here already.
        """
        for record in state:
            if record.image_id in self._records:
                raise ValueError(f"image {record.image_id}: it was counted already")
            self._records[record.image_id] = record
        self._tables = {}

    def box_results(self) -> list[dict[str, Any]]:
        """The detected boxes in COCO's results format: `image_id, category_id, bbox` (xywh), `score`."""
        keys = ("image_id", "category_id", "bbox", "score")
        return [{key: entry[key] for key in keys} for record in self._sorted() for entry in record.results]

    def mask_results(self) -> list[dict[str, Any]]:
        """The masks in COCO's results format: `image_id, category_id, segmentation` (compressed RLE), `score`.

        Without `bbox`: with it, pycocotools would take the sizes of objects from boxes instead of masks.
        """
        keys = ("image_id", "category_id", "segmentation", "score")
        return [{key: entry[key] for key in keys} for record in self._sorted() for entry in record.results]

    def compute(self) -> dict[str, float]:
        """COCO's statistics over all images so far, in 0..1; NaN (COCO: -1) where a group has no instance.

        Returns:
            For each group of classes, with the suffix ``, `_seen` or `_unseen`, and for each prefix `box_` and
            `mask_`: `ap, ap50, ap75, ap_small, ap_medium, ap_large, ar1, ar10, ar100, ar_small, ar_medium,
            ar_large` (`mask_ap_small_unseen`, say). Then `images`, `instances` (crowds left out) and
            `instances_without_mask` (those of them that mask AP ignores).
        """
        seen = np.array(self.seen, dtype=bool)
        groups = {"": seen | True, "_seen": seen, "_unseen": ~seen}
        statistics = {
            f"{prefix}_{name}{suffix}": self._statistic(overlap, name, np.flatnonzero(members).tolist())
            for prefix, overlap in _OVERLAPS.items()
            for suffix, members in groups.items()
            for name in _STATISTICS
        }
        instances, without_mask = self._counts().sum(axis=0)
        return {
            **statistics,
            "images": float(len(self._records)),
            "instances": float(instances),
            "instances_without_mask": float(without_mask),
        }

    def per_class(self) -> list[ClassAP]:
        """AP of each class, in label order, classes without instances included."""
        rows = zip(self.categories, self.seen, self._counts().tolist(), strict=True)
        return [
            ClassAP(
                category["name"], seen, *counts, *(self._statistic(name, "ap", [label]) for name in ("bbox", "segm"))
            )
            for label, (category, seen, counts) in enumerate(rows)
        ]

    def _sorted(self) -> list[ImageRecord]:
        """By image id: among equal scores COCO ranks the detections of the lower id first."""
        return [self._records[key] for key in sorted(self._records, key=lambda key: (isinstance(key, str), key))]

    def _results_of(self, prediction: InstancePrediction, image_id: int | str) -> list[dict[str, Any]]:
        category_ids = [self.categories[label]["id"] for label in prediction.labels.tolist()]
        boxes, scores = _xywh(prediction.boxes), prediction.scores.double().cpu().tolist()
        entries = zip(prediction.to_coco(image_id, category_ids), boxes, scores, strict=True)
        # The score is the detection's alone, as the originals evaluate masks; `to_coco` weighs in the mask's.
        return [{**entry, "bbox": box, "score": score} for entry, box, score in entries]

    def _annotations_of(self, target: Target) -> list[Mapping[str, Any]]:
        masks = encoded_masks(target).to_coco()
        pairs = zip(target["labels"].tolist(), _xywh(target["boxes"]), strict=True)
        return [
            {
                "category_id": self.categories[label]["id"],
                "bbox": box,
                "iscrowd": int(target["iscrowd"][row]),
                "segmentation": masks[row] if target["has_mask"][row] else None,
            }
            for row, (label, box) in enumerate(pairs)
        ]

    def _counts(self) -> np.ndarray:
        """int64 [C, 2]: of each class the instances, and those of them that have no mask."""
        label_of = {category["id"]: label for label, category in enumerate(self.categories)}
        counts = np.zeros((len(self.categories), 2), dtype=np.int64)
        for record in self._records.values():
            for entry in record.annotations:
                if not entry.get("iscrowd"):
                    counts[label_of[entry["category_id"]]] += (1, not entry.get("segmentation"))
        return counts

    def _statistic(self, overlap: Overlap, name: str, labels: Sequence[int]) -> float:
        """One of `_STATISTICS` over some classes: the mean of COCO's table where it has values."""
        table, threshold, area, detections = _STATISTICS[name]
        if not self._records or not labels:
            return math.nan
        if overlap not in self._tables:
            self._tables[overlap] = self._evaluate(overlap)
        tables = self._tables[overlap]
        values = tables.precision if table == "precision" else tables.recall
        if threshold is not None:
            values = values[np.isclose(tables.thresholds, threshold)]
        values = values[..., tables.areas.index(area), tables.detections.index(detections)]
        # In the order of the axis: another order of summands would give another last digit.
        values = values[..., np.sort(tables.class_positions[list(labels)])]
        values = values[values > -1]
        return float(values.mean()) if len(values) else math.nan

    def _evaluate(self, overlap: Overlap) -> _Tables:
        """COCO's tables over all images."""
        records = self._sorted()
        annotations = (
            {**_complete(entry, record.image_size, overlap), "image_id": number}
            for number, record in enumerate(records, 1)
            for entry in record.annotations
        )
        truth = COCO(
            {
                "images": [
                    {"id": number, "height": record.image_size[0], "width": record.image_size[1]}
                    for number, record in enumerate(records, 1)
                ],
                "categories": [{"id": category["id"], "name": category["name"]} for category in self.categories],
                "annotations": [{**entry, "id": number} for number, entry in enumerate(annotations, 1)],
            }
        )
        keys = ("category_id", "bbox" if overlap == "bbox" else "segmentation", "score")
        # New dictionaries: faster-coco-eval writes into those that it is given.
        results = [
            {"image_id": number, **{key: entry[key] for key in keys}}
            for number, record in enumerate(records, 1)
            for entry in record.results
        ]
        evaluation = COCOeval_faster(truth, truth.loadRes(results), overlap)
        evaluation.evaluate()
        evaluation.accumulate()
        parameters = evaluation.params
        return _Tables(
            precision=evaluation.eval["precision"],
            recall=evaluation.eval["recall"],
            thresholds=np.asarray(parameters.iouThrs),
            areas=list(parameters.areaRngLbl),
            detections=list(parameters.maxDets),
            class_positions=np.searchsorted(parameters.catIds, [category["id"] for category in self.categories]),
        )


def _complete(entry: Mapping[str, Any], image_size: tuple[int, int], overlap: Overlap) -> dict[str, Any]:
    """An annotation with all that COCO's evaluation reads, but for its own and its image's number."""
    mask, iscrowd = entry.get("segmentation"), int(bool(entry.get("iscrowd")))
    completed = {
        "category_id": entry["category_id"],
        "bbox": list(entry["bbox"]),
        "area": _area(entry, image_size),
        "iscrowd": iscrowd,
    }
    if overlap == "segm":
        completed["segmentation"] = mask or _filled(entry, image_size)
        completed["iscrowd"] = iscrowd if mask else 1
    return completed


def _area(entry: Mapping[str, Any], image_size: tuple[int, int]) -> float:
    """In pixels: the entry's own, else that of its mask, else of its box."""
    height, width = image_size
    if isinstance(entry.get("area"), int | float):
        return float(entry["area"])
    if entry.get("segmentation"):
        return float(coco_mask.area(coco_mask.segmToRle(entry["segmentation"], width, height)))
    return float(entry["bbox"][2] * entry["bbox"][3])


def _filled(entry: Mapping[str, Any], image_size: tuple[int, int]) -> list[list[float]]:
    """The part of an annotation's box that lies inside the image, as a polygon."""
    x, y, width, height = entry["bbox"]
    x1, x2 = (float(min(max(value, 0), image_size[1])) for value in (x, x + width))
    y1, y2 = (float(min(max(value, 0), image_size[0])) for value in (y, y + height))
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def _xywh(boxes: Float[Tensor, "n 4"]) -> list[list[float]]:
    """xyxy [N, 4] to COCO's x, y, width, height; float64, so that nothing is rounded again."""
    low, high = boxes.double().cpu().split(2, dim=1)
    return torch.cat([low, high - low], dim=1).tolist()
