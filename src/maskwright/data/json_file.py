"""Reading a list out of a large JSON file element by element, and telling texts that can be written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, TypeGuard

_DECODER = json.JSONDecoder()
_MARKS = {mark: re.compile(rf"[ \t\n\r]*\{mark}[ \t\n\r]*") for mark in "{[:,"}


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
