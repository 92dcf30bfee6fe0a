"""The models behind the demo page: what each of its tabs asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from maskwright.errors import UserError
from maskwright.models.hub import from_pretrained, model_hash
from maskwright.predictor import Predictor
from maskwright.structures import BoxPrompted


@dataclass(frozen=True)
class NamedModel:
    """A model as it answers, with its name and hash (`model_hash`) for what is downloaded."""

    name: str
    weights: str
    predictor: Predictor

    @property
    def tabs(self) -> list[str]:
        """What the model can do: masks of `boxes`, find `objects`, or find all segments (`panoptic`)."""
        if self.predictor.task == "panoptic":
            return ["panoptic"]
        takes_boxes = ["boxes"] if isinstance(self.predictor.model, BoxPrompted) else []
        return takes_boxes if self.predictor.needs_boxes else [*takes_boxes, "objects"]


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
        new = [tab for tab in model.tabs if tab not in chosen]
        if not new:
            earlier = chosen[model.tabs[0]].name
            raise UserError(f"--model: {earlier} does already what {model.name} can do; name one of the two")
        chosen.update(dict.fromkeys(new, model))
    return chosen


def load_models(names: str, device: str) -> list[NamedModel]:
    """The models of a list of names (`from_pretrained`) with commas.

    Raises:
        UserError: there is no such model or device, or no name at all.
    """
    models = []
    for name in filter(None, map(str.strip, names.split(","))):
        model = from_pretrained(name)
        weights = model_hash(model)
        models.append(NamedModel(name, weights, Predictor(model, device, in_place=True)))
    if not models:
        raise UserError("--model: expected at least one model")
    return models
