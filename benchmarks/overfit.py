"""Can a recipe learn at all? It is trained on a few images, without augmentation, until it knows them by heart.

    python benchmarks/overfit.py RECIPE --images DIR --annotations FILE --out RUN [--count 16] [--SECTION.KEY VALUE ...]

`--count` images of the file are chosen by a hash of their names (`--seed` chooses others) among those whose instances
all have a box of at least `--min-side` pixels on either side; all of their instances come with them. The recipe trains
on them whole, not cropped and not flipped, without weight decay and without a moving average, and validates on the same
images. Any key of the recipe can be given after these; it wins over the values named here. Then the weights folder
`RUN/last` is evaluated as `maskwright evaluate` does it: where the model finds boxes with those, and where it can be
prompted with the boxes of the file. A model of any family that has learnt should come to AP over 0.8. A run that RUN
already holds is continued or, when it has its steps, only evaluated; one with other images or values is refused.

    python benchmarks/overfit.py deep_mac/tiny_detector --images DATA/images --annotations DATA/instances.json \\
        --out runs/overfit --min-side 24 --trainer.precision bf16-mixed --trainer.steps 300 \\
        --optimizer.learning_rate 2e-3 --optimizer.warmup_steps 50 --trainer.validate_every_steps 300 \\
        --model.image_size 384 --model.frozen_levels 4

The images are in the file `RUN.json` beside the run, the numbers in `RUN.boxes-predicted.json` and
`RUN.boxes-ground-truth.json`.

FILE may be COCO panoptic, too, with its PNGs beside it or in `--segmentations`. Then segments are what boxes are above,
the weights are evaluated once, and the numbers are in `RUN.panoptic.json`; a model that has learnt should come to a
panoptic quality over 0.8.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import cast

from maskwright.errors import UserError
from maskwright.files import read_json_object, write_json
from maskwright.models.hub import from_pretrained
from maskwright.structures import BoxPrompted, SegmentationModel
from maskwright.training.recipes import resolve_recipe
from maskwright.training.run_folder import LAST_WEIGHTS, RECIPE, read_run

MEMORISE = {
    "data.scale": "null",  # the scale of training is that of inference
    "data.flip": 0,
    "optimizer.weight_decay": 0,
    "trainer.ema_decay": "null",
}
MEMORISE_INSTANCES = {"data.crop_size": "null", "data.colour": 0}

# What the names of the files of numbers end in.
PREDICTED, GROUND_TRUTH, PANOPTIC = "boxes-predicted", "boxes-ground-truth", "panoptic"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("recipe")
    parser.add_argument("--images", required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--segmentations", type=Path, help="folder of a panoptic file's PNGs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--min-side", type=float, default=0, help="of the boxes, in pixels of the image")
    arguments, overrides = parser.parse_known_args()
    subset = beside(arguments.out, ".json")
    try:
        is_panoptic = choose(arguments, subset)
        values = values_of(arguments, subset, is_panoptic)
        options = [part for key, value in values.items() for part in (f"--{key}", str(value))] + overrides
        train(arguments, options, is_panoptic)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    if is_panoptic:
        evaluate(arguments, subset, PANOPTIC, "--segmentations", str(values["data.segmentations"]))
        return
    model = from_pretrained(arguments.out / LAST_WEIGHTS)
    if not cast(SegmentationModel, model).needs_boxes:
        evaluate(arguments, subset, PREDICTED, "--boxes", "predicted")
    if isinstance(model, BoxPrompted):
        evaluate(arguments, subset, GROUND_TRUTH, "--boxes", "ground-truth")


def choose(arguments: argparse.Namespace, subset: Path) -> bool:
    """Write the file of the images to be learnt, or find it written; whether it is a panoptic one.

    Raises:
        UserError: the file there is has other images.
    """
    file = read_json_object(arguments.annotations, ("images", "annotations", "categories"))
    chosen = few_images(file, arguments.count, arguments.seed, arguments.min_side)
    if subset.is_file() and json.loads(subset.read_text()) != chosen:
        raise UserError(
            f"{subset} holds other images: it was made with another --annotations, --count, --seed or --min-side; "
            "give another --out"
        )
    subset.parent.mkdir(parents=True, exist_ok=True)
    write_json(subset, chosen, indent=None)
    return any("segments_info" in entry for entry in file["annotations"])


def beside(run: Path, ending: str) -> Path:
    return run.with_name(run.name + ending)


def few_images(file: dict, count: int, seed: int, min_side: float = 0) -> dict:
    """The COCO file with `count` of the images that have an instance (or, in a panoptic file, a segment).

    None of an image's instances is narrower or lower than `min_side`. Categories are those that these images have.
    """
    entries = [
        (entry["image_id"], each) for entry in file["annotations"] for each in entry.get("segments_info", [entry])
    ]
    annotated = {image for image, entry in entries if not entry.get("iscrowd")}
    small = {image for image, entry in entries if min_side and min(entry["bbox"][2:]) < min_side}
    images = [image for image in file["images"] if image["id"] in annotated - small]
    images.sort(key=lambda image: hashlib.blake2b(f"{seed}/{image['file_name']}".encode()).digest())
    images = images[:count]
    ids = {image["id"] for image in images}
    annotations = [entry for entry in file["annotations"] if entry["image_id"] in ids]
    labels = {entry["category_id"] for image, entry in entries if image in ids}
    categories = [category for category in file["categories"] if category["id"] in labels]
    return {**file, "images": images, "annotations": annotations, "categories": categories}


def values_of(arguments: argparse.Namespace, subset: Path, is_panoptic: bool) -> dict[str, object]:
    """What the run gives other values than its recipe."""
    values = {
        "data.images": arguments.images,
        "data.annotations": subset,
        "data.validation_annotations": subset,
        "trainer.output": arguments.out,
        **MEMORISE,
    }
    if not is_panoptic:
        return {**values, **MEMORISE_INSTANCES}
    maps = str(arguments.segmentations or arguments.annotations.with_suffix(""))
    return {**values, "data.segmentations": maps, "data.validation_segmentations": maps}


def train(arguments: argparse.Namespace, options: list[str], is_panoptic: bool) -> None:
    """Train, or go on with, the run; one that has its steps stays as it is.

    Raises:
        UserError: the folder holds a run with other values.
    """
    recipe, run = resolve_recipe(arguments.recipe, options), arguments.out
    is_begun = (run / RECIPE).is_file()
    if is_begun:
        try:
            saved = read_run(run)
            saved.require_same_recipe(recipe)
        except UserError as error:  # what to do is said in this command's words
            raise UserError(f"{str(error).partition('; ')[0]}; give another --out") from error
        if saved.step == recipe.trainer.steps:
            return
    for ending in (PANOPTIC,) if is_panoptic else (PREDICTED, GROUND_TRUTH):
        beside(run, f".{ending}.json").unlink(missing_ok=True)  # of fewer steps
    maskwright("train", arguments.recipe, *options, *(["--resume", "last"] if is_begun else []))


def evaluate(arguments: argparse.Namespace, subset: Path, ending: str, *options: str) -> None:
    """Evaluate the run's last weights; the numbers go to the file beside it that ends so."""
    print(f"\n{ending}", flush=True)
    files = ["--images", arguments.images, "--annotations", str(subset)]
    numbers = str(beside(arguments.out, f".{ending}.json"))
    maskwright("evaluate", str(arguments.out / LAST_WEIGHTS), *files, "--json", numbers, *options)


def maskwright(*command: str) -> None:
    """Run a command of the package; its failure ends this one with the same code."""
    code = subprocess.run([sys.executable, "-m", "maskwright", *command], check=False).returncode
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
