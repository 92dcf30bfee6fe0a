"""Recipe in, trained model out: `maskwright train` and its Python function."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from maskwright.errors import UserError
from maskwright.training.options import Recipe
from maskwright.training.recipes import recipe_names, resolve_recipe
from maskwright.training.run_folder import BEST_WEIGHTS

if TYPE_CHECKING:
    from maskwright.training.data_sets import DataSets


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    folder: of the run, with the weights folders `last` and (after a validation) `best`.
    step: the optimizer step of the newest checkpoint, counted from the beginning of the run.
    metrics: of the last validation of this call; empty where there was none.
    signal_number: the signal that stopped the run early, or None.
    is_first_process: false in the processes that the first one started for further devices.
    """

    folder: Path
    step: int
    metrics: dict[str, float]
    signal_number: int | None
    is_first_process: bool


def main(arguments: Sequence[str]) -> int:
    """`maskwright train RECIPE [--resume last] [--SECTION.KEY VALUE ...]`; the exit code.

    0 when the run is finished (the folder of the best weights is printed), 130 after Ctrl-C and 143 after
    SIGTERM (with a checkpoint; how to go on is said on stderr).

    Raises:
        UserError: the recipe, the data or the run's folder cannot be used.
    """
    if not arguments or arguments[0].startswith("-"):
        names = ", ".join(recipe_names())
        raise UserError(f"expected a recipe first, as in `maskwright train NAME|FILE`; the recipes are {names}")
    name, *overrides = arguments
    overrides, resume = _take_resume(overrides)
    result = train(resolve_recipe(name, overrides), resume=resume)
    if result.is_first_process and result.signal_number is not None:
        again = shlex.join(["maskwright", "train", name, *overrides, "--resume", "last"])
        print(f"stopped with a checkpoint of step {result.step}; go on with: {again}", file=sys.stderr)
    elif result.is_first_process:
        name, score = next(iter(result.metrics.items()))
        print(f"finished {result.step} steps; {name} {score:.4f}", file=sys.stderr)
        print(result.folder / BEST_WEIGHTS)
    return 0 if result.signal_number is None else 128 + result.signal_number


def train(recipe: Recipe, *, resume: bool = False, data_sets: DataSets | None = None) -> TrainingResult:
    """Train as the recipe says, in its `trainer.output` folder (else `runs/NAME`).

    The folder gets `recipe.yaml` (resolved), `last.ckpt`, the weights folders `last` and `best` (averaged
    weights; the best by the first number of `evaluation.measurement.measurements_of`, which `best.json` names),
    `losses.jsonl`, `validation.jsonl` and `tensorboard/`. A resumed run gives the same losses,
    to the bit, as one that was never broken off (same machine, number of threads and devices; on a GPU only
    as far as its kernels are deterministic).

    Args:
        recipe: of `resolve_recipe`.
        resume: go on from the folder's last checkpoint, or from the start if it was stopped before the first.
        data_sets: your own data, in place of the files that the recipe names (see `SegmentationDataset`).

    Raises:
        UserError: the folder holds another run, the data or a model value cannot be used, or the loss is no
            longer finite.
    """
    try:
        from maskwright.training.engine import fit
    except ModuleNotFoundError as error:
        raise UserError(f"training needs {error.name}: pip install 'maskwright[train]'") from error
    return TrainingResult(**fit(recipe, resume, data_sets))


def _take_resume(arguments: list[str]) -> tuple[list[str], bool]:
    """The arguments without `--resume last`, and whether it was there."""
    rest = [argument for argument in arguments if argument != "--resume=last"]
    resume = len(rest) < len(arguments)
    while "--resume" in rest:
        at = rest.index("--resume")
        if rest[at + 1 : at + 2] != ["last"]:
            raise UserError("--resume takes one value, `last`: the run in the folder of --trainer.output is continued")
        del rest[at : at + 2]
        resume = True
    return rest, resume
