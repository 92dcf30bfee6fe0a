"""COCO panoptic annotations (JSON and PNG) as a data set of images and `PanopticTarget`s, and back."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int32, UInt8
from PIL import Image
from torch import Tensor

from maskwright.data.annotated_pictures import require_file
from maskwright.data.coco import CocoDataset
from maskwright.data.dataset import DataSource, Inspection, InstanceTable, Transforms
from maskwright.data.orientation import ExifRule
from maskwright.data.panoptic_annotations import (
    NO_AREA,
    PanopticIndex,
    is_panoptic,
    map_folder,
    panoptic_content,
    read_panoptic_annotations,
)
from maskwright.data.picture_folder import PictureFolder
from maskwright.data.problems import Problem
from maskwright.errors import UserError
from maskwright.files import write_json, write_whole
from maskwright.ops.panoptic_map import decode_ids, encode_ids, rows_of_ids, segment_areas, segment_boxes
from maskwright.structures import Category, PanopticTarget


class CocoPanoptic(CocoDataset):
    """A COCO panoptic file, its folder of PNGs and its folder of images.

    Without transforms nothing is lost: `panoptic_to_coco` gives the PNG and the segments back. Segments are rows in
    file order, crowds and segments without a pixel among them; pixels of id 0, and of ids that have no usable segment,
    are void. Images without an annotation are left out. Every segment has a mask.
    """

    format_name = "COCO panoptic files"
    task = "panoptic"

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        segmentations: str | Path | None = None,
        *,
        categories: Sequence[Category] | None = None,
        transforms: Transforms | None = None,
        exif: ExifRule = "auto",
    ) -> None:
        """Read the annotation file.

        Args:
            images: the folder that the images' `file_name`s are relative to.
            annotations: the COCO panoptic file.
            segmentations: the folder of the PNGs; None takes the folder beside `annotations` that is named like it
                (`panoptic.json`: `panoptic`).
            categories: the label space to map the file's classes to, by name (a model's `categories`); None takes
                the file's own categories in file order.
            transforms: the augmentation.
            exif: the frame of annotations of pictures with an EXIF orientation (`choose_frame`).

        Raises:
            UserError: the file is unusable, a class with segments is not in `categories`, or a folder or its first
                file is missing.
        """
        pictures = PictureFolder(images, exif)
        self._index = read_panoptic_annotations(annotations, pictures)
        super().__init__(pictures, self._index, categories, transforms)
        require_file(pictures.path(self._index.file_names[0]), self._index.source)
        self._maps = map_folder(annotations, segmentations)
        require_file(self._maps / self._index.map_names[0], self._index.source)

    @classmethod
    def mismatch(cls, annotations: str | Path) -> str | None:
        """See `FileDataset`."""
        if Path(annotations).is_dir():
            return "is a folder"
        return None if is_panoptic(annotations) else "has no `segments_info`"

    @classmethod
    def open(cls, source: DataSource) -> CocoPanoptic:
        """See `FileDataset`."""
        return cls(
            source.images, source.annotations, source.segmentations, categories=source.categories, exif=source.exif
        )

    @classmethod
    def inspect(
        cls, annotations: str | Path, segmentations: str | Path | None = None, pictures: PictureFolder | None = None
    ) -> Inspection:
        """See `FileDataset`.

        Every PNG is compared with the file. Named by PNG and id: pixels whose id has no segment, segments without a
        pixel, areas that the pixels do not have, unknown categories; and PNGs that are missing, unreadable or of
        another size.
        """
        index = read_panoptic_annotations(annotations, pictures)
        return _inspect(index, map_folder(annotations, segmentations), pictures)

    @cached_property
    def instances(self) -> InstanceTable:
        """See `SegmentationDataset`; no PNG is read."""
        return self._instances(np.ones(len(self._index.ids), dtype=bool))

    @cached_property
    def mask_classes(self) -> list[str]:
        """All classes."""
        return [category["name"] for category in self.categories]

    def read_sample(self, index: int) -> tuple[UInt8[Tensor, "3 h w"], PanopticTarget]:
        """See `SegmentationDataset`."""
        image, rows = self._index.image(index), self._index.rows_of(index)
        pixels = self._read_image(image)
        id_map = read_id_map(self._maps / self._index.map_names[index], image.size, self._index.source)
        ids = torch.from_numpy(self._index.ids[rows].copy())
        return pixels, PanopticTarget(
            segmentation=torch.from_numpy(rows_of_ids(id_map, ids.numpy())),
            labels=torch.from_numpy(self._labels(rows)),
            iscrowd=torch.from_numpy(self._index.iscrowd[rows].copy()),
            ids=ids,
            image_id=image.id,
        )


def _inspect(index: PanopticIndex, folder: Path, pictures: PictureFolder | None) -> Inspection:
    areas, void, problems = _compare_maps(index, folder)
    pixels = max(int(areas.sum()) + void, 1)
    is_thing = np.array([category.get("isthing", True) for category in index.categories])
    segments, things = len(index.ids), int(is_thing[index.category_rows].sum())
    dropped = sum(problem.effect == "dropped" and problem.subject != "image" for problem in index.problems)
    return Inspection(
        source=index.source,
        summary=[
            f"images: {len(index.image_ids)}, of these without segments: {(np.diff(index.offsets) == 0).sum()}",
            f"segments: {segments} (things: {things}, stuff: {segments - things}, "
            f"crowds among them: {index.iscrowd.sum()}), dropped: {dropped}",
            f"void: {void / pixels:.1%} of all pixels",
        ],
        classes=_class_rows(index, areas, pixels),
        problems=index.problems + problems,
        repairs=index.repairs,
        images=[index.image(row) for row in range(len(index.image_ids))],
        pictures=pictures,
        learnable_images=len(np.unique(index.image_rows[(areas > 0) & ~index.iscrowd])),
        lesson="a segment, crowds apart",
    )


def _compare_maps(index: PanopticIndex, folder: Path) -> tuple[np.ndarray, int, list[Problem]]:
    """The pixels of each segment (int64 [M]), those of none, and what the PNGs have wrong."""
    areas = np.zeros(len(index.ids), dtype=np.int64)
    void = 0
    problems: list[Problem] = []
    for row, name in enumerate(index.map_names):
        image, rows = index.image(row), index.rows_of(row)
        try:
            id_map = read_id_map(folder / name, image.size, index.source)
        except UserError as error:
            problems.append(Problem("image", image.id, "unusable segmentation", str(error), "refused"))
            continue
        found = dict(zip(*(column.tolist() for column in np.unique(id_map, return_counts=True)), strict=True))
        void += found.pop(0, 0)
        for segment in range(rows.start, rows.stop):
            areas[segment] = found.pop(int(index.ids[segment]), 0)
            problems += _segment_problems(index, segment, int(areas[segment]), name)
        void += sum(found.values())
        problems += [
            Problem(
                "segment",
                f"{identity} of {name}",
                "id without a segment",
                f"{count} pixels have this id, but no usable segment has it",
                "void",
            )
            for identity, count in found.items()
        ]
    return areas, void, problems


def _segment_problems(index: PanopticIndex, segment: int, area: int, name: str) -> list[Problem]:
    identity, listed = f"{index.ids[segment]} of {name}", int(index.areas[segment])
    if area == 0:
        return [Problem("segment", identity, "segment without pixels", "no pixel has this id", "dropped")]
    if listed not in (NO_AREA, area):
        return [Problem("segment", identity, "wrong area", f"area is {listed}, but {area} pixels have this id", "kept")]
    return []


def _class_rows(index: PanopticIndex, areas: np.ndarray, pixels: int) -> list[dict[str, str]]:
    rows = []
    for position, category in enumerate(index.categories):
        own = index.category_rows == position
        row = {
            "class": category["name"],
            "": "thing" if category.get("isthing", True) else "stuff",
            "segments": str(own.sum()),
            "crowds": str((own & index.iscrowd).sum()),
            "pixels": f"{float(areas[own].sum()) / pixels:.1%}",
        }
        rows.append(row)
    return rows


def read_id_map(path: Path, size: tuple[int, int], source: str) -> Int32[np.ndarray, "h w"]:
    """The segment ids of a panoptic PNG, in the (height, width) that the annotation file `source` gives for its image.

    Raises:
        UserError: the file is missing, is no PNG in colours, or has another size.
    """
    require_file(path, source)
    try:
        with Image.open(path) as stored:
            form, mode = stored.format, stored.mode
            colours = np.asarray(stored.convert("RGB"))
    except Exception as error:  # decoders report broken data in any way there is
        raise UserError(f"cannot read the segmentation {path}: {error}") from error
    if form != "PNG" or mode not in ("RGB", "RGBA", "P"):
        raise UserError(f"the segmentation {path} must be a PNG in colours (RGB), but is a {form} of mode {mode}")
    if colours.shape[:2] != size:
        raise UserError(
            f"the segmentation {path} has {colours.shape[0]} x {colours.shape[1]} pixels (height x width), "
            f"but {source} says {size[0]} x {size[1]}"
        )
    return decode_ids(colours)


def panoptic_to_coco(
    target: PanopticTarget, categories: Sequence[Category], file_name: str
) -> tuple[UInt8[np.ndarray, "h w 3"], dict[str, Any]]:
    """A target as COCO has it: the colours of its PNG, and its entry of `annotations`.

    categories: the label space of `target["labels"]`.
    file_name: of the PNG.

    Raises:
        ValueError: a segment id is not in 1..2^24 - 1.
    """
    segmentation, ids, count = target["segmentation"], target["ids"], len(target["ids"])
    if (ids < 1).any():
        raise ValueError(f"segment ids must be at least 1 (0 is void), but got {ids.tolist()}")
    rows = segmentation.numpy()
    areas, boxes = segment_areas(rows, count).tolist(), segment_boxes(rows, count).astype(int).tolist()
    columns = (ids.tolist(), target["labels"].tolist(), target["iscrowd"].tolist(), areas, boxes)
    segments = [
        {
            "id": identity,
            "category_id": categories[label]["id"],
            "area": area,
            "bbox": [left, top, right - left, bottom - top],
            "iscrowd": int(iscrowd),
        }
        for identity, label, iscrowd, area, (left, top, right, bottom) in zip(*columns, strict=True)
    ]
    id_map = torch.cat([ids, ids.new_zeros(1)])[segmentation.long()]  # -1, void, is the last entry
    return encode_ids(id_map.numpy()), {
        "image_id": target["image_id"],
        "file_name": file_name,
        "segments_info": segments,
    }


def new_map_folder(annotations: str | Path, segmentations: str | Path | None = None) -> Path:
    """The folder for the PNGs of a panoptic file that is to be written: `segmentations`, or the one named like it.

    Raises:
        UserError: it or the file exists already, the parent folder of one of them does not, or the file has no suffix,
            so that the two would have the same name.
    """
    folder = Path(annotations).with_suffix("") if segmentations is None else Path(segmentations)
    if folder == Path(annotations):
        raise UserError(f"the panoptic file {annotations} needs a suffix (.json): its PNGs go to the folder without it")
    for path, what in ((folder, "folder of the segmentations"), (Path(annotations), "panoptic file")):
        if path.exists():
            raise UserError(f"the {what} {path} exists already and is not overwritten; choose another name")
        if not path.parent.is_dir():
            raise UserError(f"cannot write the {what} {path}: the folder {path.parent} does not exist")
    return folder


def new_map_names(file_names: Sequence[str]) -> list[str]:
    """The names of the images' PNGs: `1.png` for `1.jpg`, but `1.jpg.png` where another image could have that, too.

    They are unique, even where upper and lower case count as the same, if the names of the images are.
    """
    short = [Path(name).with_suffix(".png").as_posix() for name in file_names]
    long = [f"{name}.png" for name in file_names]
    counts = Counter(name.casefold() for pair in zip(short, long, strict=True) for name in set(pair))
    return [one if counts[one.casefold()] == 1 else other for one, other in zip(short, long, strict=True)]


@dataclass(frozen=True)
class PanopticEntry:
    """One image of a panoptic file to be written.

    image: its entry of `images` (`id`, `file_name`, `height`, `width`, and whatever else).
    colours: uint8 [H, W, 3], its PNG.
    annotation: its entry of `annotations`; `file_name` names the PNG.
    """

    image: dict[str, Any]
    colours: np.ndarray
    annotation: dict[str, Any]


def write_panoptic(
    annotations: str | Path,
    entries: Iterable[PanopticEntry],
    categories: Sequence[Category],
    segmentations: str | Path | None = None,
) -> None:
    """Write a COCO panoptic file and its folder of PNGs, one entry in memory at a time; whole, or not at all.

    Args:
        annotations: the JSON file, which must not exist.
        entries: the images.
        categories: of the file.
        segmentations: the folder, which must not exist; None takes the one beside `annotations` named like it.

    Raises:
        UserError: as `new_map_folder`, two entries have one PNG, or something cannot be written.
    """
    annotations, folder = Path(annotations), new_map_folder(annotations, segmentations)
    images, written = [], []

    def write_maps(temporary: Path) -> None:
        temporary.mkdir()
        for entry in entries:
            name = entry.annotation["file_name"]
            path = temporary / name
            if not path.resolve().is_relative_to(temporary.resolve()):
                raise UserError(f"the segmentation {name!r} would lie outside of {folder}")
            if path.exists():
                raise UserError(f"{annotations}: two images have the segmentation {name!r}")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(entry.colours).save(path, "PNG")
            images.append(entry.image)
            written.append(entry.annotation)

    write_whole(folder, write_maps)
    try:
        write_json(annotations, panoptic_content(images, written, categories), indent=None)
    except BaseException:  # Ctrl-C, too
        shutil.rmtree(folder)
        raise
