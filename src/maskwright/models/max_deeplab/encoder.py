"""MaX-DeepLab's encoder with its stacked decoder: from the image to pixel maps and the memory's vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maskwright.models.max_deeplab.blocks import LinearBlock, inception_stem, wide_stem
from maskwright.models.max_deeplab.decoder import StackedDecoder
from maskwright.models.max_deeplab.stages import DropPathSchedule, Stage, StageOptions

_LOW_LEVEL_STAGES = (2, 3)
"""Their outputs, of strides 4 and 8, are read by the decoders, too."""


@dataclass(frozen=True)
class EncoderSize:
    """One published size.

    blocks: residual blocks by number of the stage; the first has stride 2 in S and L alike.
    channels: of the stages' outputs.
    transformer_widths: of the dual-path layers, by number of the stage; the last one's are the decoder's, too.
    stage5_extra: blocks at stride 16 between the pretrained stages and the decoder.
    """

    wide: bool
    blocks: dict[int, int]
    channels: dict[int, int]
    attention_share: float
    transformer_stride: int
    transformer_widths: dict[int, int]
    drop_path_stride: int
    memory_channels: int
    backbone_stacks: int
    extra_stacks: int
    extra_blocks: int
    stem_channels: int = 64

    @property
    def has_stage5_extra(self) -> bool:
        """Without hour-glasses in the backbone, extra blocks of the last stage follow it."""
        return self.backbone_stacks == 0


ENCODER_SIZES = {
    "max_deeplab_s": EncoderSize(
        wide=False,
        blocks={2: 3, 3: 4, 4: 6, 5: 3},
        channels={2: 256, 3: 512, 4: 1024, 5: 2048},
        attention_share=0.5,
        transformer_stride=32,
        transformer_widths={5: 128},
        drop_path_stride=16,
        memory_channels=256,
        backbone_stacks=0,
        extra_stacks=0,
        extra_blocks=1,
    ),
    "max_deeplab_l": EncoderSize(
        wide=True,
        blocks={1: 3, 2: 3, 3: 6, 4: 3, 5: 3},
        channels={1: 128, 2: 256, 3: 512, 4: 1024, 5: 2048},
        attention_share=1.0,
        transformer_stride=16,
        transformer_widths={4: 128, 5: 256},
        drop_path_stride=4,
        memory_channels=512,
        backbone_stacks=1,
        extra_stacks=1,
        extra_blocks=3,
    ),
}


class EncoderOutputs(NamedTuple):
    """What the heads read, activated but for what the auxiliary semantic segmentation reads alone.

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


class MaXDeepLabEncoder(nn.Module):
    """Stem, residual stages with axial attention and dual-path layers, stacked decoder, features of the memory.

    Args: see `MaXDeepLabNetwork`.

    Source: deeplab2 `axial_resnet.py`, `max_deeplab.py`.
    """

    def __init__(
        self,
        *,
        backbone: str,
        num_mask_slots: int,
        stem_width: float,
        backbone_width: float,
        transformer_width: float,
        memory_channels: int | None,
        memory_feature_channels: int | None,
        feed_forward_channels: int,
        num_heads: int,
        drop_path_keep: float,
        drop_path_schedule: DropPathSchedule,
        activation_checkpointing: bool,
    ) -> None:
        super().__init__()
        if backbone not in ENCODER_SIZES:
            raise ValueError(f"backbone must be one of {', '.join(ENCODER_SIZES)}, but got {backbone!r}")
        size = ENCODER_SIZES[backbone]
        memory_width = memory_channels or size.memory_channels
        options = StageOptions(
            wide=size.wide,
            attention_share=size.attention_share,
            transformer_stride=size.transformer_stride,
            drop_path_stride=size.drop_path_stride,
            memory_channels=memory_width,
            feed_forward_channels=feed_forward_channels,
            num_heads=num_heads,
            drop_path_keep=drop_path_keep,
            drop_path_schedule=drop_path_schedule,
            activation_checkpointing=activation_checkpointing,
        )
        self.memory = nn.Parameter(torch.empty(1, num_mask_slots, memory_width))
        nn.init.trunc_normal_(self.memory, std=1.0)
        stem_channels = round(size.stem_channels * stem_width)
        self.stem = wide_stem(stem_channels) if size.wide else inception_stem(stem_channels)
        in_channels = stem_channels if size.wide else 2 * stem_channels
        widths = {stage: round(width * transformer_width) for stage, width in size.transformer_widths.items()}
        in_channels = self._create_stages(size, options, in_channels, backbone_width, widths)
        self.low_level_channels = {
            4: round(size.channels[2] * backbone_width),
            8: round(size.channels[3] * backbone_width),
        }
        self.decoder = StackedDecoder(
            in_channels,
            self.low_level_channels,
            options,
            backbone_stacks=size.backbone_stacks,
            extra_stacks=size.extra_stacks,
            extra_blocks=size.extra_blocks,
            width=backbone_width,
            transformer_width=widths[5],
        )
        self.semantic_at_stride_4 = size.extra_stacks > 0
        self.semantic_channels = self.decoder.out_channels if self.semantic_at_stride_4 else in_channels
        self.memory_feature_channels = memory_feature_channels or size.memory_channels
        self.class_feature = LinearBlock(memory_width, self.memory_feature_channels)
        self.mask_feature = LinearBlock(memory_width, self.memory_feature_channels)

    def _create_stages(
        self,
        size: EncoderSize,
        options: StageOptions,
        in_channels: int,
        backbone_width: float,
        transformer_widths: dict[int, int],
    ) -> int:
        """The stages before the decoder; returns the channels of the last."""
        self.stages = nn.ModuleDict()
        stride = 2
        for number, blocks in size.blocks.items():
            out_channels = round(size.channels[number] * backbone_width)
            shrink = number > 1
            self.stages[str(number)] = Stage(
                in_channels,
                out_channels,
                blocks,
                options,
                input_stride=stride,
                shrink=shrink,
                transformer_width=transformer_widths.get(number, 0),
                owns_input=number - 1 not in _LOW_LEVEL_STAGES,
            )
            stride *= 2 if shrink else 1
            in_channels = out_channels
        self.stage5_extra: Stage | None = None
        if size.has_stage5_extra:
            self.stage5_extra = Stage(
                in_channels,
                in_channels,
                size.extra_blocks,
                options,
                input_stride=stride,
                shrink=False,
                transformer_width=transformer_widths[5],
                owns_input=False,
            )
        return in_channels

    def forward(self, batch: Float[Tensor, "n 3 h w"]) -> EncoderOutputs:
        """Encode images normalised to [-1, 1]."""
        memory = self.memory.expand(batch.shape[0], -1, -1)
        pixel = self.stem(batch)
        low_level: dict[int, Tensor] = {}
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
