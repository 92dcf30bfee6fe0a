"""Files that appear whole or not at all, pictures among them, and JSON files that a user gave."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskwright.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

OUTPUT_MARK = "maskwright output"
"""A comment in the pictures that this package writes, by which it knows them again."""


def try_lock(descriptor: int) -> bool:
    """Lock an open file for this process and those that inherit the descriptor; False where another one has the lock.

    Where there are no locks (Windows, some network file systems) nobody is kept out.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def write_json(path: str | Path, content: Any, indent: int | None = 2) -> None:
    """Write a JSON file, whole or not at all (`write_whole`).

    Raises:
        UserError: the file cannot be written there.
        ValueError: `content` has NaN or infinity, which JSON cannot express.
    """
    write_text(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, whole or not at all (`write_whole`).

    Raises:
        UserError: the file cannot be written there.
    """
    write_whole(path, lambda temporary: temporary.write_text(text))


def write_parts(path: str | Path, parts: Iterable[bytes]) -> None:
    """Write a file part by part, whole or not at all (`write_whole`).

    Raises:
        UserError: the file cannot be written there.
    """

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            stream.writelines(parts)

    write_whole(path, write)


def write_picture(path: str | Path, picture: Image.Image) -> None:
    """Write a picture, whole or not at all (`write_whole`), in the format of its suffix; JPEG and PNG are marked.

    Raises:
        UserError: the suffix is that of no format that can be written, or the file cannot be written there.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    name = Image.registered_extensions().get(Path(path).suffix.lower(), "")
    if name not in Image.SAVE:
        raise UserError(f"cannot write {path}: expected the suffix of a picture, such as .jpg or .png")
    options: dict[str, Any] = {}
    if name == "JPEG":
        options = {"quality": 92, "comment": OUTPUT_MARK}
    elif name == "PNG":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text("Comment", OUTPUT_MARK)
    write_whole(path, lambda temporary: picture.save(temporary, format=name, **options))


def write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file or a folder under a temporary name beside `path`, then rename it: never half of it.

    A file replaces the one of the same name. A folder must be new, or the one there must be empty.

    Raises:
        UserError: it cannot be written there; what was there before is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        temporary.replace(path)
    except OSError as error:  # Pillow's own have no strerror: a picture that is too wide for JPEG
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with suppress(OSError):
                temporary.unlink()


def read_json_object(
    path: str | Path, keys: Sequence[str] = (), *, kind: str = "annotation file", hint: str = ""
) -> dict[str, Any]:
    """The JSON object in the file at `path`, which must have all of `keys`.

    Args:
        path: the file.
        keys: that it must have.
        kind: what the file is for, as an error names it.
        hint: ends every error: what was expected, or what to do.

    Raises:
        UserError: the file is missing, unreadable, empty, not JSON, not an object, or lacks a key.
    """
    return parse_json_object(read_content(path, kind=kind, hint=hint), path, keys, hint=hint)


def read_content(path: str | Path, *, kind: str = "annotation file", hint: str = "") -> bytes:
    """The bytes of the file at `path`; `kind` and `hint` as of `read_json_object`.

    Raises:
        UserError: it is missing or unreadable.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        told = f"; {hint}" if hint else ""
        raise UserError(f"cannot read the {kind} {path}: {error.strerror or error}{told}") from error


def parse_json_object(
    text: bytes, path: str | Path, keys: Sequence[str] = (), *, hint: str = "", only: Container[str] | None = None
) -> dict[str, Any]:
    """The same of what was read of the file at `path`.

    Args:
        text: what was read.
        path, keys, hint: as of `read_json_object`.
        only: the names of members, in whatever object, that are kept, by default all; the others are checked, but
            None in place of their values, so that a large file needs little memory.

    Raises:
        UserError: it is empty, not JSON, not an object, or lacks a key.
    """
    hint = f"; {hint}" if hint else ""
    try:
        content = json.loads(text, object_pairs_hook=None if only is None else partial(_emptied, only))
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        reason = str(error) if text else "it is empty"
        raise UserError(f"{path} is not a JSON file: {reason}{hint}") from error
    expected = f"the keys {_listed(keys)}"
    if not isinstance(content, dict):
        wanted = f" with {expected}" if keys else ""
        raise UserError(f"{path}: expected a JSON object{wanted}, but got a {_json_type(content)}{hint}")
    missing = [key for key in keys if key not in content]
    if missing:
        found = _listed(list(content)[:10]) if content else "none"
        raise UserError(f"{path}: expected {expected}, but it lacks {_listed(missing)} (keys found: {found}){hint}")
    return content


def _emptied(kept: Container[str], members: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value if name in kept else None for name, value in members}


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(repr(key) for key in keys)


def _json_type(value: object) -> str:
    return {list: "list", str: "text", int: "number", float: "number", bool: "truth value"}.get(type(value), "null")
