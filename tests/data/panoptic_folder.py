"""A small COCO panoptic file, written to disk with its images and PNGs."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

CATEGORIES = [
    {"id": 7, "name": "person", "isthing": 1},
    {"id": 200, "name": "sky", "isthing": 0},
    {"id": 3, "name": "dog", "isthing": 1},
    {"id": 92, "name": "grass", "isthing": 0},
]
HEIGHT, WIDTH = 6, 8


def segment(identity: int, category_id: int = 7, **changes) -> dict:
    entry = {"id": identity, "category_id": category_id, "iscrowd": 0, **changes}
    return {key: value for key, value in entry.items() if value is not ...}


def colours(ids: np.ndarray) -> np.ndarray:
    """R + 256 G + 65536 B, written out once more."""
    planes = [ids & 255, (ids >> 8) & 255, (ids >> 16) & 255]
    return np.stack(planes, axis=-1).astype(np.uint8)


def stripes(*identities: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """A map of ids in vertical stripes of equal width (those left over on the right are 0)."""
    ids = np.zeros(size, dtype=np.int64)
    width = size[1] // max(len(identities), 1)
    for place, identity in enumerate(identities):
        ids[:, place * width : (place + 1) * width] = identity
    return ids


class PanopticFolder:
    """A folder with `images/`, `panoptic.json` and `panoptic/` in it."""

    def __init__(self, folder: Path) -> None:
        self.images, self.maps = folder / "images", folder / "panoptic"
        self.annotations = folder / "panoptic.json"
        self.images.mkdir()
        self.maps.mkdir()

    def write(self, *scenes: tuple[np.ndarray, list], **keys) -> "PanopticFolder":
        """Each scene is (map of ids, segments_info) of the image with its number, from 1; `keys` replace the file's."""
        images, annotations = [], []
        for number, (ids, segments) in enumerate(scenes, 1):
            height, width = ids.shape
            name = f"{number}.png"
            Image.fromarray(np.full((height, width, 3), 20 * number, dtype=np.uint8)).save(self.images / name)
            Image.fromarray(colours(ids)).save(self.maps / name)
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            annotations.append({"image_id": number, "file_name": name, "segments_info": segments})
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES, **keys}
        self.annotations.write_text(json.dumps(content))
        return self
