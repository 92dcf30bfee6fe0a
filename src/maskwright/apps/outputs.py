"""Checks of what an evaluation is asked for, before any work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maskwright.errors import UserError


def check_numbers(batch_size: int, num_workers: int, processes: int) -> None:
    """Refuse numbers of images or processes that are out of their range.

    Raises:
        UserError: so.
    """
    if batch_size < 1 or num_workers < 0 or processes < 1:
        raise UserError(
            "expected batch_size >= 1, num_workers >= 0 and processes >= 1, but got "
            f"{batch_size}, {num_workers} and {processes}"
        )


def check_outputs(files: Sequence[Path], *inputs: str | Path) -> None:
    """Refuse output files that cannot be written, or would overwrite an input or one another; before any work.

    Raises:
        UserError: so.
    """
    taken = {Path(given).resolve() for given in inputs}
    for file in files:
        if not file.parent.is_dir():
            raise UserError(f"cannot write {file}: the folder {file.parent} does not exist")
        if file.is_dir():
            raise UserError(f"cannot write {file}: it is a folder; expected the name of a file")
        if file.resolve() in taken:
            raise UserError(f"cannot write {file}: it is an input or another output; give another name")
        taken.add(file.resolve())
