"""A small COCO file of every kind of annotation, written to disk with its images."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def polygon(x1: float, y1: float, x2: float, y2: float) -> list[list[float]]:
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def annotation(identity: int, image_id: int | str = 1, category_id: int = 7, **changes) -> dict:
    entry = {
        "id": identity,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [2, 3, 6, 4],
        "segmentation": polygon(2, 3, 8, 7),
        "iscrowd": 0,
    }
    entry.update(changes)
    return {key: value for key, value in entry.items() if value is not ...}


CATEGORIES = [{"id": 7, "name": "person"}, {"id": 3, "name": "traffic light"}, {"id": 90, "name": "window"}]
HEIGHT, WIDTH = 12, 20


class CocoFolder:
    """A folder with images and an annotation file in it."""

    def __init__(self, folder: Path) -> None:
        self.images = folder / "images"
        self.images.mkdir()
        self.annotations = folder / "instances.json"

    def write(self, annotations: list, *, images: int | list = 1, categories: list | None = None, size=(HEIGHT, WIDTH)):
        """Write the file (and, where `images` is a number, that many random pictures with ids from 1)."""
        if isinstance(images, int):
            images = [self.picture(f"{number}.png", number, size) for number in range(1, images + 1)]
        content = {"images": images, "annotations": annotations, "categories": categories or CATEGORIES}
        self.annotations.write_text(json.dumps(content))
        return self

    def picture(self, name: str, identity: int | str, size=(HEIGHT, WIDTH)) -> dict:
        pixels = np.random.default_rng(hash(identity) % 1000).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(self.images / name)
        return {"id": identity, "file_name": name, "height": size[0], "width": size[1]}
