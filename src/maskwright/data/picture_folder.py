"""A folder of pictures as the names in an annotation file mean them: where each is, and how large."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image

from maskwright.data.annotated_pictures import PictureBytes, read_annotated_picture
from maskwright.data.matching import match_names
from maskwright.data.orientation import ExifRule, Frame, Size, choose_frame
from maskwright.errors import UserError
from maskwright.pictures import register_heif


class ListedImage(NamedTuple):
    """An image as an annotation file lists it: `size` is (height, width), `row` its place among the usable ones."""

    id: int | str
    file_name: str
    size: Size
    row: int


@runtime_checkable
class ListedPictures(Protocol):
    """Where the pictures of the images of an annotation file are read from."""

    def read(self, image: ListedImage, source: str) -> UInt8[np.ndarray, "h w 3"]:
        """The picture in the frame of its annotations (`read_annotated_picture`); `source` is the annotation file.

        Raises:
            UserError: it cannot be read, or has another size.
        """
        ...

    def frame(self, image: ListedImage) -> Frame:
        """The frame of its annotations.

        Raises:
            UserError: it cannot be read.
        """
        ...


class PictureFolder:
    """The pictures of an annotation file.

    A name is taken as a path in the folder first. Where nothing is there, it means the picture that `match_names`
    finds among all in the folder and in those within it.
    """

    def __init__(self, folder: str | Path, exif: ExifRule = "auto") -> None:
        """Find the folder.

        Args:
            folder: of the pictures.
            exif: the frame that annotations are in, where it is known.

        Raises:
            UserError: it does not exist.
        """
        self.folder = Path(folder)
        self.exif: ExifRule = exif
        self._matched: dict[str, Path] = {}
        if not self.folder.is_dir():
            raise UserError(f"the image folder {self.folder} does not exist or is no folder")

    def match(self, names: Sequence[str]) -> list[str]:
        """Find the pictures of all names; those that are no path in the folder, but have a picture, come back."""
        missing = self._missing(names)
        if missing:
            matches = match_names(missing, self._pictures)
            found = zip(missing, matches.pictures, strict=True)
            self._matched = {name: self._pictures[row] for name, row in found if row is not None}
        return list(self._matched)

    def path(self, name: str) -> Path:
        """Where the picture is, or would be."""
        return self._matched.get(name, self.folder / name)

    def has(self, name: str) -> bool:
        """Whether `path` of the name is there."""
        return is_there(self.path(name))

    def size_of(self, name: str) -> Size | None:
        """The (height, width) of the picture that `name` means, in the frame that is asked for; None if there is none.

        The frame is the upright one where none is asked for.
        """
        path = self.folder / name
        if not os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises: name too long)
            candidates = [other for other in self._pictures if other.name.casefold() in name.casefold()]
            row = match_names([name], candidates).pictures[0]
            if row is None:
                return None
            path = candidates[row]
        return _size(path, self.exif)

    def read(self, image: ListedImage, source: str) -> UInt8[np.ndarray, "h w 3"]:
        """See `ListedPictures`."""
        return read_annotated_picture(self.path(image.file_name), image.size, source, self.exif)

    def frame(self, image: ListedImage) -> Frame:
        """See `ListedPictures`."""
        return picture_frame(self.path(image.file_name), image.size, self.exif)

    def _missing(self, names: Iterable[str]) -> list[str]:
        """The names that are no path in the folder. Each folder is listed once; no file is touched."""
        listed: dict[str, set[str]] = {}
        missing = []
        for name in names:
            parent, _, base = name.rpartition("/")
            if parent not in listed:
                listed[parent] = _files(self.folder / parent)
            if base not in listed[parent]:
                missing.append(name)
        return missing

    @cached_property
    def _pictures(self) -> list[Path]:
        walk = os.walk(self.folder)
        return [Path(folder, name) for folder, _, names in walk for name in names if not name.startswith(".")]


@dataclass(frozen=True)
class RemotePicture:
    """A picture in a bucket or on a server, which fsspec reads.

    url: of the picture.
    size: in bytes; None where the storage does not tell.
    """

    url: str
    size: int | None = None

    def __str__(self) -> str:
        return self.url

    def read(self) -> PictureBytes:
        """The file.

        Raises:
            UserError: it cannot be read.
        """
        from fsspec.core import url_to_fs

        try:
            storage, path = url_to_fs(self.url)
            return PictureBytes(storage.cat_file(path), self.url)
        except Exception as error:  # each storage has errors of its own
            raise UserError(f"cannot read the image {self.url}: {error!r}") from error

    def is_there(self) -> bool:
        """Whether this machine finds it."""
        from fsspec.core import url_to_fs

        try:
            storage, path = url_to_fs(self.url)
            return storage.isfile(path)
        except Exception:  # such as a package or a key that this machine lacks
            return False


PicturePlace = Path | RemotePicture
"""Where a picture is."""


def is_there(place: PicturePlace) -> bool:
    """Whether this machine finds the picture."""
    if isinstance(place, RemotePicture):
        return place.is_there()
    return os.path.isfile(place)  # noqa: PTH113 (Path.is_file raises: name too long)


def is_remote(folder: str | Path) -> bool:
    """Whether a folder is the URL of one that fsspec reads."""
    return "://" in str(folder)


class RemoteFolder:
    """The pictures of an annotation file in a bucket or on a server; names mean what they mean in a `PictureFolder`.

    All files in it are listed once.
    """

    def __init__(self, url: str, exif: ExifRule = "auto") -> None:
        """List the folder.

        Args:
            url: of the folder, with a protocol of fsspec: `s3://bucket/folder`.
            exif: see `PictureFolder`.

        Raises:
            UserError: it cannot be listed, or has no files.
        """
        from fsspec.core import url_to_fs

        self.folder = url.rstrip("/")
        self.exif: ExifRule = exif
        self._matched: dict[str, RemotePicture] = {}
        try:
            storage, root = url_to_fs(self.folder)
            storage.ls(root)  # finding may pass over what cannot be listed
            files = storage.find(root, detail=True)
        except Exception as error:  # each storage has errors of its own, and fsspec says which package is missing
            raise UserError(f"cannot list the image folder {self.folder}: {error!r}") from error
        if not files:
            raise UserError(f"the image folder {self.folder} is empty")
        self._listed = {
            path.removeprefix(root).lstrip("/"): RemotePicture(storage.unstrip_protocol(path), entry.get("size"))
            for path, entry in files.items()
        }

    def match(self, names: Sequence[str]) -> list[str]:
        """As `PictureFolder.match`."""
        missing = [name for name in names if name not in self._listed]
        rows = self._rows(missing) if missing else []
        pictures = list(self._listed.values())
        self._matched = {name: pictures[row] for name, row in zip(missing, rows, strict=True) if row is not None}
        return list(self._matched)

    def path(self, name: str) -> RemotePicture:
        """Where the picture is, or would be."""
        return self._listed.get(name) or self._matched.get(name) or RemotePicture(f"{self.folder}/{name}")

    def has(self, name: str) -> bool:
        """Whether `path` of the name is there."""
        return name in self._listed or name in self._matched

    def size_of(self, name: str) -> Size | None:
        """As `PictureFolder.size_of`; the whole picture is fetched."""
        row = None if name in self._listed else self._rows([name])[0]
        picture = self._listed.get(name) if row is None else list(self._listed.values())[row]
        try:
            return picture and _size(picture.read(), self.exif)
        except UserError:
            return None

    def _rows(self, names: Sequence[str]) -> list[int | None]:
        return match_names(names, [Path("/", name) for name in self._listed]).pictures


class PictureList:
    """Pictures that are known one by one, which are matched with names elsewhere."""

    def __init__(self, pictures: Sequence[Path], exif: ExifRule = "auto") -> None:
        self._pictures = pictures
        self.exif: ExifRule = exif

    def size_of(self, name: str) -> Size | None:
        """As `PictureFolder.size_of`."""
        row = match_names([name], self._pictures).pictures[0]
        return None if row is None else _size(self._pictures[row], self.exif)


Pictures = PictureFolder | RemoteFolder | PictureList


def _size(path: Path | PictureBytes, exif: ExifRule) -> Size | None:
    try:
        return picture_frame(path, exif="stored" if exif == "stored" else "upright").size
    except UserError:
        return None


def _files(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except (OSError, ValueError):  # no such folder, or a name that can be none
        return set()


def picture_frame(path: Path | PictureBytes, size: Size | None = None, exif: ExifRule = "auto") -> Frame:
    """The frame of the annotations of the picture at `path`, for which an annotation file gives `size`.

    Raises:
        UserError: it cannot be read.
    """
    try:
        register_heif()
        with Image.open(path) as picture:
            orientation = picture.getexif().get(ExifTags.Base.Orientation)
            return choose_frame((picture.height, picture.width), orientation, size, rule=exif)
    except Exception as error:  # decoders report broken data in any way there is
        raise UserError(f"cannot read the image {path}: {error}") from error
