"""torchvision's ResNet as a trunk: its names, its blocks, and a factor on its widths."""

from __future__ import annotations

from functools import partial

import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from maskwright.nn.feature_maps import Trunk


class ResNetTrunk(Trunk):
    """torchvision's ResNet without its classifier: the maps of `layer1` to `layer4`.

    Args:
        block: torchvision's.
        repeats: blocks per layer.
        width: factor on all channel counts.
        norm_momentum: of the batch norms, in torch's sense.
        norm_epsilon: of the batch norms.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        repeats: tuple[int, ...],
        width: float,
        norm_momentum: float,
        norm_epsilon: float,
    ) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm2d, eps=norm_epsilon, momentum=norm_momentum)
        before = max(1, round(64 * width))
        self.conv1 = nn.Conv2d(3, before, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(before)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.channels = []
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
        """See `Trunk.levels`."""
        first, *rest = (self.get_submodule(f"layer{index + 1}") for index in range(len(self.channels)))
        return [[self.conv1, self.bn1, self.relu, self.maxpool, first], *([layer] for layer in rest)]

    def load_published(self, name: str) -> None:
        """Load torchvision's ImageNet weights of `name` ("resnet50"), downloaded once; they fit width 1."""
        weights = torchvision.models.get_model_weights(name)["DEFAULT"].get_state_dict(progress=False)
        self.load_state_dict({key: value for key, value in weights.items() if not key.startswith("fc.")})
