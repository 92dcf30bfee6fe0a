"""COCO panoptic annotations (JSON and PNG) as a map-style data set of images and `PanopticTarget`s, and back."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int32, UInt8
from PIL import Image
from torch import Tensor

from maskwright.data.categories import labels_of_categories
from maskwright.data.coco import read_annotated_image, require_file
from maskwright.data.panoptic_annotations import map_folder, read_panoptic_annotations
from maskwright.errors import UserError
from maskwright.files import write_json
from maskwright.ops.panoptic_map import decode_ids, encode_ids, rows_of_ids, segment_areas, segment_boxes
from maskwright.structures import Category, PanopticTarget

PanopticTransforms = Callable[[Tensor, PanopticTarget], tuple[Tensor, PanopticTarget]]


class CocoPanoptic:
    """A COCO panoptic file, its folder of PNGs and its folder of images; any category ids, nothing to register.

    `ds[i]` is `(uint8 RGB image [3, H, W], PanopticTarget)` of the i-th annotated image of the file; `ds[(i, seed)]`
    runs the transforms with torch's random state seeded by `seed` (and puts the state back), so that augmentation is
    a function of the sample's seed alone.

    Without transforms nothing is lost: `panoptic_to_coco` gives the PNG and the segments back. Segments are rows in
    file order, crowds and segments without a pixel among them; pixels of id 0, and of ids that have no usable segment,
    are void. Images without an annotation are left out.

    The annotations are held in flat arrays, which forked loader workers share.

    Attributes:
        categories: the label space (position = label).
        file_categories: the file's own categories.
        skipped: how many entries were dropped while the file was read, by kind of reason (`maskwright data check`
            names each, and what shows only in the PNGs).
        transforms: called with (image, target); may be replaced at any time.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        segmentations: str | Path | None = None,
        *,
        categories: Sequence[Category] | None = None,
        transforms: PanopticTransforms | None = None,
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

        Raises:
            UserError: the file is unusable, a class with segments is not in `categories`, or a folder or its first
                file is missing.
        """
        self._images = Path(images)
        self._index = read_panoptic_annotations(annotations)
        self._index.refuse_unusable()
        self._maps = map_folder(annotations, segmentations)
        self._rows = np.arange(len(self._index.image_ids))
        self.file_categories: list[Category] = self._index.categories
        self.categories: list[Category] = list(self.file_categories if categories is None else categories)
        used = set(np.unique(self._index.category_rows).tolist())
        self._labels = labels_of_categories(self._index.categories, used, self.categories, self._index.source)
        self.skipped = self._index.skipped
        self.transforms = transforms
        if not self._images.is_dir():
            raise UserError(f"the image folder {self._images} does not exist or is no folder")
        require_file(self._images / self.file_names[0], self._index.source)
        require_file(self._maps / self._index.map_names[0], self._index.source)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, PanopticTarget]:
        index, seed = key if isinstance(key, tuple) else (key, None)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must lie in 0..{len(self) - 1}, but is {index}")
        image, target = self._image(index), self._target(index)
        if self.transforms is None:
            return image, target
        if seed is None:
            return self.transforms(image, target)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.transforms(image, target)

    def subset(self, indices: Sequence[int]) -> CocoPanoptic:
        """The images at `indices` of this data set, in that order; shares everything but `transforms` with it.

        Raises:
            UserError: `indices` is empty.
        """
        if len(indices) == 0:
            raise UserError(f"{self._index.source}: a part of the data set without any image was asked for")
        part = copy.copy(self)
        part._rows = self._rows[np.asarray(indices, dtype=np.int64)]
        return part

    def count_segments(self) -> int:
        """How many segments these images have, crowds left out."""
        chosen = np.zeros(len(self._index.image_ids), dtype=bool)
        chosen[self._rows] = True
        return int((np.repeat(chosen, np.diff(self._index.offsets)) & ~self._index.iscrowd).sum())

    @property
    def file_names(self) -> list[str]:
        """The file's `file_name` of each image."""
        return [self._index.file_names[row] for row in self._rows]

    @property
    def sampling_weights(self) -> Float64[Tensor, " n"] | None:
        """One number per image, from the optional key `sampling_weight` of its entry; None where none has it.

        Where some images have the key and others do not, the others weigh 1.
        """
        weights = self._index.sampling_weights
        return None if weights is None else torch.from_numpy(weights[self._rows])

    def _size(self, index: int) -> tuple[int, int]:
        height, width = self._index.image_sizes[self._rows[index]].tolist()
        return height, width

    def _image(self, index: int) -> UInt8[Tensor, "3 h w"]:
        path = self._images / self._index.file_names[self._rows[index]]
        return read_annotated_image(path, self._size(index), self._index.source)

    def _target(self, index: int) -> PanopticTarget:
        row = int(self._rows[index])
        part = slice(int(self._index.offsets[row]), int(self._index.offsets[row + 1]))
        id_map = read_id_map(self._maps / self._index.map_names[row], self._size(index), self._index.source)
        ids = torch.from_numpy(self._index.ids[part].copy())
        identity = self._index.image_ids[row]
        return PanopticTarget(
            segmentation=rows_of_ids(id_map, ids),
            labels=torch.from_numpy(self._labels[self._index.category_rows[part]]),
            iscrowd=torch.from_numpy(self._index.iscrowd[part].copy()),
            ids=ids,
            image_id=identity if isinstance(identity, str) else int(identity),
        )


def read_id_map(path: Path, size: tuple[int, int], source: str) -> Int32[Tensor, "h w"]:
    """The segment ids of a panoptic PNG, in the (height, width) that the annotation file `source` gives for its image.

    Raises:
        UserError: the file is missing, is no PNG in colours, or has another size.
    """
    require_file(path, source)
    try:
        with Image.open(path) as stored:
            form, mode = stored.format, stored.mode
            colours = np.asarray(stored.convert("RGB"))
    # Pillow's decoders report broken data as any of these.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, Image.DecompressionBombError) as error:
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
        ValueError: a segment id does not lie in 1..2^24 - 1.
    """
    segmentation, ids, count = target["segmentation"], target["ids"], len(target["ids"])
    if (ids < 1).any():
        raise ValueError(f"segment ids must be at least 1 (0 is void), but got {ids.tolist()}")
    areas, boxes = segment_areas(segmentation, count).tolist(), segment_boxes(segmentation, count).long().tolist()
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
    return encode_ids(id_map), {"image_id": target["image_id"], "file_name": file_name, "segments_info": segments}


def new_map_folder(annotations: str | Path, segmentations: str | Path | None = None) -> Path:
    """The folder for the PNGs of a panoptic file that is to be written: `segmentations`, or the one named like it.

    Raises:
        UserError: it or the file is there already, the folder of one of them is not there, or the file has no suffix
            that would tell the two apart.
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

    No two are alike, not even where case does not count, if no two of the images are.
    """
    short = [Path(name).with_suffix(".png").as_posix() for name in file_names]
    long = [f"{name}.png" for name in file_names]
    counts = Counter(name.casefold() for pair in zip(short, long, strict=True) for name in set(pair))
    return [one if counts[one.casefold()] == 1 else other for one, other in zip(short, long, strict=True)]


def panoptic_content(
    images: list[dict[str, Any]], annotations: list[dict[str, Any]], categories: Sequence[Category]
) -> dict[str, Any]:
    """What a COCO panoptic file holds; every category says whether it is a thing, which it is if it does not."""
    listed = [{**category, "isthing": int(category.get("isthing", True))} for category in categories]
    return {"images": images, "annotations": annotations, "categories": listed}


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
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    try:
        for entry in entries:
            path = temporary / entry.annotation["file_name"]
            if not path.resolve().is_relative_to(temporary.resolve()):
                raise UserError(f"the segmentation {entry.annotation['file_name']!r} would lie outside of {folder}")
            if path.exists():
                raise UserError(f"{annotations}: two images have the segmentation {entry.annotation['file_name']!r}")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(entry.colours).save(path, "PNG")
            images.append(entry.image)
            written.append(entry.annotation)
        temporary.chmod(0o755)
        temporary.rename(folder)
        try:
            write_json(annotations, panoptic_content(images, written, categories), indent=None)
        except BaseException:  # Ctrl-C, too
            shutil.rmtree(folder)
            raise
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
