"""Start a run from the weights of another model, whose classes may differ."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from maskwright.data.categories import labels_of_names
from maskwright.errors import UserError
from maskwright.models.family import BoxPromptedFamily, Family
from maskwright.models.hub import from_pretrained
from maskwright.structures import Category

# Values that are reported separately, or that do not change what the same tensors predict.
_TOLD_OTHERWISE = {"categories", "mask_classes", "detector", "image_size", "mask_chunk_size"}


def start_from(model: Family[Any], source: str, *, announce: bool = True) -> None:
    """Copy the weights of another model of the family into `model`.

    Every tensor must fit by name and shape, with two exceptions, each reported on stderr if `announce`:

    - The layers of the classes (`SegmentationModel.class_layers`), where the categories differ: rows of classes with
      the same name (or a synonym) are copied, the others keep their random weights.
    - Whole parts of the network that only one of the two models has, such as a detector: what `model` lacks is left
      out, what `source` lacks keeps its random weights.

    Values of the configuration that do not change the shapes (`channel_order`, say) may differ. Those that change what
    the tensors mean are listed in one line on stderr; those that matter in training only are not.

    Args:
        model: with its first, random weights.
        source: a bundled model, a weights folder or a Hub repository.

    Raises:
        UserError: there is no such model, it is of another family, or a tensor does not fit (it is named).
    """
    other = from_pretrained(source)
    if other.family != model.family:
        raise UserError(
            f"{source}: these weights are of family {other.family!r}, but the recipe is of {model.family!r}"
        )
    state, tensors = model.state_dict(), other.state_dict()
    lines = _drop_parts_of_one(state, tensors)
    match = torch.tensor(labels_of_names([category["name"] for category in model.categories], other.categories))
    unchanged = match.tolist() == list(range(len(other.categories)))
    rows = {} if unchanged else model.class_layers()
    their_rows = other.class_layers()
    _check(state, tensors, rows.keys(), source)
    for name, own in state.items():
        if name in rows:
            _copy_rows(own, rows[name], tensors[name], their_rows[name], match)
        else:
            own.copy_(tensors[name])
    if rows:
        lines += _about_classes(model.categories, match, [name for name in rows if name in state])
    if announce:
        if isinstance(other, BoxPromptedFamily) and other.mask_calibration is not None:
            lines.append("first weights: their mask calibration is dropped; `maskwright calibrate` fits one again")
        lines += _about_values(asdict(model.config), asdict(other.config), model.config.training_only())
        whole = sum(name not in rows for name in state)
        print("\n".join([f"first weights: {whole} tensors of {source}", *lines]), file=sys.stderr)


def _drop_parts_of_one(state: dict[str, Tensor], tensors: dict[str, Tensor]) -> list[str]:
    """Take out the parts of the network that only one of the two has, and say which."""
    ours, theirs = ({_part(name) for name in names} for names in (state, tensors))
    lines = []
    for part, owner, what in [
        *((part, state, "it starts anew: those weights have none") for part in sorted(ours - theirs)),
        *((part, tensors, "it is left out: this model has none") for part in sorted(theirs - ours)),
    ]:
        names = [name for name in owner if _part(name) == part]
        lines.append(f"first weights: {part} ({len(names)} tensors), {what}")
        for name in names:
            del owner[name]
    return lines


def _part(name: str) -> str:
    """`network.detector` of `network.detector.0.center.2.bias`."""
    return ".".join(name.split(".")[:2])


def _check(state: dict[str, Tensor], tensors: dict[str, Tensor], classes: Iterable[str], source: str) -> None:
    for name in [*state, *tensors]:
        if name not in tensors or name not in state:
            there = "are not in these weights" if name not in tensors else "are not in this model"
            raise UserError(
                f"{source}: the values of {name!r} {there}; give the recipe the model values of the weights"
            )
        skip = int(name in classes)  # rows are matched one by one
        mine, other = list(state[name].shape), list(tensors[name].shape)
        if mine[skip:] != other[skip:]:
            raise UserError(
                f"{source}: {name!r} has shape {other} there and {mine} in this model; "
                "give the recipe the model values of the weights"
            )


def _copy_rows(
    own: Tensor,
    own_labels: Int64[Tensor, " r"],
    other: Tensor,
    other_labels: Int64[Tensor, " s"],
    match: Int64[Tensor, " c"],
) -> None:
    """Copy the rows of each class that both have, and those of no class, in their order."""
    for label, their_label in [(-1, -1), *((label, found) for label, found in enumerate(match.tolist()) if found >= 0)]:
        own[own_labels == label] = other[other_labels == their_label]


def _about_classes(categories: Sequence[Category], match: Int64[Tensor, " c"], names: list[str]) -> list[str]:
    if not names:
        return []
    known = int((match >= 0).sum())
    fresh = [category["name"] for category, found in zip(categories, match.tolist(), strict=True) if found < 0]
    anew = f"those of {len(fresh)} start anew ({', '.join(fresh)})" if fresh else "none starts anew"
    return [f"first weights: the classes differ: of {', '.join(names)} the rows of {known} are copied, {anew}"]


def _about_values(ours: Mapping[str, Any], theirs: Mapping[str, Any], training_only: set[str]) -> list[str]:
    """One line of the values that the weights were trained with and this model has otherwise."""
    # In JSON lists and tuples are the same.
    pairs = {name: [json.loads(json.dumps(config[name])) for config in (theirs, ours)] for name in ours}
    differ = [
        f"{name} {_plain(before)} -> {_plain(now)}"
        for name, (before, now) in pairs.items()
        if before != now and name not in _TOLD_OTHERWISE | training_only
    ]
    return [f"first weights: differs: {', '.join(differ)}"] if differ else []


def _plain(value: object) -> str:
    return json.dumps(value).strip('"')
