"""How much better does the bundled model become on a file of which few images have masks?

    python benchmarks/fine_tuning.py --images DIR --annotations FILE --out OUT [--SECTION.KEY VALUE ...]

A quarter of the images, chosen by a hash of their file names, is held out. Of the others every tenth keeps its masks,
all keep their boxes. It writes both files into OUT, measures the weights that `deep_mac/fine_tune` starts from on the
images held out, runs

    maskwright train deep_mac/fine_tune --data.images DIR --data.annotations OUT/training.json \\
        --data.validation_annotations OUT/held_out.json --trainer.output OUT/run [--SECTION.KEY VALUE ...]

and measures the weights of the last step on the same images. Any key of the recipe can be given.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import maskwright
from maskwright.data.dataset import split_by_hash
from maskwright.files import read_json_object, write_json
from maskwright.training.recipes import resolve_recipe

RECIPE = "deep_mac/fine_tune"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--images", required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="an empty folder")
    parser.add_argument("--every", type=int, default=10, metavar="N", help="one of N training images keeps its masks")
    arguments, overrides = parser.parse_known_args()
    training, held_out, run = (arguments.out / name for name in ("training.json", "held_out.json", "run"))
    options = [
        f"--data.images={arguments.images}",
        f"--data.annotations={training}",
        f"--data.validation_annotations={held_out}",
        f"--trainer.output={run}",
        *overrides,
    ]
    weights = resolve_recipe(RECIPE, options).trainer.initial_weights
    if weights is None:
        parser.error("trainer.initial_weights must name a model")
    arguments.out.mkdir(parents=True, exist_ok=True)
    divide(read_json_object(arguments.annotations, ("images", "annotations")), arguments.every, training, held_out)
    before = mask_iou(weights, arguments.images, held_out)
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "maskwright", "train", RECIPE, *options], check=True)
    seconds = time.monotonic() - start
    after = mask_iou(run / "last", arguments.images, held_out)
    print(f"mean mask IoU: {before:.3f} before, {after:.3f} after ({seconds:.0f} s)")


def divide(content: dict[str, Any], every: int, training: Path, held_out: Path) -> None:
    """Write the images held out with all of their masks, and the others with the masks of one in `every`."""
    names = [image["file_name"] for image in content["images"]]
    sides = [[content["images"][index] for index in indices] for indices in split_by_hash(names, 0.25)]
    with_masks = {image["id"] for image in [*sides[0][::every], *sides[1]]}
    for file, images in zip((training, held_out), sides, strict=True):
        ids = {image["id"] for image in images}
        entries = [dict(entry) for entry in content["annotations"] if entry["image_id"] in ids]
        for entry in entries:
            if entry["image_id"] not in with_masks:
                entry.pop("segmentation", None)
        write_json(file, {**content, "images": images, "annotations": entries})


def mask_iou(model: str | Path, images: str, annotations: Path) -> float:
    """The mean mask IoU from the true boxes."""
    return maskwright.evaluate(model, images=images, annotations=str(annotations)).compute()["mask_iou"]


if __name__ == "__main__":
    main()
