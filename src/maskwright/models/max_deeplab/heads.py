"""The heads: classes and mask kernels from the memory, pixel features and semantic logits from the maps."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maskwright.models.max_deeplab.blocks import NORM_EPSILON, NORM_MOMENTUM, LinearBlock, SeparableConv
from maskwright.nn.layers import normalize

_MASK_NORM_SCALE = 0.1
_VOID_PRIOR = 0.9  # of a slot, before training
_SMALLEST_NORM = 1e-6


class SemanticHead(nn.Module):
    """5 x 5 separable convolution, then logits of void (channel 0) and of each label (channel label + 1).

    Source: deeplab2 `decoder/max_deeplab.py`, `auxiliary_semantic_head`.
    """

    def __init__(self, in_channels: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv = SeparableConv(in_channels, channels)
        self.logits = nn.Conv2d(channels, num_classes + 1, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        """Map `[n, in_channels, h, w]` to `[n, num_classes + 1, h, w]`."""
        return self.logits(self.conv(x))


class PixelHead(nn.Module):
    """5 x 5 separable convolution, 1 x 1 convolution, batch norm; each pixel's feature has length 1.

    Source: deeplab2 `decoder/max_deeplab.py`, `pixel_space_head`.
    """

    def __init__(self, in_channels: int, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = SeparableConv(in_channels, channels)
        self.features = nn.Conv2d(channels, out_channels, 1)
        self.norm = nn.BatchNorm2d(out_channels, eps=NORM_EPSILON, momentum=NORM_MOMENTUM)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        """Map `[n, in_channels, h, w]` to `[n, out_channels, h, w]`."""
        return F.normalize(normalize(self.norm, self.features(self.conv(x))), dim=1, eps=_SMALLEST_NORM)


class ClassHead(nn.Module):
    """Logits of each label and, last, of void, to which a constant is added at every call.

    The constant lets void start with a probability of 0.9.

    Source: deeplab2 `decoder/max_deeplab.py`, `transformer_class_head`.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.logits = nn.Linear(in_channels, num_classes + 1)
        void_constant = torch.zeros(num_classes + 1)
        void_constant[-1] = math.log(num_classes * _VOID_PRIOR / (1 - _VOID_PRIOR))
        self.register_buffer("void_constant", void_constant, persistent=False)
        self.void_constant: Tensor

    def forward(self, x: Float[Tensor, "n slots c"]) -> Float[Tensor, "n slots k"]:
        """Map the memory's class features to `[n, slots, num_classes + 1]`."""
        return self.logits(x) + self.void_constant


class SlotMaskHead(nn.Module):
    """Mask logits: the product of each slot's kernel with each pixel's feature, with one scale and one offset for all.

    Source: deeplab2 `decoder/max_deeplab.py`, `transformer_mask_head` and `pixel_space_mask_batch_norm`.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.kernels = LinearBlock(in_channels, out_channels, relu=False)
        self.norm = nn.BatchNorm2d(1, eps=NORM_EPSILON, momentum=NORM_MOMENTUM)
        nn.init.constant_(self.norm.weight, _MASK_NORM_SCALE)

    def forward(
        self, x: Float[Tensor, "n slots c"], pixel_feature: Float[Tensor, "n d h w"]
    ) -> Float[Tensor, "n slots h w"]:
        """Map the memory's mask features and the pixel features to `[n, slots, h, w]`."""
        logits = self.kernels(x) @ pixel_feature.flatten(2)  # n, slots, hw
        return self.norm(logits[:, None]).squeeze(1).unflatten(2, pixel_feature.shape[2:])
