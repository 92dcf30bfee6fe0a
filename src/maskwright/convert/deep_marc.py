"""What carries over from a checkpoint of the original Deep-MARC: backbone, feature pyramid and mask head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FeaturePyramidNetwork

from maskwright.convert.coco_labels import coco_categories
from maskwright.convert.keras_order import spinenet_order
from maskwright.convert.tables import Conversion, Table, Variable, below, hourglass_table, layer_rows, load_variables
from maskwright.errors import UserError
from maskwright.models.deep_marc import DeepMARC
from maskwright.models.deep_marc.network import DeepMARCNetwork
from maskwright.nn.backbones import ResNetTrunk
from maskwright.nn.detection_backbones import EFFICIENTNET, ResNetFPN
from maskwright.nn.hourglass import Hourglass
from maskwright.nn.mask_heads import MaskHead
from maskwright.nn.spinenet import SPINENET_SIZES, SpineNet

# What is no part of a checkpoint, but of the function that it was trained for: the original's preprocessing ...
_PREPROCESSING = {
    "resize": "half_pixel",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "channel_order": "rgb",
    "image_padding": "mean",
}
# ... and the epsilon of its norms, a value of its two experiments.
RESNET_NORM_EPSILON, SPINENET_NORM_EPSILON = 1e-4, 1e-3

# What a stored model has and ours has otherwise: attribute paths, and words for them.
_NOT_TAKEN = {
    "model/rpn_head": "proposal network",
    "model/_config_dict/detection_head": "box head",
    "model/detection_head": "box head",
}

# The layers of torchvision's residual blocks by the names of the original's.
_BLOCK = {
    "_conv1": "conv1",
    "_norm1": "bn1",
    "_conv2": "conv2",
    "_norm2": "bn2",
    "_conv3": "conv3",
    "_norm3": "bn3",
    "_shortcut": "downsample.0",
    "_norm0": "downsample.1",
}

# The pyramid's layers in the order of Keras' numbers: by depth, hence not by level.
_PYRAMID = (
    *("inner_blocks.3.0", "inner_blocks.2.0", "inner_blocks.1.0", "inner_blocks.0.0"),
    *("layer_blocks.3.0", "layer_blocks.0.0", "layer_blocks.1.0", "layer_blocks.2.0", "extra_blocks.conv"),
    *(f"extra_blocks.norms.{level}" for level in range(5)),
)


def resnet_table(trunk: ResNetTrunk, prefix: str = "") -> Table:
    """The table of a ResNet: `backbone` of the original. `prefix` is put before our names.

    The original's ResNet-18 and 34 have a shortcut in their first block that torchvision's lack: they do not fit.
    """
    stages = [f"layer{index + 1}" for index in range(len(trunk.channels))]
    blocks = [f"{stage}.{child}" for stage in stages for child, _ in trunk.get_submodule(stage).named_children()]
    return _numbered(trunk, ["conv1", "bn1", *blocks], prefix)


def spinenet_table(network: SpineNet, prefix: str = "") -> Table:
    """The table of a SpineNet: `backbone` of the original. `prefix` is put before our names."""
    return _numbered(network, spinenet_order(network), prefix)


def pyramid_table(pyramid: FeaturePyramidNetwork, prefix: str = "") -> Table:
    """The table of a pyramid of the levels 2 to 6: `decoder` of the original. `prefix` is put before our names."""
    return _numbered(pyramid, _PYRAMID, prefix)


def mask_head_table(head: nn.Module, prefix: str = "", *, skip_background: bool = False) -> Table:
    """The table of a mask head of Deep-MARC: `mask_head` of the original. `prefix` is put before our names.

    With one mask per class the original's first one is the background's: `skip_background` leaves it out.

    Raises:
        ValueError: the head is none of the original's (an hourglass or `fcn`, with enlargement).
    """
    if not isinstance(head, MaskHead) or head.enlarge is None or not isinstance(head.trunk, Hourglass | nn.Sequential):
        raise ValueError("this mask head is none of the original Deep-MARC's, so there is no table for its weights")
    table = layer_rows(head.enlarge, f"{prefix}enlarge", "_deconv")
    table |= layer_rows(head.enlarge_norm, f"{prefix}enlarge_norm", "_deconv_bn")
    for name, row in _convolution_rows(head.project_out, f"{prefix}project_out", "_mask_regressor").items():
        table[name] = replace(row, skip=int(skip_background and row.layout != "depthwise"))
    if isinstance(head.trunk, Hourglass):
        return table | below("_hourglass", hourglass_table(head.trunk, f"{prefix}trunk."))
    for index, block in enumerate(head.trunk):
        name = f"{prefix}trunk.{index}"
        table |= _convolution_rows(block.get_submodule("conv"), f"{name}.conv", f"_convs/{index}")
        table |= layer_rows(block.get_submodule("norm"), f"{name}.norm", f"_conv_norms/{index}")
    return table


def network_tables(network: DeepMARCNetwork) -> dict[str, Table]:
    """The tables of all that carries over, by the attribute path in the original's checkpoint.

    Raises:
        ValueError: the backbone or the mask head is none of the original's.
    """
    per_class = not network.config.class_agnostic_masks
    tables = {"model/mask_head": mask_head_table(network.mask_head, "mask_head.", skip_background=per_class)}
    backbone = network.backbone
    if isinstance(backbone, SpineNet):
        return tables | {"model/backbone": spinenet_table(backbone, "backbone.")}
    if not isinstance(backbone, ResNetFPN) or not isinstance(backbone.trunk, ResNetTrunk):
        raise ValueError("there is no table for this backbone: the original Deep-MARC has ResNets and SpineNets")
    return tables | {
        "model/backbone": resnet_table(backbone.trunk, "backbone.trunk."),
        "model/decoder": pyramid_table(backbone.pyramid, "backbone.pyramid."),
    }


def convert_deep_marc(variables: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> Conversion:
    """Backbone, pyramid and mask head of an original checkpoint in a model whose detector is new.

    The preprocessing, the padding of a ResNet and the epsilon of the norms are the original's, whatever `values` say;
    a remark names those that `values` had otherwise. A model without `categories` has COCO's 90 classes.

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
    used: set[str] = set()
    for prefix, table in network_tables(model.network).items():
        used |= load_variables(model.network, table, variables, prefix)
    left = [path for path in variables if path not in used]
    remarks = [_changes(values, original)]
    for prefix, part in _NOT_TAKEN.items():
        passed_over = [path for path in left if path.startswith(f"{prefix}/")]
        left = [path for path in left if path not in passed_over]
        if passed_over:
            remarks.append(f"not taken: {part}, {len(passed_over)} variables")
    if left:
        raise UserError(f"the checkpoint has {len(left)} variables that the model has not: {left[:5]}")
    remarks.append("the detector is new and has to be trained: until then, ask for masks of given boxes")
    if not model.network.config.class_agnostic_masks:
        remarks.append("so is the choice of a given box's class, and with it of its mask")
    return Conversion(model.eval(), used, remarks)


def original_values(backbone: str) -> dict[str, Any]:
    """Values of the constructor without which the original's weights make another function."""
    spinenet = backbone in SPINENET_SIZES
    return {
        **_PREPROCESSING,
        "padding": "symmetric" if spinenet or backbone == EFFICIENTNET else "same",  # ResNets alone choose
        "norm_epsilon": SPINENET_NORM_EPSILON if spinenet else RESNET_NORM_EPSILON,
        "trunk_norm_epsilon": None,
    }


def _changes(values: Mapping[str, Any], original: Mapping[str, Any]) -> str:
    """Which of the recipe's `values` gave way to the `original` ones."""

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    changed = [
        f"{name} {value} (the recipe: {plain(values[name])})"
        for name, value in original.items()
        if name in values and plain(values[name]) != value
    ]
    return "preprocessing, padding and epsilon: the original's" + (f", so {', '.join(changed)}" if changed else "")


def _numbered(module: nn.Module, names: Sequence[str], prefix: str) -> Table:
    """The table of layers and residual blocks that Keras numbers in the order of `names`."""
    table: Table = {}
    for number, name in enumerate(names):
        layer, path = module.get_submodule(name), f"layer_with_weights-{number}"
        if isinstance(layer, BasicBlock | Bottleneck):
            parts = dict(layer.named_modules())
            for theirs, ours in _BLOCK.items():
                if ours in parts:
                    table |= layer_rows(parts[ours], f"{prefix}{name}.{ours}", f"{path}/{theirs}")
        else:
            table |= layer_rows(layer, f"{prefix}{name}", path)
    return table


def _convolution_rows(layer: nn.Module, name: str, path: str) -> Table:
    """The rows of a convolution, or of a depthwise and a pointwise one in its place."""
    if not isinstance(layer, nn.Sequential):
        return layer_rows(layer, name, path)
    return {
        f"{name}.0.weight": Variable(f"{path}/depthwise_kernel", "depthwise"),
        f"{name}.1.weight": Variable(f"{path}/pointwise_kernel", "convolution"),
        f"{name}.1.bias": Variable(f"{path}/bias", "vector"),
    }
