"""The paper's experiments in small: masks of some classes, boxes of all; how good are masks of unseen classes?

    python benchmarks/partial_supervision.py --images DIR --annotations FILE --out RUNS [--SECTION.KEY VALUE ...]

For every mask head and seed it runs

    maskwright train deep_mac/tiny --data.mask_classes voc --model.mask_head HEAD --trainer.seed SEED ...

and reads the validation of its last step: mask IoU from ground-truth boxes on images that were set aside by the hash of
their file names, over seen (VOC) and unseen classes; of a model that finds boxes by itself also AP of its masks and
boxes. Any other key of the recipe can be given after these; it is the same in all runs, as everything is but head and
seed. The backbone starts from ImageNet labels (no masks, no boxes). A run that RUNS already holds is continued, or only
read where it is finished; one with other values is refused.

The paper's table 1, masks learnt on ground-truth boxes against proposals and ground truth, is

    python benchmarks/partial_supervision.py --recipe deep_marc/tiny --vary model.mask_boxes \\
        --values ground_truth proposals --steps 4000 --crop-size 384 --images DIR --annotations FILE --out RUNS

The line of the table in docs/measurements.md, which took fewer steps, stands there.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
from pathlib import Path

from maskwright.errors import UserError
from maskwright.training.recipes import resolve_recipe
from maskwright.training.run_folder import RECIPE, VALIDATION, read_run

# From ground-truth boxes, and, where the model finds boxes, from its own.
COLUMNS = ("mask_iou_seen", "mask_iou_unseen", "class_mask_iou_seen", "class_mask_iou_unseen")
DETECTION_COLUMNS = (
    "mask_ap_seen",
    "mask_ap_unseen",
    "mask_ap50_seen",
    "mask_ap50_unseen",
    "box_ap_seen",
    "box_ap_unseen",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--images", required=True)
    parser.add_argument("--annotations", required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--recipe", default="deep_mac/tiny")
    parser.add_argument(
        "--vary", default="model.mask_head", metavar="SECTION.KEY", help="what differs between the rows"
    )
    parser.add_argument("--values", nargs="+", default=["resnet4", "hourglass20"], help="its values")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--crop-size", type=int, default=320)
    parser.add_argument("--mask-classes", default="voc")
    parser.add_argument("--validation-share", type=float, default=0.25)
    parser.add_argument("--precision", default="32", help="bf16-mixed is faster on processors that have it")
    arguments, overrides = parser.parse_known_args()
    for option in {each.partition("=")[0] for each in overrides} & {f"--{key}" for key in keys("", 0, arguments)}:
        parser.error(f"{option} is a value that this benchmark gives; see --help for its own options")
    runs = [(value, seed) for value in arguments.values for seed in arguments.seeds]
    try:
        for value, seed in runs:  # all of them before the first takes its hours
            check(value, seed, arguments, overrides)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    print_table({(value, seed): run(value, seed, arguments, overrides) for value, seed in runs}, arguments)


def keys(value: str, seed: int, arguments: argparse.Namespace) -> dict[str, object]:
    """What one run gives other values than its recipe."""
    return {
        "data.images": arguments.images,
        "data.annotations": arguments.annotations,
        "data.mask_classes": arguments.mask_classes,
        "data.validation_share": arguments.validation_share,
        "data.batch_size": arguments.batch_size,
        "data.crop_size": arguments.crop_size,
        "trainer.steps": arguments.steps,
        "trainer.validate_every_steps": arguments.steps,
        "trainer.precision": arguments.precision,
        arguments.vary: value,
        "trainer.seed": seed,
        "trainer.output": folder_of(value, seed, arguments),
    }


def options_of(value: str, seed: int, arguments: argparse.Namespace, overrides: list[str]) -> list[str]:
    """What follows `maskwright train RECIPE`."""
    return [part for key, each in keys(value, seed, arguments).items() for part in (f"--{key}", str(each))] + overrides


def folder_of(value: str, seed: int, arguments: argparse.Namespace) -> Path:
    return arguments.out / f"{value}_{seed}"


def check(value: str, seed: int, arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Refuse values that the recipe does not know, and a folder that holds a run with others.

    Raises:
        UserError: as it says.
    """
    folder = folder_of(value, seed, arguments)
    recipe = resolve_recipe(arguments.recipe, options_of(value, seed, arguments, overrides))
    if not (folder / RECIPE).is_file():
        return
    try:
        read_run(folder).require_same_recipe(recipe)
    except UserError as error:  # what to do is said in this command's words
        raise UserError(f"{str(error).partition('; ')[0]}; give another --out") from error
    steps = resolve_recipe(folder / RECIPE).trainer.steps
    if steps != arguments.steps:  # the learning rate falls otherwise
        raise UserError(f"{folder}: this run is one of {steps} steps, not {arguments.steps}; give another --out")


def run(value: str, seed: int, arguments: argparse.Namespace, overrides: list[str]) -> dict[str, float]:
    """Train with one value and one seed, unless that is done already, and return the validation of the last step."""
    folder = folder_of(value, seed, arguments)
    if validation_at(arguments.steps, folder / VALIDATION) is None:
        options = options_of(value, seed, arguments, overrides)
        resume = ["--resume", "last"] if (folder / RECIPE).is_file() else []
        command = [sys.executable, "-m", "maskwright", "train", arguments.recipe, *options, *resume]
        code = subprocess.run(command, check=False).returncode
        if code:
            raise SystemExit(code)
    found = validation_at(arguments.steps, folder / VALIDATION)
    if found is None:
        raise SystemExit(f"{folder / VALIDATION} has no validation at step {arguments.steps}: the run was stopped")
    return found


def validation_at(step: int, file: Path) -> dict[str, float] | None:
    """The numbers of this step, NaN where there was nothing to measure; None where the run has not come so far."""
    lines = file.read_text().splitlines() if file.is_file() else []
    # A line that a crash broke off has no end.
    found = [values for values in (json.loads(line) for line in lines if line.endswith("}")) if values["step"] == step]
    return {name: math.nan if value is None else value for name, value in found[-1].items()} if found else None


def print_table(results: dict[tuple[str, int], dict[str, float]], arguments: argparse.Namespace) -> None:
    """One row per run, and the mean over the seeds of each value."""
    some = next(iter(results.values()))
    columns = [*COLUMNS, *(name for name in DETECTION_COLUMNS if name in some)]
    size = f"{arguments.batch_size} crops of {arguments.crop_size} px"
    measured = f"{some['instances_seen']:.0f} seen and {some['instances_unseen']:.0f} unseen instances"
    print(
        f"\n{arguments.recipe}, {arguments.steps} steps of {size}, masks of {arguments.mask_classes}; {measured} "
        f"on images set aside; {platform.processor() or platform.machine()}\n"
    )
    print(f"| {arguments.vary} | seed | " + " | ".join(columns) + " |")
    print("|---|---|" + "---|" * len(columns))
    for (value, seed), values in results.items():
        print(f"| {value} | {seed} | " + " | ".join(f"{values[name]:.4f}" for name in columns) + " |")
    for value in arguments.values:
        means = [statistics.mean(results[value, seed][name] for seed in arguments.seeds) for name in columns]
        print(f"| {value} | mean | " + " | ".join(f"{mean:.4f}" for mean in means) + " |")


if __name__ == "__main__":
    main()
