"""MaX-DeepLab's building blocks: convolutions with their norms, residual blocks and stems."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from maskwright.models.max_deeplab.axial_attention import AxialAttention2d
from maskwright.nn.layers import ConvBlock

NORM_EPSILON = 1e-3
NORM_MOMENTUM = 0.01  # Keras: 0.99

conv_block = partial(ConvBlock, norm_epsilon=NORM_EPSILON, norm_momentum=NORM_MOMENTUM)
"""`nn.layers.ConvBlock` with the batch norm of this family."""


class LinearBlock(nn.Module):
    """The counterpart of `conv_block` for a memory: linear layer, batch norm, and ReLU unless `relu` is false.

    Source: deeplab2 `convolutions.Conv1D`.
    """

    def __init__(self, in_channels: int, out_channels: int, *, relu: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels, bias=False)
        self.norm = nn.BatchNorm1d(out_channels, eps=NORM_EPSILON, momentum=NORM_MOMENTUM)
        self.relu = relu

    def forward(self, x: Float[Tensor, "n length c"]) -> Float[Tensor, "n length d"]:
        """Map `[n, length, c]` to `[n, length, out_channels]`; statistics are over all rows of all images."""
        y = self.norm(self.linear(x).flatten(0, 1)).unflatten(0, x.shape[:2])
        return F.relu(y, inplace=True) if self.relu else y


class SeparableConv(nn.Module):
    """5 x 5 depthwise and 1 x 1 convolution, each with batch norm and ReLU.

    Source: deeplab2 `convolutions.StackedConv2DSame` with `depthwise_separable_conv`.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = conv_block(in_channels, in_channels, 5, groups=in_channels)
        self.pointwise = conv_block(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        """Map `[n, c, h, w]` to `[n, out_channels, h, w]`."""
        return self.pointwise(self.depthwise(x))


class StageBlock(nn.Module, ABC):
    """A residual block of a `Stage`: the sum of a branch and a shortcut, which both read the activated input.

    The sum is not activated. The shortcut is the identity, or a 1 x 1 convolution with batch norm where the channels
    change. In training, drop path leaves the branch out for some images and scales it up for the others, so that the
    expectation stays the same.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        stride: of the block.
        drop_probability: of the branch, per image.

    Source: deeplab2 `axial_blocks.AxialBlock`; arXiv 2012.00759, figure 3.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, drop_probability: float) -> None:
        super().__init__()
        self.stride = stride
        self.shortcut = (
            None if in_channels == out_channels else conv_block(in_channels, out_channels, 1, stride=stride, relu=False)
        )
        self.drop_path = StochasticDepth(drop_probability, "row")
        self.owns_input = False  # True: no other layer reads the input, so that inference may activate it in place

    @abstractmethod
    def branch(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """The residual of an activated input."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Map `[n, c, h, w]` to `[n, out_channels, ceil(h / stride), ceil(w / stride)]`, neither of them activated."""
        x = F.relu(x, inplace=self.owns_input and not torch.is_grad_enabled())
        shortcut = x[:, :, :: self.stride, :: self.stride] if self.shortcut is None else self.shortcut(x)
        return self.drop_path(self.branch(x)).add_(shortcut)


class BasicStageBlock(StageBlock):
    """Two 3 x 3 convolutions (Wide-ResNet's block, in MaX-DeepLab-L)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, drop_probability: float = 0.0) -> None:
        super().__init__(in_channels, out_channels, stride, drop_probability)
        self.conv1 = conv_block(in_channels, out_channels, 3, stride=stride)
        self.conv2 = conv_block(out_channels, out_channels, 3, relu=False)
        nn.init.zeros_(self.conv2.norm.weight)

    def branch(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """The residual of an activated input."""
        return self.conv2(self.conv1(x))


class BottleneckStageBlock(StageBlock):
    """1 x 1, 3 x 3 and 1 x 1 convolution; the first two have a quarter of the output's channels."""

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, dilation: int = 1, drop_probability: float = 0.0
    ) -> None:
        super().__init__(in_channels, out_channels, stride, drop_probability)
        width = out_channels // 4
        self.conv1 = conv_block(in_channels, width, 1)
        self.conv2 = conv_block(width, width, 3, stride=stride, dilation=dilation)
        self.conv3 = conv_block(width, out_channels, 1, relu=False)
        nn.init.zeros_(self.conv3.norm.weight)

    def branch(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """The residual of an activated input."""
        return self.conv3(self.conv2(self.conv1(x)))


class AxialBlock(StageBlock):
    """1 x 1 convolution, axial attention, 1 x 1 convolution.

    The attention reads and retrieves `attention_channels`; its keys have half as many.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        attention_channels: int,
        num_heads: int,
        drop_probability: float = 0.0,
    ) -> None:
        super().__init__(in_channels, out_channels, 1, drop_probability)
        self.conv1 = conv_block(in_channels, attention_channels, 1)
        self.attention = AxialAttention2d(attention_channels, attention_channels // 2, attention_channels, num_heads)
        self.conv3 = conv_block(attention_channels, out_channels, 1, relu=False)
        nn.init.zeros_(self.conv3.norm.weight)

    def branch(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        """The residual of an activated input."""
        return self.conv3(F.relu(self.attention(self.conv1(x)), inplace=True))


def inception_stem(width: int) -> nn.Sequential:
    """Three 3 x 3 convolutions to `width`, `width` and `2 * width` channels, stride 2; the output is not activated.

    Source: deeplab2 `stems.InceptionSTEM`.
    """
    first, second = conv_block(3, width, 3, stride=2), conv_block(width, width, 3)
    return nn.Sequential(first, second, conv_block(width, 2 * width, 3, relu=False))


def wide_stem(width: int) -> nn.Sequential:
    """One 3 x 3 convolution, stride 2; the output is not activated.

    Source: deeplab2 `axial_resnet.py`, backbone type `wider_resnet`.
    """
    return nn.Sequential(conv_block(3, width, 3, stride=2, relu=False))
