"""Pictures with masks of every topology, and what is read and written of them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from pycocotools import mask as coco_mask

import maskwright
from maskwright.cli import main
from maskwright.data.coco import CocoInstances

CLASSES = ("washer", "plate")
CATEGORY_IDS = (3, 8)


@dataclass(frozen=True)
class Scene:
    """Pictures and what is on them.

    images: the folder.
    masks: of each picture, by its file name, the masks.
    labels: of these, as positions in `CLASSES`.
    """

    images: Path
    masks: dict[str, Bool[np.ndarray, "n h w"]]
    labels: dict[str, list[int]]

    @property
    def count(self) -> int:
        return sum(map(len, self.masks.values()))

    def boxes(self, name: str) -> np.ndarray:
        """Of the masks of a picture, the boxes: int [N, 4], xyxy pixels."""
        return np.array([_box(mask) for mask in self.masks[name]])

    def predicted(self, name: str) -> Bool[np.ndarray, "n h w"]:
        """The masks that the model finds in these boxes."""
        return maskwright.load("deep-mac-tiny").predict(self.images / name, self.boxes(name)).masks.numpy()

    def write_coco(self, file: Path) -> None:
        """Write a COCO file with masks; ids that no tool counts by itself."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, (name, masks) in enumerate(self.masks.items(), 40):
            images.append({"id": number, "file_name": name, "height": masks.shape[1], "width": masks.shape[2]})
            for mask, (x1, y1, x2, y2), label in zip(masks, self.boxes(name).tolist(), self.labels[name], strict=True):
                rle = coco_mask.encode(np.asfortranarray(mask))
                annotations.append(
                    {
                        "id": 100 + len(annotations),
                        "image_id": number,
                        "category_id": CATEGORY_IDS[label],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": int(mask.sum()),
                        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                        "iscrowd": 0,
                    }
                )
        categories = [{"id": identity, "name": name} for identity, name in zip(CATEGORY_IDS, CLASSES, strict=True)]
        file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def _box(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def masks_of_dataset(images: Path, annotations: Path) -> dict[str, Bool[np.ndarray, "n h w"]]:
    """The masks that training and evaluation get from a COCO file, by the file name of the picture."""
    data = CocoInstances(images, annotations)
    targets = [data.read_sample(index)[1] for index in range(len(data))]
    assert all(bool(target["has_mask"].all()) for target in targets)
    return {name: target["masks"].planes().numpy() for name, target in zip(data.file_names, targets, strict=True)}


def answer(scene: Scene, boxes: Path, out: Path) -> list[dict[str, Any]]:
    """What `predict` answers to a file of boxes."""
    assert main(["predict", str(scene.images), "--boxes", str(boxes), "--out", str(out)]) == 0
    return json.loads((out / "predictions.json").read_text())


def complete(scene: Scene, file: Path, out: Path) -> None:
    """Write a COCO file whose masks are those that `predict` finds in the boxes of the scene's, and which says so."""
    content = json.loads(file.read_text())
    answers = answer(scene, file, out.parent / "answers")
    content["annotations"] = [
        {
            **given,
            "segmentation": found["segmentation"],
            "maskwright": {
                "model": "deep-mac-tiny",
                "weights": "0123456789abcdef",
                "version": "0.1.0",
                "quality": found["score"],
                "inserted": [],
                "replaced": {"segmentation": []},
            },
        }
        for given, found in zip(content["annotations"], answers, strict=True)
    ]
    out.write_text(json.dumps(content))


def interop_python() -> str:
    """The Python of the environment with the libraries of annotation tools."""
    python = os.environ.get("MASKWRIGHT_INTEROP_PYTHON")
    assert python, (
        "MASKWRIGHT_INTEROP_PYTHON names no Python of an environment with the extra interop (CONTRIBUTING.md)"
    )
    return python
