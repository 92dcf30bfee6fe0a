"""The Object Detection API's ResNet-v1-FPN, layer by layer: its two kinds of ResNet and its way down the pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maskwright.nn.layers import ConvBlock, PreActivationBlock, initialize_glorot, normalize

NORM_EPSILON = 1.001e-5
_STAGE_CHANNELS = (64, 128, 256, 512)


class BottleneckBlock(nn.Module):
    """Keras' ResNet-v1 block: 1 x 1, 3 x 3 and 1 x 1 convolutions with biases and norms, a sum, ReLU.

    The stride lies in the first 1 x 1 convolution (torchvision's, v1.5, lies in the 3 x 3). With `skip_conv` the way
    past is a 1 x 1 convolution with bias and norm, else the identity.

    Source: tf.keras.applications.resnet, `residual_block_v1`.
    """

    EXPANSION = 4

    def __init__(self, in_channels: int, channels: int, stride: int, *, skip_conv: bool, norm_momentum: float) -> None:
        super().__init__()
        after = self.EXPANSION * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, stride)
        self.norm1 = nn.BatchNorm2d(channels, NORM_EPSILON, norm_momentum)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(channels, NORM_EPSILON, norm_momentum)
        self.conv3 = nn.Conv2d(channels, after, 1)
        self.norm3 = nn.BatchNorm2d(after, NORM_EPSILON, norm_momentum)
        self.skip = nn.Conv2d(in_channels, after, 1, stride) if skip_conv else None
        self.skip_norm = nn.BatchNorm2d(after, NORM_EPSILON, norm_momentum) if skip_conv else nn.Identity()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Map `[n, c, h, w]` to `[n, 4 * channels, h / stride, w / stride]`."""
        y = F.relu(normalize(self.norm1, self.conv1(x)))
        y = F.relu(normalize(self.norm2, self.conv2(y)))
        y = normalize(self.norm3, self.conv3(y))
        skip = x if self.skip is None else normalize(self.skip_norm, self.skip(x))
        return F.relu(y + skip)


class ResNetV1Trunk(nn.Module):
    """ResNet-v1 without its classifier: `[B, 3, H, W]` to its stages' maps at strides 4, 8, 16 and 32.

    Args:
        blocks: per stage.
        bottleneck: Keras' blocks with the stride in the first block of a stage (50 and 101 layers); else the API's
            own pre-activation blocks with the stride in the last (18 and 34 layers), whose stem has neither norm nor
            ReLU, so that the zeros around the map take part in its max-pooling.
        width: factor on all channel counts.
        norm_momentum: of the batch norms, in torch's sense (the original: 0.01).

    channels: of the four maps.

    Source: tf.keras.applications.resnet (`ResNet50`, `ResNet101`); object_detection/models/keras_models/resnet_v1.py
    (`resnet_v1_18`, `resnet_v1_34`).
    """

    def __init__(self, blocks: Sequence[int], *, bottleneck: bool, width: float, norm_momentum: float) -> None:
        super().__init__()
        before = max(1, round(_STAGE_CHANNELS[0] * width))
        self.conv = nn.Conv2d(3, before, 7, stride=2, padding=3)
        self.norm = nn.BatchNorm2d(before, NORM_EPSILON, norm_momentum) if bottleneck else None
        self.channels: list[int] = []
        self.stages = nn.ModuleList()
        for index, (count, channels) in enumerate(zip(blocks, _STAGE_CHANNELS, strict=True)):
            inner, stride = max(1, round(channels * width)), 2 if index else 1
            make_stage = _bottleneck_stage if bottleneck else _basic_stage
            self.stages.append(make_stage(before, inner, count, stride, norm_momentum))
            before = inner * (BottleneckBlock.EXPANSION if bottleneck else 1)
            self.channels.append(before)
        initialize_glorot(self)

    def levels(self) -> list[list[nn.Module]]:
        """See `PyramidTrunk.levels`."""
        stem = [self.conv] if self.norm is None else [self.conv, self.norm]
        first, *rest = self.stages
        return [[*stem, first], *([stage] for stage in rest)]

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Return the four maps, finest first."""
        x = self.conv(images)
        if self.norm is not None:
            x = F.relu(normalize(self.norm, x))
        x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, stride=2)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def _bottleneck_stage(before: int, channels: int, count: int, stride: int, norm_momentum: float) -> nn.Sequential:
    first = BottleneckBlock(before, channels, stride, skip_conv=True, norm_momentum=norm_momentum)
    after = BottleneckBlock.EXPANSION * channels
    rest = (BottleneckBlock(after, channels, 1, skip_conv=False, norm_momentum=norm_momentum) for _ in range(count - 1))
    return nn.Sequential(first, *rest)


def _basic_stage(before: int, channels: int, count: int, stride: int, norm_momentum: float) -> nn.Sequential:
    return nn.Sequential(
        *(
            PreActivationBlock(
                before if index == 0 else channels,
                channels,
                skip_conv=index == 0,
                stride=stride if index == count - 1 else 1,
                norm_momentum=norm_momentum,
            )
            for index in range(count)
        )
    )


class TopDownPath(nn.Module):
    """From the coarsest of four maps down to one map of the finest's size: enlarge, add a finer map, convolve.

    channels: of the result.

    Three times: nearest-neighbour enlargement by 2, the sum with a 1 x 1 convolution of the finer map, 3 x 3
    convolution, batch norm, ReLU; channels fall from 256 over 128 to 64. All convolutions have biases.

    Source: CenterNetResnetV1FpnFeatureExtractor of the originals.
    """

    CHANNELS = (256, 128, 64, 64)
    NORM_EPSILON = 1e-3

    def __init__(self, in_channels: Sequence[int], width: float, norm_momentum: float) -> None:
        super().__init__()
        widths = [max(1, round(channels * width)) for channels in self.CHANNELS]
        *finer, coarsest = in_channels
        self.channels = widths[-1]
        self.top = nn.Conv2d(coarsest, widths[0], 1)
        self.lateral = nn.ModuleList(
            nn.Conv2d(before, after, 1) for before, after in zip(reversed(finer), widths, strict=False)
        )
        self.merge = nn.ModuleList(
            ConvBlock(before, after, 3, bias=True, norm_momentum=norm_momentum, norm_epsilon=self.NORM_EPSILON)
            for before, after in pairwise(widths)
        )
        initialize_glorot(self)

    def forward(self, maps: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b c h w"]:
        """Map the four maps, finest first, to one of the finest's size."""
        *finer, coarsest = maps
        x = self.top(coarsest)
        for level, lateral, merge in zip(reversed(finer), self.lateral, self.merge, strict=True):
            x = merge(F.interpolate(x, scale_factor=2, mode="nearest") + lateral(level))
        return x
