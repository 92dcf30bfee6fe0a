"""Training, development and held-out files of the bundled model and its recipe, from a folder of COCO-format sets.

    python examples/bundled_model/prepare.py DATA OUT [--leave-out SET ...]
    maskwright train OUT/recipe.yaml

DATA holds one folder per set of `SETS`, each with `images/` and `instances.json` (coco_panoptic200: `panoptic.json` and
`panoptic/`, whose things and stuff become instances). OUT receives, with the original ids,

- `<set>_train.json`, what is trained on;
- `<set>_development.json`, never trained on, for what is decided on the way: ablations, the choice of a checkpoint,
  calibration. camvid has none: beside the held-out drive there are three, too few to give one away;
- `<set>_held_out.json`, measured once, at the end;
- `calibration.json`, the development parts of the COCO sets in one, to calibrate with: their file names are relative to
  DATA, their ids are new;
- `things_train.json` and `things_measured.json`, the things of `STUDY_SETS` in one file each, for studies: their
  training parts, and their development and held-out parts together; file names and ids as in `calibration.json`;
- `recipe.yaml`, which trains on all sets together, each with its share of the draws, and validates on the development
  parts.

A set that is left out is neither in the recipe nor has a training or a development file; the split stays the same.

The split is a function of the file names alone (`split`); `held_out.txt` and `development.txt` beside this script are
its committed record, and the script stops where they disagree. Photographs of equal names in several COCO sets are on
one side everywhere: that of the set that comes first in `SETS`. So what an earlier model was trained on, or not, stays.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from maskwright.data.panoptic import read_id_map
from maskwright.errors import UserError
from maskwright.files import write_json, write_text
from maskwright.ops.run_lengths import code_of_runs, runs_of_plane

HELD_OUT_SHARE = 0.15
DEVELOPMENT_SHARE = 0.10  # of what is not held out

# The share of the images drawn in training that comes from each set, whatever its size. COCO's many classes
# and scenes teach the most for unseen classes; clothes (4,600 masks of people in the street) and facade
# (5,700, four fifths of them windows) would drown the rest if images were drawn evenly, the videos of
# davis18 and camvid repeat themselves, and cats and mandarins are easy.
SAMPLING_SHARES = {
    "coco_dev": 0.34,
    "coco_person": 0.09,
    "coco_panoptic200": 0.16,
    "coco_street": 0.12,
    "facade": 0.06,
    "davis18": 0.07,
    "camvid": 0.03,
    "clothes": 0.08,
    "nuts": 0.015,
    "feral_cats": 0.02,
    "mandarin": 0.015,
}
SETS = tuple(SAMPLING_SHARES)

# Pictures of one group never lie on both sides: frames of a video, of a drive, and the overlapping halves
# into which facade's photographs were cut (`..._scaled_0` and `..._scaled_1`).
GROUP_PATTERNS = {
    "davis18": re.compile(r"(.+)_[^_]+"),
    "camvid": re.compile(r"([^_]+)_.+"),
    "facade": re.compile(r"(?:train|valid|test)_(.+)_scaled_\d+_png\.jpg"),
}
WITHOUT_DEVELOPMENT = ("camvid",)

# Sets whose file names are COCO's own, so that equal names are equal photographs. Two sets are never trained
# on; the photographs of theirs that others repeat are held out there, on top of the share.
COCO_SETS = ("coco_dev", "coco_person", "coco_panoptic200", "coco_street")
STUDY_SETS = ("coco_dev", "coco_panoptic200", "coco_street")  # those with many classes
NEVER_TRAINED_ON = ("coco_panoptic", "cocostuff10")
ALWAYS_HELD_OUT = ("000000000009.jpg", "000000000139.jpg", "000000004495.jpg", "000000007977.jpg")

HELD_OUT_LIST = Path(__file__).with_name("held_out.txt")
DEVELOPMENT_LIST = Path(__file__).with_name("development.txt")

Content = dict[str, Any]
"""A COCO file."""


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
        raise UserError(f"{name}: file name {file_name!r} must match {pattern.pattern!r}, the naming of this set")
    return match[1]


def choose(name: str, file_names: Iterable[str], share: float, known: Mapping[str, bool]) -> set[str]:
    """The file names of set `name` that are set aside: about `share` of them, whole groups together.

    Groups are taken in the order of their hashes until there are enough, so that even four drives or eighteen pictures
    are split. Files of which it is `known` that they are not set aside are passed over; those that are known to be, but
    were not reached, come on top.
    """
    groups: dict[str, list[str]] = {}
    for file_name in file_names:
        groups.setdefault(group_of(name, file_name), []).append(file_name)
    wanted = share * sum(map(len, groups.values()))
    chosen: set[str] = set()
    for group in sorted(groups, key=fraction):
        if len(chosen) >= wanted:
            break
        chosen.update(file_name for file_name in groups[group] if known.get(file_name, True))
    return chosen | {file_name for names in groups.values() for file_name in names if known.get(file_name, False)}


def choose_everywhere(
    names: Mapping[str, Sequence[str]], share: float, always: Sequence[str] = ()
) -> dict[str, set[str]]:
    """What is set aside of each set; a COCO photograph is, or is not, in all COCO sets that have it."""
    sides = dict.fromkeys(always, True)
    chosen = {}
    for name, file_names in names.items():
        chosen[name] = choose(name, file_names, share, sides if name in COCO_SETS else {})
        if name in COCO_SETS:
            sides |= {file_name: file_name in chosen[name] for file_name in file_names}
    return chosen


def check_list(path: Path, chosen: Mapping[str, set[str]]) -> None:
    """Write the record of a choice if there is none, else stop unless it says the same as the hash."""
    lines = sorted(f"{name}/{file_name}" for name, names in chosen.items() for file_name in names)
    if not path.exists():
        path.write_text("\n".join(lines) + "\n")
        print(f"wrote {path}: commit it", file=sys.stderr)
        return
    committed = path.read_text().split("\n")[:-1]
    difference = sorted(set(committed) ^ set(lines))
    if difference or committed != lines:
        raise UserError(
            f"{path} and the hash of the file names disagree on {len(difference)} files "
            f"({', '.join(difference[:3])}): the sets are not those that the model was trained on"
        )


def check_disjoint(data: Path, parts: Mapping[str, Mapping[str, set[str]]]) -> None:
    """Stop if a COCO photograph lies in two parts, or is not held out and belongs to a set that is never trained on."""
    photographs = {part: {f for name in COCO_SETS for f in names[name]} for part, names in parts.items()}
    for one, other in combinations(photographs, 2):
        if both := sorted(photographs[one] & photographs[other]):
            raise UserError(f"photographs are in both {one} and {other}: {both[:5]}")
    for name in NEVER_TRAINED_ON:
        file = data / name / "instances.json"
        never = set(file_names_of(json.loads(file.read_text()))) if file.exists() else set()
        if both := sorted(never & (photographs["train"] | photographs["development"])):
            raise UserError(f"images of {name} that are never trained on are on the training side: {both[:5]}")


def read_set(folder: Path) -> Content:
    """The instances of a set; of one with panoptic maps, its segments."""
    if not (folder / "panoptic.json").exists():
        return json.loads((folder / "instances.json").read_text())
    content = json.loads((folder / "panoptic.json").read_text())
    images = {image["id"]: image for image in content["images"]}
    annotations: list[dict[str, Any]] = []
    for entry in content["annotations"]:
        size = images[entry["image_id"]]["height"], images[entry["image_id"]]["width"]
        ids = read_id_map(folder / "panoptic" / entry["file_name"], size, str(folder / "panoptic.json"))
        for segment in entry["segments_info"]:
            code = code_of_runs(runs_of_plane(ids == segment["id"]), size)
            kept = {key: segment[key] for key in ("category_id", "area", "bbox", "iscrowd")}
            fresh = {"id": len(annotations) + 1, "image_id": entry["image_id"]}  # a segment's is its image's own
            annotations.append({**fresh, **kept, "segmentation": code})
    return {**content, "annotations": annotations}


def file_names_of(content: Content) -> list[str]:
    """Of its images."""
    return [image["file_name"] for image in content["images"]]


def part_of(content: Content, file_names: set[str]) -> Content:
    """The images with these names and their annotations, everything else as it is."""
    images = [image for image in content["images"] if image["file_name"] in file_names]
    ids = {image["id"] for image in images}
    return {**content, "images": images, "annotations": [a for a in content["annotations"] if a["image_id"] in ids]}


def things(parts: Mapping[str, Content]) -> dict[str, Content]:
    """The instances of classes of things; of a photograph that several sets have, those of the first."""
    kept: dict[str, Content] = {}
    known: set[str] = set()
    for name, content in parts.items():
        fresh = part_of(content, set(file_names_of(content)) - known)
        known.update(file_names_of(content))
        categories = [category for category in content["categories"] if category.get("isthing", 1)]
        ids = {category["id"] for category in categories}
        annotations = [annotation for annotation in fresh["annotations"] if annotation["category_id"] in ids]
        kept[name] = {**fresh, "categories": categories, "annotations": annotations}
    return kept


def united(parts: Mapping[str, Content]) -> Content:
    """Parts of several sets in one file; images are found below the folder of all sets."""
    names = sorted({category["name"] for content in parts.values() for category in content["categories"]})
    ids = {name: number for number, name in enumerate(names, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for set_name, content in parts.items():
        class_ids = {category["id"]: ids[category["name"]] for category in content["categories"]}
        image_ids = {image["id"]: len(images) + number for number, image in enumerate(content["images"], start=1)}
        for image in content["images"]:
            path = f"{set_name}/images/{image['file_name']}"
            images.append({**image, "id": image_ids[image["id"]], "file_name": path})
        for annotation in content["annotations"]:
            fresh = {"id": len(annotations) + 1, "image_id": image_ids[annotation["image_id"]]}
            annotations.append({**annotation, **fresh, "category_id": class_ids[annotation["category_id"]]})
    return {"images": images, "annotations": annotations, "categories": [{"id": ids[n], "name": n} for n in names]}


def recipe_of(data: Path, out: Path, names: Sequence[str]) -> dict[str, Any]:
    """The recipe that trains on these sets."""
    sets = []
    for name in names:
        files = {"annotations": str(out / f"{name}_train.json")}
        if name not in WITHOUT_DEVELOPMENT:
            files["validation_annotations"] = str(out / f"{name}_development.json")
        sets.append({"name": name, "images": str(data / name / "images"), **files, "share": SAMPLING_SHARES[name]})
    return {"base": "deep_mac/tiny", "data": {"sets": sets}}


def split(names: Mapping[str, Sequence[str]]) -> dict[str, dict[str, set[str]]]:
    """The file names of each part (train, development, held_out) of each set."""
    held_out = choose_everywhere(names, HELD_OUT_SHARE, always=ALWAYS_HELD_OUT)
    left = {name: [n for n in file_names if n not in held_out[name]] for name, file_names in names.items()}
    candidates = {name: [] if name in WITHOUT_DEVELOPMENT else file_names for name, file_names in left.items()}
    development = choose_everywhere(candidates, DEVELOPMENT_SHARE)
    train = {name: set(file_names) - development[name] for name, file_names in left.items()}
    return {"train": train, "development": development, "held_out": held_out}


def prepare(data: Path, out: Path, leave_out: Sequence[str] = ()) -> None:
    """Read the sets in `data`, split them, check the split, write the files of the module's docstring to `out`."""
    data, out = data.resolve(), out.resolve()
    if missing := [name for name in SETS if not (data / name / "instances.json").is_file()]:
        raise UserError(f"{data} must hold the folders {', '.join(SETS)}, each with instances.json; missing: {missing}")
    sets = {name: read_set(data / name) for name in SETS}
    parts = split({name: file_names_of(content) for name, content in sets.items()})
    check_list(HELD_OUT_LIST, parts["held_out"])
    check_list(DEVELOPMENT_LIST, parts["development"])
    check_disjoint(data, parts)

    out.mkdir(parents=True, exist_ok=True)
    print(f"{'images (masks)':17}" + "".join(f"{part:>14}" for part in parts) + f"{'share':>8}")
    trained = [name for name in SETS if name not in leave_out]
    total = sum(SAMPLING_SHARES[name] for name in trained)
    for name, content in sets.items():
        line = f"{name:17}"
        for part, names in parts.items():
            file = out / f"{name}_{part}.json"
            if not names[name] or (name in leave_out and part != "held_out"):
                file.unlink(missing_ok=True)  # of an earlier call
                line += f"{'-':>14}"
                continue
            kept = part_of(content, names[name])
            write_json(file, kept, indent=None)
            line += f"{len(kept['images']):6} ({len(kept['annotations']):5})"
        print(line + (f"{SAMPLING_SHARES[name] / total:8.1%}" if name in trained else f"{'-':>8}"))
    coco = {name: sets[name] for name in trained if name in COCO_SETS}
    development = {name: part_of(content, parts["development"][name]) for name, content in coco.items()}
    write_json(out / "calibration.json", united(development), indent=None)
    for file, chosen in (("train", ("train",)), ("measured", ("development", "held_out"))):
        names = {name: set[str]().union(*(parts[part][name] for part in chosen)) for name in STUDY_SETS}
        write_json(
            out / f"things_{file}.json", united(things({n: part_of(sets[n], names[n]) for n in names})), indent=None
        )
    recipe = yaml.safe_dump(recipe_of(data, out, trained), sort_keys=False)
    write_text(out / "recipe.yaml", f"# maskwright train {out / 'recipe.yaml'}\n{recipe}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--leave-out", nargs="+", default=[], choices=SETS, metavar="SET", help="sets not to train on")
    arguments = parser.parse_args()
    try:
        prepare(arguments.data, arguments.out, arguments.leave_out)
    except UserError as error:
        print(f"prepare: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
