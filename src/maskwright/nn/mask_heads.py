"""Mask heads: box crops of feature maps to mask logits. A new head is one class and one row of `MASK_HEADS`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maskwright.nn.hourglass import Hourglass, hourglass_levels
from maskwright.nn.layers import ConvBlock, PreActivationBlock, check_divisible, initialize_glorot, normalize


@dataclass(frozen=True)
class MaskHeadSettings:
    """What every head is built from; the meaning of each value is in `create_mask_head`."""

    in_channels: int
    width: int
    num_masks: int
    upsample: int
    mask_size: int | None
    norm_momentum: float
    norm_epsilon: float


class MaskHead(nn.Module, ABC):
    """What every mask head is: box crops `[N, C, S, S]` to mask logits `[N, K, uS, uS]`.

    N may be 0 or 1, also in training (see `layers.normalize`).

    size_divisor: S must be a multiple of it.
    """

    size_divisor = 1

    @abstractmethod
    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k i j"]:
        """Map crops to logits.

        Raises:
            ValueError: the head does not take crops of this size.
        """


class ConvolutionalHead(MaskHead):
    """A trunk that keeps the resolution, an optional enlargement, and a 1 x 1 convolution to the logits.

    It takes crops of any height and width that `size_divisor` divides.

    Source: `project_out` of Deep-MAC's mask head without enlargement; with it, Deep-MARC's `DeepMaskHead`
    (transposed convolution with kernel and stride `upsample` to `width` channels, batch norm, ReLU, logits).
    Departures: an hourglass with `upsample` 1 has no transposed convolution (Deep-MARC's has one of 1 x 1);
    `norm_momentum` is that of the hourglass and of the enlargement (the original's hourglass has its own, 0.9).
    """

    def __init__(
        self, trunk: nn.Module, trunk_channels: int, settings: MaskHeadSettings, *, always_enlarge: bool = False
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.enlarge: nn.ConvTranspose2d | None = None
        channels, factor = trunk_channels, settings.upsample
        if factor > 1 or always_enlarge:
            channels = settings.width
            self.enlarge = nn.ConvTranspose2d(trunk_channels, channels, factor, stride=factor)
            self.enlarge_norm = nn.BatchNorm2d(channels, eps=settings.norm_epsilon, momentum=settings.norm_momentum)
        self.project_out: nn.Module = nn.Conv2d(channels, settings.num_masks, 1)
        initialize_glorot(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k i j"]:
        """See `MaskHead.forward`."""
        check_divisible(x, self.size_divisor)
        x = self.features(x)
        if self.enlarge is not None:
            x = F.relu(normalize(self.enlarge_norm, self.enlarge(x)))
        return self.project_out(x)

    def features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        """The trunk's map, which the enlargement and the logits are made from."""
        return self.trunk(x)


class HourglassHead(ConvolutionalHead):
    """One hourglass of `HOURGLASS_SIZES`; `pool` and `shortcut` as of `Hourglass`."""

    def __init__(self, settings: MaskHeadSettings, size: str, *, pool: int = 2, shortcut: bool = True) -> None:
        width, momentum = settings.width, settings.norm_momentum
        levels = hourglass_levels(size, width)
        trunk = Hourglass(settings.in_channels, width, levels, pool=pool, shortcut=shortcut, norm_momentum=momentum)
        super().__init__(trunk, trunk.out_channels, settings)
        self.size_divisor = trunk.size_divisor

    def features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        """See `ConvolutionalHead.features`."""
        (last,) = self.trunk(x)
        return last


class PreActivationTrunk(nn.Module):
    """A 1 x 1 convolution and stacks of pre-activation blocks, all at the crop's resolution.

    Args:
        in_channels: channels of the crops.
        width: channels of the first convolution.
        blocks: residual blocks of the stack with 2 and of the stack with 3 times `width` channels.
        dilated: how many of the 3 x 3 convolutions, counted from the output, have dilation 2.
        norm_momentum: of the batch norms, in torch's sense.

    Source: object_detection/models/keras_models/resnet_v1.py, `resnet_v1_18` and its like as used by
    `ResNetMaskNetwork`. The paper's table 6 does not say which 10 of the 20 convolutions are dilated: here the last.
    """

    def __init__(
        self, in_channels: int, width: int, blocks: tuple[int, int], dilated: int, norm_momentum: float
    ) -> None:
        super().__init__()
        self.input_layer = nn.Conv2d(in_channels, width, 1)
        self.out_channels = (3 if blocks[1] else 2) * width
        self.blocks = nn.Sequential()
        plain = 2 * sum(blocks) - dilated
        widths = [width, *([2 * width] * blocks[0]), *([3 * width] * blocks[1])]
        for index, (before, after) in enumerate(pairwise(widths)):
            dilations = (1 if 2 * index < plain else 2, 1 if 2 * index + 1 < plain else 2)
            block = PreActivationBlock(before, after, before != after, dilations=dilations, norm_momentum=norm_momentum)
            self.blocks.append(block)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        """Map `[n, in_channels, s, s]` to `[n, out_channels, s, s]`."""
        return self.blocks(self.input_layer(x))


class ResNetHead(ConvolutionalHead):
    """A `PreActivationTrunk`."""

    def __init__(self, settings: MaskHeadSettings, blocks: tuple[int, int], dilated: int = 0) -> None:
        trunk = PreActivationTrunk(settings.in_channels, settings.width, blocks, dilated, settings.norm_momentum)
        super().__init__(trunk, trunk.out_channels, settings)


class FCNHead(ConvolutionalHead):
    """Mask R-CNN's default head as Model Garden has it: 3 x 3 convolutions with bias and batch norm.

    The transposed convolution is there for every `upsample`, also for 1. With `separable` every convolution,
    also that of the logits, is a depthwise and a pointwise one.

    Source: official/projects/deepmac_maskrcnn/modeling/heads/instance_heads.py, `DeepMaskHead`, variant `default`.
    """

    def __init__(self, settings: MaskHeadSettings, convolutions: int = 4, separable: bool = False) -> None:
        momentum, epsilon = settings.norm_momentum, settings.norm_epsilon
        block = partial(ConvBlock, kernel=3, bias=True, norm_momentum=momentum, norm_epsilon=epsilon)
        widths = [settings.in_channels, *([settings.width] * convolutions)]
        blocks = [block(before, after) for before, after in pairwise(widths)]
        super().__init__(nn.Sequential(*blocks), settings.width, settings, always_enlarge=True)
        if separable:
            for name, layer in list(self.named_modules()):
                if isinstance(layer, nn.Conv2d):
                    channels, kernel = layer.in_channels, layer.kernel_size[0]
                    depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
                    pointwise = nn.Conv2d(channels, layer.out_channels, 1)
                    self.set_submodule(name, nn.Sequential(depthwise, pointwise))
            initialize_glorot(self)


class FullyConnectedHead(MaskHead):
    """A 1 x 1 convolution to `width` channels and linear layers over the whole crop (1024, ReLU between).

    Source: object_detection/meta_architectures/deepmac_meta_arch.py, `FullyConnectedMaskHead` (2 layers);
    4 layers are in the paper's table 11 only. Departure: K masks, and a last layer that gives the masks directly at
    `upsample` times the crop's size.
    """

    HIDDEN = 1024

    def __init__(self, settings: MaskHeadSettings, layers: int) -> None:
        super().__init__()
        if settings.mask_size is None:
            raise ValueError("a fully connected mask head needs mask_size (the crop's side in cells), but got None")
        self.mask_size = settings.mask_size
        self.output_shape = (settings.num_masks, *(2 * (settings.upsample * settings.mask_size,)))
        self.input_layer = nn.Conv2d(settings.in_channels, settings.width, 1)
        hidden = [settings.width * settings.mask_size**2, *([self.HIDDEN] * (layers - 1))]
        self.hidden = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(hidden))
        self.output = nn.Linear(self.HIDDEN, math.prod(self.output_shape))
        initialize_glorot(self)

    def forward(self, x: Float[Tensor, "n c s s"]) -> Float[Tensor, "n k t t"]:
        """See `MaskHead.forward`; S is the head's `mask_size`."""
        if x.shape[-1] != self.mask_size or x.shape[-2] != self.mask_size:
            raise ValueError(
                f"this head was built for crops of {self.mask_size} x {self.mask_size}, but got {tuple(x.shape)}"
            )
        x = self.input_layer(x).permute(0, 2, 3, 1).flatten(1)  # the originals flatten in (y, x, channel) order
        for layer in self.hidden:
            x = F.relu(layer(x))
        return self.output(x).unflatten(1, self.output_shape)


MASK_HEADS: dict[str, Callable[[MaskHeadSettings], MaskHead]] = {
    "hourglass10": partial(HourglassHead, size="hourglass10"),
    "hourglass20": partial(HourglassHead, size="hourglass20"),
    "hourglass32": partial(HourglassHead, size="hourglass32"),
    "hourglass52": partial(HourglassHead, size="hourglass52"),
    "hourglass100": partial(HourglassHead, size="hourglass100"),
    "hourglass20_uniform_size": partial(HourglassHead, size="hourglass20", pool=1),
    "hourglass20_no_shortcut": partial(HourglassHead, size="hourglass20", shortcut=False),
    "resnet4": partial(ResNetHead, blocks=(2, 0)),
    "resnet8": partial(ResNetHead, blocks=(4, 0)),
    "resnet12": partial(ResNetHead, blocks=(6, 0)),
    "resnet16": partial(ResNetHead, blocks=(8, 0)),
    "resnet20": partial(ResNetHead, blocks=(8, 2)),
    "resnet20_dilated10": partial(ResNetHead, blocks=(8, 2), dilated=10),
    "resnet20_dilated20": partial(ResNetHead, blocks=(8, 2), dilated=20),
    "fully_connected": partial(FullyConnectedHead, layers=2),
    "fully_connected4": partial(FullyConnectedHead, layers=4),
    "fcn": FCNHead,
    "fcn_separable": partial(FCNHead, separable=True),
}


def create_mask_head(
    name: str,
    in_channels: int,
    width: int,
    num_masks: int = 1,
    upsample: int = 1,
    mask_size: int | None = None,
    norm_momentum: float = 0.1,
    norm_epsilon: float = 1e-4,
) -> MaskHead:
    """Build the mask head `name`, a module from crops `[N, C, S, S]` to logits `[N, K, uS, uS]`.

    Args:
        name: a key of `MASK_HEADS` (the originals' names).
        in_channels: C.
        width: channels of the first convolution (the originals' `num_init_channels` and `num_filters`: 64
            for the hourglass and ResNet heads, 256 for `fcn`); the other widths are multiples of it.
        num_masks: K, 1 for class-agnostic masks.
        upsample: u, the enlargement at the end (1 for Deep-MAC, 2 for Deep-MARC).
        mask_size: S; only the fully connected heads need it, which are built for one size.
        norm_momentum: of the batch norms, in torch's sense (0.9 in the originals' hourglasses).
        norm_epsilon: of the batch norms of the `fcn` heads and of the enlargement.

    Raises:
        ValueError: the name is unknown, or `mask_size` is missing.
    """
    if name not in MASK_HEADS:
        raise ValueError(f"unknown mask head {name!r}; known are {', '.join(MASK_HEADS)}")
    settings = MaskHeadSettings(in_channels, width, num_masks, upsample, mask_size, norm_momentum, norm_epsilon)
    return MASK_HEADS[name](settings)
