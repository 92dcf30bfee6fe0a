"""The formats of annotation files: one row each, and how a file finds its own."""

from __future__ import annotations

from pathlib import Path

from maskwright.data.coco import CocoInstances
from maskwright.data.dataset import DataSource, FileDataset
from maskwright.data.panoptic import CocoPanoptic
from maskwright.data.shards import ShardedInstances
from maskwright.errors import UserError
from maskwright.structures import Task

FORMATS: tuple[type[FileDataset], ...] = (ShardedInstances, CocoPanoptic, CocoInstances)
"""Every format. A file is of the first that does not say otherwise; COCO instances takes all that is left."""


def format_of(annotations: str | Path, task: Task | None = None) -> type[FileDataset]:
    """The format of an annotation file, by what the file holds.

    task: of the model that is to learn from it; None takes files of any.

    Raises:
        UserError: the file cannot be read, or is not of a format of this task.
    """
    known = [row for row in FORMATS if task in (None, row.task)]
    mismatches = []
    for row in known:
        mismatch = row.mismatch(annotations)
        if mismatch is None:
            return row
        mismatches.append(mismatch)
    names = " or ".join(row.format_name for row in known)
    raise UserError(f"this recipe learns from {names}, but {annotations} {mismatches[-1]}")


def open_data_set(source: DataSource, task: Task | None = None) -> FileDataset:
    """The data set of these files, in whichever format they are.

    Raises:
        UserError: as `format_of`, or the files are missing or unusable.
    """
    return format_of(source.annotations, task).open(source)
