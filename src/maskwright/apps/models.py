"""`maskwright models`: what there is to predict with and to train from."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors import safe_open

from maskwright.evaluation.tables import format_table
from maskwright.models.hub import BUNDLED, bundled_names, family_class
from maskwright.structures import Task
from maskwright.training.recipes import recipe_names, recipe_yaml, resolve_recipe

# A recipe that leaves its classes to the annotation file is counted with as many as COCO has.
_ASSUMED_CLASSES: dict[Task, int] = {"instance": 80, "panoptic": 133}
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def run(recipe: str | None = None) -> int:
    """List the bundled models and the recipes, or print one recipe.

    Args:
        recipe: recipe name or YAML file; print this recipe with all of its values.

    Raises:
        UserError: no such recipe, or it cannot be used.
    """
    if recipe is None:
        list_models()
    else:
        print(recipe_yaml(resolve_recipe(recipe)), end="")  # with the values of its base, and the defaults
    return 0


OPTIONS = run


def list_models() -> None:
    """Print the bundled models (parameters, size on disk, family) and the recipes (parameters, family).

    Classes that a recipe leaves open are counted as COCO's, 80 of instances or 133 of panoptic maps.
    """
    models = [_bundled_row(BUNDLED / name) for name in bundled_names()]
    print(format_table(["bundled model", "family", "parameters", "size"], models or [["none", "", "", ""]]))
    print()
    print(format_table(["recipe", "family", "parameters"], [_recipe_row(name) for name in recipe_names()]))


def _bundled_row(folder: Path) -> list[str]:
    weights = folder / "model.safetensors"
    with safe_open(weights, framework="numpy") as tensors:  # reads the header only
        shapes = [tensors.get_slice(key).get_shape() for key in tensors.keys() if not key.endswith(_BUFFERS)]  # noqa: SIM118
    family = json.loads((folder / "config.json").read_text())["family"]
    return [folder.name, family, _millions(sum(map(math.prod, shapes))), f"{weights.stat().st_size / 1e6:.1f} MB"]


def _recipe_row(name: str) -> list[str]:
    recipe = resolve_recipe(name)
    family = family_class(recipe.family)
    assumed = [{"id": index, "name": f"{index}"} for index in range(1, _ASSUMED_CLASSES[family.task] + 1)]
    config = family.config_class(**{**recipe.model, "categories": recipe.model.get("categories") or assumed})
    with torch.device("meta"):
        model = family(config.without_initial_weights())  # nothing is downloaded for a count
    return [name, recipe.family, _millions(sum(parameter.numel() for parameter in model.parameters()))]


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"
