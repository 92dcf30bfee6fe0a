"""The dual-path transformer layer: pixels and memory read each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from maskwright.models.max_deeplab.axial_attention import affine_of
from maskwright.models.max_deeplab.blocks import NORM_EPSILON, NORM_MOMENTUM, LinearBlock, conv_block

_KEY_EXPANSION, _VALUE_EXPANSION, _BOTTLENECK_EXPANSION = 1, 2, 2


class MemoryAttention(nn.Module):
    """Multi-head attention with a batch norm on the logits and another on the retrieved values, and ReLU at the end.

    The norm of the logits has one scale and offset per head and replaces the division by sqrt(depth); that of the
    retrieved values has one per channel.

    Source: deeplab2 `dual_path_transformer.AttentionOperation`.
    """

    def __init__(self, value_channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.similarity_norm = nn.BatchNorm2d(num_heads, eps=NORM_EPSILON, momentum=NORM_MOMENTUM)
        self.retrieved_norm = nn.BatchNorm1d(value_channels, eps=NORM_EPSILON, momentum=NORM_MOMENTUM)

    def forward(
        self, queries: Float[Tensor, "n l k"], keys: Float[Tensor, "n m k"], values: Float[Tensor, "n m v"]
    ) -> Float[Tensor, "n l v"]:
        """Retrieve a value for every query."""
        queries, keys, values = (self._split_heads(x) for x in (queries, keys, values))
        if self.training:
            logits = self.similarity_norm(queries @ keys.transpose(2, 3))
        else:  # a head's offset does not change its softmax, and its scale may as well multiply the queries
            scale, _ = affine_of(self.similarity_norm)
            logits = (queries * scale.to(queries.dtype)[:, None, None]) @ keys.transpose(2, 3)
        retrieved = torch.softmax(logits, dim=-1) @ values
        retrieved = retrieved.transpose(1, 2).flatten(2)  # n, l, v
        return F.relu(self.retrieved_norm(retrieved.flatten(0, 1)).unflatten(0, retrieved.shape[:2]))

    def _split_heads(self, x: Float[Tensor, "n l c"]) -> Float[Tensor, "n heads l d"]:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class DualPathLayer(nn.Module):
    """Memory and pixels read each other, both as they come in.

    The memory attends to pixels and memory in one softmax and then goes through a feed-forward network. The pixels
    attend to the memory.

    Args:
        pixel_channels: of the pixel map.
        memory_channels: of the memory.
        width: channels of the keys; the bottleneck and the values have twice as many.
        num_heads: of all attentions.
        feed_forward_channels: hidden channels of the memory's feed-forward network; 0 leaves it out.
        pixel_reads_memory: let the pixels read the memory; otherwise they come out as they came in.
        drop_probability: with which each of the three branches is left out for an image in training.

    Source: arXiv 2012.00759, section 3.3; deeplab2 `dual_path_transformer.DualPathTransformerLayer`.
    """

    def __init__(
        self,
        pixel_channels: int,
        memory_channels: int,
        width: int,
        *,
        num_heads: int = 8,
        feed_forward_channels: int = 2048,
        pixel_reads_memory: bool = True,
        drop_probability: float = 0.0,
    ) -> None:
        super().__init__()
        bottleneck, keys, values = _BOTTLENECK_EXPANSION * width, _KEY_EXPANSION * width, _VALUE_EXPANSION * width
        self.sizes = [keys, keys, values]
        self.memory_conv1 = LinearBlock(memory_channels, bottleneck)
        self.memory_qkv = LinearBlock(bottleneck, sum(self.sizes), relu=False)
        self.pixel_conv1 = conv_block(pixel_channels, bottleneck, 1)
        self.pixel_sizes = self.sizes if pixel_reads_memory else self.sizes[1:]
        self.pixel_qkv = conv_block(bottleneck, sum(self.pixel_sizes), 1, relu=False)
        self.memory_attention = MemoryAttention(values, num_heads)
        self.memory_conv3 = LinearBlock(values, memory_channels, relu=False)
        nn.init.zeros_(self.memory_conv3.norm.weight)
        self.feed_forward: nn.Sequential | None = None
        if feed_forward_channels:
            last = LinearBlock(feed_forward_channels, memory_channels, relu=False)
            nn.init.zeros_(last.norm.weight)
            self.feed_forward = nn.Sequential(LinearBlock(memory_channels, feed_forward_channels), last)
        self.pixel_attention: MemoryAttention | None = None
        if pixel_reads_memory:
            self.pixel_attention = MemoryAttention(values, num_heads)
            self.pixel_conv3 = conv_block(values, pixel_channels, 1, relu=False)
            nn.init.zeros_(self.pixel_conv3.norm.weight)
        self.drop_memory, self.drop_feed_forward, self.drop_pixel = (
            StochasticDepth(drop_probability, "row") for _ in range(3)
        )

    def forward(
        self, pixel: Float[Tensor, "n c h w"], memory: Float[Tensor, "n s d"]
    ) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n s d"]]:
        """The updated pixel map, not activated (like the input), and the updated memory, activated."""
        memory_queries, memory_keys, memory_values = self.memory_qkv(self.memory_conv1(memory)).split(self.sizes, dim=2)
        pixel_qkv = self.pixel_qkv(self.pixel_conv1(F.relu(pixel))).flatten(2).transpose(1, 2)  # n, hw, channels
        pixel_keys, pixel_values = pixel_qkv.split(self.pixel_sizes, dim=2)[-2:]
        keys, values = torch.cat([pixel_keys, memory_keys], dim=1), torch.cat([pixel_values, memory_values], dim=1)
        retrieved = self.memory_attention(memory_queries, keys, values)
        memory = F.relu(memory + self.drop_memory(self.memory_conv3(retrieved)))
        if self.feed_forward is not None:
            memory = F.relu(memory + self.drop_feed_forward(self.feed_forward(memory)))
        if self.pixel_attention is None:
            return pixel, memory
        retrieved = self.pixel_attention(pixel_qkv[..., : self.sizes[0]], memory_keys, memory_values)
        retrieved = retrieved.transpose(1, 2).unflatten(2, pixel.shape[2:])
        return self.drop_pixel(self.pixel_conv3(retrieved)).add_(pixel), memory
