"""A MaX-DeepLab checkpoint of the TensorFlow original to a model of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from maskwright.convert.coco_labels import coco_panoptic_categories
from maskwright.convert.tables import Conversion, Names, Paths, Variable, load_variables, module_table, stored_path
from maskwright.errors import UserError
from maskwright.models.max_deeplab.axial_attention import AxialAttention, AxialAttention2d
from maskwright.models.max_deeplab.blocks import (
    AxialBlock,
    BasicStageBlock,
    BottleneckStageBlock,
    LinearBlock,
    SeparableConv,
)
from maskwright.models.max_deeplab.decoder import ResizedFuse, StackedDecoder
from maskwright.models.max_deeplab.dual_path import DualPathLayer, MemoryAttention
from maskwright.models.max_deeplab.encoder import MaXDeepLabEncoder
from maskwright.models.max_deeplab.heads import ClassHead, PixelHead, SemanticHead, SlotMaskHead
from maskwright.models.max_deeplab.model import MaXDeepLab
from maskwright.models.max_deeplab.network import MaXDeepLabNetwork
from maskwright.models.max_deeplab.semantic_decoder import SemanticDecoder, SpatialPyramidPooling
from maskwright.models.max_deeplab.stages import Stage
from maskwright.nn.layers import ConvBlock

_HEADS = "model/pixel_space_head/"
_ENCODERS = ("model/encoder", "model/backbone/_encoder")  # of a panoptic model; of a classifier
_NOT_PRETRAINED = "_extra"


def _stem_names(stem: nn.Sequential) -> Paths:
    if len(stem) == 1:  # the convolution is the original's stem itself
        return {"0": ""}
    return {"0": "_conv1_bn_act", "1": "_conv2_bn_act", "2": "_conv3_bn"}


def _axial_names(layer: AxialAttention) -> Paths:
    similarity, retrieved = range(len(layer.similarity_norms)), range(len(layer.retrieved_norms))
    return {
        "qkv.conv.weight": Variable("qkv_kernel", "kernel"),
        "qkv.norm": "_batch_norm_qkv",
        **{f"similarity_norms.{n}": Variable("_batch_norm_similarity", "part", n) for n in similarity},
        **{f"retrieved_norms.{n}": Variable("_batch_norm_retrieved_output", "part", n) for n in retrieved},
        **{f"{kind}_positions.embeddings": f"_{kind}_rpe/embeddings" for kind in ("query", "key", "value")},
    }


def _dual_path_names(layer: DualPathLayer) -> Paths:
    # Where pixels do not read the memory they need no queries.
    pixel_qkv = "_pixel_kv_conv_bn" if layer.pixel_attention is None else "_pixel_qkv_conv_bn"
    return {
        "memory_conv1": "_memory_conv1_bn_act",
        "memory_qkv": "_memory_qkv_conv_bn",
        "pixel_conv1": "_pixel_conv1_bn_act",
        "pixel_qkv": pixel_qkv,
        "memory_attention": "_memory_attention",
        "memory_conv3": "_memory_conv3_bn",
        "feed_forward.0": "_memory_ffn_conv1_bn_act",
        "feed_forward.1": "_memory_ffn_conv2_bn",
        "pixel_attention": "_pixel_attention",
        "pixel_conv3": "_pixel_conv3_bn",
    }


def _fuse_names(fuse: ResizedFuse) -> Paths:
    kinds = {key: "resized" if block.conv.stride == (1, 1) else "strided" for key, block in fuse.convs.items()}
    return {f"convs.{key}": f"_{kind}_conv_bn{int(key) + 1}" for key, kind in kinds.items()}


def _decoder_names(decoder: StackedDecoder) -> Paths:
    paths: dict[str, str] = {}
    for number, stage in enumerate(decoder.stages):
        ours, theirs = f"stages.{number}", f"_decoder_stage{number + 1}"
        fuse = f"{theirs}_resized_fuse" if stage.backbone is not None else f"{theirs}_extra_resized_fuse"
        paths |= {f"{ours}.fuse": fuse, f"{ours}.backbone": theirs, f"{ours}.extra": f"{theirs}_extra"}
    return paths


_STAGE_BLOCK = {"conv1": "_conv1_bn_act", "conv3": "_conv3_bn", "shortcut": "_shortcut"}

MAX_DEEPLAB: Names = {
    ConvBlock: lambda block: {
        "conv": "_depthwise_conv" if block.conv.groups > 1 else "_conv",
        "norm": "_batch_norm",
    },
    LinearBlock: {"linear": "_conv", "norm": "_batch_norm"},
    SeparableConv: {"depthwise": "_conv1_bn_act/_depthwise", "pointwise": "_conv1_bn_act/_pointwise"},
    nn.Sequential: _stem_names,
    AxialAttention: _axial_names,
    ResizedFuse: _fuse_names,
    StackedDecoder: _decoder_names,
    AxialAttention2d: {"height": "_height_axis", "width": "_width_axis"},
    AxialBlock: {**_STAGE_BLOCK, "attention": "_attention"},
    BottleneckStageBlock: {**_STAGE_BLOCK, "conv2": "_conv2_bn_act"},
    BasicStageBlock: {**_STAGE_BLOCK, "conv2": "_conv2_bn"},
    MemoryAttention: {
        "similarity_norm": "_batch_norm_similarity",
        "retrieved_norm": Variable("_batch_norm_retrieved_value", "part"),
    },
    DualPathLayer: _dual_path_names,
    Stage: {"blocks": "_block{n}", "transformers": "_block{n}_transformer"},
    MaXDeepLabEncoder: {
        "memory": Variable("memory_feature", "first_rows"),
        "stem": "_stem",
        "stages": "_stage{key}",
        "stage5_extra": "_stage5_extra",
        "decoder": "",
        "class_feature": "_class_feature_extra",
        "mask_feature": "_mask_feature_extra",
    },
    SpatialPyramidPooling: {
        "conv": "_conv_bn_act",
        "atrous": "_aspp_conv{n}/_conv_bn_act",
        "pooled": "_aspp_pool/_conv_bn_act",
        "project": "_proj_conv_bn_act",
    },
    SemanticDecoder: {
        "aspp": "_aspp",
        "low_level1": "_low_level_conv1",
        "fusion1": "_fusion_conv1",
        "low_level2": "_low_level_conv2",
        "fusion2": "_fusion_conv2",
    },
    SemanticHead: {"conv": "semantic_head_without_last_layer", "logits": "semantic_last_layer"},
    PixelHead: {
        "conv": "pixel_space_head/conv_block",
        "features": "pixel_space_head/final_conv",
        "norm": "pixel_space_feature_batch_norm",
    },
    ClassHead: {"logits": "transformer_class_head/_conv"},
    SlotMaskHead: {"kernels": "transformer_mask_head", "norm": "pixel_space_mask_batch_norm"},
    MaXDeepLabNetwork: {
        "encoder": "encoder",
        "semantic_decoder": "semantic_decoder",
        "semantic_head": "",
        "pixel_head": "",
        "class_head": "",
        "mask_head": "",
    },
}
"""The original's panoptic model: `model` of its checkpoints.

Source: the object graphs of deeplab2's checkpoints.
"""


def convert_max_deeplab(variables: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> Conversion:
    """The model of a panoptic checkpoint, or a model with the encoder of an ImageNet checkpoint and heads that are new.

    Of an ImageNet checkpoint every variable of the encoder is taken. It may lack the encoder's own `extra` layers, and
    its classifier is not taken. A model without `categories` has COCO's 133 panoptic classes.

    Args:
        variables: by attribute path, such as `convert.checkpoint.Variables`.
        values: of the constructor.

    Raises:
        UserError: a variable is missing, left over, or of another shape than `values` make it.
        ValueError: `values` make no model.
    """
    model = MaXDeepLab(**{**values, "categories": values.get("categories") or coco_panoptic_categories()})
    if any(path.startswith(_HEADS) for path in variables):
        used = load_variables(model.network, module_table(model.network, MAX_DEEPLAB), variables, "model")
        return Conversion(model.eval(), used, [])
    prefix = next((start for start in _ENCODERS if any(path.startswith(f"{start}/") for path in variables)), None)
    if prefix is None:
        raise UserError(f"the checkpoint has neither MaX-DeepLab's heads nor an encoder below {' or '.join(_ENCODERS)}")
    encoder = model.network.encoder
    table = module_table(encoder, MAX_DEEPLAB)
    known = {
        name: row
        for name, row in table.items()
        if _NOT_PRETRAINED not in row.path or stored_path(variables, f"{prefix}/{row.path}")
    }
    used = load_variables(encoder, known, variables, prefix)
    left = len(variables) - len(used)
    remarks = [f"the heads and {len(table) - len(known)} tensors of the encoder are new and have to be trained"]
    if left:
        remarks.append(f"not taken: {left} variables beside the encoder")
    return Conversion(model.eval(), used, remarks)
