"""The folder of a run: what its files are called, who may write into it, and what a resumed run reads there."""

from __future__ import annotations

import json
import math
import shlex
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from maskwright.errors import UserError
from maskwright.files import read_json_object, write_whole
from maskwright.structures import Category
from maskwright.training.options import InstanceDataOptions, Recipe
from maskwright.training.recipes import did_you_mean, parse_recipe, resolve_recipe

RECIPE = "recipe.yaml"
LAST_CHECKPOINT = "last.ckpt"
LAST_WEIGHTS, BEST_WEIGHTS = "last", "best"
BEST_SCORE = "best.json"
LOSSES, VALIDATION = "losses.jsonl", "validation.jsonl"
TENSORBOARD = "tensorboard"

WEIGHTS_PREFIX = "model."
"""Of the model's tensors among those of a checkpoint."""
MODEL_VALUES = "model_values"
"""The key of a checkpoint for the values of the model's config."""

_NAMES_SHOWN = 8

# Values that may change on resume; any other would make it another experiment.
_FREE_ON_RESUME = {
    "data": {"images", "validation_images", "segmentations", "validation_segmentations", "shards", "num_workers"},
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


@dataclass(frozen=True)
class SavedRun:
    """What a run has saved for its continuation.

    Attributes:
        folder: of the run.
        recipe: that it was begun with.
        step: the optimizer step of its checkpoint; 0 where it has none yet.
        values: of its model's config by name. Of a checkpoint that an earlier version wrote, the categories alone;
            empty before the first checkpoint.
        shapes: of its model's tensors by name; empty before the first checkpoint.
    """

    folder: Path
    recipe: Recipe
    step: int
    values: Mapping[str, Any]
    shapes: Mapping[str, torch.Size]

    @property
    def checkpoint(self) -> Path | None:
        """The file of the checkpoint, if there is one."""
        return self.folder / LAST_CHECKPOINT if self.shapes else None

    @property
    def categories(self) -> list[Category]:
        """The label space; empty before the first checkpoint."""
        return self.values.get("categories", [])

    @property
    def command(self) -> str:
        """What continues it as it is."""
        return shlex.join(["maskwright", "train", str(self.folder), "--resume", "last"])

    def require_same_recipe(self, recipe: Recipe) -> None:
        """Refuse the recipe of another experiment.

        Raises:
            UserError: a value differs that must stay.
        """
        if self.recipe.family != recipe.family:
            raise UserError(f"{self.folder}: this run trains family {self.recipe.family}, not {recipe.family}")
        now = _fixed_values(recipe)
        for key, value in _fixed_values(self.recipe).items():
            if value != now[key]:
                raise UserError(
                    f"{self.folder}: {key} is {value!r} in this run and cannot become {now[key]!r} on resume; continue "
                    f"it as it is with `{self.command}`, or start a new run with --trainer.output"
                )

    def require_same_model(self, values: Mapping[str, Any], shapes: Mapping[str, torch.Size]) -> None:
        """Refuse a model whose outputs, or whose tensors, do not mean what those of the checkpoint mean.

        Args:
            values: of the model's config by name.
            shapes: of its tensors by name.

        Raises:
            UserError: something differs; it is named.
        """
        difference = next(self._differences(values, shapes), None)
        if difference is not None:
            weights = self.folder / LAST_WEIGHTS
            raise UserError(
                f"{self.folder} cannot be resumed: {difference}; start a new run from its weights with "
                f"--trainer.initial_weights {weights} and another --trainer.output"
            )

    def _differences(self, values: Mapping[str, Any], shapes: Mapping[str, torch.Size]) -> Iterator[str]:
        if self.checkpoint is None:
            return
        if self.values:
            yield from _differences_of_classes(self.categories, values["categories"])
        for name, value in _plain(values).items():
            before = self.values.get(name, value)
            if name != "categories" and before != value:
                yield f"model.{name} is {_json(before)} in this run, but {_json(value)} with these data"
        for name in self.shapes.keys() | shapes.keys():
            before, now = (list(one[name]) if name in one else "missing" for one in (self.shapes, shapes))
            if before != now:
                yield f"the shape of {name!r} is {before} in its checkpoint, but {now} in this model"


def read_run(folder: Path) -> SavedRun:
    """What the run in `folder` has saved.

    Raises:
        UserError: the folder holds no run, or its checkpoint is damaged.
    """
    if not is_run(folder):  # a recipe alone is one that somebody wrote
        runs = [path.parent.name for path in folder.parent.glob(f"*/{RECIPE}") if is_run(path.parent)]
        raise UserError(
            f"{folder} holds no run to resume{did_you_mean(folder.name, runs)}; leave --resume out and name an empty "
            f"folder to start one"
        )
    if not (folder / LAST_CHECKPOINT).is_file():
        return SavedRun(folder, resolve_recipe(folder / RECIPE), 0, {}, {})
    checkpoint = _read_checkpoint(folder / LAST_CHECKPOINT)
    recipe = parse_recipe(checkpoint["recipe"], str(folder / LAST_CHECKPOINT))
    shapes = {
        name.removeprefix(WEIGHTS_PREFIX): tensor.shape
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(WEIGHTS_PREFIX)
    }
    return SavedRun(folder, recipe, int(checkpoint["global_step"]), _saved_values(folder, checkpoint), shapes)


def is_run(folder: Path) -> bool:
    """Whether the folder holds a run, however short."""
    return (folder / RECIPE).is_file() and _has_records(folder)


def shorten(names: Sequence[str]) -> str:
    """The first of some names, with commas."""
    return ", ".join([*names[:_NAMES_SHOWN], "..."] if len(names) > _NAMES_SHOWN else names)


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


def _fixed_values(recipe: Recipe) -> dict[str, Any]:
    """The values that must stay, by key: of `data.sets` the names, and then the values of each."""
    values = asdict(recipe)
    fixed = {
        f"{section}.{key}": value
        for section in ("model", "data", "optimizer", "trainer")
        for key, value in values[section].items()
        if key not in _FREE_ON_RESUME.get(section, set())
    }
    if isinstance(recipe.data, InstanceDataOptions):
        fixed["data.sets"] = list(recipe.data.named_sets)
        for name, one in recipe.data.named_sets.items():
            own = asdict(one).items()
            fixed |= {f"data.sets[{name}].{key}": value for key, value in own if key not in _FREE_ON_RESUME["data"]}
    return fixed


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()  # reads everything: torch itself does not compare the check sums
        if broken is not None:
            raise ValueError(f"{broken} in it has changed")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        missing = {"global_step", "recipe", "state_dict"} - checkpoint.keys()
        if missing:
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    except (OSError, EOFError, ValueError, RuntimeError, UnpicklingError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} is damaged and cannot be resumed from ({reason}); put a copy of it back, "
            f"or start a new run with --trainer.output"
        ) from error
    return checkpoint


def _saved_values(folder: Path, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The model's values in a checkpoint; an earlier version left the categories in the weights folder alone."""
    if MODEL_VALUES in checkpoint:
        return _plain(checkpoint[MODEL_VALUES])
    config = folder / LAST_WEIGHTS / "config.json"
    return {"categories": read_json_object(config, ("model",))["model"]["categories"]} if config.is_file() else {}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as JSON has them, in which lists and tuples are the same."""
    return json.loads(json.dumps(values))


def _json(value: object) -> str:
    return shorten(value) if isinstance(value, list) else json.dumps(value)


def _differences_of_classes(before: Sequence[Category], now: Sequence[Category]) -> Iterator[str]:
    names, new_names = ([category["name"] for category in categories] for categories in (before, now))
    added = [name for name in new_names if name not in names]
    removed = [name for name in names if name not in new_names]
    if added or removed:
        parts = [f"{shorten(some)} {what}" for some, what in ((added, "added"), (removed, "removed")) if some]
        yield f"its classes are others now ({', '.join(parts)})"
    elif names != new_names:
        yield f"its classes are in another order now ({shorten(new_names)}; in this run {shorten(names)})"
    for old, new in zip(before, now, strict=False):
        if old.get("isthing", True) != new.get("isthing", True):
            yield f"the class {old['name']} is {'a thing' if new.get('isthing', True) else 'stuff'} now"


def _has_records(folder: Path) -> bool:
    return any((folder / name).exists() for name in (LAST_CHECKPOINT, LOSSES))
