"""Exports and imports with datumaro; runs in its environment, which has no maskwright.

    python datumaro_job.py write FORMAT SCENE.npz IMAGES FOLDER [OPTIONS]
    python datumaro_job.py read FORMAT FOLDER OUT.npz

An .npz file holds of each picture, by its file name without suffix, `NAME/masks` (bool [N, H, W]) and `NAME/labels`
(names). OPTIONS are those of the format, as JSON.
"""

import json
import sys
from pathlib import Path

import numpy as np
from datumaro.components.annotation import AnnotationType, Mask
from datumaro.components.dataset import Dataset
from datumaro.components.dataset_base import DatasetItem
from datumaro.components.media import Image


def write(form: str, scene: str, images: str, folder: str, options: str = "{}") -> None:
    arrays = np.load(scene)
    classes = sorted({str(label) for key in arrays if key.endswith("/labels") for label in arrays[key]})
    items = []
    for path in sorted(Path(images).iterdir()):
        columns = zip(arrays[f"{path.stem}/masks"], arrays[f"{path.stem}/labels"], strict=True)
        masks = [
            Mask(mask, label=classes.index(label), id=number, group=number)
            for number, (mask, label) in enumerate(columns, 1)
        ]
        items.append(DatasetItem(path.stem, subset="train", media=Image.from_file(path=str(path)), annotations=masks))
    dataset = Dataset.from_iterable(items, categories=classes)
    dataset.export(folder, form, save_media=True, **json.loads(options))


def read(form: str, folder: str, out: str) -> None:
    dataset = Dataset.import_from(folder, form)
    names = [category.name for category in dataset.categories()[AnnotationType.label]]
    arrays = {}
    for item in dataset:
        masks = sorted((part for part in item.annotations if isinstance(part, Mask)), key=lambda mask: mask.id)
        arrays[f"{item.id}/masks"] = np.array([mask.image for mask in masks], dtype=bool)
        arrays[f"{item.id}/labels"] = np.array([names[mask.label] for mask in masks])
    np.savez(out, **arrays)


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](*sys.argv[2:])
