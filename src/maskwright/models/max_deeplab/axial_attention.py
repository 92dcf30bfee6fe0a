"""Position-sensitive axial attention: every pixel attends to its column, then to its row."""

from __future__ import annotations

from functools import partial, reduce
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from maskwright.nn.layers import ConvBlock

LONGEST_SPAN = 255  # positions further apart share the last row of a table
_EPSILON, _MOMENTUM = 1e-3, 0.01


def relative_positions(queries: int, keys: int) -> Int64[Tensor, "l m"]:
    """Row of the position table for each query and key: their distance, limited to the table.

    Keys beyond the queries' number lie on both sides of them, half on each.

    Source: deeplab2 `positional_encodings.RelativePositionalEncoding`.
    """
    distance = torch.arange(keys)[None] - torch.arange(queries)[:, None] - (keys - queries) // 2
    return (distance + LONGEST_SPAN - 1).clamp(0, 2 * LONGEST_SPAN - 2)


class RelativePositions(nn.Module):
    """A learned vector for each distance between a query and a key, shared by all heads."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.empty(2 * LONGEST_SPAN - 1, depth))
        nn.init.trunc_normal_(self.embeddings, std=1.0)

    def forward(self, length: int) -> Float[Tensor, "l l d"]:
        """The vectors of all pairs on an axis of `length`: query, key, depth."""
        return F.embedding(relative_positions(length, length).to(self.embeddings.device), self.embeddings)


class AxialAttention(nn.Module):
    """Attention along one axis, with learned relative positions for queries, keys and values.

    The logits are the sum of three similarities: content with content, query with position, key with position. Each
    has its own batch norm, with one scale and offset per head, in place of the usual division by sqrt(depth). The
    output is the sum of the two retrieved maps, contents and positions, each with a batch norm per channel. There is
    no output projection: the block around the attention has one.

    Args:
        in_channels: of the input.
        key_channels: of the queries and of the keys, all heads together.
        value_channels: of the values and of the output.
        num_heads: heads; contiguous groups of channels.
        axis: `height` attends within columns, `width` within rows.
        query_positions: use the similarity of queries with positions.
        key_positions: use the similarity of keys with positions.
        value_positions: retrieve positions, too.

    Source: arXiv 2003.07853, equation 4; deeplab2 `axial_layers.AxialAttention`.
    """

    def __init__(
        self,
        in_channels: int,
        key_channels: int,
        value_channels: int,
        num_heads: int,
        axis: Literal["height", "width"],
        *,
        query_positions: bool = True,
        key_positions: bool = True,
        value_positions: bool = True,
    ) -> None:
        super().__init__()
        if key_channels % num_heads or value_channels % num_heads:
            raise ValueError(
                f"key_channels and value_channels must be multiples of num_heads {num_heads}, "
                f"but got {key_channels} and {value_channels}"
            )
        self.sizes = [key_channels, key_channels, value_channels]
        self.num_heads = num_heads
        self.axis = axis
        self.qkv = ConvBlock(
            in_channels, sum(self.sizes), 1, relu=False, norm_epsilon=_EPSILON, norm_momentum=_MOMENTUM
        )
        key_depth, value_depth = key_channels // num_heads, value_channels // num_heads
        self.query_positions = RelativePositions(key_depth) if query_positions else None
        self.key_positions = RelativePositions(key_depth) if key_positions else None
        self.value_positions = RelativePositions(value_depth) if value_positions else None
        # One norm for each term of the two sums, in the order content, query or value position, key position.
        norm = partial(nn.BatchNorm2d, eps=_EPSILON, momentum=_MOMENTUM)
        terms = 1 + query_positions + key_positions
        self.similarity_norms = nn.ModuleList(norm(num_heads) for _ in range(terms))
        self.retrieved_norms = nn.ModuleList(norm(value_channels) for _ in range(1 + value_positions))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        """Map `[n, c, h, w]` to `[n, value_channels, h, w]`."""
        queries, keys, values = (self._split_heads(part) for part in self.qkv(x).split(self.sizes, dim=1))
        weights = torch.softmax(self._logits(queries, keys), dim=-1)
        retrieved = [weights @ values]
        if self.value_positions is not None:
            retrieved.append(_multiply_by_position(weights, self.value_positions(values.shape[1])))
        if self.training:
            merged = [self._merge_heads(part, x) for part in retrieved]
            return reduce(torch.add, (norm(part) for norm, part in zip(self.retrieved_norms, merged, strict=True)))
        return self._merge_heads(self._affine_sum(retrieved), x)

    def _logits(self, queries: Float[Tensor, "rows l d"], keys: Float[Tensor, "rows l d"]) -> Float[Tensor, "rows l l"]:
        length = queries.shape[1]
        similarities = [queries @ keys.transpose(1, 2)]
        if self.query_positions is not None:
            table = self.query_positions(length)  # query, key, depth
            similarities.append(_multiply_by_position(queries, table.transpose(1, 2)))
        if self.key_positions is not None:
            table = self.key_positions(length)
            similarities.append(_multiply_by_position(keys, table.permute(1, 2, 0)).transpose(1, 2))
        apart = [similarity.unflatten(0, (-1, self.num_heads)) for similarity in similarities]
        if self.training:
            normalised = (norm(part) for norm, part in zip(self.similarity_norms, apart, strict=True))
            return reduce(torch.add, normalised).flatten(0, 1)
        scales = [affine_of(norm)[0].to(queries.dtype)[:, None, None] for norm in self.similarity_norms]
        logits = apart[0].mul_(scales[0])  # the offset of a head does not change its softmax
        for similarity, scale in zip(apart[1:], scales[1:], strict=True):
            logits.addcmul_(similarity, scale)
        return logits.flatten(0, 1)

    def _affine_sum(self, retrieved: list[Float[Tensor, "rows l d"]]) -> Float[Tensor, "rows l d"]:
        """What the norms of the retrieved maps and their sum do at inference."""
        content, *positions = [part.unflatten(0, (-1, self.num_heads)) for part in retrieved]
        (scale, *scales), offsets = zip(*(affine_of(norm) for norm in self.retrieved_norms), strict=True)
        by_head = (self.num_heads, 1, -1)
        total = torch.addcmul(reduce(torch.add, offsets).view(by_head), content, scale.view(by_head))
        for position, other in zip(positions, scales, strict=True):
            total.addcmul_(position, other.view(by_head))
        return total.flatten(0, 1)

    def _split_heads(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "rows l d"]:
        """All heads of all rows (or columns) of all images."""
        heads = x.unflatten(1, (self.num_heads, -1))
        order = (0, 4, 1, 3, 2) if self.axis == "height" else (0, 3, 1, 4, 2)
        return heads.permute(order).flatten(0, 2)

    def _merge_heads(self, x: Float[Tensor, "rows l d"], like: Float[Tensor, "n c h w"]) -> Float[Tensor, "n e h w"]:
        """The way back of `_split_heads`, channels last in memory."""
        rows = x.unflatten(0, (like.shape[0], -1, self.num_heads))  # n, row, heads, l, d
        order = (0, 3, 1, 2, 4) if self.axis == "height" else (0, 1, 3, 2, 4)
        return rows.permute(order).flatten(3).permute(0, 3, 1, 2)


def affine_of(norm: Any) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Scale and offset of each channel that a batch norm of any kind applies at inference."""
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def _multiply_by_position(x: Float[Tensor, "rows l d"], matrices: Float[Tensor, "l d m"]) -> Float[Tensor, "rows l m"]:
    """Multiply the vectors at position `l` of all rows by that position's matrix, in one batched product."""
    return torch.bmm(x.transpose(0, 1), matrices).transpose(0, 1)


class AxialAttention2d(nn.Module):
    """Attention along the height axis, then along the width axis.

    With `stride` s, every s-th row is kept after the first attention and every s-th column after the second. For the
    other arguments see `AxialAttention`.

    Source: deeplab2 `axial_layers.AxialAttention2D`.
    """

    def __init__(
        self, in_channels: int, key_channels: int, value_channels: int, num_heads: int, *, stride: int = 1
    ) -> None:
        super().__init__()
        self.stride = stride
        self.height = AxialAttention(in_channels, key_channels, value_channels, num_heads, "height")
        self.width = AxialAttention(value_channels, key_channels, value_channels, num_heads, "width")

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Map `[n, c, h, w]` to `[n, value_channels, ceil(h / stride), ceil(w / stride)]`."""
        x = self.height(x)[:, :, :: self.stride]
        return self.width(x)[:, :, :, :: self.stride]
