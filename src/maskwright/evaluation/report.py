"""Numbers for programs and for people: JSON and tables.

A group without instances has no mean: NaN in `compute()`, `null` in JSON, `-` in a table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from maskwright.evaluation.coco_ap import CocoAP
from maskwright.evaluation.mask_iou import MaskIoU
from maskwright.evaluation.panoptic_quality import PanopticQuality

Cell = str | int | float | None

SIZES = ("small", "medium", "large")


def mask_iou_summary(metric: MaskIoU) -> dict[str, Any]:
    """All numbers of a metric, ready for JSON.

    Returns:
        The keys of `MaskIoU.compute` (means in 0..1 or None, counts whole), and `classes`: for each class that
        has instances `{name, seen, instances, mask_iou}`, in label order.
    """
    classes = [
        {"name": row.name, "seen": row.seen, "instances": row.instances, "mask_iou": row.mask_iou}
        for row in metric.per_class()
        if row.instances
    ]
    return {**_plain(metric.compute()), "classes": classes}


def mask_iou_tables(summary: Mapping[str, Any]) -> str:
    """A `mask_iou_summary` as two tables: the groups, and the classes with the worst first."""
    groups: list[list[Cell]] = [
        [name, summary[f"mask_iou{key}"], summary[f"class_mask_iou{key}"], summary[f"instances{key}"]]
        for name, key in (("all classes", ""), ("seen classes", "_seen"), ("unseen classes", "_unseen"))
    ]
    groups += [[f"{size} objects", summary[f"mask_iou_{size}"], "", ""] for size in SIZES]
    per_class: list[list[Cell]] = [
        [row["name"], row["mask_iou"], row["instances"], "seen" if row["seen"] else "unseen"]
        for row in sorted(summary["classes"], key=lambda row: row["mask_iou"])
    ]
    return (
        format_table(["", "mask IoU", "class mean", "instances"], groups)
        + "\n\n"
        + format_table(["class", "mask IoU", "instances", "its masks"], per_class)
    )


def coco_ap_summary(metric: CocoAP) -> dict[str, Any]:
    """All numbers of a metric, ready for JSON.

    Returns:
        The keys of `CocoAP.compute` (AP and AR in 0..1 or None, counts whole), and `classes`: for each class that
        has instances `{name, seen, instances, instances_without_mask, box_ap, mask_ap}`, in label order.
    """
    classes = [_plain(asdict(row)) for row in metric.per_class() if row.instances]
    return {**_plain(metric.compute()), "classes": classes}


def coco_ap_tables(summary: Mapping[str, Any]) -> str:
    """A `coco_ap_summary` as text: precision, recall, the classes with the worst first, what was ignored."""
    parts = []
    for measure, names in (("ap", ("", "50", "75")), ("ar", ("1", "10", "100"))):
        keys = [*(f"{measure}{name}" for name in names), *(f"{measure}_{size}" for size in SIZES)]
        header = ["", *(key.upper() for key in keys[:3]), *SIZES]
        rows: list[list[Cell]] = [
            [f"{things}, {group} classes", *(summary[f"{prefix}_{key}{suffix}"] for key in keys)]
            for things, prefix in (("boxes", "box"), ("masks", "mask"))
            for group, suffix in (("all", ""), ("seen", "_seen"), ("unseen", "_unseen"))
        ]
        parts.append(format_table(header, rows))
    worst = sorted(summary["classes"], key=lambda row: math.inf if row["mask_ap"] is None else row["mask_ap"])
    per_class: list[list[Cell]] = [
        [row["name"], row["mask_ap"], row["box_ap"], row["instances"], "seen" if row["seen"] else "unseen"]
        for row in worst
    ]
    parts.append(format_table(["class", "mask AP", "box AP", "instances", "its masks"], per_class))
    without = summary["instances_without_mask"]
    ignored = f"; {without} of them have no mask: for masks, their boxes are regions to be ignored" if without else ""
    parts.append(f"{summary['images']} images, {summary['instances']} instances{ignored}")
    return "\n\n".join(parts)


def panoptic_quality_summary(metric: PanopticQuality) -> dict[str, Any]:
    """All numbers of a metric, ready for JSON.

    Returns:
        The keys of `PanopticQuality.compute` (PQ, SQ and RQ in 0..1 or None, counts whole), `variant`, and `per_class`:
        for each class that counts the fields of `ClassPQ`, in label order.
    """
    rows = [_plain(asdict(row)) for row in metric.per_class()]
    counted = [row for row in rows if row["pq"] is not None]
    return {**_plain(metric.compute()), "variant": metric.variant, "per_class": counted}


def panoptic_quality_tables(summary: Mapping[str, Any]) -> str:
    """A `panoptic_quality_summary` as two tables: the groups, and the classes with the worst first."""
    groups: list[list[Cell]] = [
        [name, *(summary[f"{key}{suffix}"] for key in ("pq", "sq", "rq", "classes"))]
        for name, suffix in (("all", ""), ("things", "_things"), ("stuff", "_stuff"))
    ]
    counts = ("true_positives", "false_positives", "false_negatives")
    per_class: list[list[Cell]] = [
        [row["name"], row["pq"], row["sq"], row["rq"], *(row[key] for key in counts)]
        for row in sorted(summary["per_class"], key=lambda row: row["pq"])
    ]
    return "\n\n".join(
        [
            format_table(["", "PQ", "SQ", "RQ", "classes"], groups),
            format_table(["class", "PQ", "SQ", "RQ", "found", "wrong", "missed"], per_class),
            f"{summary['images']} images, {summary['variant'].replace('_', '-')} evaluation",
        ]
    )


def format_table(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Aligned text: the first column to the left, the others to the right, floats with 3 decimals, None as `-`.

    Raises:
        ValueError: a row has not as many cells as the header.
    """
    texts = [list(header), *([_text(cell) for cell in row] for row in rows)]
    if any(len(row) != len(header) for row in texts):
        raise ValueError(f"every row must have {len(header)} cells, like the header")
    widths = [max(len(row[column]) for row in texts) for column in range(len(header))]
    texts.insert(1, ["-" * width for width in widths])
    lines = []
    for first, *others in texts:
        aligned = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *aligned]).rstrip())
    return "\n".join(lines)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Counts as whole numbers (metrics give them as floats) and NaN as None."""
    plain = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}
    return plain | {
        key: int(value) for key, value in values.items() if key.startswith(("images", "instances", "classes"))
    }


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)
