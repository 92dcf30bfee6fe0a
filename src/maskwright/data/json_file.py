"""Reading a JSON file that a user gave, with every way it can be wrong told in one sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeGuard

from maskwright.errors import UserError

_DECODER = json.JSONDecoder()
_MARKS = {mark: re.compile(rf"[ \t\n\r]*\{mark}[ \t\n\r]*") for mark in "{[:,"}


def read_json_object(path: str | Path, keys: Sequence[str]) -> dict[str, Any]:
    """The JSON object in the file at `path`, which must have all of `keys`.

    Raises:
        UserError: the file is missing, unreadable, empty, not JSON, not an object, or lacks a key.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read the annotation file {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        reason = "it is empty" if path.stat().st_size == 0 else str(error)
        raise UserError(f"{path} is not a JSON file: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object with the keys {_list(keys)}, but got a {_kind(content)}")
    missing = [key for key in keys if key not in content]
    if missing:
        found = _list(list(content)[:10]) if content else "none"
        raise UserError(
            f"{path}: expected the keys {_list(keys)}, but {_list(missing)} is missing (keys found: {found})"
        )
    return content


def list_elements(content: bytes, key: str) -> Iterator[Any]:
    """The elements of the list `key` of a JSON object, each parsed only when it is asked for.

    Ends with the list, and where the text is no longer JSON.
    """
    with suppress(ValueError, RecursionError):
        text = content.decode("utf-8-sig")
        place = _after("{", text, 0)
        while True:
            name, place = _DECODER.raw_decode(text, place)
            place = _after(":", text, place)
            if name == key:
                place = _after("[", text, place)
                while True:  # the list's end is no comma
                    element, place = _DECODER.raw_decode(text, place)
                    yield element
                    place = _after(",", text, place)
            _, place = _DECODER.raw_decode(text, place)
            place = _after(",", text, place)


def _after(mark: str, text: str, place: int) -> int:
    """Where the next value begins, if `mark` is the next character but for whitespace.

    Raises:
        ValueError: it is not.
    """
    match = _MARKS[mark].match(text, place)
    if match is None:
        raise ValueError(f"expected {mark!r} at {place}")
    return match.end()


def is_text(value: object) -> TypeGuard[str]:
    """Whether `value` is a text, not empty, that can be written: JSON can spell halves of characters, `"\\ud800"`."""
    if not isinstance(value, str):
        return False
    try:
        return bool(value.encode())
    except UnicodeEncodeError:
        return False


def _list(keys: Sequence[str]) -> str:
    return ", ".join(repr(key) for key in keys)


def _kind(value: object) -> str:
    return {list: "list", str: "text", int: "number", float: "number", bool: "truth value"}.get(type(value), "null")
