"""The stacked hourglass network: one class for the trunk of mask heads and for CenterNet's backbone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maskwright.nn.layers import ConvBlock, PostActivationBlock, check_divisible, initialize_glorot

HOURGLASS_SIZES = {
    "hourglass10": ((2, 1), (2, 1)),
    "hourglass20": ((2, 1), (2, 2), (3, 2)),
    "hourglass32": ((2, 2), (2, 2), (3, 2), (3, 2)),
    "hourglass52": ((2, 2), (2, 2), (3, 2), (3, 2), (3, 2), (4, 4)),
    "hourglass100": ((2, 4), (2, 4), (3, 4), (3, 4), (3, 4), (4, 8)),
}
"""Per level, from the input's resolution down: channels, in multiples of the stem's, and residual blocks."""


def hourglass_levels(size: str, stem_channels: int) -> list[tuple[int, int]]:
    """The `levels` of a `Hourglass` of the named `size`: (channels, residual blocks) of each."""
    return [(multiple * stem_channels, blocks) for multiple, blocks in HOURGLASS_SIZES[size]]


def _residual_stage(channels: Sequence[int], stride: int, norm_momentum: float) -> nn.Sequential:
    """Residual blocks through the given channel counts; the first block has the stride."""
    blocks = nn.Sequential()
    for before, after in pairwise(channels):
        blocks.append(PostActivationBlock(before, after, stride=stride, norm_momentum=norm_momentum))
        stride = 1
    return blocks


class EncoderDecoder(nn.Module):
    """One level of an hourglass with all levels below it: `[n, c, h, w]` to the same shape.

    The encoder and the long-range skip both read the input of the level. The decoder works at the low resolution; its
    output is enlarged (nearest neighbour) and added to the skip. The sum is not activated.

    Args:
        levels: (channels, residual blocks) of this level and of those below it, see `Hourglass`.
        pool: see `Hourglass`.
        shortcut: see `Hourglass`.
        norm_momentum: see `Hourglass`.
    """

    def __init__(self, levels: Sequence[tuple[int, int]], *, pool: int, shortcut: bool, norm_momentum: float) -> None:
        super().__init__()
        (outer, count), (below, count_below), *deeper = levels
        self.pool = pool
        self.encoder_skip = _residual_stage([outer] * (count + 1), 1, norm_momentum) if shortcut else None
        self.encoder_down = _residual_stage([outer] + [below] * count, pool, norm_momentum)
        self.inner: nn.Module
        if deeper:
            self.inner = EncoderDecoder(levels[1:], pool=pool, shortcut=shortcut, norm_momentum=norm_momentum)
        else:
            self.inner = _residual_stage([below] * (count_below + 1), 1, norm_momentum)
        self.decoder = _residual_stage([below] * count + [outer], 1, norm_momentum)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Return a map of the input's shape; h and w are multiples of `pool ** levels`."""
        y = self.decoder(self.inner(self.encoder_down(x)))
        if self.pool > 1:
            y = F.interpolate(y, scale_factor=float(self.pool), mode="nearest")
        return y if self.encoder_skip is None else y + self.encoder_skip(x)


class Hourglass(nn.Module):
    """Stacked hourglasses: `[n, in_channels, h, w]` to one `[n, out_channels, h / s, w / s]` per stack.

    out_channels: of each output, those of the first level.
    size_divisor: h and w must be multiples of it.

    Args:
        in_channels: channels of the input.
        stem_channels: channels of the first convolution.
        levels: (channels, residual blocks) per level, from the stem's resolution down; at least two levels.
        stacks: number of hourglasses; each passes its input and output on to the next.
        stem_stride: s, 4 (7 x 7 stem, backbones) or 1 (3 x 3 stem, mask heads).
        pool: factor between levels; 1 keeps the size (the paper's ablation without encoder-decoder).
        shortcut: whether each level has its long-range skip (the paper's ablation is without).
        norm_momentum: of the batch norms, in torch's sense; the originals' value is 0.9.

    Source: object_detection/models/keras_models/hourglass_network.py, `HourglassNetwork`. Departure: a block has a
    convolution in its skip wherever channels or stride change. The original cannot build a stage of one block that
    changes the channels and has no stride; elsewhere it is the same.
    """

    def __init__(
        self,
        in_channels: int,
        stem_channels: int,
        levels: Sequence[tuple[int, int]],
        *,
        stacks: int = 1,
        stem_stride: int = 1,
        pool: int = 2,
        shortcut: bool = True,
        norm_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        width, _ = levels[0]
        self.out_channels = width
        self.size_divisor = stem_stride * pool ** (len(levels) - 1)
        kernel, stride = (7, 2) if stem_stride == 4 else (3, 1)
        self.stem = ConvBlock(in_channels, stem_channels, kernel, stride=stride, norm_momentum=norm_momentum)
        self.stem_residual = PostActivationBlock(
            stem_channels, width, stride=stride, skip_conv=True, norm_momentum=norm_momentum
        )
        self.stacks = nn.ModuleList(
            EncoderDecoder(levels, pool=pool, shortcut=shortcut, norm_momentum=norm_momentum) for _ in range(stacks)
        )
        self.outputs = nn.ModuleList(ConvBlock(width, width, 3, norm_momentum=norm_momentum) for _ in range(stacks))
        between = range(stacks - 1)
        merge = partial(ConvBlock, width, width, 1, relu=False, norm_momentum=norm_momentum)
        self.merge_input = nn.ModuleList(merge() for _ in between)
        self.merge_output = nn.ModuleList(merge() for _ in between)
        residual = partial(PostActivationBlock, width, width, norm_momentum=norm_momentum)
        self.merge_residual = nn.ModuleList(residual() for _ in between)
        initialize_glorot(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> list[Float[Tensor, "n d i j"]]:
        """Return the output of every stack, the last one last.

        Raises:
            ValueError: h or w is not a multiple of `size_divisor`.
        """
        check_divisible(x, self.size_divisor)
        x = self.stem_residual(self.stem(x))
        outputs = []
        for index, (stack, output) in enumerate(zip(self.stacks, self.outputs, strict=True)):
            outputs.append(output(stack(x)))
            if index < len(self.merge_residual):
                x = F.relu(self.merge_input[index](x) + self.merge_output[index](outputs[-1]))
                x = self.merge_residual[index](x)
        return outputs
