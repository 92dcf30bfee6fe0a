"""COCO instances as shards: tars that webdataset reads, too, and an index by which every sample is read alone.

A sample is two members of a tar, one after the other: `KEY.jpg` (or another suffix), the picture's own bytes, and
`KEY.json`, `{"image": {...}, "annotations": [...]}`, its entries after the repairs. Keys count the images of the file,
so that no name in it becomes a path. The index holds all that a data set needs but pixels and segmentations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from maskwright.data.annotated_pictures import PictureBytes, read_annotated_picture
from maskwright.data.annotations import AnnotationIndex, TextTable
from maskwright.data.coco import InstanceDataset, inspect_instances
from maskwright.data.dataset import DataSource, Inspection, Transforms
from maskwright.data.normalise import Kind, Repairs
from maskwright.data.orientation import ExifRule, Frame
from maskwright.data.picture_folder import ListedImage, PictureFolder, picture_frame
from maskwright.data.problems import Problem
from maskwright.data.segmentations import NONE, SegmentationPacker
from maskwright.errors import UserError
from maskwright.ops.run_lengths import Runs
from maskwright.structures import Category

INDEX_NAME = "index.npz"

_FORMAT = "maskwright shards 1"
_EXPECTED = "expected a folder that `maskwright data shards` wrote"
_COLUMNS = (
    "image_sizes",
    "offsets",
    "category_rows",
    "ids",
    "iscrowd",
    "boxes",
    "positions",
)  # as they are in an index

Place = Int64[np.ndarray, " 3"]
"""Where a member of a tar is: the number of the shard, the first byte of its content there, and the number of bytes."""


def shard_name(number: int) -> str:
    """The name of a shard's tar."""
    return f"shard-{number:06d}.tar"


def index_path(shards: str | Path) -> Path:
    """The index of a folder of shards, which may also be named itself."""
    path = Path(shards)
    return path if path.suffix == Path(INDEX_NAME).suffix else path / INDEX_NAME


class ShardedInstances(InstanceDataset):
    """The shards of a COCO instances file: to the bit the samples of the file and its images."""

    format_name = "shards of COCO instances"

    def __init__(
        self,
        shards: str | Path,
        *,
        categories: Sequence[Category] | None = None,
        mask_classes: str | Sequence[str] = "all",
        transforms: Transforms | None = None,
    ) -> None:
        """Read the index.

        Args:
            shards: the folder, or the index in it.
            categories: as of `CocoInstances`.
            mask_classes: as of `CocoInstances`.
            transforms: the augmentation.

        Raises:
            UserError: there is no index, a shard is missing or not whole, or a class or mask class is unknown.
        """
        index, pictures = read_shards(shards)
        super().__init__(pictures, index, categories=categories, mask_classes=mask_classes, transforms=transforms)

    @classmethod
    def mismatch(cls, annotations: str | Path) -> str | None:
        """See `FileDataset`."""
        path = Path(annotations)
        return None if path.suffix == Path(INDEX_NAME).suffix or path.is_dir() else "is no folder of shards"

    @classmethod
    def open(cls, source: DataSource) -> ShardedInstances:
        """See `FileDataset`; the shards themselves hold the pictures and their frames."""
        return cls(source.annotations, categories=source.categories, mask_classes=source.mask_classes)

    @classmethod
    def inspect(
        cls, annotations: str | Path, segmentations: str | Path | None = None, pictures: PictureFolder | None = None
    ) -> Inspection:
        """See `FileDataset`; the pictures are those in the shards."""
        if segmentations is not None:
            raise UserError(f"{annotations} is a folder of shards of instances: --segmentations has no use")
        if pictures is not None and pictures.folder != index_path(annotations).parent:
            raise UserError(f"{annotations} is a folder of shards, which hold their pictures: --images has no use")
        return inspect_instances(*read_shards(annotations))


@dataclass(frozen=True)
class Tars:
    """The tars of a folder.

    No file stays open between two reads, so that any number of workers may be forked, and of shards be read.

    sizes: the bytes of each tar.
    pictures: the `Place` of the picture of each image.
    targets: and that of its entries.
    """

    folder: Path
    sizes: Int64[np.ndarray, " s"]
    pictures: Int64[np.ndarray, "i 3"]
    targets: Int64[np.ndarray, "i 3"]

    def require_whole(self) -> None:
        """Refuse tars that are missing, or longer or shorter than they were written.

        Raises:
            UserError: one is.
        """
        for number, size in enumerate(self.sizes.tolist()):
            path = self.folder / shard_name(number)
            try:
                found = path.stat().st_size
            except OSError as error:
                raise UserError(f"cannot read the shard {path}: {error.strerror}; copy it there again") from error
            if found != size:
                raise UserError(
                    f"the shard {path} is not whole: it has {found} bytes, but its index says {size}; copy it again"
                )

    def path(self, place: Place) -> Path:
        """The tar that a member is in."""
        return self.folder / shard_name(int(place[0]))

    def read(self, place: Place) -> bytes:
        """The content of a member.

        Raises:
            UserError: the tar cannot be read.
        """
        _, start, size = place.tolist()
        try:
            with self.path(place).open("rb") as file:
                file.seek(start)
                return file.read(size)
        except OSError as error:
            raise UserError(f"cannot read the shard {self.path(place)}: {error.strerror}") from error


@dataclass(frozen=True)
class ShardPictures:
    """The pictures in shards (`ListedPictures`); `exif` is the frame that was asked for when they were written."""

    tars: Tars
    exif: ExifRule

    def read(self, image: ListedImage, source: str) -> UInt8[np.ndarray, "h w 3"]:
        """See `ListedPictures`."""
        return read_annotated_picture(self._picture(image), image.size, source, self.exif)

    def frame(self, image: ListedImage) -> Frame:
        """See `ListedPictures`."""
        return picture_frame(self._picture(image), image.size, self.exif)

    def _picture(self, image: ListedImage) -> PictureBytes:
        place = self.tars.pictures[image.row]
        return PictureBytes(self.tars.read(place), f"{image.file_name} in {self.tars.path(place)}")


@dataclass(frozen=True)
class ShardSegmentations:
    """The segmentations in shards (`SegmentationTable`), parsed when they are asked for.

    offsets: int64 [I + 1], of the annotations of each image, as in the index.
    """

    kinds: UInt8[np.ndarray, " m"]
    offsets: Int64[np.ndarray, " n"]
    tars: Tars

    def encode(self, rows: Sequence[int], image_size: tuple[int, int]) -> list[Runs]:
        """See `SegmentationTable`.

        Raises:
            UserError: the shard cannot be read, or holds something else.
        """
        packer = SegmentationPacker()
        wanted = {row for row in rows if row >= 0 and self.kinds[row] != NONE}
        entries = self._entries(min(wanted)) if wanted else {}
        for row in rows:
            packer.add(entries[row].get("segmentation") if row in wanted else None, image_size)
        return packer.pack().encode(range(len(rows)), image_size)

    def _entries(self, row: int) -> Mapping[int, dict[str, Any]]:
        """The entries of the image that has annotation `row`, by their rows."""
        image = int(np.searchsorted(self.offsets, row, side="right")) - 1
        place = self.tars.targets[image]
        try:
            entries = json.loads(self.tars.read(place))["annotations"]
            return dict(zip(range(*self.offsets[image : image + 2].tolist()), entries, strict=True))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.tars.path(place)} is damaged, or of another index: it should have the annotations of an image "
                f"at byte {place[1]}; copy it again"
            ) from error


def read_shards(shards: str | Path) -> tuple[AnnotationIndex, ShardPictures]:
    """The index of a folder of shards, and the pictures in them.

    Raises:
        UserError: there is no such index, or a shard is missing or not whole.
    """
    path = index_path(shards)
    columns, texts = _load(path)
    tars = Tars(path.parent, *(columns.pop(name) for name in ("tars", "pictures", "targets")))
    tars.require_whole()
    repairs = Repairs()
    for kind, (count, example) in texts["repairs"].items():
        repairs.add(Kind(kind), example, count)
    index = AnnotationIndex(
        source=str(path),
        categories=texts["categories"],
        file_names=TextTable(texts["file_names"]),
        image_ids=columns.pop("image_ids", np.array(texts["image_ids"], dtype=object)),
        sampling_weights=columns.pop("sampling_weights", None),
        problems=[Problem(**problem) for problem in texts["problems"]],
        repairs=repairs,
        segmentations=ShardSegmentations(columns.pop("kinds"), columns["offsets"], tars),
        own_ids=texts["own_ids"],
        **{name: columns[name] for name in _COLUMNS},
    )
    return index, ShardPictures(tars, texts["exif"])


def write_index(index: AnnotationIndex, pictures: ShardPictures) -> None:
    """Write the index of tars, into their folder: what `read_shards` reads."""
    tars = pictures.tars
    columns = {"tars": tars.sizes, "pictures": tars.pictures, "targets": tars.targets}
    columns |= {"kinds": index.segmentations.kinds, **{name: getattr(index, name) for name in _COLUMNS}}
    if index.sampling_weights is not None:
        columns["sampling_weights"] = index.sampling_weights
    if index.image_ids.dtype != object:
        columns["image_ids"] = index.image_ids
    texts = {
        "format": _FORMAT,
        "exif": pictures.exif,
        "categories": index.categories,
        "file_names": list(index.file_names),
        "image_ids": [] if "image_ids" in columns else index.image_ids.tolist(),
        "own_ids": index.own_ids,
        "problems": [asdict(problem) for problem in index.problems],
        "repairs": {kind: [count, index.repairs.examples[kind]] for kind, count in index.repairs.counts.items()},
    }
    columns["texts"] = np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8)
    np.savez_compressed(tars.folder / INDEX_NAME, **columns)  # pyright: ignore[reportArgumentType]


def _load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the texts of an index."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            columns = dict(stored)
        texts = json.loads(columns.pop("texts").tobytes())
        form = texts["format"]
    except OSError as error:
        raise UserError(f"cannot read the index of shards {path}: {error.strerror or error}; {_EXPECTED}") from error
    except Exception as error:  # a damaged archive shows itself in any way there is
        raise UserError(f"{path} is no index of shards, or is damaged ({error}); {_EXPECTED}") from error
    if form != _FORMAT:
        raise UserError(f"{path} has the format {form!r}, but this version reads {_FORMAT!r}; write the shards again")
    return columns, texts
