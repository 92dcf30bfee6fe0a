"""How far off is what `maskwright study leave-classes-out` foretells of classes without masks?

    python benchmarks/left_out_prediction.py --images DIR --annotations FILE --measured FILE --out OUT \\
        [--parts 3] [--folds 3] [--recipe RECIPE] [--SECTION.KEY VALUE ...]
    python benchmarks/left_out_prediction.py --images DIR --measured FILE --model MODEL [--parts 3]

The classes with masks are divided into parts by a hash of their names. For each part the study is run on a copy of the
annotation file without any of the part's masks; their IoU on the measured images is hidden from what the study says,
too. So the IoU that it foretells of these classes can be held against the one that the same trainings reached. Beside
it stands the plainest of predictions, the mean IoU of the classes that the study left out itself. Values of the recipe
may be given; what has been trained and measured in OUT is not done again.

With --model nothing is trained: a part's IoU is foretold from the scores of this model and its IoU on the other parts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maskwright.apps import leave_classes_out
from maskwright.apps.left_out_files import stable_hash
from maskwright.data.dataset import DataSource
from maskwright.evaluation.left_out_classes import Estimate, MeasuredBoxes, Trial, answer
from maskwright.evaluation.report import format_table
from maskwright.files import read_json_object, write_json

ENOUGH = 10
"""Masks by which a class is known well enough to be counted in the second mean."""

Content = dict[str, Any]
"""A COCO file."""


class Foretold(NamedTuple):
    """A class that was held back: its masks among the measured ones, and the mean IoU of three kinds.

    actual: that was reached. predicted: by the study. plain: the mean of the classes that the study left out itself.
    """

    name: str
    instances: int
    actual: float
    predicted: Estimate
    plain: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--images", required=True)
    parser.add_argument("--measured", required=True, help="COCO file of the images to measure on")
    parser.add_argument("--annotations", type=Path, help="COCO file of the images in the same folder to train on")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", help="in place of trainings")
    parser.add_argument("--parts", type=int, default=3, help="of the classes; one is held back at a time")
    parser.add_argument("--folds", type=int, default=3, help="of the study, over the other classes")
    parser.add_argument("--recipe", default="deep_mac/fine_tune")
    arguments, words = parser.parse_known_args()
    if arguments.model is not None and not words:
        found = by_model(arguments)
    elif arguments.model is None and arguments.annotations and arguments.out:
        found = by_studies(arguments, values_of(words))
        write_json(arguments.out / "foretold.json", [each._asdict() for each in found])
    else:
        parser.error("expected --annotations and --out, or --model without values of a recipe")
    print(told(found))


def values_of(words: Sequence[str]) -> dict[str, str]:
    """The recipe's values among the arguments: `--SECTION.KEY VALUE` or `--SECTION.KEY=VALUE`."""
    values, following = {}, iter(words)
    for word in following:
        key, equals, value = word.removeprefix("--").partition("=")
        values[key] = value if equals else next(following)
    return values


def by_model(arguments: argparse.Namespace) -> list[Foretold]:
    """What a model's scores foretell: one trial, in which every class is left out."""
    content = read_json_object(Path(arguments.measured), ("images", "annotations", "categories"))
    names = [category["name"] for category in content["categories"]]
    boxes = leave_classes_out.measure_boxes(arguments.model, DataSource(arguments.images, arguments.measured))
    trials = [Trial(names, 0, boxes)]
    parts = parts_of(content, arguments.parts)
    return [each for part in parts for each in foretold(dict.fromkeys(names, 1), trials, part)]


def by_studies(arguments: argparse.Namespace, values: Mapping[str, str]) -> list[Foretold]:
    """What a study foretells of each part of the classes, of which it has no masks."""
    content = read_json_object(arguments.annotations, ("images", "annotations", "categories"))
    found: list[Foretold] = []
    for number, part in enumerate(parts_of(content, arguments.parts), 1):
        folder = arguments.out / f"part_{number}"
        folder.mkdir(parents=True, exist_ok=True)
        training, study = folder / "training.json", folder / "study"
        write_json(training, without_masks(content, part), indent=None)
        files = {"images": arguments.images, "annotations": training, "validation_annotations": arguments.measured}
        code = leave_classes_out.run(
            {**{f"data.{key}": str(file) for key, file in files.items()}, **values},
            recipe=arguments.recipe,
            folds=arguments.folds,
            masks="",
            out=str(study),
        )
        if code:
            sys.exit(code)
        found += foretold(masks_in(study), list(trials_in(study)), part)
    return found


def parts_of(content: Content, parts: int) -> list[list[str]]:
    """The names of the classes with masks, divided by a hash."""
    ordered = sorted(set(names_of(content)) - set(names_without_masks(content)), key=stable_hash)
    return [ordered[place::parts] for place in range(parts)]


def names_of(content: Content) -> list[str]:
    return [category["name"] for category in content["categories"]]


def names_without_masks(content: Content) -> list[str]:
    with_masks = {entry["category_id"] for entry in content["annotations"] if entry.get("segmentation")}
    return [category["name"] for category in content["categories"] if category["id"] not in with_masks]


def without_masks(content: Content, names: Sequence[str]) -> Content:
    """A copy of a COCO file in which these classes have boxes alone."""
    ids = {category["id"] for category in content["categories"] if category["name"] in names}
    entries = [
        {key: value for key, value in entry.items() if key != "segmentation" or entry["category_id"] not in ids}
        for entry in content["annotations"]
    ]
    return {**content, "annotations": entries}


def masks_in(study: Path) -> dict[str, int]:
    """How many masks the study's training images have of each class."""
    table = read_json_object(study / "table.json", ("classes",), kind="table")
    return {each["name"]: each["masks"] for each in table["classes"]}


def trials_in(study: Path) -> Iterator[Trial]:
    """The trainings of a study without masks of their folds: the classes that had none, and what was reached."""
    for file in sorted(study.glob(f"*/seed_*/{leave_classes_out.BOXES}")):
        content = read_json_object(study / "data" / f"{file.parents[2].name}.json", ("annotations", "categories"))
        yield Trial(names_without_masks(content), 0, leave_classes_out.read_measured_boxes(file)[0])


def foretold(masks: Mapping[str, int], trials: Sequence[Trial], names: Sequence[str]) -> list[Foretold]:
    """What the trials foretell of these classes, whose IoUs they are not told, and what they reached."""
    labels = [list(masks).index(name) for name in names]
    said = answer(masks, [trial._replace(boxes=hidden(trial.boxes, labels)) for trial in trials])
    reached = {each.name: each for each in answer(masks, trials).classes}
    found = []
    for each in said.classes:
        actual = reached[each.name].without
        if each.name in names and each.predicted and actual and said.any_class:
            instances = reached[each.name].instances
            found.append(Foretold(each.name, instances, actual.mean, each.predicted, said.any_class.mean))
    return found


def hidden(boxes: MeasuredBoxes, labels: Sequence[int]) -> MeasuredBoxes:
    """The boxes without the IoUs of these classes, as if they had no masks in the measured file either."""
    return boxes._replace(ious=np.where(np.isin(boxes.labels, labels), np.nan, boxes.ious))


def told(found: Sequence[Foretold]) -> str:
    """The table, and the mean absolute errors over all classes and over those with enough masks."""
    header = ["class", "masks", "actual", "predicted", "90 % range", "off by", "plain mean off by"]
    rows = [
        [
            each.name,
            str(each.instances),
            f"{each.actual:.3f}",
            f"{each.predicted.mean:.3f}",
            f"{each.predicted.low:.2f} to {each.predicted.high:.2f}",
            f"{each.predicted.mean - each.actual:+.3f}",
            f"{each.plain - each.actual:+.3f}",
        ]
        for each in sorted(found, key=lambda each: each.actual)
    ]
    enough = [each for each in found if each.instances >= ENOUGH]
    return "\n".join([format_table(header, rows), "", summary(found), f"{ENOUGH} masks or more: {summary(enough)}"])


def summary(found: Sequence[Foretold]) -> str:
    """Mean absolute errors, and how many classes lie in their range."""
    if not found:
        return "no class"
    predicted = np.mean([abs(each.predicted.mean - each.actual) for each in found])
    plain = np.mean([abs(each.plain - each.actual) for each in found])
    within = sum(each.predicted.low <= each.actual <= each.predicted.high for each in found)
    return (
        f"{len(found)} classes, foretold {predicted:.3f} off on average, {within} within their range; "
        f"the plain mean is {plain:.3f} off"
    )


if __name__ == "__main__":
    main()
