"""Tables of weights: where each tensor of a module lies in a TensorFlow original's object graph; how it is loaded.

A table maps the name of a tensor in our state dict to a `Variable`. Tables are made from the module, so that they
fit every depth and width, by rules that are data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from maskwright.errors import UserError
from maskwright.models.family import Family
from maskwright.nn.hourglass import Hourglass

Layout = Literal["convolution", "depthwise", "linear", "vector"]

# The axes of TensorFlow's layouts (HWIO, of a transposed convolution HWOI; HWIM; in-out) in torch's order.
_AXES: dict[Layout, tuple[int, ...]] = {
    "convolution": (3, 2, 0, 1),
    "depthwise": (2, 3, 0, 1),
    "linear": (1, 0),
    "vector": (0,),
}


@dataclass(frozen=True)
class Variable:
    """One variable of the original.

    path: its attribute path below the table's prefix.
    layout: the order of its axes.
    skip: so many of its first output channels are not taken.
    """

    path: str
    layout: Layout
    skip: int = 0


Table = dict[str, Variable]


class Conversion(NamedTuple):
    """What a converter makes of a checkpoint.

    model: in eval mode.
    used: attribute paths of the variables that it took.
    remarks: lines for the person who converts: what was chosen for them, and what was not taken.
    """

    model: Family[Any]
    used: set[str]
    remarks: list[str]


# The original's names of a layer's tensors, by ours.
_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_WEIGHTS = {"weight": "kernel", "bias": "bias"}

# Our module paths of an hourglass to the original's attribute paths; applied in this order.
_HOURGLASS_RULES = (
    (r"^stem_residual\.", "{stem}/residual_block/"),
    (r"^stem\.", "{stem}/conv_block/"),
    (r"^stacks\.", "hourglass_network/"),
    (r"^outputs\.", "output_conv/"),
    (r"^merge_input\.", "intermediate_conv1/"),
    (r"^merge_output\.", "intermediate_conv2/"),
    (r"^merge_residual\.", "intermediate_residual/"),
    (r"\bencoder_skip\.", "encoder_block1/"),
    (r"\bencoder_down\.", "encoder_block2/"),
    (r"\bdecoder\.", "decoder_block/"),
    (r"\binner\.(?=\D)", "inner_block/0/"),
    (r"\binner\.(?=\d)", "inner_block/"),
    (r"\.", "/"),
)


def hourglass_table(network: Hourglass, prefix: str = "") -> Table:
    """The table of an hourglass network, the same file in the Object Detection API and in Model Garden.

    `prefix` is put before our names.
    """
    stem = "downsample_input" if network.stem.conv.stride == (2, 2) else "conv_input"
    table: Table = {}
    for name, layer in weighted_layers(network):
        path = f"{name}."
        for pattern, replacement in _HOURGLASS_RULES:
            path = re.sub(pattern, replacement.format(stem=stem), path)
        table |= layer_rows(layer, f"{prefix}{name}", path.rstrip("/"))
    return table


def weighted_layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and modules of all convolutions, linear layers and batch norms below `module`, in its order."""
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d)
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, kinds)]


def layer_rows(layer: nn.Module, name: str, path: str) -> Table:
    """The rows of one convolution, linear layer or batch norm: `name` of ours, `path` of the original's."""
    if isinstance(layer, nn.BatchNorm2d):
        return {f"{name}.{ours}": Variable(f"{path}/{theirs}", "vector") for ours, theirs in _NORM.items()}
    layout: Layout = "linear" if isinstance(layer, nn.Linear) else "convolution"
    rows = {}
    for ours, _ in layer.named_parameters():
        rows[f"{name}.{ours}"] = Variable(f"{path}/{_WEIGHTS[ours]}", layout if ours == "weight" else "vector")
    return rows


def below(path: str, table: Table) -> Table:
    """The table with `path/` put before the original's paths."""
    return {name: Variable(f"{path}/{row.path}", row.layout, row.skip) for name, row in table.items()}


def load_variables(module: nn.Module, table: Table, variables: Mapping[str, np.ndarray], prefix: str) -> set[str]:
    """Fill the tensors of `module` named in `table` from the original's variables below `prefix`.

    Args:
        module: what the table was made from, or a module above it (then made with a prefix of our names).
        table: every parameter and statistic of that part.
        variables: by attribute path, such as `convert.checkpoint.Variables`.
        prefix: the path below which the table's paths lie, without a slash at the end.

    Returns:
        The paths that were used.

    Raises:
        UserError: a variable is missing, left over below `prefix`, or has another shape than the module's tensor.
    """
    state = module.state_dict()
    used: set[str] = set()
    loaded: dict[str, torch.Tensor] = {}
    for name, row in table.items():
        path = f"{prefix}/{row.path}"
        if path not in variables:
            raise UserError(f"variable {path!r} (for {name!r}) is missing in the checkpoint")
        values, axes = np.asarray(variables[path]), _AXES[row.layout]
        expected = tuple(state[name].shape)
        taken = values[..., row.skip :]
        if values.ndim != len(axes) or taken.transpose(axes).shape != expected:
            shape = [expected[axes.index(axis)] for axis in range(len(axes))]
            shape[-1] += row.skip
            raise UserError(f"variable {path!r} (for {name!r}) must have shape {tuple(shape)}, but got {values.shape}")
        loaded[name] = torch.from_numpy(np.array(taken.transpose(axes), order="C"))
        used.add(path)
    left = sorted(path for path in variables if path.startswith(f"{prefix}/") and path not in used)
    if left:
        raise UserError(f"the checkpoint has {len(left)} variables below {prefix!r} that the model has not: {left[:5]}")
    for name, values in loaded.items():
        state[name].copy_(values)
    return used
