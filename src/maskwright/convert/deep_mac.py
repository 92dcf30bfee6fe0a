"""Where each tensor of a Deep-MAC network lies in the TensorFlow original's object graph, as tables; the conversion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from maskwright.convert.coco_labels import coco_categories
from maskwright.convert.tables import (
    Conversion,
    Table,
    below,
    hourglass_table,
    layer_rows,
    load_variables,
    weighted_layers,
)
from maskwright.models.deep_mac import DeepMAC
from maskwright.models.deep_mac.network import DeepMACNetwork
from maskwright.nn.backbones import Backbone, HourglassBackbone, ResNetV1Backbone
from maskwright.nn.hourglass import Hourglass
from maskwright.nn.layers import PreActivationBlock
from maskwright.nn.mask_heads import FullyConnectedHead, MaskHead, ResNetTrunk
from maskwright.nn.resnet_v1 import BottleneckBlock, ResNetV1Trunk, TopDownPath

# The original's dictionary of prediction heads (a slash in a name is written `.S`), and our modules of each stack.
_HEADS = "_prediction_head_dict"
_PREDICTION_HEADS = {
    "PIXEL_EMBEDDING": "pixel_embedding.{stack}",
    "INSTANCE_EMBEDDING": "instance_embedding.{stack}",
    "object_center": "detector.{stack}.center",
    "box.Sscale": "detector.{stack}.size",
    "box.Soffset": "detector.{stack}.offset",
}

# The weighted layers of a residual block in Keras' topological order, first block of a stack and others.
_FIRST_BLOCK = ("norm0", "conv1", "norm1", "conv2", "norm2", "skip")
_OTHER_BLOCK = ("norm0", "conv1", "norm1", "conv2", "norm2")
_FIRST_BOTTLENECK = ("conv1", "norm1", "conv2", "norm2", "skip", "conv3", "skip_norm", "norm3")
_OTHER_BOTTLENECK = ("conv1", "norm1", "conv2", "norm2", "conv3", "norm3")


def backbone_table(backbone: Backbone, prefix: str = "") -> Table:
    """The table of a backbone: `_feature_extractor` of the original.

    `prefix` is put before our names.

    Raises:
        ValueError: the backbone is none of the original's.
    """
    if isinstance(backbone, HourglassBackbone):
        return below("_network", hourglass_table(backbone.network, f"{prefix}network."))
    if not isinstance(backbone, ResNetV1Backbone) or not isinstance(backbone.trunk, ResNetV1Trunk):
        raise ValueError(
            "there is no table for this backbone: only hourglass10 to 104 and resnet_v1_18_fpn to resnet_v1_101_fpn "
            "are the original Deep-MAC's"
        )
    table: Table = {}
    for number, name in enumerate(_trunk_layers(backbone.trunk)):
        layer = backbone.trunk.get_submodule(name)
        table |= layer_rows(layer, f"{prefix}trunk.{name}", f"_base_model/layer_with_weights-{number}")
    for number, name in enumerate(_top_down_layers(backbone.top_down), start=1):  # number 0 is the whole trunk
        layer = backbone.top_down.get_submodule(name)
        path = f"_feature_extractor_model/layer_with_weights-{number}"
        table |= layer_rows(layer, f"{prefix}top_down.{name}", path)
    return table


def unused_variables(backbone: Backbone) -> set[str]:
    """Paths below `_feature_extractor` that the original stores and never reads, so that ours has none of them.

    This is the norm behind the last pre-activation block: the pyramid is built on the block itself.
    """
    if not isinstance(backbone, ResNetV1Backbone) or not isinstance(backbone.trunk, ResNetV1Trunk):
        return set()
    if backbone.trunk.norm is not None:
        return set()
    number = len(_trunk_layers(backbone.trunk))
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    return {f"_base_model/layer_with_weights-{number}/{name}" for name in names}


def mask_head_table(head: nn.Module, prefix: str = "") -> Table:
    """The table of a mask head of Deep-MAC: `_mask_net` of the original.

    `prefix` is put before our names.

    Raises:
        ValueError: the head is none of the original's (`fcn`, or one with an enlargement).
    """
    if isinstance(head, FullyConnectedHead) and len(head.hidden) == 1:
        layers = {"input_layer": head.input_layer, "fc1": head.hidden[0], "fc2": head.output}
        names = {"input_layer": "input_layer", "fc1": "hidden.0", "fc2": "output"}
        rows = (layer_rows(layer, prefix + names[key], f"_net/{key}") for key, layer in layers.items())
        return {name: row for part in rows for name, row in part.items()}
    if not isinstance(head, MaskHead) or head.enlarge is not None:
        raise ValueError("this mask head is none of the original Deep-MAC's, so there is no table for its weights")
    table = layer_rows(head.project_out, f"{prefix}project_out", "project_out")
    if isinstance(head.trunk, Hourglass):
        trunk = hourglass_table(head.trunk, f"{prefix}trunk.")
    elif isinstance(head.trunk, ResNetTrunk):
        trunk = _resnet_table(head.trunk, f"{prefix}trunk.")
    else:
        raise ValueError("this mask head is none of the original Deep-MAC's, so there is no table for its weights")
    return table | below("_net", trunk)


def embedding_head_table(head: nn.Sequential, prefix: str = "") -> Table:
    """The table of one prediction head of one stack, `_prediction_head_dict/NAME/STACK` of the original.

    `prefix` is put before our names. `head` is a sequence of convolutions and activations.
    """
    table: Table = {}
    for number, (name, layer) in enumerate(weighted_layers(head)):
        table |= layer_rows(layer, f"{prefix}{name}", f"layer_with_weights-{number}")
    return table


def network_table(network: DeepMACNetwork) -> Table:
    """The table of a whole network: `model` of the original, with all stacks.

    Raises:
        ValueError: the backbone or the mask head is none of the original's.
    """
    parts = {
        "_feature_extractor": backbone_table(network.backbone, "backbone."),
        "_mask_net": mask_head_table(network.mask_head, "mask_head."),
    }
    heads = {name: module for name, module in network.named_modules() if isinstance(module, nn.Sequential)}
    for theirs, ours in _PREDICTION_HEADS.items():
        for stack in range(network.backbone.num_outputs):
            name = ours.format(stack=stack)
            if name in heads:
                parts[f"{_HEADS}/{theirs}/{stack}"] = embedding_head_table(heads[name], f"{name}.")
    return {name: row for path, table in parts.items() for name, row in below(path, table).items()}


def convert_deep_mac(variables: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> Conversion:
    """The model of an original checkpoint; every variable of its `model` is used (but `unused_variables`).

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
    remarks = [f"embedding heads: {' x '.join(map(str, model.config.embedding_kernel))}"]
    unused = {f"model/_feature_extractor/{path}" for path in unused_variables(model.network.backbone)}
    if unused:
        variables = {path: variables[path] for path in variables if path not in unused}
        remarks.append(f"not taken, a norm of the backbone that the original does not use: {len(unused)} variables")
    used = load_variables(model.network, network_table(model.network), variables, "model")
    return Conversion(model.eval(), used, remarks)


def _resnet_table(trunk: ResNetTrunk, prefix: str) -> Table:
    table = layer_rows(trunk.input_layer, f"{prefix}input_layer", "input_layer")
    number = 0
    for index, block in enumerate(trunk.blocks):
        for name in _OTHER_BLOCK if block.skip is None else _FIRST_BLOCK:
            layer = block.get_submodule(name)
            table |= layer_rows(layer, f"{prefix}blocks.{index}.{name}", f"model/layer_with_weights-{number}")
            number += 1
    return table


def _trunk_layers(trunk: ResNetV1Trunk) -> list[str]:
    """Our names of the weighted layers in Keras' topological order."""
    names = ["conv"] if trunk.norm is None else ["conv", "norm"]
    for name, block in trunk.named_modules():
        if isinstance(block, BottleneckBlock):
            parts = _OTHER_BOTTLENECK if block.skip is None else _FIRST_BOTTLENECK
            names += [f"{name}.{part}" for part in parts]
        elif isinstance(block, PreActivationBlock):
            names += [f"{name}.{part}" for part in (_OTHER_BLOCK if block.skip is None else _FIRST_BLOCK)]
    return names


def _top_down_layers(top_down: TopDownPath) -> list[str]:
    steps = range(len(top_down.merge))
    turns = ((f"lateral.{step}", f"merge.{step}.conv", f"merge.{step}.norm") for step in steps)
    return ["top", *(name for turn in turns for name in turn)]
