"""The text of a JSON object, member by member: changing one leaves every other byte as it was."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class Member:
    """One member of an object.

    before: what stands between it and the one before it (a comma and white space); of the first one the opening brace.
    name: the decoded name.
    head: the text of the name up to the value.
    value: the text of the value; start: where that begins.
    """

    before: str
    name: str
    head: str
    value: str
    start: int


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
        mark = start  # the brace or comma before the next one
        while text[mark] != "}":
            name_start = _skip(text, mark + 1)
            if text[name_start] == "}":  # of an empty object
                return cls((), text[start + 1 : name_start + 1])
            name, name_end = _DECODER.raw_decode(text, name_start)
            value_start = _skip(text, _skip(text, name_end) + 1)
            _, value_end = _DECODER.raw_decode(text, value_start)
            head, value = text[name_start:value_start], text[value_start:value_end]
            members.append(Member(text[end:name_start], name, head, value, value_start))
            end, mark = value_end, _skip(text, value_end)
        return cls(tuple(members), text[end : mark + 1])

    def __str__(self) -> str:
        texts = [f"{member.before}{member.head}{member.value}" for member in self.members]
        return "".join(texts or ["{"]) + self.tail

    def get(self, name: str) -> Member | None:
        """The last member of this name, which is the one that counts."""
        return next((member for member in reversed(self.members) if member.name == name), None)

    def with_value(self, name: str, value: Any) -> ObjectText:
        """The object with another value of a member, which is added at the end where it is not there."""
        text = json.dumps(value, allow_nan=False)
        old = self.get(name)
        if old is None:
            before = self.members[-1].before if len(self.members) > 1 else (", " if self.members else "{")
            return replace(self, members=(*self.members, Member(before, name, f"{json.dumps(name)}: ", text, -1)))
        new = replace(old, value=text)
        return replace(self, members=tuple(new if member is old else member for member in self.members))

    def without(self, name: str) -> ObjectText:
        """The object without the members of this name, and without what stands before them."""
        kept = [member for member in self.members if member.name != name]
        if kept and kept[0] is not self.members[0]:
            kept[0] = replace(kept[0], before=self.members[0].before)
        return replace(self, members=tuple(kept))


def element_spans(text: str, start: int) -> Iterator[tuple[int, int]]:
    """Where each element of the list that begins at `start` of a valid JSON text begins and ends."""
    place = _skip(text, start + 1)
    while text[place] != "]":
        _, end = _DECODER.raw_decode(text, place)
        yield place, end
        place = _skip(text, end)
        if text[place] == ",":
            place = _skip(text, place + 1)


def _skip(text: str, place: int) -> int:
    """The first place from `place` on that is no white space."""
    found = _SPACE.match(text, place)
    return found.end() if found else place
