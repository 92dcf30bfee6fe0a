"""Where each tensor of a Deep-MAC network lies in the TensorFlow original's object graph, as tables; the conversion.

A table maps the name of a tensor in our state dict to a `Variable`. The tables are made from the module, so
that they fit every depth and width, by rules that are data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from maskwright.convert.coco_labels import coco_categories
from maskwright.errors import UserError
from maskwright.models.deep_mac import DeepMAC
from maskwright.models.deep_mac_network import DeepMACNetwork
from maskwright.nn.backbones import HourglassBackbone
from maskwright.nn.hourglass import Hourglass
from maskwright.nn.mask_heads import FullyConnectedHead, MaskHead, ResNetTrunk

Layout = Literal["convolution", "linear", "vector"]

# The axes of TensorFlow's layouts (HWIO, in-out) in torch's order.
_AXES: dict[Layout, tuple[int, ...]] = {"convolution": (3, 2, 0, 1), "linear": (1, 0), "vector": (0,)}


@dataclass(frozen=True)
class Variable:
    """One variable of the original: its attribute path below the table's prefix, and its layout."""

    path: str
    layout: Layout


Table = dict[str, Variable]

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

# The original's dictionary of prediction heads (a slash in a name is written `.S`), and our modules of each stack.
_HEADS = "_prediction_head_dict"
_PREDICTION_HEADS = {
    "PIXEL_EMBEDDING": "pixel_embedding.{stack}",
    "INSTANCE_EMBEDDING": "instance_embedding.{stack}",
    "object_center": "detector.{stack}.center",
    "box.Sscale": "detector.{stack}.size",
    "box.Soffset": "detector.{stack}.offset",
}

# The weighted layers of a pre-activation block in Keras' topological order, first block of a stack and others.
_FIRST_BLOCK = ("norm0", "conv1", "norm1", "conv2", "norm2", "skip")
_OTHER_BLOCK = ("norm0", "conv1", "norm1", "conv2", "norm2")


def hourglass_table(network: Hourglass, prefix: str = "") -> Table:
    """The table of an hourglass network: `_feature_extractor/_network` or `_mask_net/_net` of the original.

    `prefix` is put before our names.
    """
    stem = "downsample_input" if network.stem.conv.stride == (2, 2) else "conv_input"
    table: Table = {}
    for name, layer in _weighted_layers(network):
        path = f"{name}."
        for pattern, replacement in _HOURGLASS_RULES:
            path = re.sub(pattern, replacement.format(stem=stem), path)
        table |= _layer_rows(layer, f"{prefix}{name}", path.rstrip("/"))
    return table


def mask_head_table(head: nn.Module, prefix: str = "") -> Table:
    """The table of a mask head of Deep-MAC: `_mask_net` of the original.

    `prefix` is put before our names.

    Raises:
        ValueError: the head is none of the original's (`fcn`, or one with an enlargement).
    """
    if isinstance(head, FullyConnectedHead) and len(head.hidden) == 1:
        layers = {"input_layer": head.input_layer, "fc1": head.hidden[0], "fc2": head.output}
        names = {"input_layer": "input_layer", "fc1": "hidden.0", "fc2": "output"}
        rows = (_layer_rows(layer, prefix + names[key], f"_net/{key}") for key, layer in layers.items())
        return {name: row for part in rows for name, row in part.items()}
    if not isinstance(head, MaskHead) or head.enlarge is not None:
        raise ValueError("this mask head is none of the original Deep-MAC's, so there is no table for its weights")
    table = _layer_rows(head.project_out, f"{prefix}project_out", "project_out")
    if isinstance(head.trunk, Hourglass):
        trunk = hourglass_table(head.trunk, f"{prefix}trunk.")
    elif isinstance(head.trunk, ResNetTrunk):
        trunk = _resnet_table(head.trunk, f"{prefix}trunk.")
    else:
        raise ValueError("this mask head is none of the original Deep-MAC's, so there is no table for its weights")
    return table | {name: Variable(f"_net/{row.path}", row.layout) for name, row in trunk.items()}


def embedding_head_table(head: nn.Sequential, prefix: str = "") -> Table:
    """The table of one prediction head of one stack, `_prediction_head_dict/NAME/STACK` of the original.

    `prefix` is put before our names. `head` is a sequence of convolutions and activations.
    """
    table: Table = {}
    for number, (name, layer) in enumerate(_weighted_layers(head)):
        table |= _layer_rows(layer, f"{prefix}{name}", f"layer_with_weights-{number}")
    return table


def network_table(network: DeepMACNetwork) -> Table:
    """The table of a whole network: `model` of the original, with all stacks.

    Raises:
        ValueError: the backbone or the mask head is none of the original's.
    """
    if not isinstance(network.backbone, HourglassBackbone):
        raise ValueError("there is no table for this backbone: only the hourglasses are the original Deep-MAC's")
    parts = {
        "_feature_extractor/_network": hourglass_table(network.backbone.network, "backbone.network."),
        "_mask_net": mask_head_table(network.mask_head, "mask_head."),
    }
    heads = {name: module for name, module in network.named_modules() if isinstance(module, nn.Sequential)}
    for theirs, ours in _PREDICTION_HEADS.items():
        for stack in range(network.backbone.num_outputs):
            name = ours.format(stack=stack)
            if name in heads:
                parts[f"{_HEADS}/{theirs}/{stack}"] = embedding_head_table(heads[name], f"{name}.")
    return {
        name: Variable(f"{path}/{row.path}", row.layout) for path, table in parts.items() for name, row in table.items()
    }


def convert_deep_mac(variables: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> DeepMAC:
    """The model of an original checkpoint, in eval mode; every variable of its `model` is used.

    The kernel of the embedding heads (3 x 3 until April 2021, then 1 x 3) is what the checkpoint has, whatever
    `values` say. A detector without `categories` has COCO's 90 classes.

    Args:
        variables: by attribute path, such as `convert.checkpoint.Variables`.
        values: of the constructor.

    Raises:
        UserError: a variable is missing, left over, or of another shape than `values` make it.
        ValueError: `values` make no model, or none of the original's.
    """
    chosen = {**values, "pretrained_backbone": False}
    kernel = f"model/{_HEADS}/PIXEL_EMBEDDING/0/layer_with_weights-0/kernel"
    if kernel in variables and variables[kernel].ndim == 4:
        chosen["embedding_kernel"] = [int(size) for size in variables[kernel].shape[:2]]
    if chosen.get("detector") and not chosen.get("categories"):
        chosen["categories"] = coco_categories()
    model = DeepMAC(**chosen)
    load_variables(model.network, network_table(model.network), variables, "model")
    return model.eval()


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
        values = np.asarray(variables[path])
        expected, axes = tuple(state[name].shape), _AXES[row.layout]
        if values.ndim != len(axes) or values.transpose(axes).shape != expected:
            shape = tuple(expected[axes.index(axis)] for axis in range(len(axes)))
            raise UserError(f"variable {path!r} (for {name!r}) must have shape {shape}, but got {values.shape}")
        loaded[name] = torch.from_numpy(np.array(values.transpose(axes), order="C"))
        used.add(path)
    left = sorted(path for path in variables if path.startswith(f"{prefix}/") and path not in used)
    if left:
        raise UserError(f"the checkpoint has {len(left)} variables below {prefix!r} that the model has not: {left[:5]}")
    for name, values in loaded.items():
        state[name].copy_(values)
    return used


def _resnet_table(trunk: ResNetTrunk, prefix: str) -> Table:
    table = _layer_rows(trunk.input_layer, f"{prefix}input_layer", "input_layer")
    number = 0
    for index, block in enumerate(trunk.blocks):
        for name in _OTHER_BLOCK if block.skip is None else _FIRST_BLOCK:
            layer = block.get_submodule(name)
            table |= _layer_rows(layer, f"{prefix}blocks.{index}.{name}", f"model/layer_with_weights-{number}")
            number += 1
    return table


def _weighted_layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, kinds)]


def _layer_rows(layer: nn.Module, name: str, path: str) -> Table:
    """The rows of one convolution, linear layer or batch norm."""
    if isinstance(layer, nn.BatchNorm2d):
        return {f"{name}.{ours}": Variable(f"{path}/{theirs}", "vector") for ours, theirs in _NORM.items()}
    layout: Layout = "linear" if isinstance(layer, nn.Linear) else "convolution"
    rows = {}
    for ours, _ in layer.named_parameters():
        rows[f"{name}.{ours}"] = Variable(f"{path}/{_WEIGHTS[ours]}", layout if ours == "weight" else "vector")
    return rows
