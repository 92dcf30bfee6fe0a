"""Where each tensor of a MaX-DeepLab network lies in the TensorFlow original's object graph, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
from torch import nn

from maskwright.models.max_deeplab.axial_attention import AxialAttention, AxialAttention2d
from maskwright.models.max_deeplab.blocks import (
    AxialBlock,
    BasicStageBlock,
    BottleneckStageBlock,
    LinearBlock,
    SeparableConv,
)
from maskwright.models.max_deeplab.decoder import DecoderStage, ResizedFuse, StackedDecoder
from maskwright.models.max_deeplab.dual_path import DualPathLayer, MemoryAttention
from maskwright.models.max_deeplab.encoder import MaXDeepLabEncoder
from maskwright.models.max_deeplab.heads import ClassHead, PixelHead, SemanticHead, SlotMaskHead
from maskwright.models.max_deeplab.network import MaXDeepLabNetwork
from maskwright.models.max_deeplab.semantic_decoder import SemanticDecoder, SpatialPyramidPooling
from maskwright.models.max_deeplab.stages import Stage
from maskwright.nn.layers import ConvBlock

Layout = Literal["same", "kernel", "depthwise", "part", "first_rows"]


@dataclass(frozen=True)
class Variable:
    """One variable of the original: its attribute path below the table's prefix, and how it becomes our tensor.

    layout: `same`: as it is; `kernel`: window, in, out (a window of size 1 may be left out); `depthwise`: window,
        channels, 1; `part`: one of several stacked norms, flattened; `first_rows`: we keep as many rows of the
        memory as there are slots.
    part: which of the stacked norms.
    """

    path: str
    layout: Layout = "same"
    part: int = 0

    def fit(self, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
        """The values of our tensor of `shape`, or nothing where the variable's shape does not fit."""
        if self.layout in ("kernel", "depthwise"):
            if values.ndim < 2:
                return None
            *window, rows, columns = range(values.ndim)
            front = (rows, columns) if self.layout == "depthwise" else (columns, rows)
            values = values.transpose(*front, *window)
            sizes = [size for size in values.shape[2:] if size > 1]
            fits = values.shape[:2] == shape[:2] and sizes == [size for size in shape[2:] if size > 1]
        elif self.layout == "part":
            fits = values.ndim > 1 and self.part < len(values) and values[self.part].size == shape[0]
            values = values[self.part] if fits else values
        elif self.layout == "first_rows":
            fits = values.ndim == 3 and values.shape[1] >= shape[1] and values.shape[::2] == shape[::2]
            values = values[:, : shape[1]] if fits else values
        else:
            fits = values.shape == shape
        return values.reshape(shape) if fits else None


Table = dict[str, Variable]

_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}

# The attribute path of each child module, by the kind of its parent; `{n}` is the child's number in its list, from 1
# on, `{key}` its name there. An empty path: the original has no object of its own for the child.
_CHILDREN: dict[type[nn.Module], dict[str, str]] = {
    ConvBlock: {"conv": "_conv", "norm": "_batch_norm"},
    LinearBlock: {"linear": "_conv", "norm": "_batch_norm"},
    SeparableConv: {"depthwise": "_conv1_bn_act/_depthwise", "pointwise": "_conv1_bn_act/_pointwise"},
    AxialAttention2d: {"height": "_height_axis", "width": "_width_axis"},
    AxialBlock: {
        "conv1": "_conv1_bn_act",
        "attention": "_attention",
        "conv3": "_conv3_bn",
        "shortcut": "_shortcut",
    },
    BottleneckStageBlock: {
        "conv1": "_conv1_bn_act",
        "conv2": "_conv2_bn_act",
        "conv3": "_conv3_bn",
        "shortcut": "_shortcut",
    },
    BasicStageBlock: {"conv1": "_conv1_bn_act", "conv2": "_conv2_bn", "shortcut": "_shortcut"},
    MemoryAttention: {"similarity_norm": "_batch_norm_similarity", "retrieved_norm": "_batch_norm_retrieved_value"},
    DualPathLayer: {
        "memory_conv1": "_memory_conv1_bn_act",
        "memory_qkv": "_memory_qkv_conv_bn",
        "pixel_conv1": "_pixel_conv1_bn_act",
        "pixel_qkv": "_pixel_qkv_conv_bn",
        "memory_attention": "_memory_attention",
        "memory_conv3": "_memory_conv3_bn",
        "feed_forward.0": "_memory_ffn_conv1_bn_act",
        "feed_forward.1": "_memory_ffn_conv2_bn",
        "pixel_attention": "_pixel_attention",
        "pixel_conv3": "_pixel_conv3_bn",
    },
    Stage: {"blocks": "_block{n}", "transformers": "_block{n}_transformer"},
    MaXDeepLabEncoder: {
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
_INCEPTION_STEM = ("_conv1_bn_act", "_conv2_bn_act", "_conv3_bn")
_POSITIONS = {"query_positions": "_query_rpe", "key_positions": "_key_rpe", "value_positions": "_value_rpe"}


def module_table(module: nn.Module) -> Table:
    """The table of a network or of any of this family's layers: our tensor's name -> the original's variable.

    Source: the object graphs of deeplab2's checkpoints.
    """
    return dict(_rows(module, "", ""))


def _rows(module: nn.Module, name: str, path: str) -> Iterator[tuple[str, Variable]]:
    if isinstance(module, nn.Conv2d | nn.Linear):
        yield from _convolution_rows(module, name, path)
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        layout: Layout = "part" if path.endswith("_batch_norm_retrieved_value/") else "same"
        for ours, theirs in _NORM.items():
            yield f"{name}{ours}", Variable(f"{path}{theirs}", layout)
    elif isinstance(module, AxialAttention):
        yield from _axial_rows(module, name, path)
    else:
        if isinstance(module, MaXDeepLabEncoder):
            yield f"{name}memory", Variable(f"{path}memory_feature", "first_rows")
            yield from stem_rows(module.stem, f"{name}stem.", f"{path}_stem/")
        yield from _children_rows(module, name, path)


def _children_rows(module: nn.Module, name: str, path: str) -> Iterator[tuple[str, Variable]]:
    if isinstance(module, StackedDecoder):
        yield from _decoder_rows(module, name, path)
        return
    if isinstance(module, ResizedFuse):
        for key, conv in module.convs.items():
            kind = "strided" if conv.conv.stride != (1, 1) else "resized"
            yield from _rows(conv, f"{name}convs.{key}.", f"{path}_{kind}_conv_bn{int(key) + 1}/")
        return
    for child, template in _CHILDREN.get(type(module), {}).items():
        inner = dict(module.named_modules()).get(child)
        if child == "pixel_qkv" and module.pixel_attention is None:
            template = "_pixel_kv_conv_bn"  # where pixels do not read the memory they need no queries
        if isinstance(inner, nn.ModuleList | nn.ModuleDict):
            for key, item in inner.named_children():
                below = template.format(key=key, n=int(key) + 1)
                yield from _rows(item, f"{name}{child}.{key}.", f"{path}{below}/")
        elif inner is not None:
            yield from _rows(inner, f"{name}{child}.", f"{path}{template}/" if template else path)


def _convolution_rows(layer: nn.Conv2d | nn.Linear, name: str, path: str) -> Iterator[tuple[str, Variable]]:
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        yield f"{name}weight", Variable(path.removesuffix("_conv/") + "_depthwise_conv/depthwise_kernel", "depthwise")
    else:
        yield f"{name}weight", Variable(f"{path}kernel", "kernel")
    if layer.bias is not None:
        yield f"{name}bias", Variable(f"{path}bias")


def _axial_rows(layer: AxialAttention, name: str, path: str) -> Iterator[tuple[str, Variable]]:
    yield f"{name}qkv.conv.weight", Variable(f"{path}qkv_kernel", "kernel")
    yield from _rows(layer.qkv.norm, f"{name}qkv.norm.", f"{path}_batch_norm_qkv/")
    for ours, theirs in (
        ("similarity_norms", "_batch_norm_similarity"),
        ("retrieved_norms", "_batch_norm_retrieved_output"),
    ):
        for part, norm in layer.get_submodule(ours).named_children():
            for row_name, row in _rows(norm, f"{name}{ours}.{part}.", f"{path}{theirs}/"):
                yield row_name, replace(row, layout="part", part=int(part))
    for ours, theirs in _POSITIONS.items():
        if getattr(layer, ours) is not None:
            yield f"{name}{ours}.embeddings", Variable(f"{path}{theirs}/embeddings")


def stem_rows(stem: nn.Sequential, name: str, path: str) -> Iterator[tuple[str, Variable]]:
    """The rows of a stem: three convolutions, or one that is the original's stem itself."""
    paths = _INCEPTION_STEM if len(stem) > 1 else ("",)
    for index, below in enumerate(paths):
        yield from _rows(stem[index], f"{name}{index}.", f"{path}{below}/" if below else path)


def _decoder_rows(decoder: StackedDecoder, name: str, path: str) -> Iterator[tuple[str, Variable]]:
    for index, stage in enumerate(cast(Iterable[DecoderStage], decoder.stages)):
        ours, theirs = f"{name}stages.{index}.", f"{path}_decoder_stage{index + 1}"
        extra = "" if stage.backbone is not None else "_extra"
        yield from _rows(stage.fuse, f"{ours}fuse.", f"{theirs}{extra}_resized_fuse/")
        if stage.backbone is not None:
            yield from _rows(stage.backbone, f"{ours}backbone.", f"{theirs}/")
        if stage.extra is not None:
            yield from _rows(stage.extra, f"{ours}extra.", f"{theirs}_extra/")
