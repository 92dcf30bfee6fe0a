"""What a completion comes to: the completed file, the list of masks that were left out, and the table of classes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maskwright.apps.completion.plan import CompletionJob, CompletionPlan
from maskwright.apps.provenance import MaskSource, NewMask, completed, is_completed, undone
from maskwright.apps.run_summary import RunSummary, Section
from maskwright.data.json_text import Edit, ObjectText, edited, element_spans, json_text
from maskwright.errors import UserError
from maskwright.evaluation.tables import Cell, format_table
from maskwright.files import parse_json_object, read_content, write_parts
from maskwright.journal import Journal

SECONDS_TO_DRAW = 80
"""What a person takes to draw a mask. Source: COCO, as the paper (arXiv 2104.00613) cites it."""


@dataclass
class Completion:
    """The new masks of a plan.

    masks: by the position of the annotation in the file.
    left_out: what there is to say of each mask that does not go into the file.
    qualities: of the new masks of each class, by its position in the file's categories; -1 for no class.
    """

    masks: dict[int, NewMask] = field(default_factory=dict)
    left_out: list[dict[str, Any]] = field(default_factory=list)
    qualities: dict[int, list[float]] = field(default_factory=dict)


def gather(plan: CompletionPlan, journal: Journal, min_quality: float, summary: RunSummary) -> Completion:
    """The masks in a whole journal that are good enough.

    Args:
        plan: of the run.
        journal: of it.
        min_quality: masks of a lower one are left out.
        summary: counts them, and what failed.

    Raises:
        UserError: no picture could be read; the journal is removed.
    """
    found = Completion()
    failures = []
    for position, record in journal.items():
        job = plan.jobs[position]
        if record["failed"]:
            failures.append(record["failed"])
            continue
        for row, category, mask in zip(job.rows.tolist(), job.category_rows.tolist(), record["masks"], strict=True):
            new = NewMask(*mask)
            if new.area and new.quality >= min_quality:
                found.masks[int(plan.index.positions[row])] = new
                found.qualities.setdefault(category, []).append(new.quality)
            else:
                found.left_out.append(_left_out(plan, job, row, new))
    if len(failures) == len(plan.jobs):
        journal.finish()
        raise UserError(failures[0] + (f" ({len(failures)} failures in all)" if len(failures) > 1 else ""))
    for sentence in failures:
        summary.note("failed", "picture that cannot be read", sentence)
    poor: tuple[Section, str] = "left out", f"mask of a quality below {min_quality:g}"
    for entry in found.left_out:
        section, cause = poor if entry["area"] else _EMPTY
        summary.note(section, cause, f"{plan.source}, annotation {entry['id']}")
    return found


_EMPTY: tuple[Section, str] = "failed", "box in which the model sees nothing"


def _left_out(plan: CompletionPlan, job: CompletionJob, row: int, mask: NewMask) -> dict[str, Any]:
    index = plan.index
    x1, y1, x2, y2 = index.boxes[row].tolist()
    return {
        "id": index.own_id(row),
        "file_name": job.name,
        "category": plan.class_names[int(index.category_rows[row])],
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": mask.area,
        "quality": mask.quality,
    }


def write_completed(plan: CompletionPlan, masks: Mapping[int, NewMask], source: MaskSource, out: Path) -> None:
    """Write the file with the masks to `out`; nothing else of it changes.

    Raises:
        UserError: it cannot be written.
    """
    text = json_text(plan.content, plan.source)

    def edits() -> Iterator[Edit]:
        for position, (start, end) in enumerate(element_spans(text, "annotations").tolist()):
            if position in masks:
                yield Edit(start, end, str(completed(ObjectText.read(text, start), masks[position], source)))

    write_parts(out, edited(text, edits()))


def write_undone(path: Path, out: Path) -> int:
    """Write a completed file as it was before to `out`; returns the number of annotations that were completed.

    Raises:
        UserError: it cannot be read or written, or nothing in it was completed.
    """
    content = read_content(path)
    # Of a file of COCO's size, all that it holds would be gigabytes.
    if not isinstance(parse_json_object(content, path, ("annotations",), only=("annotations",))["annotations"], list):
        raise UserError(f"{path}: expected 'annotations' to be a list")
    text = json_text(content, str(path))
    edits = [
        Edit(start, end, str(undone(ObjectText.read(text, start))))
        for start, end in element_spans(text, "annotations").tolist()
        if is_completed(json.loads(text[start:end].encode("latin-1")))
    ]
    if not edits:
        raise UserError(f"{path}: no annotation of it was completed by maskwright, so that there is nothing to undo")
    write_parts(out, edited(text, edits))
    return len(edits)


def plan_table(plan: CompletionPlan) -> str:
    """How many annotations of each class have a mask, and how many are to be completed."""
    index, rows = plan.index, []
    for category, name in zip([*range(len(index.categories)), -1], plan.class_names, strict=True):
        members = index.category_rows == category
        if members.any():
            counts = (members, members & plan.has_mask, members & plan.wanted)
            rows.append([name, *(int(count.sum()) for count in counts)])
    total = ["all classes", len(index.ids), int(plan.has_mask.sum()), int(plan.wanted.sum())]
    return format_table(["class", "boxes", "have masks", "to complete"], [*rows, total])


def completion_table(plan: CompletionPlan, completion: Completion) -> str:
    """How many masks each class got, and of which quality; the lowest mean first."""
    rows = [_class_row(plan.class_names[row], values) for row, values in completion.qualities.items()]
    everything = [quality for values in completion.qualities.values() for quality in values]
    header = ["class", "new masks", "mean quality", "lowest tenth up to", "lowest"]
    return format_table(header, [*sorted(rows, key=_mean), _class_row("all classes", everything)])


def _class_row(name: str, qualities: list[float]) -> list[Cell]:
    if not qualities:
        return [name, 0, None, None, None]
    return [name, len(qualities), float(np.mean(qualities)), float(np.quantile(qualities, 0.1)), min(qualities)]


def _mean(row: list[Cell]) -> tuple[float, str]:
    return float(row[2] or 0), str(row[0])
