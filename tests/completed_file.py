"""A small COCO file as `maskwright complete` leaves it, with its pictures; the tests of reviews share it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskwright.ops.run_lengths import code_of_runs, runs_of_plane

HEIGHT, WIDTH = 60, 80
HOSTILE = "<img src=x onerror=document.title='broken'>"
CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": HOSTILE}]


def rectangle(x: int, y: int, width: int, height: int) -> dict[str, Any]:
    """The run lengths of a rectangle."""
    plane = np.zeros((HEIGHT, WIDTH), dtype=bool)
    plane[y : y + height, x : x + width] = True
    return code_of_runs(runs_of_plane(plane), (HEIGHT, WIDTH))


def completed(identity: int, quality: float, image_id: int = 1, category_id: int = 1, **changes: Any) -> dict[str, Any]:
    """An annotation with a mask that a model made."""
    entry = {
        "id": identity,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [10, 10, 40, 30],
        "iscrowd": 0,
        "segmentation": rectangle(10, 10, 40, 30),
        "area": 1200,
        "maskwright": {
            "model": "deep-mac-tiny",
            "weights": "abc",
            "version": "0",
            "quality": quality,
            "inserted": ["segmentation", "area"],
        },
    }
    return {**entry, **changes}


class ReviewFolder:
    """A folder with pictures and the completed file `completed.json`."""

    def __init__(self, folder: Path) -> None:
        self.images = folder / "images"
        self.images.mkdir()
        self.path = folder / "completed.json"
        self.out = folder / "reviewed.json"

    def write(self, annotations: list[dict[str, Any]], names: tuple[str, ...] = ("1.png", "2.png")) -> ReviewFolder:
        """Write the file, and each picture but those whose name begins with `missing`."""
        listed = []
        for identity, name in enumerate(names, start=1):
            listed.append({"id": identity, "file_name": name, "height": HEIGHT, "width": WIDTH})
            if not name.startswith("missing"):
                pixels = np.random.default_rng(identity).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(self.images / name)
        content = {"images": listed, "annotations": annotations, "categories": CATEGORIES}
        self.path.write_text(json.dumps(content))
        return self

    def reviewed(self) -> list[dict[str, Any]]:
        """The annotations of the written file."""
        return json.loads(self.out.read_text())["annotations"]
