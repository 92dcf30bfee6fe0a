"""`maskwright data panoptic`: a COCO panoptic file out of COCO instances and, if there are any, stuff maps."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from maskwright.data.annotations import AnnotationIndex, read_annotations
from maskwright.data.categories import parse_categories, read_categories
from maskwright.data.panoptic import PanopticEntry, new_map_folder, new_map_names, panoptic_to_coco, write_panoptic
from maskwright.data.panoptic_transforms import drop_empty_segments
from maskwright.data.picture_folder import ListedImage
from maskwright.data.problems import count_skipped
from maskwright.errors import UserError
from maskwright.structures import Category, EncodedMasks, PanopticTarget

VOID = -1

StuffMap = Callable[[ListedImage], Int[np.ndarray, "h w"]]
"""Image -> the category id of the stuff at each pixel; other values are void."""


@dataclass
class Counts:
    """What came out, and what was lost on the way.

    hidden: instances that others cover wholly. boxes: instances without a mask, whose box is void where nothing else
    is. bare: images that the file of stuff regions does not list. unknown: pixels with a value that no stuff class has.
    void: pixels of no segment, of all `pixels`.
    """

    images: int = 0
    things: int = 0
    stuff: int = 0
    crowds: int = 0
    hidden: int = 0
    boxes: int = 0
    bare: int = 0
    unknown: int = 0
    void: int = 0
    pixels: int = 0
    problems: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """The counts as lines of text."""
        lines = [
            f"images: {self.images}",
            f"segments: {self.things + self.stuff} (things: {self.things}, stuff: {self.stuff}, "
            f"crowds among them: {self.crowds})",
            f"instances wholly hidden by others: {self.hidden}",
            f"instances without a mask, their boxes void: {self.boxes}",
            f"images that the stuff does not list: {self.bare}",
            f"pixels of stuff maps whose value is no stuff class: {self.unknown}",
            f"void: {self.void / max(self.pixels, 1):.1%} of all pixels",
        ]
        if self.problems:
            lines.append(f"broken annotations: {count_skipped(self.problems)}")
        return "\n".join(lines)


def panoptic_from_instances(
    instances: str | Path,
    out: str | Path,
    *,
    stuff: str | Path | None = None,
    stuff_categories: str | Path | None = None,
    stuff_offset: int = 0,
    segmentations: str | Path | None = None,
) -> Counts:
    """Write a COCO panoptic file and its PNGs: every pixel goes to the uppermost of what lies on it.

    From bottom to top: stuff, the boxes of instances without a mask (as void: what is in them is not known), crowds,
    instances. Among crowds and among instances the one with the smaller mask lies on top; of equal ones, the one that
    the file lists first. Instances without a pixel left are dropped. Stuff of one class is one segment. Ids are
    1, 2, ... in each image: instances in the order of the file, then stuff.

    Args:
        instances: COCO instances file; its classes are things.
        out: COCO panoptic file to write.
        stuff: folder with one PNG of category ids per image, named like it; or COCO file of stuff regions with the same
            image ids (the smaller region on top). Without it the result has only things.
        stuff_categories: COCO file whose `categories` are the stuff classes (those with `isthing` true are ignored);
            all other stuff is void. Required for a folder of PNGs; a COCO file of stuff has its own.
        stuff_offset: added to the PNGs' values (1 if they are category ids less 1, as in COCO-Stuff).
        segmentations: folder for the PNGs, which must not exist; by default beside `out`, named like it.

    Raises:
        UserError: an input is missing or unusable, classes of things and stuff share an id or a name, or an output
            is there already or cannot be written.
    """
    new_map_folder(out, segmentations)
    counts = Counts()
    index = _read(instances, counts)
    listed = _stuff_categories(stuff, stuff_categories)
    things = [Category(id=category["id"], name=category["name"], isthing=True) for category in index.categories]
    categories = parse_categories([*things, *listed], f"{instances} with {stuff_categories or stuff}")
    stuff_map = _open_stuff(stuff, stuff_offset, index, counts)
    write_panoptic(out, _entries(index, categories, stuff_map, counts), categories, segmentations)
    return counts


OPTIONS = panoptic_from_instances


def run(**given: Any) -> int:
    """Write the file; print what is in it, and its name."""
    print(panoptic_from_instances(**given))
    print(given["out"])
    return 0


def _read(annotations: str | Path, counts: Counts) -> AnnotationIndex:
    index = read_annotations(annotations)
    index.refuse_unusable()
    for problem in index.problems:
        counts.problems[problem.kind] = counts.problems.get(problem.kind, 0) + 1
    return index


def _stuff_categories(stuff: str | Path | None, stuff_categories: str | Path | None) -> list[Category]:
    if stuff is None:
        if stuff_categories is not None:
            raise UserError("--stuff-categories without --stuff: name the stuff maps, too")
        return []
    if stuff_categories is None and Path(stuff).is_dir():
        raise UserError(f"{stuff} is a folder of stuff maps: --stuff-categories must name a file with their categories")
    source = stuff if stuff_categories is None else stuff_categories
    listed = [category for category in read_categories(source) if not category.get("isthing", False)]
    return [Category(id=category["id"], name=category["name"], isthing=False) for category in listed]


def _open_stuff(stuff: str | Path | None, offset: int, index: AnnotationIndex, counts: Counts) -> StuffMap | None:
    if stuff is None:
        return None
    if Path(stuff).is_dir():
        _require_own_maps(index, Path(stuff))
        return lambda image: _read_stuff(Path(stuff) / Path(image.file_name).with_suffix(".png"), image.size) + offset
    regions = _read(stuff, counts)
    rows = {identity: row for row, identity in enumerate(regions.image_ids.tolist())}
    counts.bare = sum(identity not in rows for identity in index.image_ids.tolist())
    if counts.bare == len(index.image_ids):
        raise UserError(f"{stuff} lists none of the images of {index.source}; expected the same image ids in both")
    return lambda image: _paint_stuff(regions, rows.get(image.id), image.size)


def _require_own_maps(index: AnnotationIndex, folder: Path) -> None:
    """Refuse images that would share a stuff map, `1.jpg` and `1.png` for instance."""
    owners: dict[str, str] = {}
    for row in range(len(index.image_ids)):
        name = index.file_names[row]
        map_name = Path(name).with_suffix(".png").as_posix()
        owner = owners.setdefault(map_name, name)
        if owner != name:
            raise UserError(f"{index.source}: the images {owner} and {name} have one stuff map, {folder / map_name}")


def _read_stuff(path: Path, size: tuple[int, int]) -> Int[np.ndarray, "h w"]:
    """The values of a PNG with one channel."""
    try:
        with Image.open(path) as stored:
            values = np.asarray(stored).astype(np.int64)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the stuff map {path}: {error}") from error
    if values.shape != size:
        raise UserError(
            f"the stuff map {path} must have one value per pixel and {size[0]} x {size[1]} pixels (height x width), "
            f"but its shape is {values.shape}"
        )
    return values


def _paint_stuff(regions: AnnotationIndex, row: int | None, size: tuple[int, int]) -> Int[np.ndarray, "h w"]:
    """Category ids of the stuff regions of one image, the smaller on top; 0 elsewhere."""
    canvas = np.zeros(size, dtype=np.int64)
    if row is not None:
        image, part = regions.image(row), regions.rows_of(row)
        if image.size != size:
            raise UserError(
                f"{regions.source}: image {image.id} is {image.size[0]} x {image.size[1]} pixels (height x width), but "
                f"{size[0]} x {size[1]} in the instances file; expected the same size in both"
            )
        masks = EncodedMasks(regions.segmentations.encode(range(part.start, part.stop), size), size)
        identities = [regions.categories[place]["id"] for place in regions.category_rows[part]]
        for region in _bottom_to_top(masks):
            _paint(torch.from_numpy(canvas), masks, region, identities[region])
    return canvas


def _bottom_to_top(masks: EncodedMasks) -> list[int]:
    """The order of painting: larger masks first; of equal ones, the later."""
    areas = masks.areas()
    return sorted(range(len(masks)), key=lambda row: (-int(areas[row]), -row))


def _paint(canvas: Int[Tensor, "h w"], masks: EncodedMasks, row: int, value: int) -> None:
    """Write `value` where the mask `row` is."""
    mask = masks[torch.tensor([row])]
    x1, y1, x2, y2 = mask.extents()[0].tolist()
    canvas[y1:y2, x1:x2][mask.crop(x1, y1, x2, y2)[0]] = value


def _entries(
    index: AnnotationIndex, categories: list[Category], stuff_map: StuffMap | None, counts: Counts
) -> Iterator[PanopticEntry]:
    images = [index.image(row) for row in range(len(index.image_ids))]
    map_names = new_map_names([image.file_name for image in images])
    for row, image in enumerate(tqdm(images, unit="image", file=sys.stderr, desc="panoptic", disable=None)):
        stuff = None if stuff_map is None else stuff_map(image)
        target = _merge(index, row, categories, stuff, counts)
        listed = {"id": image.id, "file_name": image.file_name, "height": image.size[0], "width": image.size[1]}
        yield PanopticEntry(listed, *panoptic_to_coco(target, categories, map_names[row]))


def _merge(
    index: AnnotationIndex,
    row: int,
    categories: list[Category],
    stuff: Int[np.ndarray, "h w"] | None,
    counts: Counts,
) -> PanopticTarget:
    """The segments of one image, in the order of their ids: instances, then stuff."""
    image, part = index.image(row), index.rows_of(row)
    masks = EncodedMasks(index.segmentations.encode(range(part.start, part.stop), image.size), image.size)
    has_mask = masks.areas() > 0
    boxes, iscrowd = torch.from_numpy(index.boxes[part].copy()), torch.from_numpy(index.iscrowd[part].copy())
    labels = index.category_rows[part].tolist()
    canvas = torch.full(image.size, VOID, dtype=torch.int32)
    if stuff is not None:
        labels += _lay_stuff(canvas, stuff, categories, first=len(masks), counts=counts)
    for box in boxes[~has_mask].tolist():
        left, top, right, bottom = box
        canvas[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))] = VOID
    for instance in sorted(_bottom_to_top(masks), key=lambda place: not iscrowd[place]):  # crowds first
        _paint(canvas, masks, instance, instance)
    target = PanopticTarget(
        segmentation=canvas,
        labels=torch.tensor(labels, dtype=torch.int64),
        iscrowd=torch.cat([iscrowd, torch.zeros(len(labels) - len(masks), dtype=torch.bool)]),
        ids=torch.arange(1, len(labels) + 1),
        image_id=image.id,
    )
    visible = drop_empty_segments(target)
    is_thing = visible["ids"] <= len(masks)
    counts.images += 1
    counts.things += int(is_thing.sum())
    counts.stuff += int((~is_thing).sum())
    counts.crowds += int(visible["iscrowd"].sum())
    counts.hidden += int(has_mask.sum()) - int(is_thing.sum())
    counts.boxes += int((~has_mask).sum())
    counts.void += int((canvas == VOID).sum())
    counts.pixels += canvas.numel()
    visible["ids"] = torch.arange(1, len(visible["ids"]) + 1)
    return visible


def _lay_stuff(
    canvas: Int[Tensor, "h w"], stuff: Int[np.ndarray, "h w"], categories: list[Category], first: int, counts: Counts
) -> list[int]:
    """Paint one segment for each stuff class of the map, rows from `first` on; returns their labels."""
    labels = {category["id"]: label for label, category in enumerate(categories) if not category.get("isthing")}
    found = []
    for value, count in zip(*(column.tolist() for column in np.unique(stuff, return_counts=True)), strict=True):
        if value in labels:
            canvas[torch.from_numpy(stuff == value)] = first + len(found)
            found.append(labels[value])
        else:
            counts.unknown += count
    return found
