"""A MaX-DeepLab checkpoint of the TensorFlow original to a model of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from maskwright.convert.coco_labels import coco_panoptic_categories
from maskwright.convert.max_deeplab_table import Table, module_table
from maskwright.convert.tables import Conversion
from maskwright.errors import UserError
from maskwright.models.max_deeplab.model import MaXDeepLab

_ALIASED = {"memory_feature": "_memory_feature", "embeddings": "_embeddings"}


_HEADS = "model/pixel_space_head/"
_ENCODERS = ("model/encoder/", "model/backbone/_encoder/")  # of a panoptic model; of a classifier
_NOT_PRETRAINED = "_extra"


def convert_max_deeplab(variables: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> Conversion:
    """The model of a panoptic checkpoint, or a model with the encoder of an ImageNet checkpoint and heads that are new.

    Of an ImageNet checkpoint every variable of the encoder is taken, the encoder's own `extra` layers may be
    missing, and the classifier is passed over. A model without `categories` has COCO's 133 panoptic classes.

    Args:
        variables: by attribute path, such as `convert.checkpoint.Variables`.
        values: of the constructor.

    Raises:
        UserError: a variable is missing, left over, or of another shape than `values` make it.
        ValueError: `values` make no model.
    """
    chosen = {**values, "categories": values.get("categories") or coco_panoptic_categories()}
    model = MaXDeepLab(**chosen)
    if any(path.startswith(_HEADS) for path in variables):
        used = load_variables(model.network, module_table(model.network), variables, "model/")
        return Conversion(model.eval(), used, [])
    prefix = next((start for start in _ENCODERS if any(path.startswith(start) for path in variables)), None)
    if prefix is None:
        raise UserError(f"the checkpoint has neither MaX-DeepLab's heads nor an encoder below {' or '.join(_ENCODERS)}")
    table = module_table(model.network.encoder)
    known = {n: r for n, r in table.items() if _NOT_PRETRAINED not in r.path or _find(variables, prefix + r.path)}
    used = load_variables(model.network.encoder, known, variables, prefix)
    left = len(variables) - len(used)
    remarks = [f"the heads and {len(table) - len(known)} tensors of the encoder are new and have to be trained"]
    if left:
        remarks.append(f"not taken: {left} variables beside the encoder")
    return Conversion(model.eval(), used, remarks)


def load_variables(module: nn.Module, table: Table, variables: Mapping[str, np.ndarray], prefix: str) -> set[str]:
    """Fill the tensors of `module` named in `table` from the original's variables below `prefix`.

    Args:
        module: what the table was made from.
        table: of `module_table`.
        variables: by attribute path, such as `convert.checkpoint.Variables`.
        prefix: the path below which the table's paths lie, with a slash at the end, or nothing.

    Returns:
        The paths that were used.

    Raises:
        UserError: a variable is missing or does not fit the module's tensor, or is left over below `prefix`.
    """
    state = module.state_dict()
    loaded: dict[str, torch.Tensor] = {}
    used: set[str] = set()
    for name, row in table.items():
        path = _find(variables, prefix + row.path)
        if path is None:
            raise UserError(f"variable {prefix + row.path!r} (for {name!r}) is missing in the checkpoint")
        values = np.asarray(variables[path])
        fitting = row.fit(values, tuple(state[name].shape))
        if fitting is None:
            raise UserError(
                f"variable {path!r} has shape {values.shape}, which does not fit {name!r} of {tuple(state[name].shape)}"
            )
        loaded[name] = torch.from_numpy(np.array(fitting, order="C"))
        used.add(path)
    left = sorted(path for path in variables if path.startswith(prefix) and path not in used)
    if left:
        raise UserError(f"the checkpoint has {len(left)} variables below {prefix!r} that the model has not: {left[:5]}")
    for name, values in loaded.items():
        state[name].copy_(values)
    return used


def _find(variables: Mapping[str, np.ndarray], path: str) -> str | None:
    """The path as it is in the file: an attribute that the original keeps twice may go by either name."""
    front, _, last = path.rpartition("/")
    for name in (last, _ALIASED.get(last, last)):
        if (candidate := f"{front}/{name}" if front else name) in variables:
            return candidate
    return None
