"""TensorFlow's SAME padding of convolutions with a stride of 2."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class SamePadding(nn.Module):
    """The zeros around a map for the convolution behind it, which has a stride of 2 and pads nothing itself.

    Where the size is even they are one less on the left and top than on the right and bottom.

    Args:
        padding: zeros on the right and bottom, half the kernel's size rounded down.
    """

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c i j"]:
        """Pad the map."""
        height, width = x.shape[-2:]
        left, top = (self.padding - 1 + size % 2 for size in (width, height))
        return functional.pad(x, (left, self.padding, top, self.padding))


class SamePaddedConv2d(nn.Conv2d):
    """A convolution that does the work of the `SamePadding` before it.

    It makes no padded copy of the map, which costs more than the convolution where the map is large: its padding is the
    same on all sides, and where the size is even its kernel begins with a tap of zero.
    """

    @classmethod
    def of(cls, padding: SamePadding, layer: nn.Conv2d) -> SamePaddedConv2d:
        """Both in one; it shares the layer's parameters."""
        made = cls(layer.in_channels, layer.out_channels, 1, groups=layer.groups, bias=False, device="meta")
        made.kernel_size, made.stride = layer.kernel_size, layer.stride
        made.padding = (padding.padding, padding.padding)
        made.weight, made.bias = layer.weight, layer.bias
        return made.train(layer.training)

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """See `SamePadding`."""
        height, width = input.shape[-2:]
        weight = functional.pad(self.weight, (1 - width % 2, 0, 1 - height % 2, 0))
        return functional.conv2d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
