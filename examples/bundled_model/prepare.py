"""Training and held-out annotation files of the bundled model, from a folder of COCO-format sets.

    python examples/bundled_model/prepare.py DATA OUT

DATA holds one folder per set of `SETS`, each with `images/` and `instances.json`. OUT receives

- `train.json`: the training side of all sets in one COCO file (images root: DATA), categories united by
  name, with a `sampling_weight` for each image;
- `<set>_held_out.json`: the held-out part of each set with its original ids (images root:
  `DATA/<set>/images`);
- `validation.json`: a fixed sample of the held-out images in the form of `train.json`, to follow a training
  run by. Whoever picks a checkpoint by it has to say so beside the held-out numbers.

The split is a function of the file names alone (`held_out_names`), and `held_out.txt` beside this script is
its committed record: the script stops where the two disagree.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HELD_OUT_SHARE = 0.15

# The share of the images drawn in training that comes from each set, whatever its size. COCO's many classes
# and scenes teach the most for unseen classes; clothes (4,600 masks of people in the street) and facade
# (5,700, four fifths of them windows) would drown the rest if images were drawn evenly, and the videos of
# davis18 and camvid repeat themselves.
SAMPLING_SHARES = {
    "coco_dev": 0.46,
    "coco_person": 0.12,
    "facade": 0.09,
    "davis18": 0.10,
    "camvid": 0.05,
    "clothes": 0.15,
    "nuts": 0.03,
}
SETS = tuple(SAMPLING_SHARES)

# Held-out images of each set in validation.json.
VALIDATION_IMAGES = {
    "coco_dev": 60,
    "coco_person": 20,
    "facade": 12,
    "davis18": 20,
    "camvid": 15,
    "clothes": 20,
    "nuts": 3,
}

# Pictures of one group never lie on both sides: frames of a video, of a drive, and the overlapping halves
# into which facade's photographs were cut (`..._scaled_0` and `..._scaled_1`).
GROUP_PATTERNS = {
    "davis18": re.compile(r"(.+)_[^_]+"),
    "camvid": re.compile(r"([^_]+)_.+"),
    "facade": re.compile(r"(?:train|valid|test)_(.+)_scaled_\d+_png\.jpg"),
}

# Sets whose file names are COCO's own, so that equal names are equal photographs; the last two are never
# trained on, and coco_panoptic repeats two photographs of coco_dev.
COCO_SETS = ("coco_dev", "coco_person")
NEVER_TRAINED_ON = ("coco_panoptic", "cocostuff10")
ALWAYS_HELD_OUT = {"coco_dev": {"000000000009.jpg", "000000000139.jpg"}}

HELD_OUT_LIST = Path(__file__).with_name("held_out.txt")


def fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def group_of(name: str, file_name: str) -> str:
    """What must stay together: the video, drive or photograph that a file of set `name` belongs to."""
    pattern = GROUP_PATTERNS.get(name)
    if pattern is None:
        return file_name
    match = pattern.fullmatch(file_name)
    if match is None:
        raise SystemExit(f"{name}: file name {file_name!r} must match {pattern.pattern!r}, the naming of this set")
    return match[1]


def held_out_names(name: str, file_names: Iterable[str]) -> set[str]:
    """The file names of set `name` that are never trained on.

    Its groups are taken in the order of their hashes until `HELD_OUT_SHARE` of the images is reached, so that
    even four drives or eighteen pictures are split; those of `ALWAYS_HELD_OUT` come on top.
    """
    groups: dict[str, list[str]] = {}
    for file_name in file_names:
        groups.setdefault(group_of(name, file_name), []).append(file_name)
    wanted = HELD_OUT_SHARE * sum(map(len, groups.values()))
    held_out: set[str] = set()
    for group in sorted(groups, key=fraction):
        if len(held_out) >= wanted:
            break
        held_out.update(groups[group])
    return held_out | ALWAYS_HELD_OUT.get(name, set())


def check_list(held_out: dict[str, set[str]]) -> None:
    """Write `held_out.txt` if there is none, else stop unless it says the same as the hash."""
    lines = sorted(f"{name}/{file_name}" for name, names in held_out.items() for file_name in names)
    if not HELD_OUT_LIST.exists():
        HELD_OUT_LIST.write_text("\n".join(lines) + "\n")
        print(f"wrote {HELD_OUT_LIST}: commit it", file=sys.stderr)
        return
    committed = HELD_OUT_LIST.read_text().split("\n")[:-1]
    difference = sorted(set(committed) ^ set(lines))
    if difference or committed != lines:
        raise SystemExit(
            f"{HELD_OUT_LIST} and the hash of the file names disagree on {len(difference)} files "
            f"({', '.join(difference[:3])}): the sets are not those that the model was trained on"
        )


def check_disjoint(data: Path, sets: dict[str, Any], held_out: dict[str, set[str]]) -> None:
    """Stop if a COCO photograph lies on both sides, or is trained on and belongs to a set that never is."""
    trained = {i["file_name"] for name in COCO_SETS for i in sets[name]["images"]}
    trained -= {file_name for name in COCO_SETS for file_name in held_out[name]}
    forbidden = {name: held_out[name] for name in COCO_SETS}
    for name in NEVER_TRAINED_ON:
        file = data / name / "instances.json"
        if file.exists():
            forbidden[name] = {image["file_name"] for image in json.loads(file.read_text())["images"]}
    for name, names in forbidden.items():
        if both := sorted(trained & names):
            raise SystemExit(f"images of {name} that are never trained on are on the training side: {both[:5]}")


def part(content: dict[str, Any], file_names: set[str]) -> dict[str, Any]:
    """The images with these names and their annotations, everything else as it is."""
    images = [image for image in content["images"] if image["file_name"] in file_names]
    ids = {image["id"] for image in images}
    return {**content, "images": images, "annotations": [a for a in content["annotations"] if a["image_id"] in ids]}


def merge(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One COCO file of all parts: fresh ids, `<set>/images/` before each file name, weights that give each
    set its share of the draws (mean weight 1)."""
    category_names = sorted({c["name"] for content in parts.values() for c in content["categories"]})
    category_ids = {name: index for index, name in enumerate(category_names, 1)}
    total = sum(len(content["images"]) for content in parts.values())
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for name, content in parts.items():
        names = {c["id"]: c["name"] for c in content["categories"]}
        weight = round(SAMPLING_SHARES[name] * total / len(content["images"]), 5)
        image_ids = {}
        for image in content["images"]:
            image_ids[image["id"]] = len(images) + 1
            kept = {"width": image["width"], "height": image["height"]}
            path = f"{name}/images/{image['file_name']}"
            images.append({"id": len(images) + 1, "file_name": path, **kept, "sampling_weight": weight})
        for annotation in content["annotations"]:
            kept = {key: annotation[key] for key in ("bbox", "area", "iscrowd", "segmentation") if key in annotation}
            fresh = {"id": len(annotations) + 1, "image_id": image_ids[annotation["image_id"]]}
            annotations.append({**fresh, "category_id": category_ids[names[annotation["category_id"]]], **kept})
    categories = [{"id": index, "name": name} for name, index in category_ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def write(file: Path, content: dict[str, Any]) -> None:
    """Write to a temporary name, then rename, so that a broken run leaves no half file."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(content))
    temporary.replace(file)


def prepare(data: Path, out: Path) -> None:
    """Read the sets in `data`, split them, check the split, write the files of the module's docstring to `out`."""
    if missing := [name for name in SETS if not (data / name / "instances.json").is_file()]:
        raise SystemExit(
            f"{data} must hold the folders {', '.join(SETS)}, each with instances.json; missing: {missing}"
        )
    sets = {name: json.loads((data / name / "instances.json").read_text()) for name in SETS}
    held_out = {name: held_out_names(name, (i["file_name"] for i in sets[name]["images"])) for name in SETS}
    check_list(held_out)
    check_disjoint(data, sets, held_out)

    training, validation = {}, {}
    out.mkdir(parents=True, exist_ok=True)
    print(f"{'set':12} {'images':>7} {'masks':>7} {'held-out images':>16} {'masks':>7} {'weight':>7}")
    for name, content in sets.items():
        training[name] = part(content, {i["file_name"] for i in content["images"]} - held_out[name])
        kept = part(content, held_out[name])
        sample = sorted(held_out[name], key=lambda file_name: fraction(f"validation {file_name}"))
        validation[name] = part(content, set(sample[: VALIDATION_IMAGES[name]]))
        write(out / f"{name}_held_out.json", kept)
        counts = len(training[name]["images"]), len(training[name]["annotations"])
        print(f"{name:12} {counts[0]:7} {counts[1]:7} {len(kept['images']):16} {len(kept['annotations']):7}", end="")
        print(f" {SAMPLING_SHARES[name] * 100:6.0f}%")
    merged = {"train": merge(training), "validation": merge(validation)}
    for name, content in merged.items():
        write(out / f"{name}.json", content)
        counts = [len(content[key]) for key in ("images", "annotations", "categories")]
        print("{}.json: {} images, {} annotations, {} categories".format(name, *counts))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("out", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    prepare(arguments.data, arguments.out)
