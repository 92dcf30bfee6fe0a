"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from maskwright.errors import UserError


def write_json(path: str | Path, content: Any, indent: int | None = 2) -> None:
    """Write a JSON file under a temporary name beside it, then rename: never half a file.

    Raises:
        UserError: the file cannot be written there.
        ValueError: `content` has NaN or infinity, which JSON has no words for.
    """
    text = json.dumps(content, indent=indent, allow_nan=False) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text))


def write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file under a temporary name beside `path`, then rename it: never half a file.

    Raises:
        UserError: the file cannot be written there; whatever stood there before is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        temporary.replace(path)
    except OSError as error:  # Pillow's own have no strerror: a picture that is too wide for JPEG
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
