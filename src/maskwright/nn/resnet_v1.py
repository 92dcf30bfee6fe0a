"""The Object Detection API's two kinds of ResNet-v1, as trunks."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maskwright.nn.feature_maps import Trunk
from maskwright.nn.layers import PreActivationBlock, initialize_glorot, normalize

NORM_EPSILON = 1.001e-5
_STAGE_CHANNELS = (64, 128, 256, 512)


class ResNetV1Bottleneck(nn.Module):
    """Keras' ResNet-v1 block: 1 x 1, 3 x 3 and 1 x 1 convolutions with biases and norms, a sum, ReLU.

    The first 1 x 1 convolution has the stride (in torchvision's v1.5 the 3 x 3 has it). With `skip_conv` the skip is a
    1 x 1 convolution with bias and norm, else the identity.

    Source: tf.keras.applications.resnet, `residual_block_v1`.
    """

    EXPANSION = 4

    def __init__(self, in_channels: int, channels: int, stride: int, skip_conv: bool, norm_momentum: float) -> None:
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


class ResNetV1Trunk(Trunk):
    """ResNet-v1 without its classifier.

    Args:
        blocks: per stage.
        bottleneck: Keras' blocks (50 and 101 layers), whose stride is in the first block of a stage; else the API's own
            pre-activation blocks (18 and 34 layers), whose stride is in the last. The stem of these has neither norm
            nor ReLU, so that its max-pooling sees the zeros around the map.
        width: factor on all channel counts.
        norm_momentum: of the batch norms, in torch's sense (the original: 0.01).

    Source: tf.keras.applications.resnet (`ResNet50`, `ResNet101`); object_detection/models/keras_models/resnet_v1.py
    (`resnet_v1_18`, `resnet_v1_34`).
    """

    def __init__(self, blocks: Sequence[int], *, bottleneck: bool, width: float, norm_momentum: float) -> None:
        super().__init__()
        before = max(1, round(_STAGE_CHANNELS[0] * width))
        self.conv = nn.Conv2d(3, before, 7, stride=2, padding=3)
        self.norm = nn.BatchNorm2d(before, NORM_EPSILON, norm_momentum) if bottleneck else None
        self.channels = []
        self.stages = nn.ModuleList()
        for index, (count, channels) in enumerate(zip(blocks, _STAGE_CHANNELS, strict=True)):
            inner, stride = max(1, round(channels * width)), 2 if index else 1
            after = inner * (ResNetV1Bottleneck.EXPANSION if bottleneck else 1)
            stage = nn.Sequential()
            for block in range(count):
                first, last = block == 0, block == count - 1
                entering = before if first else after
                stage.append(
                    ResNetV1Bottleneck(entering, inner, stride if first else 1, first, norm_momentum)
                    if bottleneck
                    else PreActivationBlock(entering, inner, first, stride if last else 1, norm_momentum=norm_momentum)
                )
            self.stages.append(stage)
            before = after
            self.channels.append(before)
        initialize_glorot(self)

    def levels(self) -> list[list[nn.Module]]:
        """See `Trunk.levels`."""
        stem = [self.conv] if self.norm is None else [self.conv, self.norm]
        first, *rest = self.stages
        return [[*stem, first], *([stage] for stage in rest)]

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Return the four maps, finest first."""
        x = self.conv(x)
        if self.norm is not None:
            x = F.relu(normalize(self.norm, x))
        x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, stride=2)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps
