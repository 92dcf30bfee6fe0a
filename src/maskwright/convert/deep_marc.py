"""Backbone, feature pyramid and mask head of a Deep-MARC checkpoint of the TensorFlow original to a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FeaturePyramidNetwork

from maskwright.convert.coco_labels import coco_categories
from maskwright.convert.keras_order import spinenet_order
from maskwright.convert.tables import (
    HOURGLASS,
    Conversion,
    Names,
    Paths,
    Table,
    Variable,
    load_variables,
    module_table,
    numbered,
)
from maskwright.models.deep_marc import DeepMARC
from maskwright.models.deep_marc.network import DeepMARCNetwork
from maskwright.nn.feature_pyramids import DetectionPyramidBackbone
from maskwright.nn.mask_heads import ConvolutionalHead, FCNHead, HourglassHead
from maskwright.nn.resnet import ResNetTrunk
from maskwright.nn.spinenet import SpineNet

# What a checkpoint does not hold, but the function it was trained for needs: the original's preprocessing ...
_PREPROCESSING = {
    "resize": "half_pixel",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "channel_order": "rgb",
    "image_padding": "mean",
}
# ... and the epsilon of its norms, a value of its two experiments.
RESNET_NORM_EPSILON, SPINENET_NORM_EPSILON = 1e-4, 1e-3

# Parts of a stored model that differ in ours: attribute paths, and words for them.
_NOT_TAKEN = {
    "model/rpn_head": "proposal network",
    "model/_config_dict/detection_head": "box head",
    "model/detection_head": "box head",
}

# The layers of torchvision's residual blocks.
_BLOCK = {
    **{f"conv{number}": f"_conv{number}" for number in (1, 2, 3)},
    **{f"bn{number}": f"_norm{number}" for number in (1, 2, 3)},
    "downsample.0": "_shortcut",
    "downsample.1": "_norm0",
}

# The pyramid's layers in the order of Keras' numbers: by depth, not by level.
_PYRAMID = (
    *("inner_blocks.3.0", "inner_blocks.2.0", "inner_blocks.1.0", "inner_blocks.0.0"),
    *("layer_blocks.3.0", "layer_blocks.0.0", "layer_blocks.1.0", "layer_blocks.2.0", "extra_blocks.conv"),
    *(f"extra_blocks.norms.{level}" for level in range(5)),
)


def _resnet_names(trunk: ResNetTrunk) -> Paths:
    """The original's ResNet-18 and 34 have a shortcut in their first block that torchvision's lack: they do not fit."""
    layers = [f"layer{index + 1}" for index in range(len(trunk.channels))]
    blocks = [f"{layer}.{block}" for layer in layers for block, _ in trunk.get_submodule(layer).named_children()]
    return numbered(["conv1", "bn1", *blocks])


def _head_names(head: ConvolutionalHead) -> Paths:
    if head.enlarge is None:  # the original always has one
        return {}
    return {"enlarge": "_deconv", "enlarge_norm": "_deconv_bn", "project_out": "_mask_regressor"}


def _fcn_names(head: FCNHead) -> Paths:
    blocks = range(len(list(head.trunk.children())))
    convolutions = {f"trunk.{index}.conv": f"_convs/{index}" for index in blocks}
    return {**_head_names(head), **convolutions, **{f"trunk.{n}.norm": f"_conv_norms/{n}" for n in blocks}}


def _network_names(network: DeepMARCNetwork) -> Paths:
    # The original keeps trunk and pyramid apart.
    backbone = "backbone" if isinstance(network.backbone, SpineNet) else ""
    return {"mask_head": "mask_head", "backbone": backbone, "proposals": None, "roi_heads": None}


DEEP_MARC: Names = {
    **HOURGLASS,
    DeepMARCNetwork: _network_names,
    DetectionPyramidBackbone: {"trunk": "backbone", "pyramid": "decoder"},
    ResNetTrunk: _resnet_names,
    SpineNet: lambda network: numbered(spinenet_order(network)),
    BasicBlock: _BLOCK,
    Bottleneck: _BLOCK,
    FeaturePyramidNetwork: numbered(_PYRAMID),
    HourglassHead: lambda head: {**_head_names(head), "trunk": "_hourglass"},
    FCNHead: _fcn_names,
    nn.Sequential: {  # a depthwise and a pointwise convolution in the place of one
        "0.weight": Variable("depthwise_kernel", "depthwise"),
        "1.weight": Variable("pointwise_kernel", "kernel"),
        "1.bias": "bias",
    },
}
"""The original Deep-MARC: `model` of its checkpoints, without the detector."""


def network_table(network: DeepMARCNetwork) -> Table:
    """The table of all that carries over: `model` of the original.

    Raises:
        ValueError: the backbone or the mask head is none of the original's.
    """
    table = module_table(network, DEEP_MARC)
    return table if network.config.class_agnostic_masks else skip_background(table)


def skip_background(table: Table) -> Table:
    """The table of a mask head with one mask per class: the first mask of the original is the background's."""
    last = {name for name, row in table.items() if "project_out." in name and row.layout != "depthwise"}
    return {name: replace(row, skip=int(name in last)) for name, row in table.items()}


def convert_deep_marc(variables: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> Conversion:
    """Backbone, pyramid and mask head of an original checkpoint in a model whose detector is new.

    The preprocessing, the padding of a ResNet and the epsilon of the norms are the original's, whatever `values` say;
    a remark names those in which `values` differ. A model without `categories` has COCO's 90 classes.

    Args:
        variables: by attribute path, such as `convert.checkpoint.Variables`.
        values: of the constructor.

    Raises:
        UserError: a variable is missing, left over, or of another shape than `values` make it.
        ValueError: `values` make no model, or none of the original's.
    """
    original = original_values(str(values.get("backbone")))
    chosen = {**values, **original, "pretrained_backbone": False}
    chosen["categories"] = chosen.get("categories") or coco_categories()
    model = DeepMARC(**chosen)
    not_taken = [f"{path}/" for path in _NOT_TAKEN]
    used = load_variables(model.network, network_table(model.network), variables, "model", not_taken)
    remarks = [_changes(values, original)]
    for path, part in _NOT_TAKEN.items():
        if count := sum(name.startswith(f"{path}/") for name in variables):
            remarks.append(f"not taken: {part}, {count} variables")
    remarks.append("the detector is new and has to be trained: until then, ask for masks of given boxes")
    if not model.network.config.class_agnostic_masks:
        remarks.append("so is the choice of a given box's class, and with it of its mask")
    return Conversion(model.eval(), used, remarks)


def original_values(backbone: str) -> dict[str, Any]:
    """Values of the constructor that the original's weights need: with others they compute another function."""
    return {
        **_PREPROCESSING,
        "padding": "same" if backbone.startswith("resnet") else "symmetric",  # ResNets alone can choose their padding
        "norm_epsilon": SPINENET_NORM_EPSILON if backbone.startswith("spinenet") else RESNET_NORM_EPSILON,
        "trunk_norm_epsilon": None,
    }


def _changes(values: Mapping[str, Any], original: Mapping[str, Any]) -> str:
    """Which of the recipe's `values` the `original` ones replace."""

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    changed = [
        f"{name} {value} (the recipe: {plain(values[name])})"
        for name, value in original.items()
        if name in values and plain(values[name]) != value
    ]
    return "preprocessing, padding and epsilon: the original's" + (f", so {', '.join(changed)}" if changed else "")
