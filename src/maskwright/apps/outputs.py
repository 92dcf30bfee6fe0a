"""Where results go: checks before any work, and folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from maskwright.errors import UserError


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


def check_can_make(folder: Path) -> None:
    """Refuse an output folder that is no folder, or that is missing and cannot be made.

    Raises:
        UserError: so.
    """
    # os.path answers False to a text that is too long for a path, where Path raises.
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))  # noqa: PTH110
    if not existing.is_dir():
        raise UserError(f"--out {folder}: cannot make this folder ({existing} is a file)")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--out {folder}: cannot write in {existing} (Permission denied)")


@contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Make an output folder, where it is missing; after a refusal, what was made is removed if it is empty still.

    Raises:
        UserError: it cannot be made.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot make this folder ({error.strerror})") from error
    try:
        yield
    except UserError:
        with suppress(OSError):  # something is in it
            for path in made:
                path.rmdir()
        raise
