"""`maskwright study leave-classes-out`: how good masks will be of classes that nobody has drawn masks of."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from maskwright.apps.left_out_answer import answer_text, write_answer
from maskwright.apps.left_out_files import LabelledImages, read_sides, stable_hash
from maskwright.apps.named_models import memory_error_told
from maskwright.apps.study import study_plan
from maskwright.apps.study_file import Study, StudyRun, Values, runs_of
from maskwright.apps.study_training import alone_in, ended_runs
from maskwright.data.categories import labels_of_names, match_name
from maskwright.data.dataset import DataSource
from maskwright.data.formats import open_data_set
from maskwright.data.loaders import evaluation_loader
from maskwright.errors import UserError
from maskwright.evaluation.left_out_classes import MeasuredBoxes, Trial, answer
from maskwright.evaluation.mask_iou import MaskIoU
from maskwright.evaluation.measurement import MasksFromBoxes
from maskwright.files import read_json_object, write_json
from maskwright.models.family import BoxPromptedFamily
from maskwright.predictor import load
from maskwright.structures import select_rows
from maskwright.training.options import InstanceDataOptions, Recipe
from maskwright.training.recipes import resolve_recipe
from maskwright.training.run_folder import LAST_WEIGHTS

NAME = "leave-classes-out"
ABOUT = "how good masks will be of classes without masks, and whether drawing some pays; on your own data"

BOXES = Path("evaluated", "boxes.json")
"""In a run's folder: the measured boxes."""

MIN_CLASSES = 3
"""With masks; of fewer, nothing can be said about another one."""


@dataclass(frozen=True)
class LeaveClassesOutOptions:
    """What `maskwright study leave-classes-out` is asked for.

    Attributes:
        recipe: name or file of the recipe of all trainings. Values of its keys may follow; data.images and
            data.annotations must. Where data.validation_annotations is given it is measured on those images, else on
            a quarter of all.
        folds: parts that the classes with masks are divided into, by a hash of their names; the masks of one part are
            left out at a time.
        masks: numbers of masks of each left-out class that are trained with as well, with commas; '' for none.
        out: folder of the runs and of the table.
        seeds: number of seeds of each training.
        processes: trainings at the same time, which share the cores; each then writes its progress to a file
            seed_N.log beside its folder.
        dry_run: show the trainings and how far they have come; train nothing.
    """

    recipe: str = "deep_mac/fine_tune"
    folds: int = 3
    masks: str = "5,10,20"
    out: str = f"runs/studies/{NAME}"
    seeds: int = 1
    processes: int = 1
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.folds < 2 or self.seeds < 1 or self.processes < 1:
            raise UserError(
                "expected folds >= 2, seeds >= 1 and processes >= 1, but got "
                f"{self.folds}, {self.seeds} and {self.processes}"
            )
        words = self.masks.split(",") if self.masks else []
        if any(not word.isdecimal() or int(word) == 0 for word in words) or len(set(words)) < len(words):
            raise UserError(f"masks must be different whole numbers > 0, such as 5,10, but got {self.masks!r}")

    @property
    def numbers_of_masks(self) -> list[int]:
        """Of each left-out class, those of the trainings: 0 first, then rising."""
        return [0, *sorted(int(word) for word in self.masks.split(",") if word)]


OPTIONS = LeaveClassesOutOptions


class Row(NamedTuple):
    """A training: the classes whose masks it leaves out, and the number that it keeps of each."""

    classes: Sequence[str]
    masks: int


def run(values: Values, **given: Any) -> int:
    """Run or resume the trainings that are missing, and print and write what they say of each class.

    The folder `OUT/data` receives the annotation files of the trainings, `OUT/ROW/seed_N` their runs. `table.md`,
    `table.json` and `chart.png` are written anew after every training.

    Args:
        values: of the recipe by dotted key.
        given: fields of `LeaveClassesOutOptions`.

    Returns:
        0, or 3 where a training failed; the others have been run.

    Raises:
        UserError: the recipe, the data or a run in the folder cannot be used; nothing is trained.
    """
    options = LeaveClassesOutOptions(**given)
    recipe = resolve_recipe(options.recipe, [f"--{key}={value}" for key, value in values.items()])
    data = _data_of(recipe)
    training, measured = read_sides(data)
    rows = _rows(training, options)
    out = Path(options.out)
    study = _study(options, recipe, values, rows)
    runs = runs_of(study, out)
    if options.dry_run:
        print(study_plan(study, runs))
        return 0
    known = _classes_of_weights(recipe, training)
    images = data.validation_images or data.images
    source = DataSource(str(images), _measured_file(out), categories=training.categories, exif=data.exif)
    with alone_in(out) as lock, closing(ended_runs(runs, options.processes, lock)) as ended:
        _write_files(out, rows, training, measured)
        trials: list[Trial] = []
        failures: list[str] = []
        latest = f"{NAME}: no training has ended well"
        for each, code in ended:
            try:
                trials.append(Trial(*rows[each.row], _measured(each, code, source)))
            except UserError as error:
                failures.append(f"{each}: {error}")
                print(f"maskwright: failed: {failures[-1]}", file=sys.stderr)
                continue
            found = answer({name: len(masks) for name, masks in training.masks.items()}, trials)
            write_answer(study, found, known, out)
            latest = answer_text(found, known)
    print(latest)
    print(f"table.md, table.json and chart.png are in {out}", *failures, sep="\nfailed: ", file=sys.stderr)
    return 3 if failures else 0


def _data_of(recipe: Recipe) -> InstanceDataOptions:
    """The section `data`, which must be of instances whose masks may all be learnt."""
    if not isinstance(recipe.data, InstanceDataOptions):
        raise UserError(f"{NAME} asks for masks of given boxes, which the family {recipe.family} does not make")
    if recipe.data.mask_classes != "all":
        raise UserError(f"{NAME} chooses itself whose masks are learnt; leave data.mask_classes out")
    return recipe.data


def _rows(training: LabelledImages, options: LeaveClassesOutOptions) -> dict[str, Row]:
    """The trainings by name: all folds without masks, then with few, ...; as far as a class has more than that many."""
    names = sorted((name for name, masks in training.masks.items() if masks), key=stable_hash)
    if len(names) < MIN_CLASSES:
        raise UserError(
            f"{NAME} needs {MIN_CLASSES} or more classes with masks among the training images, but there are "
            f"{len(names)}{': ' if names else ''}{', '.join(names)}"
        )
    folds = [names[place :: options.folds] for place in range(min(options.folds, len(names)))]
    return {
        f"fold_{number}_masks_{masks}": Row(fold, masks)
        for masks in options.numbers_of_masks
        for number, fold in enumerate(folds, 1)
        if any(len(training.masks[name]) > masks for name in fold)
    }


def _study(options: LeaveClassesOutOptions, recipe: Recipe, values: Values, rows: Mapping[str, Row]) -> Study:
    folder = Path(options.out) / "data"
    own = {"data.annotations", "data.validation_annotations", "data.validation_images"}
    common = {key: value for key, value in values.items() if key not in own}
    if recipe.data.validation_images is not None:
        common["data.validation_images"] = recipe.data.validation_images
    # What a run measures by itself is not used: one image, once.
    common |= {
        "data.validation_annotations": str(folder / "validation.json"),
        "trainer.validate_every_steps": recipe.trainer.steps,
    }
    study = Study(NAME, options.recipe, (), {}, about=ABOUT, seeds=range(options.seeds)).with_values(common)
    return replace(study, rows={row: {"data.annotations": str(folder / f"{row}.json")} for row in rows})


def _write_files(out: Path, rows: Mapping[str, Row], training: LabelledImages, measured: LabelledImages) -> None:
    """Write the annotation files that the trainings and the measurement read."""
    folder = out / "data"
    folder.mkdir(exist_ok=True)
    measured.write(_measured_file(out))
    position = next(positions[0] for positions in measured.masks.values() if positions)
    measured.of_images([measured.annotations[position]["image_id"]]).write(folder / "validation.json")
    for name, (classes, number) in rows.items():
        training.with_masks(dict.fromkeys(classes, number)).write(folder / f"{name}.json")


def _measured_file(out: Path) -> Path:
    return out / "data" / "measured.json"


def _classes_of_weights(recipe: Recipe, training: LabelledImages) -> list[str]:
    """The classes whose masks the first weights were made with, by name: to these weights they are not new."""
    if recipe.trainer.initial_weights is None:
        return []
    names = list(training.masks)
    matches = {match_name(name, names) for name in load(recipe.trainer.initial_weights, "cpu").model.mask_classes}
    return [name for name in names if name in matches]


def _measured(run: StudyRun, code: int, source: DataSource) -> MeasuredBoxes:
    """What the run's last weights make of the measured boxes; from its folder where that has been measured.

    Raises:
        UserError: its training failed, or it cannot be measured.
    """
    if code:
        raise UserError(f"its training ended with exit code {code}")
    file = run.folder / BOXES
    step = run.recipe.trainer.steps
    if file.is_file():
        boxes, measured_step = read_measured_boxes(file)
        if measured_step == step:
            return boxes
    boxes = measure_boxes(run.folder / LAST_WEIGHTS, source)
    file.parent.mkdir(exist_ok=True)
    columns = {name: column.tolist() for name, column in boxes._asdict().items()}
    columns["ious"] = [None if math.isnan(value) else value for value in columns["ious"]]
    write_json(file, {"step": step, **columns}, indent=None)
    return boxes


def read_measured_boxes(file: Path) -> tuple[MeasuredBoxes, int]:
    """What a run's file `BOXES` says, and the step of the weights that were measured.

    Raises:
        UserError: it cannot be read.
    """
    content = read_json_object(file, ("step", *MeasuredBoxes._fields), kind="measurement")
    columns = [content[name] for name in MeasuredBoxes._fields]
    return MeasuredBoxes(*(np.array(column, dtype=float) for column in columns)), content["step"]


def measure_boxes(weights: str | Path, source: DataSource) -> MeasuredBoxes:
    """What a model makes of the true boxes, image by image.

    Raises:
        UserError: it takes no boxes, or it or the data cannot be used.
    """
    predictor, dataset = load(weights, precision="auto"), open_data_set(source)
    if not isinstance(predictor.model, BoxPromptedFamily):
        raise UserError(f"{weights}: this model takes no boxes")
    metric = MaskIoU(dataset.categories, seen=[])
    labels = labels_of_names([category["name"] for category in dataset.categories], predictor.model.categories)
    measurement = MasksFromBoxes(predictor.model, metric, predictor.inference, torch.tensor(labels))
    parts = []
    progress = tqdm(evaluation_loader(dataset, batch_size=1), unit="image", desc="measure", disable=None)
    for place, (images, targets) in enumerate(progress):
        metric.reset()
        with memory_error_told(f"image {place + 1} to measure on"):
            (prediction,) = measurement.update([image.to(predictor.device) for image in images], targets)
        target = select_rows(targets[0], ~targets[0]["iscrowd"])
        ious = torch.full((len(target["labels"]),), math.nan, dtype=torch.float64)
        ious[target["has_mask"]] = metric.state()[:, 1]
        parts.append((torch.full_like(ious, place), target["labels"], ious, prediction.mask_scores.cpu()))
    return MeasuredBoxes(*(torch.cat(column).double().numpy() for column in zip(*parts, strict=True)))
