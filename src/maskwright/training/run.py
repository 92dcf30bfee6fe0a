"""A run from Python, `maskwright.train`, and from the command line, `maskwright train`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskwright.errors import UserError
from maskwright.training.options import Recipe
from maskwright.training.recipes import help_parser, recipe_names, resolve_recipe
from maskwright.training.run_folder import RECIPE, is_run

if TYPE_CHECKING:
    from maskwright.training.engine import TrainingResult


def train(
    recipe: str | os.PathLike[str], values: Mapping[str, Any] | None = None, *, resume: bool = False
) -> TrainingResult:
    """Train a model as `maskwright train RECIPE --KEY VALUE ...` does.

        result = maskwright.train("deep_mac/fine_tune", {"data.images": "photos", "data.annotations": "boxes.json"})
        predictor = maskwright.load(result.best)

    Args:
        recipe: a recipe's name (`maskwright models` lists them), the path of a YAML file, or the folder of a run that
            is resumed.
        values: of keys of the recipe, in place of its own; `maskwright train RECIPE --help` lists the keys.
        resume: go on with the run in the folder `trainer.output`, as `--resume last`.

    Returns:
        How the run ended, and where its weights are. After Ctrl-C it is the result up to there, with `signal_number`.

    Raises:
        UserError: the recipe, a key, a value, the data or the run's folder cannot be used, or Lightning is missing
            (`pip install 'maskwright[train]'`).
    """
    return _run(os.fspath(recipe), [f"--{key}={_text(value)}" for key, value in (values or {}).items()], resume)


def _text(value: Any) -> str:
    """A value as it is written on the command line."""
    return str(value) if isinstance(value, str | Path) else json.dumps(value)


def _run(name: str, overrides: Sequence[str], resume: bool) -> TrainingResult:
    chosen = _recipe_of(name, resume, overrides)
    try:
        from maskwright.training import engine
    except ModuleNotFoundError as error:
        raise UserError(f"training needs {error.name}: pip install 'maskwright[train]'") from error
    return engine.train_recipe(chosen, resume=resume)


def main(arguments: Sequence[str]) -> int:
    """`maskwright train RECIPE|FOLDER [--resume last] [--SECTION.KEY VALUE ...]`; the exit code.

    0 when the run is finished (the folder of the best weights is printed), 130 after Ctrl-C and 143 after
    SIGTERM (with a checkpoint; how to go on is said on stderr).

    Raises:
        UserError: the recipe, the data or the run's folder cannot be used.
    """
    if list(arguments[:1]) in (["-h"], ["--help"]):
        help_parser().print_help()
        return 0
    if not arguments or arguments[0].startswith("-"):
        hint = "weights to begin with are given by --trainer.initial_weights; " if "--model" in arguments else ""
        raise UserError(
            "expected a recipe or the folder of a run first, as in `maskwright train deep_mac/tiny --data.images ...` "
            f"or `maskwright train FOLDER --resume last`; {hint}the recipes are {', '.join(recipe_names())}"
        )
    name, *rest = arguments
    resume, overrides = _split_resume(rest)
    result = _run(name, overrides, resume)
    if result.is_first_process and result.signal_number is not None:
        again = shlex.join(["maskwright", "train", str(result.folder), "--resume", "last"])
        print(f"stopped with a checkpoint of step {result.step}; go on with: {again}", file=sys.stderr)
    elif result.is_first_process:
        metric, score = next(iter(result.metrics.items()))
        print(f"finished {result.step} steps; {metric} {score:.4f}", file=sys.stderr)
        print(result.best)
    return 0 if result.signal_number is None else 128 + result.signal_number


def _recipe_of(name: str, resume: bool, overrides: Sequence[str]) -> Recipe:
    """The recipe of a name or a file; of the folder of a run that is resumed, its own."""
    folder = Path(name)
    if name in recipe_names() or not is_run(folder):
        return resolve_recipe(name, overrides)
    if not resume:
        raise UserError(
            f"{folder} is the folder of a run: continue it with `maskwright train {folder} --resume last`, or start a "
            f"new one like it with `maskwright train {folder / RECIPE} --trainer.output NEW`"
        )
    return resolve_recipe(folder / RECIPE, [f"--trainer.output={folder}", *overrides])


def _split_resume(arguments: list[str]) -> tuple[bool, list[str]]:
    """Whether `--resume last`, or `--resume` alone, is among the arguments, and the others."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--resume", nargs="?", const="last", choices=["last"])
    try:
        known, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(
            "--resume takes one value, `last`: the run in the folder that is named first, or that of "
            "--trainer.output, is continued"
        ) from error
    return known.resume is not None, rest
