"""SpineNet: a backbone whose blocks change scale in an order found by search; it needs no feature pyramid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import Conv2dNormActivation, StochasticDepth

from maskwright.nn.feature_maps import Backbone, BackboneOptions
from maskwright.nn.layers import check_divisible
from maskwright.nn.same_padding import SamePadding

Norm = Callable[[int], nn.Module]


@dataclass(frozen=True)
class SpineNetSize:
    """What the SpineNets differ in.

    endpoint_channels: of each of the five maps.
    filter_scale: factor on the channels of all blocks.
    resample_alpha: factor on the channels on the way from one scale to another.
    repeats: residual blocks per node.
    """

    endpoint_channels: int
    filter_scale: float
    resample_alpha: float
    repeats: int


_SEARCHED_NODES = 16
_STEM_CHANNELS = 64
_STEM_LEVEL = 2
_CHANNELS = {2: 64, 3: 128, 4: 256, 5: 256, 6: 256, 7: 256}  # of a block's 3 x 3 convolutions, by its level


class DropPathBasicBlock(BasicBlock):
    """torchvision's residual block; in training some images take the shortcut alone."""

    def __init__(self, *args: Any, drop_probability: float = 0.0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.drop_path = StochasticDepth(drop_probability, "row")

    def forward(self, x: Tensor) -> Tensor:
        """See `BasicBlock`."""
        branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(self.drop_path(branch).add_(x if self.downsample is None else self.downsample(x)))


class DropPathBottleneck(Bottleneck):
    """torchvision's bottleneck; in training some images take the shortcut alone."""

    def __init__(self, *args: Any, drop_probability: float = 0.0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.drop_path = StochasticDepth(drop_probability, "row")

    def forward(self, x: Tensor) -> Tensor:
        """See `Bottleneck`."""
        branch = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        branch = self.bn3(self.conv3(branch))
        return self.relu(self.drop_path(branch).add_(x if self.downsample is None else self.downsample(x)))


# Level, blocks, parents, and whether it is an output. Nodes 0 and 1 are the stem's, the first row is node 2. The search
# also found an output of level 2 (the last row of the original's table), which no detector here asks for.
_ARCHITECTURE = (
    (2, DropPathBottleneck, (0, 1), False),
    (4, DropPathBasicBlock, (0, 1), False),
    (3, DropPathBottleneck, (2, 3), False),
    (4, DropPathBottleneck, (2, 4), False),
    (6, DropPathBasicBlock, (3, 5), False),
    (4, DropPathBottleneck, (3, 5), False),
    (5, DropPathBasicBlock, (6, 7), False),
    (7, DropPathBasicBlock, (6, 8), False),
    (5, DropPathBottleneck, (8, 9), False),
    (5, DropPathBottleneck, (8, 10), False),
    (4, DropPathBottleneck, (5, 10), True),
    (3, DropPathBottleneck, (4, 10), True),
    (5, DropPathBottleneck, (7, 12), True),
    (7, DropPathBottleneck, (5, 14), True),
    (6, DropPathBottleneck, (12, 14), True),
)


@dataclass(frozen=True)
class Node:
    """One node of the scale-permuted network.

    level: its stride is `2 ** level`.
    kind: of its residual blocks.
    width: channels of their 3 x 3 convolutions.
    parents: the two nodes that are resampled to this one's scale and channels.
    merged: further nodes of this scale and these channels, which are added unchanged.
    is_output: whether a map of the backbone is made from it.
    """

    level: int
    kind: type[DropPathBasicBlock] | type[DropPathBottleneck]
    width: int
    parents: tuple[int, ...] = ()
    merged: tuple[int, ...] = ()
    is_output: bool = False

    @property
    def channels(self) -> int:
        """Of its output."""
        return self.width * self.kind.expansion


def plan_nodes(filter_scale: float) -> list[Node]:
    """The nodes in the order of computation, the two of the stem first.

    An output merges every earlier node of its own scale and channels that no node has used so far. This is the
    original's rule for a fixed input width, with which its models are trained and served.
    """
    stem = Node(_STEM_LEVEL, DropPathBottleneck, int(_CHANNELS[_STEM_LEVEL] * filter_scale))
    nodes, used = [stem, stem], set()
    for level, kind, parents, is_output in _ARCHITECTURE:
        node = Node(level, kind, int(_CHANNELS[level] * filter_scale), parents, is_output=is_output)
        used.update(parents)
        if is_output:
            alike = (i for i, other in enumerate(nodes) if (other.level, other.channels) == (level, node.channels))
            node = replace(node, merged=tuple(i for i in alike if i not in used))
            used.update(node.merged)
        nodes.append(node)
    return nodes


class SpineNet(Backbone):
    """SpineNet: a backbone of the levels 3 to 7 (level l has stride `2 ** l`).

    Args:
        size: which of the family.
        options: `width` scales all channels but the stem's 64. `norm_momentum` is 0.01 and `norm_epsilon` 1e-3 in the
            original. `drop_path_rate`: in training, the probability that an image skips a residual block of the last of
            the 16 nodes; it rises linearly from node to node (the stem keeps its blocks).

    Source: arXiv 1912.05027; official/vision/modeling/backbones/spinenet.py, `SpineNet` with min_level 3 and a
    fixed input width. Strided layers pad as TensorFlow's SAME does: on the right and at the bottom only.
    Departures: ReLU only; initial weights are normal with variance 1 / fan-in, but not truncated.
    """

    def __init__(self, size: SpineNetSize, options: BackboneOptions) -> None:
        channels = options.scaled(size.endpoint_channels)
        super().__init__(channels, [2**level for level in range(3, 8)], size_divisor=128)
        norm = partial(nn.BatchNorm2d, eps=options.norm_epsilon, momentum=options.norm_momentum)
        self.plan = plan_nodes(size.filter_scale * options.width)
        stem, *_ = self.plan
        self.stem = nn.Sequential(SamePadding(7), *_convolution(3, _STEM_CHANNELS, 7, 2, norm), _halving())
        self.stem_groups = nn.ModuleList(
            _residual_blocks(before, stem, size.repeats, norm) for before in (_STEM_CHANNELS, stem.channels)
        )
        self.nodes = nn.ModuleList()
        self.endpoints = nn.ModuleDict()
        for node in self.plan:
            if node.parents:
                parents = [self.plan[index] for index in node.parents]
                probability = options.drop_path_rate * (len(self.nodes) + 1) / _SEARCHED_NODES
                self.nodes.append(ScalePermutedNode(parents, node, size, norm, probability))
            if node.is_output:
                self.endpoints[str(node.level)] = _convolution(node.channels, channels, 1, 1, norm)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="linear")

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """See `Backbone.forward`.

        Raises:
            ValueError: H or W is not a multiple of `size_divisor`; or, in training, a single image whose map of level 7
                has one value per channel, from which batch norms cannot learn.
        """
        check_divisible(images, self.size_divisor)
        self._check_norms(images)
        x = self.stem(images)
        features: list[Tensor] = []
        for group in self.stem_groups:
            x = group(x)
            features.append(x)
        outputs: dict[int, Tensor] = {}
        for node, module in zip(self.plan[len(features) :], self.nodes, strict=True):
            parents = [features[index] for index in node.parents]
            features.append(module(parents, [features[index] for index in node.merged]))
            if node.is_output:
                outputs[node.level] = self.endpoints[str(node.level)](features[-1])
        return [outputs[level] for level in self.levels]

    def _check_norms(self, images: Tensor) -> None:
        synchronised = any(isinstance(part, nn.SyncBatchNorm) for part in self.endpoints.modules())
        (count, _, height, width), side = images.shape, self.size_divisor
        if self.training and not synchronised and count * height * width < 2 * side**2:
            raise ValueError(
                f"a SpineNet is trained on two images of {side} x {side} pixels at least, or on a larger one (its "
                f"batch norms need two values per channel), but got {count} of {height} x {width}"
            )


class ScalePermutedNode(nn.Module):
    """Two parents brought to one scale and width, their sum with the merged nodes, ReLU, residual blocks."""

    def __init__(
        self, parents: list[Node], node: Node, size: SpineNetSize, norm: Norm, drop_probability: float
    ) -> None:
        super().__init__()
        self.resample = nn.ModuleList(Resample(parent, node, size.resample_alpha, norm) for parent in parents)
        self.blocks = _residual_blocks(node.channels, node, size.repeats, norm, drop_probability)

    def forward(self, parents: list[Tensor], merged: list[Tensor]) -> Tensor:
        """Return the node's map from its parents' and from those that are merged."""
        resampled = [resample(parent) for resample, parent in zip(self.resample, parents, strict=True)]
        return self.blocks(F.relu(reduce(torch.add, [*resampled, *merged])))


class Resample(nn.Module):
    """One node's map at the scale and with the channels of another: fewer channels, the scale, all channels.

    Down: a 3 x 3 convolution with stride 2, then max-pooling for each further halving. Up: nearest neighbour.
    The last norm has no activation.
    """

    def __init__(self, source: Node, target: Node, alpha: float, norm: Norm) -> None:
        super().__init__()
        between = int(source.width * alpha)
        self.reduce = _convolution(source.channels, between, 1, 1, norm)
        self.scale: nn.Module = nn.Identity()
        halvings = target.level - source.level
        if halvings > 0:
            pools = (_halving() for _ in range(halvings - 1))
            self.scale = nn.Sequential(SamePadding(3), *_convolution(between, between, 3, 2, norm), *pools)
        elif halvings < 0:
            self.scale = nn.Upsample(scale_factor=2**-halvings, mode="nearest")
        self.expand = Conv2dNormActivation(between, target.channels, 1, norm_layer=norm, activation_layer=None)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """Map `[B, source channels, h, w]` to `[B, target channels, i, j]`."""
        return self.expand(self.scale(self.reduce(x)))


def _residual_blocks(before: int, node: Node, repeats: int, norm: Norm, drop_probability: float = 0.0) -> nn.Sequential:
    """The blocks of a node; the first one's shortcut is a convolution where the channels change."""
    shortcut = None
    if before != node.channels:
        shortcut = Conv2dNormActivation(before, node.channels, 1, norm_layer=norm, activation_layer=None)
    create = partial(node.kind, norm_layer=norm, drop_probability=drop_probability)
    first = create(before, node.width, downsample=shortcut)
    return nn.Sequential(first, *(create(node.channels, node.width) for _ in range(repeats - 1)))


def _convolution(before: int, after: int, kernel: int, stride: int, norm: Norm) -> Conv2dNormActivation:
    """Convolution, norm, ReLU; no padding."""
    return Conv2dNormActivation(before, after, kernel, stride, padding=0, norm_layer=norm)


def _halving() -> nn.MaxPool2d:
    """3 x 3 with stride 2; of an even size the last window hangs over the edge, as with TensorFlow's SAME."""
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)
