"""Numbers for programs and for people: JSON and tables.

A group without instances has no mean: NaN in `compute()`, `null` in JSON, `-` in a table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from maskwright.evaluation.coco_ap import CocoAP
from maskwright.evaluation.mask_iou import MaskIoU, ScoreQuality
from maskwright.evaluation.metric import Metric
from maskwright.evaluation.panoptic_quality import PanopticQuality
from maskwright.evaluation.tables import Cell, format_table

SIZES = ("small", "medium", "large")


def summarize(metric: Metric) -> dict[str, Any]:
    """All numbers of a metric, ready for JSON.

    Returns:
        The keys of `compute` (means in 0..1 or None, counts as whole numbers). Then, for masks and detections,
        `classes`: the fields of `ClassMaskIoU` or `ClassAP` for each class that has instances; for masks `mask_scores`,
        the fields of `ScoreQuality`, or None for masks without scores. For panoptic quality
        `variant`, and `per_class`: the fields of `ClassPQ` for each class that counts. Both are in label order.
    """
    numbers = _plain(metric.compute())
    rows = [_plain(asdict(row)) for row in metric.per_class()]
    if isinstance(metric, PanopticQuality):
        counted = [row for row in rows if row["pq"] is not None]
        return {**numbers, "variant": metric.variant, "per_class": counted}
    counted = {"classes": [row for row in rows if row["instances"]]}
    if isinstance(metric, MaskIoU):
        return {**numbers, "mask_scores": _score_quality(metric.score_quality()), **counted}
    return {**numbers, **counted}


def tables_of(metric: Metric) -> str:
    """The numbers of a `MaskIoU`, `CocoAP` or `PanopticQuality` as text: the groups, then each class, worst first."""
    return _TABLES[type(metric)](summarize(metric))


def _score_quality(quality: ScoreQuality | None) -> dict[str, Any] | None:
    if quality is None:
        return None
    rows = {name: [_plain(asdict(row)) for row in getattr(quality, name)] for name in ("bins", "accepted")}
    return _plain({"error": quality.error, "spearman": quality.spearman}) | rows


_GROUPS = {"all": "", "seen": "_seen", "unseen": "_unseen"}


def _mask_iou_tables(summary: Mapping[str, Any]) -> str:
    groups: list[list[Cell]] = [
        [f"{group} classes", *(summary[f"{name}{suffix}"] for name in ("mask_iou", "class_mask_iou", "instances"))]
        for group, suffix in _GROUPS.items()
    ]
    groups += [[f"{size} objects", summary[f"mask_iou_{size}"], "", ""] for size in SIZES]
    classes: list[list[Cell]] = [
        [row["name"], row["mask_iou"], row["instances"], _seen(row)]
        for row in sorted(summary["classes"], key=lambda row: row["mask_iou"])
    ]
    tables = [
        format_table(["", "mask IoU", "class mean", "instances"], groups),
        format_table(["class", "mask IoU", "instances", "its masks"], classes),
    ]
    if summary["mask_scores"] is not None:
        tables.insert(1, _score_tables(summary["mask_scores"]))
    return "\n\n".join(tables)


def _score_tables(quality: Mapping[str, Any]) -> str:
    """How well scores foretell the IoU, and what is accepted at which score."""
    numbers: list[list[Cell]] = [
        ["expected calibration error", quality["error"]],
        ["Spearman correlation", quality["spearman"]],
    ]
    keys = ("masks", "share", "mean_iou", "share_below_half")
    accepted: list[list[Cell]] = [
        [f"{row['threshold']:.2f} or more", *(row[key] for key in keys)] for row in quality["accepted"]
    ]
    return "\n\n".join(
        [
            format_table(["mask scores and IoU", ""], numbers),
            format_table(["mask score", "accepted", "share", "mask IoU", "IoU < 0.5"], accepted),
        ]
    )


def _coco_ap_tables(summary: Mapping[str, Any]) -> str:
    worst_first = sorted(summary["classes"], key=lambda row: math.inf if row["mask_ap"] is None else row["mask_ap"])
    classes: list[list[Cell]] = [
        [row["name"], row["mask_ap"], row["box_ap"], row["instances"], _seen(row)] for row in worst_first
    ]
    without = summary["instances_without_mask"]
    ignored = f"; {without} of them have no mask: for masks, their boxes are regions to be ignored" if without else ""
    return "\n\n".join(
        [
            _statistics_table(summary, "ap", ("ap", "ap50", "ap75")),
            _statistics_table(summary, "ar", ("ar1", "ar10", "ar100")),
            format_table(["class", "mask AP", "box AP", "instances", "its masks"], classes),
            f"{summary['images']} images, {summary['instances']} instances{ignored}",
        ]
    )


def _statistics_table(summary: Mapping[str, Any], prefix: str, statistics: Sequence[str]) -> str:
    """Precision or recall of boxes and masks, then the same by the size of objects."""
    names = [*statistics, *(f"{prefix}_{size}" for size in SIZES)]
    rows: list[list[Cell]] = [
        [f"{things}, {group} classes", *(summary[f"{overlap}_{name}{suffix}"] for name in names)]
        for things, overlap in (("boxes", "box"), ("masks", "mask"))
        for group, suffix in _GROUPS.items()
    ]
    return format_table(["", *(name.upper() for name in statistics), *SIZES], rows)


def _panoptic_quality_tables(summary: Mapping[str, Any]) -> str:
    groups: list[list[Cell]] = [
        [name, *(summary[f"{key}{suffix}"] for key in ("pq", "sq", "rq", "classes"))]
        for name, suffix in (("all", ""), ("things", "_things"), ("stuff", "_stuff"))
    ]
    counts = ("true_positives", "false_positives", "false_negatives")
    classes: list[list[Cell]] = [
        [row["name"], row["pq"], row["sq"], row["rq"], *(row[key] for key in counts)]
        for row in sorted(summary["per_class"], key=lambda row: row["pq"])
    ]
    return "\n\n".join(
        [
            format_table(["", "PQ", "SQ", "RQ", "classes"], groups),
            format_table(["class", "PQ", "SQ", "RQ", "found", "wrong", "missed"], classes),
            f"{summary['images']} images, {summary['variant'].replace('_', '-')} evaluation",
        ]
    )


_TABLES = {MaskIoU: _mask_iou_tables, CocoAP: _coco_ap_tables, PanopticQuality: _panoptic_quality_tables}


def _seen(row: Mapping[str, Any]) -> str:
    return "seen" if row["seen"] else "unseen"


def _plain(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Counts as whole numbers (metrics give them as floats) and NaN as None."""
    plain = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in numbers.items()}
    counts = ("images", "instances", "classes")
    return plain | {key: int(value) for key, value in numbers.items() if key.startswith(counts)}
