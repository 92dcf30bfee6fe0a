"""The text of a JSON file, changed in places: every byte that is not asked for stays as it was.

A text is the file's bytes as Latin-1, a character each, so that nothing is decoded and encoded again. What is put into
it is ASCII. Of members of one name, the last one counts, as everywhere in Python.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from maskwright.errors import UserError

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")
_NAME = re.compile(r'"((?:[^"\\]|\\.)*)"[ \t\n\r]*:[ \t\n\r]*', re.DOTALL)
_MARK = "\ufeff".encode().decode("latin-1")


class Member(NamedTuple):
    """One member of an object.

    before: what stands between it and the one before it (a comma and white space); of the first one the opening brace.
    name: the decoded name.
    head: the text of the name up to the value.
    text: of the value.
    """

    before: str
    name: str
    head: str
    text: str

    @property
    def value(self) -> Any:
        """What `text` spells."""
        return json.loads(self.text.encode("latin-1"))


class Edit(NamedTuple):
    """Another text for the characters `start` to `end` of a text."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class ObjectText:
    """A JSON object as text; `str` of it is the text.

    members: in order.
    tail: what follows the last member, with the closing brace.
    """

    members: tuple[Member, ...]
    tail: str

    @classmethod
    def read(cls, text: str, start: int) -> ObjectText:
        """The object that begins at `start` of a valid JSON text."""
        members: list[Member] = []
        end = start  # of the last member
        for name_start, name, value_start, value_end in _members(text, start):
            head, value = text[name_start:value_start], text[value_start:value_end]
            members.append(Member(text[end:name_start], name, head, value))
            end = value_end
        first = start + 1 if end == start else end
        return cls(tuple(members), text[first : text.index("}", first) + 1])

    def __str__(self) -> str:
        texts = [member.before + member.head + member.text for member in self.members]
        return "".join(texts or ["{"]) + self.tail

    def get(self, name: str) -> Member | None:
        """The last member of this name."""
        return next((member for member in reversed(self.members) if member.name == name), None)

    def with_value(self, name: str, value: Any) -> ObjectText:
        """The object with another value of a member, which is added at the end where it is not there.

        White space is as between the last two members.
        """
        compact = any(member.before == "," and member.head.endswith(":") for member in self.members[-1:])
        separators = (",", ":") if compact else (", ", ": ")
        return self.with_text(name, json.dumps(value, allow_nan=False, separators=separators))

    def with_text(self, name: str, text: str) -> ObjectText:
        """The same with the text of the value."""
        old = self.get(name)
        if old is not None:
            new = old._replace(text=text)
            return replace(self, members=tuple(new if member is old else member for member in self.members))
        before, colon = "{", ": "
        if self.members:
            last = self.members[-1]
            before = last.before if len(self.members) > 1 else "," + last.before[1:]
            colon = last.head[last.head.rindex('"') + 1 :]
        return replace(self, members=(*self.members, Member(before, name, json.dumps(name) + colon, text)))

    def without(self, name: str) -> ObjectText:
        """The object without the members of this name, and without what stands before them."""
        kept = [member for member in self.members if member.name != name]
        if kept and kept[0] is not self.members[0]:
            kept[0] = kept[0]._replace(before=self.members[0].before)
        return replace(self, members=tuple(kept))


def json_text(content: bytes, source: str) -> str:
    """The text of a file that was read as JSON.

    Raises:
        UserError: it is in UTF-16 or UTF-32; `source` names it.
    """
    encoding = json.detect_encoding(content)
    if not encoding.startswith("utf-8"):
        raise UserError(f"{source}: expected a text in UTF-8, but it is in {encoding}; save it as UTF-8 first")
    return content.decode("latin-1")


def element_spans(text: str, key: str) -> Int64[np.ndarray, "n 2"]:
    """Where each element of the list `key` of a valid JSON object begins and ends in its text."""
    spans = array("q")

    def value_end(name: str, start: int) -> int:
        if name != key:
            return _end_of_value(text, start)
        del spans[:]
        return _add_elements(text, start, spans)

    start = _skip(text, len(_MARK) if text.startswith(_MARK) else 0)
    for _ in _members(text, start, value_end):
        pass
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


def edited(text: str, edits: Iterable[Edit]) -> Iterator[bytes]:
    """The bytes of the file after the edits, which are in order and apart, part by part."""
    written = 0
    for edit in edits:
        yield text[written : edit.start].encode("latin-1")
        yield edit.text.encode("latin-1")
        written = edit.end
    yield text[written:].encode("latin-1")


def _members(
    text: str, start: int, value_end: Callable[[str, int], int] | None = None
) -> Iterator[tuple[int, str, int, int]]:
    """Of each member of the object at `start`: where it begins, its name, where its value begins and ends."""
    mark = start  # the brace or comma before the next one
    while text[mark] != "}":
        match = _NAME.match(text, _skip(text, mark + 1))
        if match is None:  # the object is empty
            return
        spelled, value_start = match[1], match.end()
        name = json.loads(f'"{spelled}"') if "\\" in spelled else spelled
        end = value_end(name, value_start) if value_end else _end_of_value(text, value_start)
        yield match.start(), name, value_start, end
        mark = _skip(text, end)


def _add_elements(text: str, start: int, spans: array[int]) -> int:
    """Add where the elements of the list at `start` begin and end; returns where the list ends."""
    place = _skip(text, start + 1)
    while text[place] != "]":
        end = _end_of_value(text, place)
        spans.extend((place, end))
        place = _skip(text, end)
        if text[place] == ",":
            place = _skip(text, place + 1)
    return place + 1


def _end_of_value(text: str, start: int) -> int:
    _, end = _DECODER.raw_decode(text, start)
    return end


def _skip(text: str, place: int) -> int:
    """The first place from `place` on that is no white space."""
    found = _SPACE.match(text, place)
    return found.end() if found else place
