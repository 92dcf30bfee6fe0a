"""Writing the shards of a COCO instances file (`shards.py` says what is in them)."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from maskwright.data.annotated_pictures import PictureBytes, read_annotated_picture, require_file
from maskwright.data.annotations import AnnotationIndex, TextTable, index_annotations, read_normalised
from maskwright.data.picture_folder import ListedImage, PictureFolder
from maskwright.data.problems import Problem
from maskwright.data.shards import ShardPictures, ShardSegmentations, Tars, shard_name, write_index
from maskwright.errors import UserError

UNREADABLE = "image that cannot be read"
"""The kind of the problem of a picture that was left out."""

_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg"}  # of other formats it is the name, in lower case


def write_shards(annotations: str | Path, pictures: PictureFolder, folder: Path, shard_bytes: int) -> AnnotationIndex:
    """Write the tars of a file and its pictures into an empty folder, and the index last; returns that index.

    A picture that cannot be read, or has another size than the file says, is left out with its annotations, and
    becomes a problem of the index. Equal inputs give equal bytes.

    Raises:
        UserError: the file cannot be used, or none of its pictures.
        OSError: there is no space, or it cannot be written there.
    """
    normalised = read_normalised(annotations, pictures)
    index = index_annotations(normalised, str(annotations), pictures)
    index.refuse_unusable()
    entries = {entry["id"]: entry for entry in normalised.content["annotations"] if isinstance(entry, dict)}
    kept: list[int] = []
    places: list[list[list[int]]] = []
    problems: list[Problem] = []
    with _TarWriter(folder, shard_bytes) as tars:
        for row in tqdm(range(len(index.image_ids)), desc="pictures", unit="picture"):
            image = index.image(row)
            try:
                suffix, content = _read_picture(image, pictures, index.source)
            except UserError as error:
                problems.append(Problem("image", image.id, UNREADABLE, str(error), "dropped"))
                continue
            target = json.dumps(_target(image, index, entries)).encode()
            places.append(tars.add(f"{row:09d}", {suffix: content, "json": target}))
            kept.append(row)
    if not kept:
        raise UserError(f"{annotations}: none of its images can be read; the first: {problems[0].reason}")
    columns = np.array(places, dtype=np.int64)
    written = Tars(folder, np.array(tars.sizes, dtype=np.int64), columns[:, 0], columns[:, 1])
    index = _select(index, kept, problems, written)
    write_index(index, ShardPictures(written, pictures.exif))
    return index


def _read_picture(image: ListedImage, pictures: PictureFolder, source: str) -> tuple[str, bytes]:
    """The suffix of a picture's format, and the bytes of its file, which were decoded once."""
    path = pictures.path(image.file_name)
    require_file(path, source)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror}") from error
    read_annotated_picture(PictureBytes(content, str(path)), image.size, source, pictures.exif)
    with Image.open(BytesIO(content)) as picture:
        name = str(picture.format)
    return _SUFFIXES.get(name, name.lower()), content


def _target(image: ListedImage, index: AnnotationIndex, entries: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """The usable entries of an image, with the file's own ids."""
    rows, (height, width) = index.rows_of(image.row), image.size
    return {
        "image": {"id": image.id, "file_name": image.file_name, "height": height, "width": width},
        "annotations": [
            {**entries[int(index.ids[row])], "id": index.own_id(row)} for row in range(rows.start, rows.stop)
        ],
    }


def _select(index: AnnotationIndex, images: list[int], problems: list[Problem], tars: Tars) -> AnnotationIndex:
    """The index of some of the images, whose segmentations are in `tars`; with further problems."""
    ends = np.diff(index.offsets)[images]
    rows = np.concatenate([np.arange(part.start, part.stop) for part in map(index.rows_of, images)])
    offsets = np.cumsum([0, *ends])
    return replace(
        index,
        file_names=TextTable([index.file_names[image] for image in images]),
        image_ids=index.image_ids[images],
        image_sizes=index.image_sizes[images],
        sampling_weights=None if index.sampling_weights is None else index.sampling_weights[images],
        offsets=offsets,
        category_rows=index.category_rows[rows],
        ids=index.ids[rows],
        iscrowd=index.iscrowd[rows],
        problems=index.problems + problems,
        boxes=index.boxes[rows],
        segmentations=ShardSegmentations(index.segmentations.kinds[rows], offsets, tars),
        positions=index.positions[rows],
        own_ids=None if index.own_ids is None else [index.own_ids[row] for row in rows],
    )


class _TarWriter:
    """Writes samples one after the other; a new tar begins where the next sample would make one too large.

    sizes: the bytes of each tar that is closed.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.sizes: list[int] = []
        self._folder, self._limit = folder, limit
        self._tar: tarfile.TarFile | None = None

    def __enter__(self) -> _TarWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def add(self, key: str, members: Mapping[str, bytes]) -> list[list[int]]:
        """Write a sample: the contents of its members by suffix; returns the `Place` of each."""
        size = sum(tarfile.BLOCKSIZE + len(content) for content in members.values())
        if self._tar is not None and self._tar.offset + size > self._limit:
            self._close()
        if self._tar is None:
            path = self._folder / shard_name(len(self.sizes))
            self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 (`__exit__` closes it)
        return [self._add(self._tar, f"{key}.{suffix}", content) for suffix, content in members.items()]

    def _add(self, tar: tarfile.TarFile, name: str, content: bytes) -> list[int]:
        member = tarfile.TarInfo(name)  # without a time or an owner, so that equal inputs give equal tars
        member.size = len(content)
        start = tar.offset + tarfile.BLOCKSIZE
        tar.addfile(member, BytesIO(content))
        return [len(self.sizes), start, len(content)]

    def _close(self) -> None:
        if self._tar is not None:
            self._tar.close()
            self.sizes.append((self._folder / shard_name(len(self.sizes))).stat().st_size)
            self._tar = None
