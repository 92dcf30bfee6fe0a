"""MaX-DeepLab's encoder with its stacked decoder: from the image to pixel maps and the memory's vectors."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maskwright.models.max_deeplab.blocks import LinearBlock, conv_block, inception_stem, wide_stem
from maskwright.models.max_deeplab.config import OUTPUT_STRIDE, MaXDeepLabConfig
from maskwright.models.max_deeplab.decoder import StackedDecoder, resize_to
from maskwright.models.max_deeplab.stages import Stage
from maskwright.nn.backbones import create_trunk
from maskwright.nn.feature_maps import BackboneOptions

_LOW_LEVEL_STAGES = (2, 3)
"""Their outputs, of strides 4 and 8, are read by the decoders, too."""

_LAST_TRUNK_STAGE = 4
"""That for which the last maps of a trunk stand."""


class EncoderOutputs(NamedTuple):
    """What the heads read: activated, except what only the auxiliary semantic segmentation reads.

    low_level: the maps of stages 2 and 3, by stride (4, 8), not activated.
    semantic: for the semantic segmentation: stride 16 in S, 4 in L; not activated.
    panoptic: stride 4.
    class_feature: [n, slots, channels].
    mask_feature: [n, slots, channels].
    """

    low_level: dict[int, Tensor]
    semantic: Tensor
    panoptic: Tensor
    class_feature: Tensor
    mask_feature: Tensor


class ProjectedTrunk(nn.Module):
    """A trunk of `nn.backbones.TRUNKS` in the place of the stem and of stages 2 to 4.

    A 1 x 1 convolution brings each of its maps to the channels of the stage it stands for; that of stride 32 is
    enlarged and added to that of stride 16.
    """

    def __init__(self, name: str, config: MaXDeepLabConfig) -> None:
        super().__init__()
        options = BackboneOptions(
            width=config.backbone_width,
            norm_momentum=config.norm_momentum,
            pretrained=config.pretrained_backbone,
            frozen_levels=config.frozen_levels,
        )
        self.trunk = create_trunk(name, options)
        stages = (*_LOW_LEVEL_STAGES, _LAST_TRUNK_STAGE, _LAST_TRUNK_STAGE)
        channels = [round(config.size.channels[stage] * config.backbone_width) for stage in stages]
        self.projections = nn.ModuleList(
            conv_block(before, after, 1, relu=False)
            for before, after in zip(self.trunk.channels, channels, strict=True)
        )
        self.out_channels = channels[-1]

    def forward(self, batch: Float[Tensor, "n 3 h w"]) -> tuple[dict[int, Tensor], Float[Tensor, "n c i j"]]:
        """The maps of strides 4 and 8, by stride, and that of stride 16; not activated."""
        maps = [project(x) for project, x in zip(self.projections, self.trunk(batch), strict=True)]
        height, width = maps[2].shape[2:]
        return {4: maps[0], 8: maps[1]}, maps[2] + resize_to(maps[3], (height, width))


class MaXDeepLabEncoder(nn.Module):
    """Stem or trunk, residual stages with axial attention and dual-path layers, stacked decoder, features of the
    memory.

    Source: deeplab2 `axial_resnet.py`, `max_deeplab.py`. The trunk is a departure, for laptops.
    """

    def __init__(self, config: MaXDeepLabConfig) -> None:
        super().__init__()
        size = config.size
        self.memory = nn.Parameter(torch.empty(1, config.num_mask_slots, config.memory_width))
        nn.init.trunc_normal_(self.memory, std=1.0)
        self.trunk: ProjectedTrunk | None = None
        if size.trunk is None:
            stem_channels = round(size.stem_channels * config.stem_width)
            self.stem = wide_stem(stem_channels) if size.wide else inception_stem(stem_channels)
            in_channels, stride = stem_channels if size.wide else 2 * stem_channels, 2
        else:
            self.trunk = ProjectedTrunk(size.trunk, config)
            in_channels, stride = self.trunk.out_channels, OUTPUT_STRIDE
        self.stages = nn.ModuleDict()
        for number, blocks in size.blocks.items():
            channels, shrink = round(size.channels[number] * config.backbone_width), number > 1
            owned = number - 1 not in _LOW_LEVEL_STAGES
            self.stages[str(number)] = Stage(
                config, number, in_channels, channels, blocks, input_stride=stride, shrink=shrink, owns_input=owned
            )
            stride *= 2 if shrink else 1
            in_channels = channels
        self.stage5_extra: Stage | None = None
        if size.backbone_stacks == 0:
            self.stage5_extra = Stage(
                config, 5, in_channels, in_channels, size.extra_blocks, input_stride=stride, owns_input=False
            )
        self.low_level_channels = {
            4: round(size.channels[2] * config.backbone_width),
            8: round(size.channels[3] * config.backbone_width),
        }
        self.decoder = StackedDecoder(in_channels, self.low_level_channels, config)
        self.semantic_at_stride_4 = size.extra_stacks > 0
        self.semantic_channels = self.decoder.out_channels if self.semantic_at_stride_4 else in_channels
        self.class_feature = LinearBlock(config.memory_width, config.memory_feature_width)
        self.mask_feature = LinearBlock(config.memory_width, config.memory_feature_width)

    def forward(self, batch: Float[Tensor, "n 3 h w"]) -> EncoderOutputs:
        """Encode images normalised to [-1, 1]."""
        memory = self.memory.expand(batch.shape[0], -1, -1)
        low_level: dict[int, Tensor] = {}
        if self.trunk is None:
            pixel = self.stem(batch)
        else:
            low_level, pixel = self.trunk(batch)
        for number, stage in self.stages.items():
            pixel, memory = stage(pixel, memory)
            if int(number) in _LOW_LEVEL_STAGES:
                low_level[2 ** int(number)] = pixel
        backbone_output = pixel
        if self.stage5_extra is not None:
            pixel, memory = self.stage5_extra(pixel, memory)
        maps, memory = self.decoder(pixel, low_level, memory)
        # In L the semantic loss reads the last map but one, so that it shares nothing with the panoptic feature.
        semantic = maps[-2] if self.semantic_at_stride_4 else backbone_output
        return EncoderOutputs(
            low_level=low_level,
            semantic=semantic,
            panoptic=F.relu(maps[-1], inplace=not torch.is_grad_enabled()),
            class_feature=self.class_feature(memory),
            mask_feature=self.mask_feature(memory),
        )
