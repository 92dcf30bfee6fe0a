"""The dual-path layer beside its definition, and what of it is dropped, absent or recomputed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskwright.models.max_deeplab.dual_path import DualPathLayer, MemoryAttention

PIXEL, MEMORY, WIDTH, HEADS = 6, 5, 4, 2


def create(**options: bool | int) -> DualPathLayer:
    torch.manual_seed(0)
    layer = DualPathLayer(PIXEL, MEMORY, WIDTH, num_heads=HEADS, **{"feed_forward_channels": 7, **options}).double()
    for module in layer.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.05, 0.5)
    return layer.eval()


def attend(layer: MemoryAttention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Of one image, [l, k], [m, k] and [m, v] to [l, v], head by head."""
    logits = [q @ k.T for q, k in zip(queries.chunk(HEADS, dim=1), keys.chunk(HEADS, dim=1), strict=True)]
    weights = layer.similarity_norm(torch.stack(logits)[None])[0].softmax(dim=2)
    retrieved = [w @ v for w, v in zip(weights, values.chunk(HEADS, dim=1), strict=True)]
    return F.relu(layer.retrieved_norm(torch.cat(retrieved, dim=1)))


def by_definition(layer: DualPathLayer, pixel: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Of one image: section 3.3 of arXiv 2012.00759; pixels read the memory as it came in."""
    height, width = pixel.shape[1:]
    qkv = layer.memory_qkv(layer.memory_conv1(memory[None]))[0]
    queries, keys, values = qkv[:, :WIDTH], qkv[:, WIDTH : 2 * WIDTH], qkv[:, 2 * WIDTH :]
    of_pixels = layer.pixel_qkv(layer.pixel_conv1(F.relu(pixel)[None]))[0].flatten(1).T
    pixel_keys, pixel_values = of_pixels[:, -3 * WIDTH : -2 * WIDTH], of_pixels[:, -2 * WIDTH :]
    read = attend(layer.memory_attention, queries, torch.cat([pixel_keys, keys]), torch.cat([pixel_values, values]))
    memory = F.relu(memory + layer.memory_conv3(read[None])[0])
    if layer.feed_forward is not None:
        memory = F.relu(memory + layer.feed_forward(memory[None])[0])
    if layer.pixel_attention is None:
        return pixel, memory
    read = attend(layer.pixel_attention, of_pixels[:, :WIDTH], keys, values)
    return pixel + layer.pixel_conv3(read.T.unflatten(1, (height, width))[None])[0], memory


@pytest.mark.parametrize("options", [{}, {"feed_forward_channels": 0}, {"pixel_reads_memory": False}])
def test_it_is_what_its_definition_says(options):
    layer = create(**options)
    pixels, memories = torch.randn(2, PIXEL, 3, 4).double(), torch.randn(2, 3, MEMORY).double()
    found = layer(pixels, memories)
    for index, (pixel, memory) in enumerate(zip(pixels, memories, strict=True)):
        expected = by_definition(layer, pixel, memory)
        for ours, definition in zip(found, expected, strict=True):
            torch.testing.assert_close(ours[index], definition)


def test_training_normalises_logits_with_the_batch_s_own_statistics():
    """In eval with these statistics the attention gives the same, though its norm then scales the queries."""
    attention = create().memory_attention
    queries, keys, values = (torch.randn(2, count, size).double() for count, size in ((3, 4), (5, 4), (5, 8)))
    for norm in (attention.similarity_norm, attention.retrieved_norm):
        norm.momentum = 1.0
    trained = attention.train()(queries, keys, values)
    for norm, count in ((attention.similarity_norm, 2 * 3 * 5), (attention.retrieved_norm, 2 * 3)):
        norm.running_var *= 1 - 1 / count  # the biased variance, which training divides by
    torch.testing.assert_close(attention.eval()(queries, keys, values), trained)
