"""Groups of residual blocks, with dual-path layers between them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maskwright.models.max_deeplab.blocks import AxialBlock, BasicStageBlock, BottleneckStageBlock, StageBlock
from maskwright.models.max_deeplab.config import OUTPUT_STRIDE, MaXDeepLabConfig
from maskwright.models.max_deeplab.dual_path import DualPathLayer

_AXIAL_STRIDE = 16  # blocks whose input has this stride or more attend instead of convolving
_LAST_STAGE = 4


def keep_probability(keep: float, schedule: Literal["constant", "linear"], stage: int) -> float:
    """The share of branches that drop path keeps in `stage` 0 (the stem) to 4.

    Source: deeplab2 `drop_path.get_drop_path_keep_prob`.
    """
    return keep if schedule == "constant" else 1 - (1 - keep) * stage / _LAST_STAGE


def drop_probability(config: MaXDeepLabConfig, stride: int) -> float:
    """With which drop path leaves out the branch of a block whose input has `stride`."""
    if stride < config.size.drop_path_stride:
        return 0.0
    return 1 - keep_probability(config.drop_path_keep, config.drop_path_schedule, int(math.log2(stride)) - 1)


class Stage(nn.Module):
    """Residual blocks of one stride and, where that stride is large enough, a dual-path layer after each.

    Strides are those of a ResNet whose last stage also halves the size: where it has stride 32, the maps here have
    stride 16.

    Args:
        config: of the model.
        number: of the stage, 1 to 5.
        in_channels: of the pixel map.
        out_channels: of the pixel map that comes out.
        num_blocks: residual blocks.
        input_stride: of the input, in that sense.
        shrink: the first block halves the size (unless the maps have stride 16 already).
        owns_input: see `StageBlock.owns_input`, of the first block.

    Source: deeplab2 `axial_block_groups.BlockGroup`.
    """

    def __init__(
        self,
        config: MaXDeepLabConfig,
        number: int,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        *,
        input_stride: int,
        shrink: bool = False,
        owns_input: bool = True,
    ) -> None:
        super().__init__()
        size = config.size
        self.activation_checkpointing = config.activation_checkpointing
        self.blocks = nn.ModuleList()
        self.transformers = nn.ModuleDict()
        stride = input_stride
        for index in range(num_blocks):
            drop = drop_probability(config, stride)
            first = shrink and index == 0
            step = 2 if first and stride < OUTPUT_STRIDE else 1
            block: StageBlock
            if stride >= _AXIAL_STRIDE:
                width = round(out_channels * size.attention_share)
                block = AxialBlock(in_channels, out_channels, width, config.num_heads, drop)
            else:
                kind = BasicStageBlock if size.wide else BottleneckStageBlock
                block = kind(in_channels, out_channels, stride=step, drop_probability=drop)
            block.owns_input = owns_input or index > 0
            self.blocks.append(block)
            stride *= 2 if first else 1
            if stride >= size.transformer_stride:
                self.transformers[str(index)] = DualPathLayer(
                    out_channels,
                    config.memory_width,
                    config.transformer_channels(number),
                    num_heads=config.num_heads,
                    feed_forward_channels=config.feed_forward_channels,
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
            # The repetition in the backward pass must not update statistics.
            contexts = lambda: (contextlib.nullcontext(), _without_statistics(module))  # noqa: E731
            return checkpoint(module, *inputs, use_reentrant=False, context_fn=contexts)
        return module(*inputs)


@contextlib.contextmanager
def _without_statistics(module: nn.Module) -> Iterator[None]:
    norms: list[Any] = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
