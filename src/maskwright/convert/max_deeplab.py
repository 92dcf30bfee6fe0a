"""A MaX-DeepLab checkpoint of the TensorFlow original to a model of this package."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from maskwright.convert.max_deeplab_table import Table
from maskwright.errors import UserError

_ALIASED = {"memory_feature": "_memory_feature", "embeddings": "_embeddings"}


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
