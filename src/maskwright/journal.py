"""A journal of a long job: what is done survives Ctrl-C, kill and a full disk, and the same command goes on.

A text file with one line per finished item, only ever appended to. A line is the JSON list
`[checksum, [position, item]]`; the first one has the position -1 and says what the job is. Lines that are torn or do
not fit their checksum count as not written.

Every line is handed to the operating system at once, so that a killed process loses nothing that it had appended; it
is forced to the disk (fsync) every `SYNC_SECONDS` and at the end, so that a power failure loses that much at most.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from hashlib import blake2b
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from maskwright.errors import UserError
from maskwright.files import try_lock

SYNC_SECONDS = 5.0

_ADVICE = "give that command again to finish it, delete the file to begin anew, or give another --out"
_HEADER = -1
_CHECKSUM_LENGTH = 16
_START = len('["') + _CHECKSUM_LENGTH + len('",')


class Journal:
    """The items of a job that are done, by their position in it; made by `open`, used as a context manager.

    Attributes:
        path: of the file.
    """

    def __init__(self, path: Path, file: FileIO, places: dict[int, int]) -> None:
        """See `open`. places: of each position, where its line begins in the file."""
        self.path = path
        self._file = file
        self._places = places
        self._synced = time.monotonic()

    @classmethod
    def open(cls, path: str | Path, header: Mapping[str, Any], advice: str = _ADVICE) -> Journal:
        """Go on with the journal at `path`, or begin one.

        Args:
            path: of the file; its folder exists.
            header: what the job is, as JSON values: hashes of its files and of the model, its options. Whatever could
                change an item belongs into it.
            advice: what to do where the journal at `path` is of another job.

        Raises:
            UserError: the journal is of another job (what differs is named), another process writes to it, the file is
                no journal, or it cannot be written.
        """
        path = Path(path)
        try:
            file = path.open("ab", buffering=0)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error
        try:
            if not try_lock(file.fileno()):
                raise UserError(f"{path}: another process is writing to it; end it, or wait for its end")
            places, found, end = _read(path)
            if found is not None:
                _compare(path, found, dict(header), advice)
            file.truncate(end)
            journal = cls(path, file, places)
            if found is None:
                journal._write(_HEADER, dict(header))
        except BaseException:
            file.close()
            raise
        return journal

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, position: int) -> bool:
        return position in self._places

    def append(self, position: int, item: Any) -> None:
        """Note that the item at `position` of the job is done, with its result (JSON values).

        Raises:
            UserError: the line cannot be written, as on a full disk. What was appended before is kept.
        """
        self._places[position] = self._write(position, item)

    def items(self) -> Iterator[tuple[int, Any]]:
        """The position and result of every item that is done, by position; one at a time is in memory."""
        with self.path.open("rb") as reader:
            for position in sorted(self._places):
                reader.seek(self._places[position])
                _, (_, item) = json.loads(reader.readline())
                yield position, item

    def finish(self) -> None:
        """Remove the file: the job's results stand elsewhere now."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._sync()
        self._file.close()

    def _write(self, position: int, item: Any) -> int:
        line = memoryview(_line(position, item))
        place = self._file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[self._file.write(line) :]
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self._sync()
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(place)
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error
        return place

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()


def _line(position: int, item: Any) -> bytes:
    body = json.dumps([position, item], separators=(",", ":"), allow_nan=False).encode()
    return b'["' + _checksum(body) + b'",' + body + b"]\n"


def _checksum(body: bytes) -> bytes:
    return blake2b(body, digest_size=_CHECKSUM_LENGTH // 2).hexdigest().encode()


def _read(path: Path) -> tuple[dict[int, int], dict[str, Any] | None, int]:
    """Where each item's line begins, the header (None where there is none), and the end of the last whole line.

    Raises:
        UserError: the file is no journal.
    """
    places: dict[int, int] = {}
    header, end = None, 0
    with path.open("rb") as reader:
        for line in reader:
            body = line[_START:-2]
            position = _position(body) if line[2 : _START - 2] == _checksum(body) else None
            if position == _HEADER:
                header = json.loads(body)[1]
            elif position is not None:
                places[position] = end
            elif header is None and (line.endswith(b"\n") or not b'["'.startswith(line[:2])):  # not even a torn one
                raise UserError(f"{path} exists and is no journal of maskwright; move it away, or give another folder")
            end += len(line) if line.endswith(b"\n") else 0
    return places, header, end


def _position(body: bytes) -> int:
    return int(body[1 : body.index(b",")])


def _compare(path: Path, found: dict[str, Any], wanted: dict[str, Any], advice: str) -> None:
    different = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    if different:
        told = ", ".join(_difference(key, found.get(key), wanted.get(key)) for key in different)
        raise UserError(f"{path} is of a run that did not end, with another {told}: {advice}")


def _difference(key: str, found: Any, wanted: Any) -> str:
    short = all(value is None or isinstance(value, int | float | bool) for value in (found, wanted))
    return f"{key} ({found}, now {wanted})" if short else key
