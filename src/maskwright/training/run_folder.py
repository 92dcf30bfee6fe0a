"""The folder of a run: what its files are called, who may write into it, and what a resumed run reads there."""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError

import torch

from maskwright.errors import UserError
from maskwright.files import write_whole
from maskwright.training.options import Recipe
from maskwright.training.recipes import resolve_recipe

RECIPE = "recipe.yaml"
LAST_CHECKPOINT = "last.ckpt"
LAST_WEIGHTS, BEST_WEIGHTS = "last", "best"
BEST_SCORE = "best.json"
LOSSES, VALIDATION = "losses.jsonl", "validation.jsonl"
TENSORBOARD = "tensorboard"

# Values that may change on resume; any other would make it another experiment.
_FREE_ON_RESUME = {
    "data": {"images", "validation_images", "segmentations", "validation_segmentations", "num_workers"},
    "trainer": {
        "steps", "output", "validate_every_steps", "checkpoint_every_seconds", "log_every_steps", "accelerator",
        "devices", "num_nodes", "strategy",
    },
}  # fmt: skip


def run_folder(recipe: Recipe) -> Path:
    """The folder of a recipe's run: its `trainer.output`, else `runs/` and its name."""
    return Path(recipe.trainer.output or Path("runs") / recipe.name)


def check_new(folder: Path) -> None:
    """Refuse a folder that holds anything, so that nothing is overwritten.

    Raises:
        UserError: the folder holds a run or other files.
    """
    if _has_records(folder):
        raise UserError(
            f"{folder} already holds a run: continue it with --resume last, "
            f"or give another folder with --trainer.output"
        )
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder: give another one with --trainer.output")


def check_resumable(folder: Path, recipe: Recipe) -> None:
    """Refuse to resume what is not a run, or a run of another experiment.

    Raises:
        UserError: the folder holds no run, or its recipe differs in a value that must stay.
    """
    saved = folder / RECIPE
    if not (saved.is_file() and _has_records(folder)):  # a recipe alone is one that somebody wrote
        raise UserError(f"{folder} holds no run to resume; leave --resume out and name an empty folder to start one")
    before, now = asdict(resolve_recipe(saved)), asdict(recipe)
    if before["family"] != now["family"]:
        raise UserError(f"{saved}: this run trains family {before['family']}, not {now['family']}")
    for section in ("model", "data", "optimizer", "trainer"):
        for key, value in before[section].items():
            if key not in _FREE_ON_RESUME.get(section, set()) and value != now[section][key]:
                raise UserError(
                    f"{saved}: {section}.{key} is {value!r} in this run and cannot become {now[section][key]!r} "
                    f"on resume; start a new run with --trainer.output"
                )


def take(folder: Path, recipe: str) -> None:
    """Mark the folder as this run's, with its `recipe` (YAML) and an empty file of losses.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOSSES).touch()  # before the recipe: a folder with both can be resumed
        write_whole(folder / RECIPE, lambda temporary: temporary.write_text(recipe))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error}); name another folder with --trainer.output") from error


def read_best_score(folder: Path, name: str) -> float:
    """The number `name` of the weights folder `best` of a run; minus infinity where there is none yet.

    Weights that another number chose, as an earlier version may have done, are not the best by this one.
    """
    path = folder / BEST_SCORE
    best = json.loads(path.read_text()) if path.is_file() else {}
    return float(best.get(name, -math.inf))


def read_step(checkpoint: Path) -> int:
    """The optimizer step at which a run's checkpoint was taken.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            broken = archive.testzip()  # reads everything: torch itself does not compare the check sums
        if broken is not None:
            raise ValueError(f"{broken} in it has changed")
        return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, UnpicklingError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{checkpoint} is damaged and cannot be resumed from ({reason}); put a copy of it back, "
            f"or start a new run with --trainer.output"
        ) from error


def _has_records(folder: Path) -> bool:
    return any((folder / name).exists() for name in (LAST_CHECKPOINT, LOSSES))
