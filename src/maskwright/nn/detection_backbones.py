"""Backbones of detectors: images to one map per level, all with the same channels."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal, cast, get_args

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from maskwright.nn.backbones import PyramidTrunk, create_efficientnet_lite0_trunk, create_resnet_trunk
from maskwright.nn.hourglass import check_divisible
from maskwright.nn.layers import normalize
from maskwright.nn.spinenet import SPINENET_SIZES, SpineNet, create_spinenet

Padding = Literal["symmetric", "same"]
PYRAMID_CHANNELS = 256
SMALL_PYRAMID_CHANNELS = 64  # of the EfficientNet, which is for laptops
RESNETS = ("resnet18_fpn", "resnet34_fpn", "resnet50_fpn", "resnet101_fpn")
EFFICIENTNET = "efficientnet_lite0_fpn"
DETECTION_BACKBONES = (*RESNETS, EFFICIENTNET, *SPINENET_SIZES)


class ResNetFPN(nn.Module):
    """torchvision's ResNet and feature pyramid: `[B, 3, H, W]` to the maps of levels 2 to 6 (level l: stride `2 ** l`).

    EfficientNet-Lite0 may take the ResNet's place (ours, for small models).

    levels: 2 to 6.
    out_channels: of each map.
    size_divisor: H and W must be multiples of it.

    The pyramid is Model Garden's: lateral and 3 x 3 convolutions with biases as torchvision's, and after them
    `CoarserLevel`. For depth 50 and more this is the original's function in all, if `padding` is "same".
    (Its ResNet-18 and 34 have a convolution in the shortcut of the very first block, which torchvision's lack.)

    Args:
        trunk: the ResNet, or another network of the same four strides.
        channels: of each map.
        norm_momentum: of the pyramid's batch norms, in torch's sense.
        norm_epsilon: of the pyramid's batch norms.
        padding: of layers with stride 2, see `create_detection_backbone`.
        frozen_levels: so many of the trunk's four levels, finest first, keep their weights and statistics in training.

    Source: official/vision/modeling/backbones/resnet.py and decoders/fpn.py.
    """

    levels = (2, 3, 4, 5, 6)
    size_divisor = 64

    def __init__(
        self,
        trunk: PyramidTrunk,
        channels: int,
        norm_momentum: float,
        norm_epsilon: float,
        padding: Padding,
        frozen_levels: int = 0,
    ) -> None:
        super().__init__()
        self.out_channels = channels
        self.trunk = trunk
        coarser = CoarserLevel(len(self.levels), channels, norm_momentum, norm_epsilon)
        self.pyramid = FeaturePyramidNetwork(trunk.channels, channels, coarser)
        if padding == "same":
            pad_as_tensorflow(self)
        self.frozen_levels = frozen_levels
        for part in self._frozen_parts():
            part.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> ResNetFPN:
        """Set the training mode; frozen levels stay in inference mode and keep their norms' statistics."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def _frozen_parts(self) -> list[nn.Module]:
        # Asked anew each time: a conversion to synchronised norms replaces modules.
        return [part for level in self.trunk.levels()[: self.frozen_levels] for part in level]

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> OrderedDict[str, Tensor]:
        """Return the maps `[B, out_channels, H / 2 ** l, W / 2 ** l]` by level, "2" to "6", finest first.

        Raises:
            ValueError: H or W is not a multiple of `size_divisor`.
        """
        check_divisible(images, self.size_divisor)
        maps = OrderedDict(zip(map(str, self.levels), self.trunk(images), strict=False))
        return self.pyramid(maps)


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
        normed = [normalize(cast(nn.BatchNorm2d, norm), level) for norm, level in zip(self.norms, maps, strict=True)]
        return normed, [*names, str(int(names[-1]) + 1)]


class SamePaddedConv2d(nn.Conv2d):
    """A convolution with stride 2 that pads as TensorFlow's SAME does: an even size on the right and bottom only."""

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """Map `[B, c, h, w]` to `[B, d, ceil(h / 2), ceil(w / 2)]`."""
        return super().forward(_pad_same(input, self.kernel_size[0]))


class SamePaddedMaxPool2d(nn.MaxPool2d):
    """Max-pooling of values that are not negative, with stride 2 and the padding of `SamePaddedConv2d`."""

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
        """Map `[B, c, h, w]` to `[B, c, ceil(h / 2), ceil(w / 2)]`."""
        return F.max_pool2d(_pad_same(input, 3), 3, stride=2)


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


def _pad_same(x: Tensor, kernel: int) -> Tensor:
    padding: list[int] = []
    for size in (x.shape[-1], x.shape[-2]):
        total = kernel - 2 + size % 2
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding)


def create_detection_backbone(
    name: str,
    width: float = 1.0,
    norm_momentum: float = 0.01,
    norm_epsilon: float = 1e-5,
    pretrained: bool = False,
    padding: Padding = "symmetric",
    frozen_levels: int = 0,
    trunk_norm_epsilon: float | None = None,
    drop_path_rate: float = 0.0,
) -> ResNetFPN | SpineNet:
    """Build the backbone `name`; its `levels`, `out_channels` and `size_divisor` say what `forward` returns and takes.

    Args:
        name: one of `DETECTION_BACKBONES`.
        width: factor on the channel counts (small networks for tests); 1 is the published size.
        norm_momentum: of the batch norms, in torch's sense (the originals: 0.003 for ResNets, 0.01 for SpineNets).
        norm_epsilon: of the batch norms (the originals: 1e-4 for ResNets, 1e-3 for SpineNets).
        pretrained: start from ImageNet weights: a ResNet from torchvision's (downloaded once), EfficientNet-Lite0
            from those of its package. The pyramid is always new.
        padding: of a ResNet's layers with stride 2: "symmetric" as torchvision has it and its weights need it,
            "same" as TensorFlow has it and weights from there need it (an even size is padded on the right and
            at the bottom only: what a cell sees lies almost a whole cell further there). SpineNets are always "same".
        frozen_levels: so many of a trunk's four levels, finest first, keep their weights and statistics in training
            (not for SpineNets).
        trunk_norm_epsilon: of the batch norms of a ResNet below its pyramid, if it is not `norm_epsilon`: the ImageNet
            weights of torchvision have 1e-5. (EfficientNet-Lite0 always has its own.)
        drop_path_rate: see `SpineNet`, which alone has it.

    Raises:
        ValueError: the name is unknown, a value is out of its range or not for this network, or there are no weights
            for it.
    """
    _check_values(name, width, pretrained, padding, frozen_levels)
    for option, value, ours in (
        ("trunk_norm_epsilon", trunk_norm_epsilon, name in RESNETS),
        ("drop_path_rate", drop_path_rate, name in SPINENET_SIZES),
    ):
        if value and not ours:
            raise ValueError(f"{name} has no {option}, but got {value}; leave it out")
    if trunk_norm_epsilon is not None and trunk_norm_epsilon <= 0:
        raise ValueError(f"trunk_norm_epsilon must be above 0, but got {trunk_norm_epsilon}")
    if name in SPINENET_SIZES:
        return create_spinenet(name, width, norm_momentum, norm_epsilon, drop_path_rate)
    if name == EFFICIENTNET:
        trunk: PyramidTrunk = create_efficientnet_lite0_trunk(width, norm_momentum, pretrained=pretrained)
        channels = SMALL_PYRAMID_CHANNELS
    else:
        epsilon = trunk_norm_epsilon or norm_epsilon
        resnet = name.removesuffix("_fpn")
        trunk = create_resnet_trunk(resnet, width, norm_momentum, norm_epsilon=epsilon, pretrained=pretrained)
        channels = PYRAMID_CHANNELS
    return ResNetFPN(trunk, max(1, round(channels * width)), norm_momentum, norm_epsilon, padding, frozen_levels)


def _check_values(name: str, width: float, pretrained: bool, padding: str, frozen_levels: int) -> None:
    if name not in DETECTION_BACKBONES:
        raise ValueError(f"unknown backbone {name!r}; known are {', '.join(DETECTION_BACKBONES)}")
    if width <= 0:
        raise ValueError(f"width of a backbone must be positive, but got {width}")
    if padding not in get_args(Padding):
        raise ValueError(f"padding of a backbone must be 'symmetric' or 'same', but got {padding!r}")
    if pretrained and (width != 1 or padding != "symmetric"):
        raise ValueError(f"ImageNet weights fit width 1 and padding 'symmetric' only, but got {width} and {padding!r}")
    if not 0 <= frozen_levels <= 4:
        raise ValueError(f"frozen_levels of a backbone must lie in 0..4, but got {frozen_levels}")
    if name in SPINENET_SIZES and pretrained:
        raise ValueError(f"there are no ImageNet weights for {name}; set pretrained to false")
    if name in SPINENET_SIZES and frozen_levels:
        raise ValueError(f"a SpineNet has no levels to freeze, but got frozen_levels {frozen_levels}")
    if name == EFFICIENTNET and padding != "symmetric":
        raise ValueError(f"{name} is always padded as its weights need it; set padding to 'symmetric'")
