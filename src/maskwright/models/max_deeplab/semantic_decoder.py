"""The auxiliary semantic decoder of MaX-DeepLab-S: spatial pyramid pooling and two fusions with finer maps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maskwright.models.max_deeplab.blocks import SeparableConv, conv_block
from maskwright.models.max_deeplab.config import OUTPUT_STRIDE, MaXDeepLabConfig
from maskwright.models.max_deeplab.decoder import resize_to

ATROUS_RATES = (6, 12, 18)
_DROPOUT = 0.1


class SpatialPyramidPooling(nn.Module):
    """1 x 1, three atrous 3 x 3 convolutions and average pooling, side by side; then 1 x 1.

    Args:
        in_channels: of the input.
        channels: of each branch and of the output.
        pool_size: height and width of the pooling's window. It spans the map at the training size; a larger map has
            several pooled values.

    Source: deeplab2 `aspp.ASPP`.
    """

    def __init__(self, in_channels: int, channels: int, pool_size: tuple[int, int]) -> None:
        super().__init__()
        self.pool_size = pool_size
        self.conv = conv_block(in_channels, channels, 1)
        self.atrous = nn.ModuleList(conv_block(in_channels, channels, 3, dilation=rate) for rate in ATROUS_RATES)
        self.pooled = conv_block(in_channels, channels, 1)
        self.project = conv_block((2 + len(ATROUS_RATES)) * channels, channels, 1)
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        """Map `[n, in_channels, h, w]` to `[n, channels, h, w]`."""
        size = (x.shape[2], x.shape[3])
        pooled = self.pooled(F.avg_pool2d(x, self.pool_size, stride=1))
        branches = [self.conv(x), *(conv(x) for conv in self.atrous), resize_to(pooled, size)]
        return self.dropout(self.project(torch.cat(branches, dim=1)))


class SemanticDecoder(nn.Module):
    """Pyramid pooling at stride 16, fused with the maps at strides 8 and 4.

    Args:
        config: of the model.
        in_channels: of the map at stride 16.
        encoder_channels: of the encoder's maps, by stride (4, 8).

    Source: deeplab2 `decoder/deeplabv3plus.py`, `decoder/max_deeplab.py`.
    """

    def __init__(self, config: MaXDeepLabConfig, in_channels: int, encoder_channels: Mapping[int, int]) -> None:
        super().__init__()
        channels, (first, second) = config.semantic_channels, config.low_level_channels
        pool_size = config.image_size // OUTPUT_STRIDE + 1
        self.aspp = SpatialPyramidPooling(in_channels, channels, (pool_size, pool_size))
        self.low_level1 = conv_block(encoder_channels[8], first, 1)
        self.fusion1 = SeparableConv(channels + first, channels)
        self.low_level2 = conv_block(encoder_channels[4], second, 1)
        self.fusion2 = SeparableConv(channels + second, channels)

    def forward(self, x: Float[Tensor, "n c h w"], low_level: Mapping[int, Tensor]) -> Float[Tensor, "n d i j"]:
        """Map the features at stride 16, with those at 8 and 4, to `[n, channels, ...]` at stride 4."""
        x = self.aspp(x)
        for stride, project, fuse in ((8, self.low_level1, self.fusion1), (4, self.low_level2, self.fusion2)):
            finer = low_level[stride]
            x = resize_to(x, (finer.shape[2], finer.shape[3]))
            x = fuse(torch.cat([x, project(finer)], dim=1))
        return x
