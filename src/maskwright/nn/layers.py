"""Convolution blocks that more than one network is built from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maskwright.nn.inference import without_autocast

HOURGLASS_NORM_EPSILON = 1e-5


def normalize(norm: nn.Module, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Apply a batch norm; in training with fewer than two values per channel, use its running statistics.

    Any other module is simply called: `inference.fold_batch_norms` leaves an `nn.Identity` in a norm's place.

    A mask head gets one row per box with a mask, and a deep head shrinks a row to 1 x 1. One value per channel, or
    none, has no variance, and torch refuses it. Padding the rows with copies or zeros would run, but it would write a
    variance of about zero into the running statistics (nine tenths of it at the originals' momentum) and spoil
    inference. With the running statistics, the layer computes what it does at inference. They do not change, and the
    scale and the offset still get gradients (zeros for zero rows).

    Under a synchronised norm the values of all processes count, so that all processes take the same path.
    """
    if isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm) and norm.training and _values_per_channel(norm, x) < 2:
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    return norm(x)


def _values_per_channel(norm: nn.Module, x: Tensor) -> int:
    values = x.numel() // x.shape[1]
    if isinstance(norm, nn.SyncBatchNorm) and torch.distributed.is_initialized():
        total = torch.tensor(values, device=x.device)
        torch.distributed.all_reduce(total, group=norm.process_group)
        return int(total)
    return values


class ConvBlock(nn.Module):
    """Convolution (padded so that stride 1 keeps the size), batch norm, ReLU unless `relu` is false.

    `convolution`: further arguments of `nn.Conv2d`: `stride`, `dilation`, `groups`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        relu: bool = True,
        bias: bool = False,
        norm_momentum: float = 0.1,
        norm_epsilon: float = HOURGLASS_NORM_EPSILON,
        **convolution: Any,
    ) -> None:
        super().__init__()
        padding = convolution.get("dilation", 1) * (kernel // 2)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=padding, bias=bias, **convolution)
        self.norm = nn.BatchNorm2d(out_channels, eps=norm_epsilon, momentum=norm_momentum)
        self.relu = relu

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Map `[n, c, h, w]` to `[n, out_channels, ceil(h / stride), ceil(w / stride)]`."""
        x = normalize(self.norm, self.conv(x))
        return F.relu(x, inplace=True) if self.relu else x


class PostActivationBlock(nn.Module):
    """The hourglass's residual block: two 3 x 3 convolutions and the sum with the skip, ReLU last.

    The skip is the identity, or a 1 x 1 convolution with batch norm where the channels or the stride change;
    `skip_conv` forces the convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        skip_conv: bool = False,
        norm_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.conv_block = ConvBlock(in_channels, out_channels, 3, stride=stride, norm_momentum=norm_momentum)
        self.conv = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, eps=HOURGLASS_NORM_EPSILON, momentum=norm_momentum)
        self.skip: nn.Module = nn.Identity()
        if skip_conv or stride > 1 or in_channels != out_channels:
            self.skip = ConvBlock(in_channels, out_channels, 1, stride=stride, relu=False, norm_momentum=norm_momentum)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Map `[n, c, h, w]` to `[n, out_channels, h / stride, w / stride]`."""
        y = normalize(self.norm, self.conv(self.conv_block(x)))
        return F.relu(y.add_(self.skip(x)), inplace=True)


class PreActivationBlock(nn.Module):
    """The originals' basic block of their small ResNets: norm and ReLU come first, no ReLU follows the sum.

    norm, ReLU, 3 x 3, norm, ReLU, 3 x 3 with the stride, norm, ReLU, sum. With `skip_conv` the skip is a 1 x 1
    convolution with bias of the pre-activated input, else every `stride`-th pixel of the plain input.

    Source: object_detection/models/keras_models/resnet_v1.py, `block_basic`.
    """

    NORM_EPSILON = 1.001e-5

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        skip_conv: bool,
        stride: int = 1,
        *,
        dilations: tuple[int, int] = (1, 1),
        norm_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.norm0 = nn.BatchNorm2d(in_channels, eps=self.NORM_EPSILON, momentum=norm_momentum)
        first, second = dilations
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=first, dilation=first, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels, eps=self.NORM_EPSILON, momentum=norm_momentum)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride, padding=second, dilation=second, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels, eps=self.NORM_EPSILON, momentum=norm_momentum)
        self.stride = stride
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if skip_conv else None

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Map `[n, c, h, w]` to `[n, out_channels, h / stride, w / stride]`."""
        y = F.relu(normalize(self.norm0, x))
        skip = x[:, :, :: self.stride, :: self.stride] if self.skip is None else self.skip(y)
        y = F.relu(normalize(self.norm1, self.conv1(y)))
        y = F.relu(normalize(self.norm2, self.conv2(y)))
        return y + skip


class FullPrecisionConv2d(nn.Conv2d):
    """A convolution that stays in float32 under autocast, for outputs that need more than bfloat16's 8 bits."""

    full_precision = True

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        """See `Conv2d`."""
        with without_autocast(input.device):
            return super().forward(input.to(self.weight.dtype))


def prediction_head(
    in_channels: int,
    hidden: int,
    out_channels: int,
    kernel: Sequence[int] = (3, 3),
    output: type[nn.Conv2d] = nn.Conv2d,
) -> nn.Sequential:
    """CenterNet's head on a feature map: convolution, ReLU, 1 x 1 convolution (an `output`); biases, no norm.

    Source: object_detection/meta_architectures/center_net_meta_arch.py, `make_prediction_net`.
    """
    height, width = kernel
    first = nn.Conv2d(in_channels, hidden, (height, width), padding=(height // 2, width // 2))
    head = nn.Sequential(first, nn.ReLU(inplace=True), output(hidden, out_channels, 1))
    initialize_glorot(head)
    return head


def initialize_glorot(module: nn.Module) -> None:
    """Draw every convolution and linear weight below `module` from Glorot's uniform range; biases become 0."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def check_divisible(x: Tensor, divisor: int) -> None:
    """Refuse maps whose height or width is not a multiple of `divisor`.

    Raises:
        ValueError: naming the size and the divisor.
    """
    height, width = x.shape[-2:]
    if height % divisor or width % divisor:
        raise ValueError(f"height and width must be multiples of {divisor}, but got {height} x {width}")
