"""The folder of a run: what its files are called, and who may write into it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from maskwright.errors import UserError
from maskwright.training.options import Recipe
from maskwright.training.recipes import resolve_recipe

RECIPE = "recipe.yaml"
LAST_CHECKPOINT = "last.ckpt"
LAST_WEIGHTS, BEST_WEIGHTS = "last", "best"
BEST_SCORE = "best.json"
LOSSES, VALIDATION = "losses.jsonl", "validation.jsonl"
TENSORBOARD = "tensorboard"

# What may differ between a run and its continuation; anything else would make it another experiment.
_FREE_ON_RESUME = {
    "data": {"images", "validation_images", "segmentations", "validation_segmentations", "num_workers"},
    "trainer": {
        "steps", "output", "validate_every_steps", "checkpoint_every_seconds", "log_every_steps", "accelerator",
        "devices", "num_nodes", "strategy",
    },
}  # fmt: skip


def run_folder(recipe: Recipe) -> Path:
    """Where a recipe's run lies: its `trainer.output`, else `runs/` and its name."""
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
    """Refuse to continue what is no run, or a run as another experiment than it is.

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
    """Make the folder a run's, from its first moment on: with `recipe` (YAML) and with records.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOSSES).touch()  # before the recipe: a folder with both can be resumed
        write_text(folder / RECIPE, recipe)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error}); name another folder with --trainer.output") from error


def write_text(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_text(text)
    scratch.replace(path)


def _has_records(folder: Path) -> bool:
    return any((folder / name).exists() for name in (LAST_CHECKPOINT, LOSSES))
