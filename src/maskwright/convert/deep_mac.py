"""A Deep-MAC checkpoint of the TensorFlow original to a model of this package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import nn

from maskwright.convert.coco_labels import coco_categories
from maskwright.convert.tables import HOURGLASS, Conversion, Names, Paths, load_variables, module_table, numbered
from maskwright.models.deep_mac import DeepMAC
from maskwright.models.deep_mac.network import DeepMACNetwork
from maskwright.nn.backbones import HourglassBackbone
from maskwright.nn.feature_maps import Backbone
from maskwright.nn.feature_pyramids import TopDownBackbone
from maskwright.nn.layers import PreActivationBlock
from maskwright.nn.mask_heads import FullyConnectedHead, HourglassHead, PreActivationTrunk, ResNetHead
from maskwright.nn.resnet_v1 import ResNetV1Bottleneck, ResNetV1Trunk

# The original's dictionary of prediction heads (a slash in a name is written `.S`).
_HEADS = "_prediction_head_dict"
_DETECTOR = {"center": "object_center", "size": "box.Sscale", "offset": "box.Soffset"}

# The layers with weights of a residual block in Keras' topological order.
_BLOCKS: dict[type[nn.Module], tuple[str, ...]] = {
    PreActivationBlock: ("norm0", "conv1", "norm1", "conv2", "norm2", "skip"),
    ResNetV1Bottleneck: ("conv1", "norm1", "conv2", "norm2", "skip", "conv3", "skip_norm", "norm3"),
}


def _block_layers(module: nn.Module) -> Iterator[str]:
    """Our names of the layers with weights of all residual blocks below `module`, in Keras' order."""
    for name, block in module.named_modules():
        layers = dict(block.named_children())
        for part in _BLOCKS.get(type(block), ()):
            if part in layers and not isinstance(layers[part], nn.Identity):
                yield f"{name}.{part}"


def _trunk_layers(trunk: nn.Module) -> list[str]:
    stem = [name for name in ("conv", "norm") if name in dict(trunk.named_children())]
    return [*stem, *_block_layers(trunk)]


def _top_down_names(backbone: TopDownBackbone) -> Paths:
    trunk = [f"trunk.{name}" for name in _trunk_layers(backbone.get_submodule("trunk"))]
    steps = range(len(backbone.top_down.merge))
    turns = ((f"lateral.{step}", f"merge.{step}.conv", f"merge.{step}.norm") for step in steps)
    top_down = [f"top_down.{name}" for name in ("top", *(name for turn in turns for name in turn))]
    return {
        **numbered(trunk, "_base_model/layer_with_weights"),
        **numbered(top_down, "_feature_extractor_model/layer_with_weights", start=1),  # number 0 is the whole trunk
    }


def _network_names(network: DeepMACNetwork) -> Paths:
    stacks = range(len(network.detector or ()))
    return {
        "backbone": "_feature_extractor",
        "mask_head": "_mask_net",
        "pixel_embedding": f"{_HEADS}/PIXEL_EMBEDDING/{{key}}",
        "instance_embedding": f"{_HEADS}/INSTANCE_EMBEDDING/{{key}}",
        **{f"detector.{n}.{ours}": f"{_HEADS}/{theirs}/{n}" for ours, theirs in _DETECTOR.items() for n in stacks},
    }


DEEP_MAC: Names = {
    **HOURGLASS,
    DeepMACNetwork: _network_names,
    HourglassBackbone: {"network": "_network"},
    TopDownBackbone: _top_down_names,
    nn.Sequential: {"0": "layer_with_weights-0", "2": "layer_with_weights-1"},  # a prediction head
    HourglassHead: {"project_out": "project_out", "trunk": "_net"},
    ResNetHead: {"project_out": "project_out", "trunk": "_net"},
    PreActivationTrunk: lambda trunk: {
        "input_layer": "input_layer",
        **numbered(_block_layers(trunk), "model/layer_with_weights"),
    },
    FullyConnectedHead: {"input_layer": "_net/input_layer", "hidden.0": "_net/fc1", "output": "_net/fc2"},
}
"""The original Deep-MAC: `model` of its checkpoints. Of our backbones it has the hourglasses and `resnet_v1_*`."""


def unused_variables(backbone: Backbone) -> set[str]:
    """Paths below `_feature_extractor` that the original stores and never reads, so that ours has none of them.

    This is the norm behind the last pre-activation block: the pyramid is built on the block itself.
    """
    trunk = getattr(backbone, "trunk", None)
    if not isinstance(trunk, ResNetV1Trunk) or trunk.norm is not None:
        return set()
    number = len(_trunk_layers(trunk))
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    return {f"_base_model/layer_with_weights-{number}/{name}" for name in names}


def convert_deep_mac(variables: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> Conversion:
    """The model of an original checkpoint; every variable of its `model` is used (but `unused_variables`).

    The checkpoint decides the kernel of the embedding heads (3 x 3 until April 2021, then 1 x 3), whatever `values`
    say. A detector without `categories` has COCO's 90 classes.

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
    unused = [f"model/_feature_extractor/{path}" for path in unused_variables(model.network.backbone)]
    if unused:
        remarks.append(f"not taken, a norm of the backbone that the original does not use: {len(unused)} variables")
    used = load_variables(model.network, module_table(model.network, DEEP_MAC), variables, "model", unused)
    return Conversion(model.eval(), used, remarks)
