"""Pyramid backbones: a trunk and what merges its four maps, to one map of stride 4 or to one map per level."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from maskwright.nn.feature_maps import TRUNK_STRIDES, BackboneOptions, Trunk, TrunkBackbone
from maskwright.nn.layers import ConvBlock, initialize_glorot, normalize
from maskwright.nn.same_padding import SamePaddedConv2d, SamePaddedMaxPool2d


class SummedPyramidBackbone(TrunkBackbone):
    """A trunk, torchvision's feature pyramid on it, and the sum of the pyramid's levels: one map of stride 4.

    The levels are enlarged to stride 4 (bilinear) and added, so that every parameter of the trunk and of the pyramid
    has a part in the one map.
    """

    CHANNELS = 64

    def __init__(self, trunk: Trunk, options: BackboneOptions) -> None:
        channels = options.scaled(self.CHANNELS)
        super().__init__(trunk, channels, TRUNK_STRIDES[:1], TRUNK_STRIDES[-1], options.frozen_levels)
        norm = partial(nn.BatchNorm2d, momentum=options.norm_momentum)
        self.pyramid = FeaturePyramidNetwork(trunk.channels, channels, norm_layer=norm)

    def merge(self, maps: list[Tensor]) -> list[Tensor]:
        """See `TrunkBackbone.merge`."""
        finest, *coarser = self.pyramid({str(index): level for index, level in enumerate(maps)}).values()
        for level in coarser:
            finest = finest + F.interpolate(level, size=finest.shape[-2:], mode="bilinear", align_corners=False)
        return [finest]


class TopDownBackbone(TrunkBackbone):
    """The Object Detection API's ResNet-v1-FPN of CenterNet, used for the paper's table 3: one map of stride 4.

    The trunk is a `ResNetV1Trunk`; this is the original's function, so its checkpoints convert. `resnet50_fpn` and its
    like differ in all parts. Their blocks are torchvision's, for which there are ImageNet weights: a block's stride is
    in its 3 x 3 convolution, there are no biases, and 18 and 34 layers have post-activation blocks as well. And all
    levels of their pyramid are summed.

    The original's preprocessing as arguments of `ImageBatch`: channel order `bgr`, std (0.229, 0.224, 0.225), mean
    (28.80772, 26.614496, 23.792275): ImageNet's mean, plus the one that Keras subtracts afterwards, in its units.

    Source: CenterNetResnetV1FpnFeatureExtractor of the originals.
    """

    def __init__(self, trunk: Trunk, options: BackboneOptions) -> None:
        top_down = TopDownPath(trunk.channels, options)
        super().__init__(trunk, top_down.channels, TRUNK_STRIDES[:1], TRUNK_STRIDES[-1], options.frozen_levels)
        self.top_down = top_down

    def merge(self, maps: list[Tensor]) -> list[Tensor]:
        """See `TrunkBackbone.merge`."""
        return [self.top_down(maps)]


class TopDownPath(nn.Module):
    """From the coarsest of four maps down to one map of the finest's size: enlarge, add a finer map, convolve.

    channels: of the result.

    Three times: nearest-neighbour enlargement by 2, the sum with a 1 x 1 convolution of the finer map, 3 x 3
    convolution, batch norm, ReLU; channels fall from 256 over 128 to 64. All convolutions have biases.

    Source: CenterNetResnetV1FpnFeatureExtractor of the originals.
    """

    CHANNELS = (256, 128, 64, 64)
    NORM_EPSILON = 1e-3

    def __init__(self, in_channels: Sequence[int], options: BackboneOptions) -> None:
        super().__init__()
        widths = [options.scaled(channels) for channels in self.CHANNELS]
        *finer, coarsest = in_channels
        self.channels = widths[-1]
        self.top = nn.Conv2d(coarsest, widths[0], 1)
        self.lateral = nn.ModuleList(
            nn.Conv2d(before, after, 1) for before, after in zip(reversed(finer), widths, strict=False)
        )
        block = partial(ConvBlock, bias=True, norm_momentum=options.norm_momentum, norm_epsilon=self.NORM_EPSILON)
        self.merge = nn.ModuleList(block(before, after, 3) for before, after in pairwise(widths))
        initialize_glorot(self)

    def forward(self, maps: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b c h w"]:
        """Map the four maps, finest first, to one of the finest's size."""
        *finer, coarsest = maps
        x = self.top(coarsest)
        for level, lateral, merge in zip(reversed(finer), self.lateral, self.merge, strict=True):
            x = merge(F.interpolate(x, scale_factor=2, mode="nearest") + lateral(level))
        return x


class DetectionPyramidBackbone(TrunkBackbone):
    """A trunk and Model Garden's feature pyramid on it: one map per level, 2 to 6.

    The pyramid has lateral and 3 x 3 convolutions with biases as torchvision's, then `CoarserLevel`. With a ResNet of
    depth 50 or more and `padding` "same" this is the original's function. (Its ResNet-18 and 34 have a convolution in
    the skip of the very first block, which torchvision's lack.)

    Args:
        trunk: of the pyramid.
        channels: of each map.
        options: `norm_momentum` and `norm_epsilon` are those of the pyramid's batch norms.

    Source: official/vision/modeling/backbones/resnet.py and decoders/fpn.py.
    """

    def __init__(self, trunk: Trunk, channels: int, options: BackboneOptions) -> None:
        strides = (*TRUNK_STRIDES, 2 * TRUNK_STRIDES[-1])
        coarser = CoarserLevel(len(strides), channels, options.norm_momentum, options.norm_epsilon)
        pyramid = FeaturePyramidNetwork(trunk.channels, channels, coarser)
        if options.padding == "same":
            pad_as_tensorflow(trunk)
            pad_as_tensorflow(pyramid)
        super().__init__(trunk, channels, strides, strides[-1], options.frozen_levels)
        self.pyramid = pyramid

    def merge(self, maps: list[Tensor]) -> list[Tensor]:
        """See `TrunkBackbone.merge`."""
        named = OrderedDict((str(level), x) for level, x in zip(self.levels, maps, strict=False))
        return list(self.pyramid(named).values())


class CoarserLevel(ExtraFPNBlock):
    """One more level, a 3 x 3 convolution with stride 2 of the coarsest, and then a batch norm on every level.

    Source: official/vision/modeling/decoders/fpn.py, `FPN` (no activation anywhere).
    Departure: see `normalize` for the coarsest level of a single image of 64 x 64 pixels in training.
    """

    def __init__(self, levels: int, channels: int, norm_momentum: float, norm_epsilon: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(channels, eps=norm_epsilon, momentum=norm_momentum) for _ in range(levels)
        )

    def forward(  # torchvision's signature
        self, results: list[Tensor], x: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """Return one map and one name more than the pyramid's `results` and `names`; `x` is not used."""
        del x
        maps = [*results, self.conv(results[-1])]
        return list(map(normalize, self.norms, maps)), [*names, str(int(names[-1]) + 1)]


def pad_as_tensorflow(network: nn.Module) -> None:
    """Replace the convolutions of `network` that pad and have stride 2, and its max-pooling, by `SamePadded...`."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2) and layer.kernel_size > (1, 1):
            kernel, has_bias = layer.kernel_size[0], layer.bias is not None
            replaced = SamePaddedConv2d(layer.in_channels, layer.out_channels, kernel, stride=2, bias=has_bias)
            replaced.load_state_dict(layer.state_dict())
            network.set_submodule(name, replaced)
        elif isinstance(layer, nn.MaxPool2d):
            network.set_submodule(name, SamePaddedMaxPool2d(3, stride=2))
