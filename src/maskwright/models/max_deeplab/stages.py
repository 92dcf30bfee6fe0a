"""Groups of residual blocks, with dual-path layers between them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maskwright.models.max_deeplab.blocks import AxialBlock, BasicBlock, BottleneckBlock, ResidualBlock
from maskwright.models.max_deeplab.dual_path import DualPathLayer

OUTPUT_STRIDE = 16
_AXIAL_STRIDE = 16  # blocks whose input has this stride or more attend instead of convolving
_LAST_STAGE = 4
DropPathSchedule = Literal["constant", "linear"]


def keep_probability(keep: float, schedule: DropPathSchedule, stage: int) -> float:
    """The share of branches that drop path keeps in `stage` 0 (the stem) to 4.

    Source: deeplab2 `drop_path.get_drop_path_keep_prob`.

    Raises:
        ValueError: an unknown schedule, or `keep` is no probability above 0.
    """
    if schedule not in get_args(DropPathSchedule):
        raise ValueError(f"drop_path_schedule must be one of {get_args(DropPathSchedule)}, but got {schedule!r}")
    if not 0 < keep <= 1:
        raise ValueError(f"drop_path_keep must be above 0 and at most 1, but got {keep}")
    return keep if schedule == "constant" else 1 - (1 - keep) * stage / _LAST_STAGE


@dataclass(frozen=True)
class StageOptions:
    """What all stages of one encoder share.

    wide: basic blocks (Wide-ResNet) instead of bottlenecks.
    attention_share: channels within an axial block, as a share of its output's.
    transformer_stride: blocks whose output has this stride or more are followed by a dual-path layer.
    drop_path_stride: blocks whose input has this stride or more drop their branch in training.
    """

    wide: bool
    attention_share: float
    transformer_stride: int
    drop_path_stride: int
    memory_channels: int
    feed_forward_channels: int = 2048
    num_heads: int = 8
    drop_path_keep: float = 0.8
    drop_path_schedule: DropPathSchedule = "linear"
    activation_checkpointing: bool = False

    def drop_probability(self, stride: int) -> float:
        """Of a block whose input has `stride`."""
        if stride < self.drop_path_stride:
            return 0.0
        return 1 - keep_probability(self.drop_path_keep, self.drop_path_schedule, int(math.log2(stride)) - 1)


class Stage(nn.Module):
    """Residual blocks of one stride and, where that stride is large enough, dual-path layers behind each.

    Strides are counted as in a ResNet that shrinks in its last stage, too: what has stride 32 there has
    stride 16 here.

    Args:
        in_channels: of the pixel map.
        out_channels: of the pixel map that comes out.
        num_blocks: residual blocks.
        options: shared by all stages.
        input_stride: of the input, counted so.
        shrink: the first block halves the size (where the stride stays 16 or less).
        transformer_width: see `DualPathLayer.width`.
        owns_input: see `ResidualBlock.owns_input`, of the first block.

    Source: deeplab2 `axial_block_groups.BlockGroup`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        options: StageOptions,
        *,
        input_stride: int,
        shrink: bool,
        transformer_width: int,
        owns_input: bool,
    ) -> None:
        super().__init__()
        self.activation_checkpointing = options.activation_checkpointing
        self.blocks = nn.ModuleList()
        self.transformers = nn.ModuleDict()
        stride = input_stride
        for index in range(num_blocks):
            drop = options.drop_probability(stride)
            first = shrink and index == 0
            step = 2 if first and stride < OUTPUT_STRIDE else 1
            block: ResidualBlock
            if stride >= _AXIAL_STRIDE:
                width = round(out_channels * options.attention_share)
                block = AxialBlock(in_channels, out_channels, width, num_heads=options.num_heads, drop_probability=drop)
            else:
                kind = BasicBlock if options.wide else BottleneckBlock
                block = kind(in_channels, out_channels, stride=step, drop_probability=drop)
            block.owns_input = owns_input or index > 0
            self.blocks.append(block)
            stride *= 2 if first else 1
            if stride >= options.transformer_stride:
                self.transformers[str(index)] = DualPathLayer(
                    out_channels,
                    options.memory_channels,
                    transformer_width,
                    num_heads=options.num_heads,
                    feed_forward_channels=options.feed_forward_channels,
                    drop_probability=drop,
                )
            in_channels = out_channels

    def forward(
        self, pixel: Float[Tensor, "n c h w"], memory: Float[Tensor, "n s e"]
    ) -> tuple[Float[Tensor, "n d i j"], Float[Tensor, "n s e"]]:
        """The pixel map, not activated, and the memory."""
        for index, block in enumerate(self.blocks):
            pixel = self._run(block, pixel)
            if str(index) in self.transformers:
                pixel, memory = self._run(self.transformers[str(index)], pixel, memory)
        return pixel, memory

    def _run(self, module: nn.Module, *inputs: Tensor) -> Any:
        if self.activation_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(module, *inputs, use_reentrant=False, context_fn=_contexts(module))
        return module(*inputs)


def _contexts(module: nn.Module) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """For the forward pass and for its repetition in the backward pass, which must not count in the statistics."""
    return lambda: (contextlib.nullcontext(), _without_statistics(module))


@contextlib.contextmanager
def _without_statistics(module: nn.Module) -> Iterator[None]:
    norms = [cast(Any, layer) for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
