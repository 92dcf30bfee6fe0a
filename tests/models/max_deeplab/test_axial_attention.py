"""Axial attention beside its definition, one query, one key and one head at a time."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from maskwright.models.max_deeplab.axial_attention import AxialAttention, AxialAttention2d, relative_positions

CHANNELS, KEYS, VALUES, HEADS = 3, 4, 8, 2


def draw_norms(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
            nn.init.uniform_(layer.running_mean, -0.5, 0.5)
            nn.init.uniform_(layer.running_var, 0.01, 0.05)


def by_definition(layer: AxialAttention, line: Tensor) -> Tensor:
    """One row [length, channels] to [length, values]: equation 4 of arXiv 2003.07853 with its three norms."""
    qkv = layer.qkv(line.T[None, :, :, None])[0, :, :, 0].T
    length = len(line)
    names = ("query_positions", "key_positions", "value_positions")
    tables = [None if table is None else table.embeddings for table in (getattr(layer, name) for name in names)]

    def normalised(value: Tensor, norm: nn.Module, channel: int | slice) -> Tensor:
        scale = norm.weight[channel] / torch.sqrt(norm.running_var[channel] + 1e-3)
        return (value - norm.running_mean[channel]) * scale + norm.bias[channel]

    outputs = torch.zeros(length, VALUES, dtype=line.dtype)
    for head in range(HEADS):
        keys, values = slice(head * KEYS // HEADS, (head + 1) * KEYS // HEADS), slice(4 * head, 4 * head + 4)
        queries = qkv[:, :KEYS][:, keys]
        own_keys, own_values = qkv[:, KEYS : 2 * KEYS][:, keys], qkv[:, 2 * KEYS :][:, values]
        logits = torch.zeros(length, length, dtype=line.dtype)
        for i, j in itertools.product(range(length), repeat=2):
            terms = [queries[i] @ own_keys[j]]
            terms += [queries[i] @ tables[0][254 + j - i]] if tables[0] is not None else []
            terms += [own_keys[j] @ tables[1][254 + j - i]] if tables[1] is not None else []
            pairs = zip(terms, layer.similarity_norms, strict=True)
            logits[i, j] = sum(normalised(term, norm, head) for term, norm in pairs)
        weights = logits.softmax(dim=1)
        for i in range(length):
            retrieved = [sum(weights[i, j] * own_values[j] for j in range(length))]
            if tables[2] is not None:
                retrieved.append(sum(weights[i, j] * tables[2][254 + j - i] for j in range(length)))
            pairs = zip(retrieved, layer.retrieved_norms, strict=True)
            outputs[i, values] = sum(normalised(part, norm, values) for part, norm in pairs)
    return outputs


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize(
    "positions",
    [{}, {"query_positions": False}, {"key_positions": False}, {"value_positions": False}],
    ids=["all positions", "none of queries", "none of keys", "none of values"],
)
def test_it_is_what_its_definition_says(positions, gradient):
    torch.manual_seed(0)
    image = torch.randn(2, CHANNELS, 3, 4).double()
    for axis, rows in (("width", image.permute(0, 2, 3, 1)), ("height", image.permute(0, 3, 2, 1))):
        layer = AxialAttention(CHANNELS, KEYS, VALUES, HEADS, axis, **positions).double().eval()
        draw_norms(layer)
        with torch.set_grad_enabled(gradient):
            found = layer(image)
            expected = torch.stack([torch.stack([by_definition(layer, line) for line in lines]) for lines in rows])
        expected = expected.permute(0, 3, 1, 2) if axis == "width" else expected.permute(0, 3, 2, 1)
        torch.testing.assert_close(found, expected)


def test_training_normalises_with_the_batch_s_own_statistics():
    """In eval with these statistics the layer gives the same, though computed another way."""
    torch.manual_seed(0)
    image = torch.randn(2, CHANNELS, 6, 5).double()
    layer = AxialAttention(CHANNELS, KEYS, VALUES, HEADS, "height").double()
    draw_norms(layer)
    norms = [module for module in layer.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    trained = layer.train()(image)
    counts = {HEADS: 2 * 5 * 6 * 6, VALUES: 2 * 5 * 6, 2 * KEYS + VALUES: 2 * 5 * 6}
    for norm in norms:
        norm.running_var *= 1 - 1 / counts[norm.num_features]  # the biased variance, which training divides by
    torch.testing.assert_close(layer.eval()(image), trained)


def test_positions_are_distances_limited_to_the_table():
    assert relative_positions(2, 3).tolist() == [[254, 255, 256], [253, 254, 255]]
    assert relative_positions(2, 4).tolist() == [[253, 254, 255, 256], [252, 253, 254, 255]]  # one key on either side
    far = relative_positions(300, 300)
    assert far[0, [0, 254, 255, 299]].tolist() == [254, 508, 508, 508]
    assert far[299, [0, 44, 45]].tolist() == [0, 0, 0]
    assert far[299, 46] == 1


def test_columns_then_rows_and_the_first_of_every_so_many():
    torch.manual_seed(0)
    image = torch.randn(1, CHANNELS, 7, 6)
    layer = AxialAttention2d(CHANNELS, KEYS, VALUES, HEADS, stride=3).eval()
    draw_norms(layer)
    with torch.inference_mode():
        columns = layer.height(image)[:, :, [0, 3, 6]]
        torch.testing.assert_close(layer(image), layer.width(columns)[:, :, :, [0, 3]])


@pytest.mark.parametrize(("keys", "values"), [(3, 8), (4, 7)])
def test_heads_share_the_channels_evenly(keys, values):
    with pytest.raises(ValueError, match=f"must be multiples of num_heads 2, but got {keys} and {values}"):
        AxialAttention(CHANNELS, keys, values, HEADS, "width")
