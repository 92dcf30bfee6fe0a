"""The boxes that a person gives beside images: inline, as a JSON file, or as a COCO file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from maskwright.data.annotations import AnnotationIndex, read_annotations
from maskwright.errors import UserError
from maskwright.predictor import check_boxes

_FORMS = '"x1,y1,x2,y2;x1,y1,x2,y2", a JSON file {"photo.jpg": [[x1, y1, x2, y2], ...]}, or a COCO file (in pixels)'


@dataclass(frozen=True)
class GivenBoxes:
    """The boxes of one image.

    boxes: float32 [N, 4], xyxy, pixels of the image as `image_size` says, or of the upright one.
    category_ids: the box file's own, one per box; None where it has none.
    names: of those categories.
    image_id: the box file's own; None where it has none.
    image_size: (height, width) as the box file states it, or None.
    """

    boxes: Float[Tensor, "n 4"]
    category_ids: tuple[int, ...] | None = None
    names: tuple[str, ...] | None = None
    image_id: int | str | None = None
    image_size: tuple[int, int] | None = None


def boxes_of_images(spec: str, images: Sequence[Path]) -> list[GivenBoxes]:
    """What `spec` says of each image, in the order of `images`; every box of them is checked.

    spec: the path of a box file, or inline boxes `x1,y1,x2,y2;...` (for one image only). A file names an
        image by its path or by the end of it (the longest end that it has counts, and only for one image); crowd
        regions of a COCO file are left out.

    Raises:
        UserError: no such file, a file of another form, an image it does not name or does not name clearly,
            or a box that is no box.
    """
    # os.path answers False to a text that is too long for a path, as many inline boxes are, where Path raises.
    if os.path.isfile(spec):  # noqa: PTH113
        return _from_file(Path(spec), images)
    if "," not in spec:
        raise UserError(f"--boxes {spec}: no such file; expected {_FORMS}")
    if len(images) != 1:
        raise UserError(
            f"--boxes {spec}: boxes in the command are for one image, but there are {len(images)}; use a file"
        )
    try:
        return [GivenBoxes(check_boxes([_inline_box(box) for box in spec.split(";") if box.strip()]))]
    except UserError as error:
        raise UserError(f"--boxes {spec}: {error}") from error


def _inline_box(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise UserError(f"{text.strip()!r} is not a box; expected {_FORMS}") from error


def _from_file(path: Path, images: Sequence[Path]) -> list[GivenBoxes]:
    content = _read_json(path)
    if isinstance(content.get("images"), list) and "annotations" in content:
        return _from_coco(path, images)
    keys = _match_names(list(content), images, path)
    given = []
    for key in keys:
        value = content[key]
        if not isinstance(value, list):
            raise UserError(f"{path}: expected a list of boxes at {key!r}, but got {str(value)[:60]}")
        try:
            given.append(GivenBoxes(check_boxes(value)))
        except UserError as error:
            raise UserError(f"{path}: at {key!r}, {error}") from error
    return given


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        reason = "it is empty" if path.stat().st_size == 0 else str(error)
        raise UserError(f"{path}: not valid JSON ({reason}); expected boxes as {_FORMS}") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: expected a JSON object, but got a {type(content).__name__}; boxes are given as {_FORMS}"
        )
    return content


def _match_names(names: Sequence[str], images: Sequence[Path], source: Path) -> list[str]:
    """The name in the file that means each image, one for each: the longest one that ends the image's path."""
    if not names:
        raise UserError(f"{source}: it names no image; expected boxes as {_FORMS}")
    by_path: dict[PurePosixPath, list[str]] = {}
    for name in names:
        by_path.setdefault(PurePosixPath(name), []).append(name)
    owners: dict[str, Path] = {}
    for image in images:
        name = _match_name(image, by_path, source)
        if name in owners:
            raise UserError(
                f"{source}: {name!r} may mean {owners[name]} and {image}; name each of them with its folder there"
            )
        owners[name] = image
    return list(owners)


def _match_name(image: Path, by_path: Mapping[PurePosixPath, list[str]], source: Path) -> str:
    # As given first: a path that leads up (`../a.jpg`) may be named so.
    parts = image.absolute().parts
    ends = (PurePosixPath(*parts[start:]) for start in range(len(parts)))
    found = next((by_path[end] for end in (PurePosixPath(image), *ends) if end in by_path), [])
    if len(found) > 1:
        raise UserError(f"{source}: {image} may be any of {', '.join(found)}; keep one of them")
    if not found:
        known = sorted(name for own in by_path.values() for name in own)
        # Those of the same file name first: they lie in another folder.
        known.sort(key=lambda name: PurePosixPath(name).name != image.name)
        shown = ", ".join(known[:3]) + (", ..." if len(known) > 3 else "")
        raise UserError(
            f"{source}: has no entry for the image {image} (it has {len(known)}: {shown}); "
            "an image's entry is its path, or the end of its path with or without folders"
        )
    return found[0]


def _from_coco(path: Path, images: Sequence[Path]) -> list[GivenBoxes]:
    index = read_annotations(path)
    index.refuse_unusable()
    dropped = [problem for problem in index.problems if problem.effect == "dropped"]
    if dropped:
        print(f"{path}: {len(dropped)} annotations left out, the first is {dropped[0]}", file=sys.stderr)
    # Each is there once: the index refuses others.
    file_names = [index.file_names[row] for row in range(len(index.file_names))]
    rows = {name: row for row, name in enumerate(file_names)}
    return [_coco_image(index, rows[name]) for name in _match_names(file_names, images, path)]


def _coco_image(index: AnnotationIndex, row: int) -> GivenBoxes:
    members = slice(int(index.offsets[row]), int(index.offsets[row + 1]))
    kept = ~index.iscrowd[members]
    categories = [index.categories[position] for position in index.category_rows[members][kept].tolist()]
    image_id = index.image_ids[row]
    height, width = index.image_sizes[row].tolist()
    return GivenBoxes(
        boxes=torch.from_numpy(index.boxes[members][kept]),
        category_ids=tuple(category["id"] for category in categories),
        names=tuple(category["name"] for category in categories),
        image_id=image_id if isinstance(image_id, str) else int(image_id),
        image_size=(height, width),
    )
