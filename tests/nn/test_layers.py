from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from maskwright.nn.layers import (
    ConvBlock,
    PostActivationBlock,
    PreActivationBlock,
    initialize_glorot,
    normalize,
    prediction_head,
)


def used_norm(kind: type[nn.BatchNorm2d] | type[nn.SyncBatchNorm] = nn.BatchNorm2d) -> nn.BatchNorm2d:
    """A norm of two channels that has seen something: mean 2 and 3, variance 4 and 9."""
    norm = kind(2)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(torch.tensor([2.0, 3.0]))
    norm.running_var.copy_(torch.tensor([4.0, 9.0]))
    return norm.train()


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.SyncBatchNorm])
@pytest.mark.parametrize("shape", [(0, 2, 3, 3), (1, 2, 1, 1)])
def test_too_few_values_are_normalised_by_running_statistics(kind, shape):
    norm = used_norm(kind)
    x = torch.full(shape, 8.0, requires_grad=True)
    y = normalize(norm, x)
    assert y.shape == shape
    if y.numel():
        torch.testing.assert_close(y.flatten(), torch.tensor([3.0, 5 / 3]), rtol=1e-4, atol=0)
    y.sum().backward()
    assert norm.running_mean.tolist() == [2, 3]
    assert norm.running_var.tolist() == [4, 9]
    assert norm.weight.grad is not None
    torch.testing.assert_close(norm.bias.grad, torch.full((2,), float(shape[0])))


@pytest.mark.parametrize("shape", [(2, 2, 1, 1), (1, 2, 1, 2)])
def test_two_values_make_batch_statistics(shape):
    norm = used_norm()
    x = torch.tensor([0.0, 0.0, 4.0, 4.0]).reshape(2, 2, 1, 1)  # 0 and 4 in both channels
    y = normalize(norm, x if shape[0] == 2 else x.permute(2, 1, 3, 0))
    torch.testing.assert_close(y.flatten().sort().values, torch.tensor([-1.0, -1.0, 1.0, 1.0]), rtol=1e-4, atol=0)
    torch.testing.assert_close(norm.running_mean, torch.tensor([2.0, 2.9]))  # 0.9 of the old, 0.1 of the mean 2


def test_inference_never_uses_batch_statistics():
    norm = used_norm().eval()
    x = torch.randn(4, 2, 3, 3)
    expected = (x - torch.tensor([2.0, 3.0])[:, None, None]) / torch.tensor([2.0, 3.0])[:, None, None]
    torch.testing.assert_close(normalize(norm, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("before", "after", "stride", "force", "has_conv"),
    [(4, 4, 1, False, False), (4, 4, 1, True, True), (4, 4, 2, False, True), (4, 6, 1, False, True)],
)
def test_residual_block_has_a_skip_convolution_where_shapes_change(before, after, stride, force, has_conv):
    block = PostActivationBlock(before, after, stride=stride, skip_conv=force)
    assert isinstance(block.skip, ConvBlock) is has_conv
    y = block(torch.randn(2, before, 8, 8))
    assert y.shape == (2, after, 8 // stride, 8 // stride)
    assert (y >= 0).all()


def test_residual_block_with_a_silent_branch_is_the_rectified_input():
    block = PostActivationBlock(3, 3).eval()
    nn.init.zeros_(block.norm.weight)
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(block(x), x.relu())


def test_strided_convolution_starts_at_the_first_pixel():
    """Symmetric padding: output (0, 0) is centred on input (0, 0), not on (1, 1) as with TensorFlow's SAME."""
    block = ConvBlock(1, 1, 3, stride=2, relu=False).eval()
    with torch.no_grad():
        block.conv.weight.zero_()[0, 0, 1, 1] = 1
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    torch.testing.assert_close(block(x).flatten(), torch.tensor([0.0, 2.0, 8.0, 10.0]), rtol=1e-4, atol=0)


def test_preactivation_block_adds_the_plain_input_and_has_no_activation_after_the_sum():
    block = PreActivationBlock(3, 3, skip_conv=False).eval()
    nn.init.zeros_(block.norm2.weight)
    nn.init.constant_(block.norm2.bias, 0.5)
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(block(x), x + 0.5)


def test_preactivation_block_projects_the_rectified_input():
    block = PreActivationBlock(1, 1, skip_conv=True).eval()
    nn.init.zeros_(block.norm2.weight)
    assert block.skip is not None
    nn.init.constant_(block.skip.weight, 2.0)
    nn.init.constant_(block.skip.bias, 1.0)
    x = torch.tensor([-3.0, 3.0]).reshape(1, 1, 1, 2)
    torch.testing.assert_close(block(x).flatten(), torch.tensor([1.0, 7.0]), rtol=1e-4, atol=0)


def test_dilation_keeps_the_size_and_reaches_further():
    block = PreActivationBlock(1, 1, skip_conv=False, dilations=(2, 2)).eval()
    x = torch.zeros(1, 1, 9, 9, requires_grad=True)
    for conv in (block.conv1, block.conv2):
        nn.init.ones_(conv.weight)
    for norm in (block.norm0, block.norm1, block.norm2):
        nn.init.ones_(norm.bias)  # no value at the ReLU's kink
    y = block(x)
    assert y.shape == x.shape
    (gradient,) = torch.autograd.grad(y[0, 0, 4, 4], x)
    reached = gradient[0, 0, 4].nonzero().flatten().tolist()
    assert reached == [0, 2, 4, 6, 8]


def test_glorot_range_counts_the_kernel_and_biases_are_zero():
    layer = nn.Conv2d(40, 60, 3)
    initialize_glorot(layer)
    limit = math.sqrt(6 / (9 * 40 + 9 * 60))
    assert 0.98 * limit < float(layer.weight.detach().abs().max()) <= limit
    assert layer.bias is not None
    assert not layer.bias.any()


@pytest.mark.parametrize(("kernel", "neighbour"), [((3, 3), True), ((1, 3), False)])
def test_prediction_head_sees_rows_above_only_with_a_square_kernel(kernel, neighbour):
    head = prediction_head(2, 4, 5, kernel)
    nn.init.constant_(head[0].bias, 10.0)  # the ReLU passes everything
    x = torch.zeros(1, 2, 6, 6, requires_grad=True)
    y = head(x)
    assert y.shape == (1, 5, 6, 6)
    (gradient,) = torch.autograd.grad(y[0, :, 3, 3].sum(), x)
    assert bool(gradient[0, :, 2, 3].any()) is neighbour
    assert bool(gradient[0, :, 3, 2].any())


@pytest.mark.parametrize(
    ("here", "elsewhere", "synchronised"), [(0, 0, False), (1, 0, False), (0, 1, False), (1, 1, True)]
)
def test_processes_decide_together_under_a_synchronised_norm(monkeypatch, here, elsewhere, synchronised):
    """A process that left the norm's collective calls out on its own would leave the others waiting."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total, group: total.add_(elsewhere))
    norm = used_norm(nn.SyncBatchNorm)
    calls = []
    monkeypatch.setattr(norm, "forward", lambda x: calls.append(x) or x)
    normalize(norm, torch.zeros(here, 2, 1, 1))
    assert bool(calls) is synchronised
