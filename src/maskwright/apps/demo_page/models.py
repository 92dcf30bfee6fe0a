"""The models behind the demo page: what each of its tabs asks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maskwright.apps.named_models import AnyPredictor, NamedModel, load_named
from maskwright.errors import UserError


def tabs_of(predictor: AnyPredictor) -> list[str]:
    """What a model can do: masks of `boxes`, find `objects`, or find all segments (`panoptic`)."""
    if predictor.task == "panoptic":
        return ["panoptic"]
    takes_boxes = ["boxes"] if predictor.takes_boxes else []
    return takes_boxes if predictor.needs_boxes else [*takes_boxes, "objects"]


def public_name(name: str) -> str:
    """What a page and its files call a model: of a folder here the name alone, not where it lies."""
    path = Path(name)
    return path.resolve().name if path.exists() else name


def models_of_tabs(models: Sequence[NamedModel]) -> dict[str, NamedModel]:
    """The model of each tab: the first one that can do it.

    Raises:
        UserError: all that a model can do, earlier ones do.
    """
    chosen: dict[str, NamedModel] = {}
    for model in models:
        new = [tab for tab in tabs_of(model.predictor) if tab not in chosen]
        if not new:
            earlier = chosen[tabs_of(model.predictor)[0]].name
            raise UserError(f"--model: {earlier} does already what {model.name} can do; name one of the two")
        chosen.update(dict.fromkeys(new, model))
    return chosen


def load_models(names: str, device: str) -> list[NamedModel]:
    """The models of a list of names (`load_named`) with commas.

    Raises:
        UserError: there is no such model or device, or no name at all.
    """
    models = [load_named(name, device) for name in filter(None, map(str.strip, names.split(",")))]
    if not models:
        raise UserError("--model: expected at least one model")
    return models
