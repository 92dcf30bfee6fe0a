"""The decoder: stages up to stride 4, and in MaX-DeepLab-L down and up again several times."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maskwright.models.max_deeplab.blocks import conv_block
from maskwright.models.max_deeplab.config import OUTPUT_STRIDE, MaXDeepLabConfig
from maskwright.models.max_deeplab.stages import Stage

DECODER_STRIDE = 4
_EARLIER = 2  # at most this many earlier maps of the same stride join a decoder stage


def resize_to(x: Float[Tensor, "n c h w"], size: tuple[int, int]) -> Float[Tensor, "n c i j"]:
    """Bilinear, with the centres of the corner pixels on each other (`align_corners`)."""
    if tuple(x.shape[2:]) == size:
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


class ResizedFuse(nn.Module):
    """The sum of maps of several strides and channels, at one stride.

    A map that has `out_channels` channels already is only resized. Any other is activated, goes through a 1 x 1
    convolution (with stride 2 if it has half the target stride), and is then resized.

    Source: deeplab2 `resized_fuse.ResizedFuse`.
    """

    def __init__(self, in_channels: Sequence[int], in_strides: Sequence[int], out_channels: int, stride: int) -> None:
        super().__init__()
        self.convs = nn.ModuleDict()
        for index, (channels, in_stride) in enumerate(zip(in_channels, in_strides, strict=True)):
            if channels != out_channels:
                step = 2 if 2 * in_stride == stride else 1
                self.convs[str(index)] = conv_block(channels, out_channels, 1, stride=step, relu=False)

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> Float[Tensor, "n c h w"]:
        """Fuse the features, in the constructor's order, at `size`; not activated."""
        fused = []
        for index, feature in enumerate(features):
            if str(index) in self.convs:
                feature = self.convs[str(index)](F.relu(feature))
            fused.append(resize_to(feature, size))
        if len(fused) > _EARLIER:
            return torch.stack(fused).sum(0)
        first, second = fused
        # A convolved or resized map is ours alone, so the sum may overwrite it.
        return first + second if first is features[0] else first.add_(second)


class DecoderStage(nn.Module):
    """Fuses the current map with earlier ones of the target stride; then residual blocks.

    `backbone` are the blocks with ImageNet weights, `extra` those without. The stage at the end of the backbone has
    both.
    """

    def __init__(self, fuse: ResizedFuse, backbone: Stage | None, extra: Stage | None) -> None:
        super().__init__()
        self.fuse = fuse
        self.backbone = backbone
        self.extra = extra

    def forward(
        self, features: list[Tensor], size: tuple[int, int], memory: Float[Tensor, "n s e"]
    ) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n s e"]]:
        """The map at `size`, not activated, and the memory."""
        pixel = self.fuse(features, size)
        for stage in (self.backbone, self.extra):
            if stage is not None:
                pixel, memory = stage(pixel, memory)
        return pixel, memory


class StackedDecoder(nn.Module):
    """The hourglasses (strides 8, 4, 8, 16) of the published size, then a climb (8, 4).

    Args:
        in_channels: channels of the encoder's last map (stride 16).
        channels: of the encoder's maps at strides 4 and 8, which join the decoder's.
        config: of the model.

    Source: deeplab2 `axial_resnet.AxialResNet.call_stacked_decoder`; arXiv 2012.00759, section 3.3.
    """

    def __init__(self, in_channels: int, channels: dict[int, int], config: MaXDeepLabConfig) -> None:
        super().__init__()
        size = config.size
        self.strides = (8, 4, 8, 16) * (size.backbone_stacks + size.extra_stacks) + (8, 4)
        backbone_end = 4 * size.backbone_stacks
        earlier = {stride: [count] for stride, count in channels.items()} | {OUTPUT_STRIDE: [in_channels]}
        self.stages = nn.ModuleList()
        current, current_stride = in_channels, OUTPUT_STRIDE
        for number, stride in enumerate(self.strides, 1):
            resnet_stride = 2 * OUTPUT_STRIDE if stride == OUTPUT_STRIDE else stride
            out = round(resnet_stride * size.decoder_channels * config.backbone_width)
            joining = earlier[stride][-_EARLIER:]
            fuse = ResizedFuse([current, *joining], [current_stride] + [stride] * len(joining), out, stride)
            create = partial(Stage, config, 5, out, out, input_stride=resnet_stride)
            backbone = create(1) if number <= backbone_end else None
            extra = create(size.extra_blocks) if number >= backbone_end else None
            self.stages.append(DecoderStage(fuse, backbone, extra))
            earlier[stride].append(out)
            current, current_stride = out, stride
        self.out_channels = current

    def forward(
        self, pixel: Float[Tensor, "n c h w"], low_level: dict[int, Tensor], memory: Float[Tensor, "n s e"]
    ) -> tuple[list[Tensor], Float[Tensor, "n s e"]]:
        """The maps at stride 4, first to last, not activated, and the memory.

        Args:
            pixel: the encoder's last map, stride 16.
            low_level: its maps by stride, 4 and 8.
            memory: as the encoder left it.
        """
        earlier = {stride: [feature] for stride, feature in low_level.items()} | {OUTPUT_STRIDE: [pixel]}
        for stride, stage in zip(self.strides, self.stages, strict=True):
            joining = earlier[stride][-_EARLIER:]
            height, width = joining[0].shape[2:]
            pixel, memory = stage([pixel, *joining], (height, width), memory)
            earlier[stride].append(pixel)
        return earlier[DECODER_STRIDE][1:], memory
