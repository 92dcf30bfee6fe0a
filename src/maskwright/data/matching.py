"""Which picture a name in a file means, whoever wrote the name and on whatever machine.

Pure functions over names and paths: nothing is read here.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

Parts = tuple[str, ...]
Spelling = Callable[[str], str]

_DRIVE_OR_SCHEME = re.compile(r"^(?:[A-Za-z]:(?=[/\\])|[A-Za-z][\w+.-]*://)")
_LOCAL_FILES = re.compile(r"^.*[?&]d=")  # Label Studio: /data/local-files/?d=FOLDER/NAME


def _as_written(name: str) -> str:
    return name


def _with_slashes(name: str) -> str:
    return _DRIVE_OR_SCHEME.sub("/", name).replace("\\", "/")


def _decoded(name: str) -> str:
    is_address = "://" in name
    name = _LOCAL_FILES.sub("", name)
    if is_address:
        name = name.partition("?")[0]
    return unquote(_with_slashes(name))


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", _decoded(name))


def _without_case(name: str) -> str:
    return _composed(name).casefold()


SPELLINGS: tuple[Spelling, ...] = (_as_written, _with_slashes, _decoded, _composed, _without_case)
"""Ways to read a name, the strictest first; each includes those before it. The next is tried on what is left over."""


@dataclass(frozen=True)
class Matches:
    """What `match_names` found.

    pictures: per name, the position of its picture, or None.
    ambiguous: of names without a picture that may mean several, or of which several may mean one: those pictures.
    other_prefix: positions of names that were matched by the end that they have in common with their picture's path.
    respelled: positions of the others that were not matched as they stand.
    """

    pictures: list[int | None]
    ambiguous: dict[int, list[int]] = field(default_factory=dict)
    other_prefix: list[int] = field(default_factory=list)
    respelled: list[int] = field(default_factory=list)


def match_names(names: Sequence[str], pictures: Sequence[Path]) -> Matches:
    """Find the picture that each name means; a picture may be meant by several names only if these are the same path.

    A name means the picture whose path ends with it (the longest such name, where several do). Where no name fits so,
    it means the picture with the longest common end, if that is unique among all names and pictures, and if no other
    name gives the picture's folder correctly: then another folder is meant. Names are first read as they stand, then
    with backslashes as separators, URL-encoded, with composed and decomposed Unicode made equal, and without case.
    What is not clear stays unmatched.

    Args:
        names: as files give them, with `/` or `\\` between folders.
        pictures: different paths, absolute or relative to the working folder.
    """
    matching = _Matching(names, pictures)
    for spelling in SPELLINGS:
        matching.take_whole_names(spelling)
    for spelling in SPELLINGS:
        matching.take_common_ends(spelling)
    return matching.result()


class _Matching:
    """The names and pictures that are matched so far."""

    def __init__(self, names: Sequence[str], pictures: Sequence[Path]) -> None:
        self._names = names
        self._paths = [(path, path.absolute()) for path in pictures]
        self._found: list[int | None] = [None] * len(names)
        self._ambiguous: dict[int, list[int]] = {}
        self._other_prefix: list[int] = []
        self._respelled: list[int] = []
        self._taken: set[int] = set()
        self._named_folders: set[Path] = set()

    def take_whole_names(self, spelling: Spelling) -> None:
        """Match the names that end exactly one picture's path, the longest names first."""
        for names, pictures in self._groups(spelling):
            for parts in sorted(names, key=len, reverse=True):
                members = self._open(names[parts])
                ending = self._ending_with(parts, pictures, spelling) if members else []
                candidates = [picture for picture in ending if picture not in self._taken]
                if len(candidates) == 1:
                    self._take(members, candidates[0])
                    if spelling is not _as_written:
                        self._respelled.extend(members)
                    if len(parts) > 1:
                        self._named_folders.add(self._folder(candidates[0]))
                elif candidates:
                    self._ambiguous.update((member, candidates) for member in members)

    def take_common_ends(self, spelling: Spelling) -> None:
        """Match names and pictures by their longest common end, where it is unique among all of them."""
        for names, pictures in self._groups(spelling):
            waiting = {parts for parts, members in names.items() if self._open(members)}
            for length in range(max(map(len, waiting), default=0), 0, -1):
                sharing = Counter(parts[-length:] for parts in names if len(parts) >= length)
                ends = self._by_end(pictures, length, spelling)
                for parts in sorted(parts for parts in waiting if len(parts) >= length and parts[-length:] in ends):
                    waiting.remove(parts)
                    self._take_common_end(names[parts], ends[parts[-length:]], sharing[parts[-length:]] == 1)

    def _take_common_end(self, members: list[int], candidates: list[int], is_only_name: bool) -> None:
        first = candidates[0]
        if first in self._taken or self._folder(first) in self._named_folders:
            return
        members = self._open(members)
        if is_only_name and len(candidates) == 1:
            self._take(members, first)
            self._other_prefix.extend(members)
        else:
            self._ambiguous.update((member, candidates) for member in members)

    def result(self) -> Matches:
        """What has been matched."""
        ambiguous = {name: found for name, found in sorted(self._ambiguous.items()) if self._found[name] is None}
        return Matches(self._found, ambiguous, sorted(self._other_prefix), sorted(self._respelled))

    def _groups(self, spelling: Spelling) -> Iterator[tuple[dict[Parts, list[int]], list[int]]]:
        """All names (by their parts) and pictures of one file name, where a name of these is still open."""
        if None not in self._found:
            return
        names: dict[str, dict[Parts, list[int]]] = {}
        for position, name in enumerate(self._names):
            parts = _parts(spelling(name))
            if parts:
                names.setdefault(parts[-1], {}).setdefault(parts, []).append(position)
        pictures: dict[str, list[int]] = {}
        for position, (path, _) in enumerate(self._paths):
            pictures.setdefault(spelling(path.name), []).append(position)
        for file_name, members in names.items():
            if file_name in pictures and any(self._open(positions) for positions in members.values()):
                yield members, pictures[file_name]

    def _open(self, members: Iterable[int]) -> list[int]:
        return [member for member in members if self._found[member] is None]

    def _take(self, members: Iterable[int], picture: int) -> None:
        self._taken.add(picture)
        for member in members:
            self._found[member] = picture

    def _folder(self, picture: int) -> Path:
        return self._paths[picture][1].parent

    def _ending_with(self, parts: Parts, pictures: Iterable[int], spelling: Spelling) -> list[int]:
        return self._by_end(pictures, len(parts), spelling).get(parts, [])

    def _by_end(self, pictures: Iterable[int], length: int, spelling: Spelling) -> dict[Parts, list[int]]:
        """The pictures by the last `length` parts of their paths."""
        found: dict[Parts, list[int]] = {}
        for picture in pictures:
            # As given, too: a path that leads up (`../a.jpg`) may be named so.
            for end in {_end(path, length, spelling) for path in self._paths[picture]} - {()}:
                found.setdefault(end, []).append(picture)
        return found


def _parts(name: str) -> Parts:
    """The folders and the file of a name; an absolute one begins with `/`."""
    root = ("/",) if name.startswith("/") else ()
    return root + tuple(part for part in name.split("/") if part not in ("", "."))


def _end(path: Path, length: int, spelling: Spelling) -> Parts:
    parts = path.parts[-length:]
    if len(parts) < length:
        return ()
    return tuple("/" if part == path.anchor else spelling(part) for part in parts)
