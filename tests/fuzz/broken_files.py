"""Small data sets with one thing broken in each: every case is a function of its number alone.

A world is a folder with four pictures of 64 x 48 pixels, two boxes with masks on each, and files that describe them. A
damage changes one file of it and says which pictures it may have hurt; None stands for all of them.
"""

from __future__ import annotations

import copy
import io
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (48, 64)
PICTURES = 4
FORMATS = {  # suffix -> Pillow's name
    "jpg": "JPEG", "jfif": "JPEG", "png": "PNG", "bmp": "BMP", "gif": "GIF", "tif": "TIFF", "webp": "WEBP",
    "ppm": "PPM", "tga": "TGA", "pcx": "PCX", "jp2": "JPEG2000", "avif": "AVIF", "ico": "ICO", "sgi": "SGI",
    "dds": "DDS", "im": "IM",
}  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, "", "0", "1", "2.0", "x", "é漢字🎈", "\u0000", "a" * 5000, -1, 0, 1, 1.0, 1.5, 2**31, 2**63,
    2**70, -(2**70), 1e308, 1e-320, math.nan, math.inf, -math.inf, [], {}, [[]], [None], [0, 0, 0, 0], [1, 2],
    ["1", "2", "3", "4"],
    {"size": [1, 1], "counts": "x"}, {"size": [48, 64], "counts": [3072]}, [[1, 1, 2, 2]], [[0, 0, 10, 0, 10, 10]],
    "../../etc/passwd", "im0.jpg", "<b>", "%s{0}",
)  # fmt: skip


@dataclass(frozen=True)
class Broken:
    """A broken data set.

    what: in words, what was done.
    hurt: file names of the pictures whose results may differ from those of the whole data set; None: all.
    command: the arguments of `maskwright`.
    """

    what: str
    hurt: frozenset[str] | None
    command: list[str]


def picture(index: int) -> Image.Image:
    """Two bright discs on noise."""
    noise = np.random.default_rng(index).integers(0, 90, (*SIZE, 3), dtype=np.uint8)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    for x, y, radius in discs(index):
        noise[(columns - x) ** 2 + (rows - y) ** 2 <= radius**2] += 150
    return Image.fromarray(noise)


def discs(index: int) -> list[tuple[int, int, int]]:
    """(x, y, radius) of the two objects of a picture."""
    return [(14 + 2 * index, 16, 9), (44, 28 - index, 12)]


def instances() -> dict[str, Any]:
    """The whole COCO instances file."""
    images, annotations = [], []
    for index in range(PICTURES):
        images.append({"id": index + 1, "file_name": f"im{index}.jpg", "height": SIZE[0], "width": SIZE[1]})
        for x, y, radius in discs(index):
            angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
            polygon = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": 1 + len(annotations) % 2,
                    "bbox": [x - radius, y - radius, 2 * radius, 2 * radius],
                    "segmentation": [[round(float(value), 2) for value in polygon.ravel()]],
                    "area": 3 * radius**2,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": 1, "name": "disc"}, {"id": 2, "name": "ball"}]
    return {"info": {"year": 2026}, "images": images, "annotations": annotations, "categories": categories}


def boxes() -> dict[str, Any]:
    """The boxes as `{file name: [[x1, y1, x2, y2], ...]}`."""
    return {f"im{index}.jpg": [[x - r, y - r, x + r, y + r] for x, y, r in discs(index)] for index in range(PICTURES)}


def incomplete() -> dict[str, Any]:
    """The same without masks that people drew: the first of each picture has none, the second one a model's."""
    content = instances()
    for entry in content["annotations"][::2]:
        del entry["segmentation"], entry["area"]
    for entry in content["annotations"][1::2]:
        replaced = {"replaced": {"segmentation": [[]]}, "replaced_text": {"segmentation": "[[ ]]"}}
        entry["maskwright"] = {"model": "m", "weights": "w", "quality": 0.5, "inserted": ["area"], **replaced}
    return content


def panoptic(folder: Path) -> dict[str, Any]:
    """The whole COCO panoptic file; its PNGs go to `folder`."""
    folder.mkdir()
    images, annotations = [], []
    for index in range(PICTURES):
        rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
        ids = np.ones(SIZE, dtype=np.int64)
        for number, (x, y, radius) in enumerate(discs(index), start=2):
            ids[(columns - x) ** 2 + (rows - y) ** 2 <= radius**2] = number * 300
        colours = np.stack([ids % 256, ids // 256, ids // 65536], axis=2).astype(np.uint8)
        Image.fromarray(colours).save(folder / f"im{index}.png")
        images.append({"id": index + 1, "file_name": f"im{index}.jpg", "height": SIZE[0], "width": SIZE[1]})
        segments = [
            {"id": int(value), "category_id": 2 if value == 1 else 1, "area": int((ids == value).sum()), "iscrowd": 0}
            for value in np.unique(ids)
        ]
        annotations.append({"image_id": index + 1, "file_name": f"im{index}.png", "segments_info": segments})
    categories = [{"id": 1, "name": "disc", "isthing": 1}, {"id": 2, "name": "ground", "isthing": 0}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_world(folder: Path) -> None:
    """Write the whole, unbroken data set."""
    (folder / "images").mkdir(parents=True)
    for index in range(PICTURES):
        picture(index).save(folder / "images" / f"im{index}.jpg", quality=95)
    (folder / "instances.json").write_text(json.dumps(instances()))
    (folder / "incomplete.json").write_text(json.dumps(incomplete()))
    (folder / "boxes.json").write_text(json.dumps(boxes()))
    (folder / "panoptic.json").write_text(json.dumps(panoptic(folder / "panoptic")))


def commands(folder: Path) -> dict[str, list[list[str]]]:
    """What is tried, by the file that is broken."""
    images, out = str(folder / "images"), str(folder / "out")
    names = ("instances.json", "incomplete.json", "boxes.json", "panoptic.json")
    coco, missing, given, maps = (str(folder / name) for name in names)
    completed = ["--images", images, "--out", str(folder / "completed.json")]
    return {
        "instances.json": [
            ["predict", images, "--boxes", coco, "--out", out],
            ["data", "check", coco, "--images", images],
            ["evaluate", "deep-mac-tiny", "--images", images, "--annotations", coco],
        ],
        "incomplete.json": [
            ["complete", missing, *completed],
            ["complete", missing, *completed, "--replace", "unreviewed,rectangles"],
            ["complete", missing, "--undo", "--out", str(folder / "undone.json")],
        ],
        "boxes.json": [["predict", images, "--boxes", given, "--out", out]],
        "panoptic.json": [["data", "check", maps, "--images", images], ["evaluate", maps, "--annotations", maps]],
    }


def break_world(number: int, folder: Path) -> Broken:
    """Write the data set of case `number` to `folder`, with one thing broken."""
    write_world(folder)
    rng = random.Random(number)
    damage: Callable[[random.Random, Path], tuple[str, str, frozenset[str] | None]] = rng.choices(
        [change_value, change_bytes, break_picture, convert_picture, break_map], weights=[10, 4, 4, 2, 3]
    )[0]
    file, what, hurt = damage(rng, folder)
    return Broken(f"case {number}: {what}", hurt, rng.choice(commands(folder)[file]))


def change_value(rng: random.Random, folder: Path) -> tuple[str, str, frozenset[str] | None]:
    """Replace, drop, double or wrap one value anywhere in one of the JSON files."""
    file = rng.choice(["instances.json", "instances.json", "incomplete.json", "boxes.json", "panoptic.json"])
    content = json.loads((folder / file).read_text())
    path = random_path(rng, content)
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    key, how = path[-1], rng.choice(["replace", "replace", "replace", "drop", "double", "wrap", "text", "float"])
    old = parent[key]
    if how == "drop":
        del parent[key]
    elif how == "double" and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(old))
    else:
        others = {"wrap": [old], "text": str(old), "float": float(old) if isinstance(old, int) else str(old)}
        parent[key] = others.get(how, rng.choice(ODD_VALUES))
    (folder / file).write_text(json.dumps(content))
    return (
        file,
        f"{how} at {file}:{'/'.join(map(str, path))}, {str(old)[:40]!r} -> {_short(parent, key)}",
        _hurt(file, path),
    )


def _short(parent: Any, key: Any) -> str:
    try:
        return repr(parent[key])[:60]
    except (KeyError, IndexError):
        return "nothing"


def _hurt(file: str, path: list[Any]) -> frozenset[str] | None:
    """The picture of the one annotation, segment or box that a path leads to; None for everything else."""
    if file == "boxes.json" and len(path) > 1:
        return frozenset([path[0]])
    if file in ("instances.json", "incomplete.json") and path[0] == "annotations" and len(path) > 1:
        return frozenset([f"im{path[1] // 2}.jpg"]) if path[2:] != ["image_id"] else None
    return None


def random_path(rng: random.Random, content: Any) -> list[Any]:
    """Keys that lead to a value of `content`, deep ones as likely as shallow ones."""
    path: list[Any] = []
    while isinstance(content, dict | list) and content and (not path or rng.random() < 0.8):
        path.append(rng.choice(list(content)) if isinstance(content, dict) else rng.randrange(len(content)))
        content = content[path[-1]]
    return path


def change_bytes(rng: random.Random, folder: Path) -> tuple[str, str, frozenset[str] | None]:
    """Cut, flip, re-encode or replace a JSON file as a whole."""
    file = rng.choice(["instances.json", "incomplete.json", "boxes.json", "panoptic.json"])
    whole = (folder / file).read_bytes()
    place = rng.randrange(len(whole))
    changed = {
        "cut": whole[:place],
        "flip": whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :],
        "nothing": b"",
        "blanks": b" \n\t",
        "BOM": b"\xef\xbb\xbf" + whole,
        "UTF-16": whole.decode().encode("utf-16"),
        "comma": whole[:-1] + b",}",
        "not UTF-8": whole.replace(b"disc", b"d\xefsc"),
        "a list": b"[" + whole + b"]",
        "a number": b"17",
        "deep": b"[" * 100_000,
        "a picture": _encoded(picture(0), "PNG"),
        "twice": whole + whole,
        "NUL": whole + b"\0",
    }
    how = rng.choice(list(changed))
    (folder / file).write_bytes(changed[how])
    return file, f"{how} of {file} at {place}", None


def break_picture(rng: random.Random, folder: Path) -> tuple[str, str, frozenset[str] | None]:
    """Cut, flip or replace the bytes of one picture, whose name keeps its suffix."""
    name, kind = f"im{rng.randrange(PICTURES)}.jpg", rng.choice(list(FORMATS.values()))
    path = folder / "images" / name
    whole = _encoded(picture(int(name[2])), kind)
    place = rng.randrange(len(whole))
    flipped = bytearray(whole)
    for _ in range(rng.randrange(1, 20)):
        flipped[rng.randrange(len(whole))] = rng.randrange(256)
    changed = {"cut": whole[:place], "flip": bytes(flipped), "nothing": b"", "a page": b"<!DOCTYPE html><p>404"}
    how = rng.choice(list(changed))
    path.write_bytes(changed[how])
    file = rng.choice(["instances.json", "incomplete.json", "boxes.json", "panoptic.json"])
    return file, f"{how} of {name} as {kind}", frozenset([name])


def convert_picture(rng: random.Random, folder: Path) -> tuple[str, str, frozenset[str] | None]:
    """Another size, mode or format of one picture, as a whole file; sometimes it is gone, or a folder."""
    name = f"im{rng.randrange(PICTURES)}.jpg"
    path, whole = folder / "images" / name, picture(int(name[2]))
    how = rng.choice(["L", "P", "1", "RGBA", "CMYK", "I;16", "F", "small", "large", "gone", "folder", "turned"])
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how in ("small", "large"):
        whole.resize((1, 1) if how == "small" else (640, 480)).save(path, "PNG")
    elif how == "turned":
        exif = Image.Exif()
        exif[0x0112] = rng.randrange(1, 10)
        whole.save(path, "JPEG", exif=exif)
    elif how in ("I;16", "F"):
        grey = np.asarray(whole.convert("L"))
        values = grey.astype(np.uint16) * 256 if how == "I;16" else grey.astype(np.float32)
        Image.fromarray(values).save(path, "TIFF")
    elif how != "gone":
        whole.convert(how).save(path, "TIFF")
    file = rng.choice(["instances.json", "incomplete.json", "boxes.json", "panoptic.json"])
    return file, f"{name} as {how}", frozenset([name])


def break_map(rng: random.Random, folder: Path) -> tuple[str, str, frozenset[str] | None]:
    """Break one PNG of the panoptic maps."""
    name = f"im{rng.randrange(PICTURES)}.png"
    path = folder / "panoptic" / name
    whole = Image.open(path).copy()
    how = rng.choice(["L", "P", "RGBA", "small", "cut", "gone", "other ids", "JPEG", "16 bits", "nothing"])
    encoded = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(encoded[: rng.randrange(len(encoded))])
    elif how == "nothing":
        path.write_bytes(b"")
    elif how == "small":
        whole.resize((20, 10)).save(path)
    elif how == "other ids":
        Image.fromarray(np.asarray(whole) + np.uint8(rng.randrange(1, 200))).save(path)
    elif how == "JPEG":
        whole.save(path, "JPEG")
    elif how == "16 bits":
        Image.fromarray(np.asarray(whole.convert("L")).astype(np.uint16)).save(path)
    elif how != "gone":
        whole.convert(how).save(path)
    return "panoptic.json", f"map {name} as {how}", None


def _encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()
