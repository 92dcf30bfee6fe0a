"""TensorFlow's SAME padding for a stride of 2: where the size is even, one less on the left and top."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class SamePadding(nn.Module):
    """The zeros around a map for a `kernel` x `kernel` window of stride 2."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
        """Pad the map."""
        return _pad_same(x, self.kernel)


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


class EvenlyPaddedConv2d(nn.Conv2d):
    """What `SamePaddedConv2d` computes, without a padded copy of the map, which may cost more than the convolution.

    The padding is the same on all sides, and where the size is even the kernel begins with a tap of zero.
    """

    @classmethod
    def of(cls, layer: nn.Conv2d) -> EvenlyPaddedConv2d:
        """Instead of a `SamePaddedConv2d`, or a convolution behind a `SamePadding`; it shares their parameters."""
        made = cls(layer.in_channels, layer.out_channels, 1, groups=layer.groups, bias=False, device="meta")
        made.kernel_size, made.stride = layer.kernel_size, layer.stride
        made.padding = (layer.kernel_size[0] // 2, layer.kernel_size[1] // 2)
        made.weight, made.bias = layer.weight, layer.bias
        return made.train(layer.training)

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """See `SamePaddedConv2d`."""
        height, width = input.shape[-2:]
        weight = F.pad(self.weight, (1 - width % 2, 0, 1 - height % 2, 0))
        return F.conv2d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def _pad_same(x: Tensor, kernel: int) -> Tensor:
    padding: list[int] = []
    for size in (x.shape[-1], x.shape[-2]):
        total = kernel - 2 + size % 2
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding)
