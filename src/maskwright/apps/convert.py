"""`maskwright convert`: a TensorFlow original's checkpoint to a weights folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maskwright.convert.checkpoint import Variables
from maskwright.convert.deep_mac import convert_deep_mac
from maskwright.convert.deep_marc import convert_deep_marc
from maskwright.convert.max_deeplab import convert_max_deeplab
from maskwright.convert.tables import Conversion
from maskwright.data.categories import resolve_mask_classes
from maskwright.errors import UserError
from maskwright.models.hub import save_pretrained
from maskwright.training.options import Recipe
from maskwright.training.recipes import resolve_recipe

CONVERTERS: dict[str, Callable[[Mapping[str, np.ndarray], Mapping[str, Any]], Conversion]] = {
    "deep_mac": convert_deep_mac,
    "deep_marc": convert_deep_marc,
    "max_deeplab": convert_max_deeplab,
}


def convert_checkpoint(checkpoint: str, family: str, recipe: str, out: str) -> None:
    """Convert a checkpoint and print what was used and what was skipped.

    Every variable of the checkpoint's model must have its tensor in the recipe's model and vice versa, except for what
    a family's converter says it does not take. The optimizer's slots and values, the step and the number of saves are
    skipped and counted.

    Args:
        checkpoint: prefix (DIR/ckpt-0), `.index` file or folder of a TensorFlow 2 checkpoint, or a SavedModel's
            `variables` folder.
        family: deep_mac, deep_marc or max_deeplab.
        recipe: recipe name or YAML file that describes the model; only `family`, `model` and `data.mask_classes`
            (default: all classes) are read. Without `model.categories` a detector gets COCO's 90 classes, a panoptic
            model COCO's 133.
        out: weights folder to write; it appears whole or not at all.

    Raises:
        UserError: the checkpoint or the recipe cannot be read, or they do not fit each other.
    """
    if family not in CONVERTERS:
        raise UserError(f"--family: expected one of {', '.join(CONVERTERS)}, but got {family!r}")
    resolved = resolve_recipe(recipe)
    if resolved.family != family:
        raise UserError(f"recipe {recipe} is of the family {resolved.family!r}, but --family is {family!r}")
    variables = Variables(checkpoint)
    try:
        conversion = CONVERTERS[family](variables, resolved.model)
    except UserError as error:
        raise UserError(f"{checkpoint} does not fit recipe {recipe}: {error}") from error
    except ValueError as error:
        raise UserError(f"recipe {recipe}: {error}") from error
    model = conversion.model
    others = variables.others()
    if others.unknown:
        raise UserError(
            f"{checkpoint}: tensor {others.unknown[0]!r} is left over ({len(others.unknown)} such): "
            "it belongs neither to the model nor to its optimizer"
        )
    if (mask_classes := getattr(resolved.data, "mask_classes", None)) is not None:  # panoptic data have masks alone
        model.mask_classes = resolve_mask_classes(mask_classes, model.categories)
    save_pretrained(model, out, card=_card(conversion, checkpoint, resolved))
    print(_report(conversion, variables))
    print(out)


OPTIONS = convert_checkpoint


def run(**given: Any) -> int:
    """Convert."""
    convert_checkpoint(**given)
    return 0


def _report(conversion: Conversion, variables: Variables) -> str:
    model, others = conversion.model, variables.others()
    numbers = sum(variables[path].size for path in conversion.used)
    masks = f", {len(model.mask_classes)} of them with masks" if model.task == "instance" else ""
    lines = [
        f"variables converted: {len(conversion.used)} ({numbers:,} numbers)",
        f"optimizer slots skipped: {len(others.optimizer_slots)}",
        f"other bookkeeping skipped: {len(others.bookkeeping)}",
        *conversion.remarks,
        f"classes: {len(model.categories)}{masks}",
    ]
    return "\n".join(lines)


def _card(conversion: Conversion, checkpoint: str, recipe: Recipe) -> str:
    model = conversion.model
    parameters = sum(parameter.numel() for group in model.parameter_groups() for parameter in group["params"])
    remarks = "".join(f"- {remark}\n" for remark in conversion.remarks)
    return (
        f"# {Path(checkpoint).name}\n\n"
        f"Converted by `maskwright convert` from a TensorFlow checkpoint of the original ({model.family}, recipe "
        f"`{recipe.name}`), {parameters:,} parameters. The licence and the terms of use are those of that "
        "checkpoint.\n\n"
        f"{remarks}"
    )
