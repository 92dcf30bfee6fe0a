"""Training and held-out files of a small panoptic set of COCO photographs, and the recipe that trains on them.

    python examples/panoptic_photographs/prepare.py DATA OUT [--held-out 30]
    maskwright train OUT/recipe.yaml

DATA holds COCO photographs in `images/`, `panoptic.json` and its PNGs in `panoptic/`. OUT receives `train.json` and
`held_out.json`, each with its folder of PNGs, with the original image ids, `recipe.yaml`, and `one_class.json`, a map
of each held-out photograph that shows one class of stuff everywhere, that of the most pixels in training. Measure it
with

    maskwright evaluate OUT/one_class.json --annotations OUT/held_out.json

The photographs that are held out are those whose names have the smallest hashes. A few hundred photographs have too few
examples of most of COCO's 133 classes, so the classes are COCO's 27 supercategories: 12 of things, 15 of stuff. What
was stuff of several classes in one photograph becomes one segment; things stay apart.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from maskwright.data.panoptic import CocoPanoptic, PanopticEntry, panoptic_to_coco, write_panoptic
from maskwright.errors import UserError
from maskwright.files import read_json_object, write_text
from maskwright.ops.panoptic_map import segment_areas
from maskwright.structures import Category, PanopticTarget

HELD_OUT = 30


def order(file_name: str) -> str:
    """What file names are sorted by: it depends on nothing else, and is the same on every machine."""
    return hashlib.sha256(file_name.encode()).hexdigest()


def merged_classes(categories: Sequence[Mapping[str, Any]]) -> tuple[list[Category], dict[int, int]]:
    """The supercategories in the order of the file, things first, and the label of each class by its id.

    Raises:
        UserError: a supercategory has classes of things and of stuff.
    """
    kinds: dict[str, set[bool]] = {}
    for category in categories:
        kinds.setdefault(category["supercategory"], set()).add(bool(category["isthing"]))
    if mixed := [name for name, kind in kinds.items() if len(kind) > 1]:
        raise UserError(f"supercategories with both things and stuff: {mixed}")
    names = sorted(kinds, key=lambda name: True not in kinds[name])
    merged: list[Category] = [
        {"id": number, "name": name, "isthing": True in kinds[name]} for number, name in enumerate(names, 1)
    ]
    return merged, {category["id"]: names.index(category["supercategory"]) for category in categories}


def merge(target: PanopticTarget, labels: torch.Tensor, categories: Sequence[Category]) -> PanopticTarget:
    """The target with these labels of its segments; those of one class of stuff are one, the first of them."""
    isthing = torch.tensor([bool(category.get("isthing")) for category in categories])[labels]
    rows: list[int] = []
    first: dict[int, int] = {}
    for row, (label, thing) in enumerate(zip(labels.tolist(), isthing.tolist(), strict=True)):
        rows.append(row if thing else first.setdefault(label, row))
    kept = sorted(set(rows))
    new_rows = torch.tensor([kept.index(row) for row in rows] + [-1], dtype=torch.int32)  # -1, void, is the last
    return PanopticTarget(
        segmentation=new_rows[target["segmentation"].long()],
        labels=labels[kept],
        iscrowd=target["iscrowd"][kept],
        ids=target["ids"][kept],
        image_id=target["image_id"],
    )


def write_part(data: Path, out: Path, name: str, file_names: set[str]) -> Counter[int]:
    """Write `OUT/NAME.json` and its PNGs, the photographs with these names. The pixels of each label of stuff."""
    content = read_json_object(data / "panoptic.json")
    images = {image["id"]: image for image in content["images"]}
    categories, labels_of = merged_classes(content["categories"])
    data_set = CocoPanoptic(data / "images", data / "panoptic.json")
    segments, shown, pixels = Counter(), Counter(), Counter()

    def entries() -> Iterator[PanopticEntry]:
        for index in range(len(data_set)):
            _, target = data_set.read_sample(index)
            image = images[target["image_id"]]
            if image["file_name"] not in file_names:
                continue
            own_ids = [data_set.categories[label]["id"] for label in target["labels"].tolist()]
            merged = merge(target, torch.tensor([labels_of[i] for i in own_ids], dtype=torch.int64), categories)
            segments.update(merged["labels"].tolist())
            shown.update(set(merged["labels"].tolist()))
            areas = segment_areas(merged["segmentation"].numpy(), len(merged["labels"])).tolist()
            for label, area in zip(merged["labels"].tolist(), areas, strict=True):
                pixels[label] += 0 if categories[label].get("isthing") else area
            colours, annotation = panoptic_to_coco(merged, categories, Path(image["file_name"]).stem + ".png")
            yield PanopticEntry(image, colours, annotation)

    write_panoptic(out / f"{name}.json", entries(), categories)
    print(f"{name}: {len(file_names)} photographs, {segments.total()} segments")
    for label, category in enumerate(categories):
        print(f"  {category['name']:18}{segments[label]:5} segments in {shown[label]:4} photographs")
    return pixels


def write_one_class(out: Path, label: int) -> None:
    """Write `OUT/one_class.json` and its PNGs: each photograph of `OUT/held_out.json` is one segment of this label."""
    held_out = read_json_object(out / "held_out.json")
    categories: list[Category] = held_out["categories"]

    def entries() -> Iterator[PanopticEntry]:
        for image in held_out["images"]:
            target = PanopticTarget(
                segmentation=torch.zeros(image["height"], image["width"], dtype=torch.int32),
                labels=torch.tensor([label]),
                iscrowd=torch.tensor([False]),
                ids=torch.tensor([1]),
                image_id=image["id"],
            )
            colours, annotation = panoptic_to_coco(target, categories, Path(image["file_name"]).stem + ".png")
            yield PanopticEntry(image, colours, annotation)

    write_panoptic(out / "one_class.json", entries(), categories)
    print(f"one_class: {categories[label]['name']} everywhere")


def prepare(data: Path, out: Path, held_out: int = HELD_OUT) -> None:
    """Split, merge, write."""
    data, out = data.resolve(), out.resolve()
    names = sorted((image["file_name"] for image in read_json_object(data / "panoptic.json")["images"]), key=order)
    if not 0 < held_out < len(names):
        raise UserError(f"--held-out must lie between 0 and the {len(names)} photographs, but is {held_out}")
    out.mkdir(parents=True, exist_ok=True)
    pixels = write_part(data, out, "train", set(names[held_out:]))
    write_part(data, out, "held_out", set(names[:held_out]))
    write_one_class(out, pixels.most_common(1)[0][0])
    files = {"images": str(data / "images"), "annotations": str(out / "train.json")}
    recipe = {
        "base": "max_deeplab/tiny_pretrained",
        "data": {**files, "validation_annotations": str(out / "held_out.json")},
    }
    write_text(out / "recipe.yaml", f"# maskwright train {out / 'recipe.yaml'}\n{yaml.safe_dump(recipe)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, metavar="N", help="photographs to hold out")
    arguments = parser.parse_args()
    try:
        prepare(arguments.data, arguments.out, arguments.held_out)
    except UserError as error:
        print(f"prepare: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
