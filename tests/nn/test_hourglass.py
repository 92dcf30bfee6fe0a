from __future__ import annotations

import pytest
import torch
from torch import nn

from maskwright.nn.hourglass import Hourglass, hourglass_levels
from maskwright.nn.layers import ConvBlock


def small(**options) -> Hourglass:
    return Hourglass(3, 2, [(4, 1), (4, 2), (6, 2)], **options)


@pytest.mark.parametrize("stacks", [1, 2, 3])
def test_one_output_per_stack_at_the_stems_stride(stacks):
    network = small(stacks=stacks, stem_stride=4).eval()
    outputs = network(torch.randn(2, 3, 32, 48))
    assert [tuple(output.shape) for output in outputs] == [(2, 4, 8, 12)] * stacks
    assert network.size_divisor == 16
    assert network.out_channels == 4


def test_later_stacks_do_not_change_earlier_outputs_but_depend_on_them():
    network = small(stacks=2).eval()
    x = torch.randn(1, 3, 8, 8)
    first, second = network(x)
    (gradient,) = torch.autograd.grad(second.sum(), network.outputs[0].conv.weight)
    assert gradient.any()
    nn.init.zeros_(network.outputs[1].norm.weight)
    assert torch.equal(network(x)[0], first)
    assert not torch.equal(network(x)[1], second)


@pytest.mark.parametrize(("options", "divisor"), [({}, 4), ({"pool": 1}, 1), ({"stem_stride": 4}, 16)])
def test_sizes_that_do_not_divide_are_refused_by_name(options, divisor):
    network = small(**options).eval()
    assert network.size_divisor == divisor
    assert network(torch.randn(1, 3, divisor, 2 * divisor))
    if divisor > 1:
        with pytest.raises(ValueError, match=f"multiples of {divisor}, but got {divisor} x {divisor + 1}"):
            network(torch.randn(1, 3, divisor, divisor + 1))


def test_without_shortcut_fine_detail_is_lost():
    """Only the long-range skips carry what differs within a cell of the coarsest level."""
    torch.manual_seed(0)
    x = torch.randn(1, 4, 8, 8)
    for shortcut in (True, False):
        stack = small(shortcut=shortcut).eval().stacks[0]
        y = stack(x)
        assert y.shape == x.shape
        blocky = torch.equal(y[..., ::2, ::2], y[..., 1::2, 1::2])
        assert blocky is not shortcut


def test_uniform_size_has_no_stride_anywhere():
    network = small(pool=1)
    assert {m.stride for m in network.modules() if isinstance(m, nn.Conv2d)} == {(1, 1)}
    assert network(torch.randn(2, 3, 5, 7))[0].shape == (2, 4, 5, 7)


def test_skip_convolutions_are_where_channels_or_stride_change():
    skips = [
        name for name, module in small().named_modules() if name.endswith("skip") and isinstance(module, ConvBlock)
    ]
    assert skips == [
        "stem_residual.skip",
        "stacks.0.encoder_down.0.skip",
        "stacks.0.inner.encoder_down.0.skip",
        "stacks.0.inner.decoder.1.skip",
    ]


@pytest.mark.parametrize(
    ("name", "stem", "stacks", "stride", "in_channels", "count"),
    [
        ("hourglass52", 64, 1, 4, 3, 23_435_072),
        ("hourglass52", 128, 2, 4, 3, 187_700_352),  # hourglass104
        ("hourglass52", 64, 1, 1, 50, 23_454_593 - 129),  # the mask head without its last convolution
        ("hourglass100", 64, 1, 1, 50, 47_221_121 - 129),
    ],
)
def test_published_sizes_have_the_originals_parameter_counts(name, stem, stacks, stride, in_channels, count):
    with torch.device("meta"):
        network = Hourglass(in_channels, stem, hourglass_levels(name, stem), stacks=stacks, stem_stride=stride)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_batch_norms_are_stock_with_the_given_momentum_and_no_convolution_has_a_bias():
    network = small(norm_momentum=0.9)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {type(norm) for norm in norms} == {nn.BatchNorm2d}
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-5, 0.9)}
    assert all(m.bias is None for m in network.modules() if isinstance(m, nn.Conv2d))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in converted.modules()) == len(norms)
