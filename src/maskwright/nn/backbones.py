"""The registries of backbones: images to feature maps. A new backbone is its trunk and one row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial

from jaxtyping import Float
from torch import Tensor
from torchvision.models.resnet import BasicBlock, Bottleneck

from maskwright.nn.efficientnet_lite import EfficientNetLite, published_weights
from maskwright.nn.feature_maps import Backbone, BackboneOptions, Trunk
from maskwright.nn.feature_pyramids import DetectionPyramidBackbone, SummedPyramidBackbone, TopDownBackbone
from maskwright.nn.hourglass import Hourglass, hourglass_levels
from maskwright.nn.resnet import ResNetTrunk
from maskwright.nn.resnet_v1 import ResNetV1Trunk
from maskwright.nn.spinenet import SpineNet, SpineNetSize

_REFUSALS = {
    "pretrained": "there are no ImageNet weights for {name}; set pretrained to false",
    "frozen_levels": "{name} has no levels to freeze, but got frozen_levels {value}",
    "padding": "{name} is always padded as its weights need it; set padding to 'symmetric'",
    "trunk_norm_epsilon": "{name} has no trunk_norm_epsilon, but got {value}; leave it out",
    "drop_path_rate": "{name} has no drop_path_rate, but got {value}; leave it out",
}
"""The options that not every backbone has, and what is said where one is set that this backbone has not."""


@dataclass(frozen=True)
class BackboneRow:
    """One row of a registry.

    create: builds the backbone.
    options: those of the keys of `_REFUSALS` that it has.
    """

    create: Callable[[BackboneOptions], Backbone]
    options: frozenset[str] = frozenset()


@dataclass(frozen=True)
class TrunkRow:
    """One row of `TRUNKS`.

    create: builds the trunk, with its ImageNet weights if they are asked for.
    options: as of `BackboneRow`.
    pyramid_channels: of Deep-MARC's pyramid on it.
    """

    create: Callable[[BackboneOptions], Trunk]
    options: frozenset[str]
    pyramid_channels: int


class HourglassBackbone(Backbone):
    """CenterNet's backbone: stacked hourglasses behind a stem of stride 4; one map of stride 4 per stack."""

    def __init__(self, size: str, stem_channels: int, stacks: int, options: BackboneOptions) -> None:
        stem = options.scaled(stem_channels)
        levels = hourglass_levels(size, stem)
        network = Hourglass(3, stem, levels, stacks=stacks, stem_stride=4, norm_momentum=options.norm_momentum)
        super().__init__(network.out_channels, (4,) * stacks, network.size_divisor)
        self.network = network

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """See `Backbone.forward`."""
        return self.network(images)


def _resnet(
    name: str, block: type[BasicBlock | Bottleneck], repeats: tuple[int, ...], options: BackboneOptions
) -> ResNetTrunk:
    epsilon = options.trunk_norm_epsilon or options.norm_epsilon
    trunk = ResNetTrunk(block, repeats, options.width, options.norm_momentum, epsilon)
    if options.pretrained:
        trunk.load_published(name)
    return trunk


def _efficientnet_lite(name: str, options: BackboneOptions) -> EfficientNetLite:
    trunk = EfficientNetLite(name, options.width, options.norm_momentum)
    if options.pretrained:
        trunk.load_published(published_weights(name))
    return trunk


def _resnet_v1(repeats: tuple[int, ...], bottleneck: bool, options: BackboneOptions) -> TopDownBackbone:
    trunk = ResNetV1Trunk(repeats, bottleneck=bottleneck, width=options.width, norm_momentum=options.norm_momentum)
    return TopDownBackbone(trunk, options)


def _summed_pyramid(row: TrunkRow, options: BackboneOptions) -> SummedPyramidBackbone:
    return SummedPyramidBackbone(row.create(options), options)


def _detection_pyramid(row: TrunkRow, options: BackboneOptions) -> DetectionPyramidBackbone:
    return DetectionPyramidBackbone(row.create(options), options.scaled(row.pyramid_channels), options)


_TRUNK = frozenset({"pretrained", "frozen_levels"})
_RESNET = _TRUNK | {"padding", "trunk_norm_epsilon"}
_RESNET_V1 = frozenset({"frozen_levels"})
_SPINENET = frozenset({"padding", "drop_path_rate"})  # its padding is "same" whatever the option says

TRUNKS: dict[str, TrunkRow] = {
    "resnet18": TrunkRow(partial(_resnet, "resnet18", BasicBlock, (2, 2, 2, 2)), _RESNET, 256),
    "resnet34": TrunkRow(partial(_resnet, "resnet34", BasicBlock, (3, 4, 6, 3)), _RESNET, 256),
    "resnet50": TrunkRow(partial(_resnet, "resnet50", Bottleneck, (3, 4, 6, 3)), _RESNET, 256),
    "resnet101": TrunkRow(partial(_resnet, "resnet101", Bottleneck, (3, 4, 23, 3)), _RESNET, 256),
    # for laptops
    "efficientnet_lite0": TrunkRow(partial(_efficientnet_lite, "efficientnet_lite0"), _TRUNK, 64),
    "efficientnet_lite2": TrunkRow(partial(_efficientnet_lite, "efficientnet_lite2"), _TRUNK, 64),
}
"""With `_fpn` behind its name, each is a backbone of Deep-MAC and of Deep-MARC."""

BACKBONES: dict[str, BackboneRow] = {
    "hourglass10": BackboneRow(partial(HourglassBackbone, "hourglass10", 32, 1)),
    "hourglass20": BackboneRow(partial(HourglassBackbone, "hourglass20", 48, 1)),
    "hourglass32": BackboneRow(partial(HourglassBackbone, "hourglass32", 48, 1)),
    "hourglass52": BackboneRow(partial(HourglassBackbone, "hourglass52", 64, 1)),
    "hourglass104": BackboneRow(partial(HourglassBackbone, "hourglass52", 128, 2)),  # two such stacks, twice as wide
    "resnet_v1_18_fpn": BackboneRow(partial(_resnet_v1, (2, 2, 2, 2), False), _RESNET_V1),
    "resnet_v1_34_fpn": BackboneRow(partial(_resnet_v1, (3, 4, 6, 3), False), _RESNET_V1),
    "resnet_v1_50_fpn": BackboneRow(partial(_resnet_v1, (3, 4, 6, 3), True), _RESNET_V1),
    "resnet_v1_101_fpn": BackboneRow(partial(_resnet_v1, (3, 4, 23, 3), True), _RESNET_V1),
    **{f"{name}_fpn": BackboneRow(partial(_summed_pyramid, row), row.options & _TRUNK) for name, row in TRUNKS.items()},
}
"""Backbones of Deep-MAC: maps of stride 4, one per output. Losses average over all, inference uses the last."""

DETECTION_BACKBONES: dict[str, BackboneRow] = {
    **{f"{name}_fpn": BackboneRow(partial(_detection_pyramid, row), row.options) for name, row in TRUNKS.items()},
    "spinenet49s": BackboneRow(partial(SpineNet, SpineNetSize(128, 0.65, 0.5, 1)), _SPINENET),
    "spinenet49": BackboneRow(partial(SpineNet, SpineNetSize(256, 1.0, 0.5, 1)), _SPINENET),
    "spinenet96": BackboneRow(partial(SpineNet, SpineNetSize(256, 1.0, 0.5, 2)), _SPINENET),
    "spinenet143": BackboneRow(partial(SpineNet, SpineNetSize(256, 1.0, 1.0, 3)), _SPINENET),
    "spinenet143l": BackboneRow(partial(SpineNet, SpineNetSize(256, 1.3, 1.0, 3)), _SPINENET),
    "spinenet190": BackboneRow(partial(SpineNet, SpineNetSize(512, 1.3, 1.0, 4)), _SPINENET),
}
"""Backbones of Deep-MARC: one map per level, finest first."""


def create_backbone(
    name: str, width: float = 1.0, norm_momentum: float = 0.1, pretrained: bool = False, frozen_levels: int = 0
) -> Backbone:
    """Build the backbone `name` of `BACKBONES`; for the other arguments see `BackboneOptions`.

    Raises:
        ValueError: the name is unknown, a value is out of its range, or this backbone lacks the option.
        ModuleNotFoundError: the package with the ImageNet weights is not installed.
    """
    options = BackboneOptions(width, norm_momentum, pretrained=pretrained, frozen_levels=frozen_levels)
    return _create(BACKBONES, name, options)


def create_trunk(name: str, options: BackboneOptions) -> Trunk:
    """Build the trunk `name` of `TRUNKS`, its first `options.frozen_levels` levels frozen. Raises as above."""
    trunk = TRUNKS[name].create(options)
    trunk.freeze(options.frozen_levels)
    return trunk


def create_detection_backbone(name: str, options: BackboneOptions) -> Backbone:
    """Build the backbone `name` of `DETECTION_BACKBONES`. Raises what `create_backbone` does."""
    return _create(DETECTION_BACKBONES, name, options)


def _create(registry: Mapping[str, BackboneRow], name: str, options: BackboneOptions) -> Backbone:
    if name not in registry:
        raise ValueError(f"unknown backbone {name!r}; known are {', '.join(registry)}")
    row = registry[name]
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name in _REFUSALS.keys() - row.options and value != field.default:
            raise ValueError(_REFUSALS[field.name].format(name=name, value=value))
    return row.create(options)
