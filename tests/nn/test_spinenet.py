from __future__ import annotations

import pytest
import torch
from torch import nn

from maskwright.nn.backbones import DETECTION_BACKBONES, create_detection_backbone
from maskwright.nn.feature_maps import BackboneOptions
from maskwright.nn.spinenet import DropPathBasicBlock, DropPathBottleneck, Node, Resample, SpineNet, plan_nodes

SPINENETS = [name for name in DETECTION_BACKBONES if name.startswith("spinenet")]


def create(name: str, **options) -> SpineNet:
    network = create_detection_backbone(name, BackboneOptions(**{"norm_epsilon": 1e-3, **options}))
    assert isinstance(network, SpineNet)
    return network


def small(name: str = "spinenet49", **options) -> SpineNet:
    torch.manual_seed(0)
    return create(name, width=1 / 16, **options)


def numbers(module: nn.Module) -> int:
    """Parameters and moving statistics, as the originals count them."""
    return sum(tensor.numel() for tensor in module.state_dict().values() if tensor.is_floating_point())


@pytest.mark.parametrize(
    ("name", "count"), [("spinenet49", 21_920_192), ("spinenet143", 60_413_888)], ids=["49", "143"]
)
def test_published_sizes_have_the_originals_counts(name, count):
    with torch.device("meta"):
        network = create(name)
    assert numbers(network) == count
    assert network.channels == 256


@pytest.mark.parametrize("name", SPINENETS)
def test_maps_of_five_levels(name):
    network = small(name).eval()
    with torch.no_grad():
        maps = network(torch.randn(1, 3, 128, 256))
    assert network.levels == (3, 4, 5, 6, 7)
    for level, features in zip(network.levels, maps, strict=True):
        assert features.shape == (1, network.channels, 128 // 2**level, 256 // 2**level)
        assert (features >= 0).all()


def test_every_parameter_has_a_gradient():
    """So no node is left over: each is a parent, an output, or merged."""
    network = small().train()
    sum(features.square().mean() for features in network(torch.randn(2, 3, 128, 128))).backward()
    assert not [name for name, value in network.named_parameters() if not (value.grad.abs() > 0).any()]


def test_an_output_merges_the_unused_nodes_of_its_scale():
    """Of 17 nodes only node 11 (level 5) is no one's parent before an output of its level comes."""
    plan = plan_nodes(1.0)
    assert {index: node.merged for index, node in enumerate(plan) if node.merged} == {14: (11,)}
    assert (plan[11].level, plan[14].level) == (5, 5)
    read = {index for node in plan for index in (*node.parents, *node.merged)}
    assert {index for index in range(len(plan)) if index not in read} == {
        index for index, node in enumerate(plan) if node.is_output and index not in read
    }
    assert sorted(node.level for node in plan if node.is_output) == [3, 4, 5, 6, 7]


def test_widths_follow_the_table():
    plan = plan_nodes(0.65)
    assert (plan[0].width, plan[0].channels) == (41, 164)
    assert [(node.kind, node.width, node.channels) for node in plan[2:4]] == [
        (DropPathBottleneck, 41, 164),
        (DropPathBasicBlock, 166, 166),
    ]


@pytest.mark.parametrize(("target", "size"), [(3, 16), (4, 8), (5, 4), (2, 32), (1, 64)])
def test_resampling_halves_and_doubles(target, size):
    source, wanted = Node(3, DropPathBottleneck, 8), Node(target, DropPathBasicBlock, 6)
    resample = Resample(source, wanted, 0.5, nn.BatchNorm2d).eval()
    assert resample(torch.randn(1, 32, 16, 16)).shape == (1, 6, size, size)
    assert resample.reduce[0].out_channels == 4  # half of the blocks' width, not of the four times wider output


def test_strided_layers_pad_on_the_right_and_at_the_bottom():
    """TensorFlow's SAME of an even size: the first window begins at the first pixel."""
    scale = Resample(Node(3, DropPathBasicBlock, 1), Node(5, DropPathBasicBlock, 1), 1.0, nn.BatchNorm2d).scale
    pad, convolution, _, _, pool = scale
    with torch.no_grad():
        convolution.weight.fill_(1.0)
        x = torch.arange(16.0).reshape(1, 1, 4, 4)
        # Windows of rows and columns 0..2 and 2..4, of which 4 is padding.
        assert convolution(pad(x)).flatten().tolist() == [45.0, 39.0, 66.0, 50.0]
        assert pool(x).flatten().tolist() == [10.0, 11.0, 14.0, 15.0]


def test_dropping_paths_rises_from_node_to_node():
    """Source: the rate times the node's place among the 16; the stem drops nothing."""
    network = small("spinenet96", drop_path_rate=0.32)
    places = [block.drop_path.p for node in network.nodes for block in node.blocks]
    assert places == pytest.approx([0.02 * place for place in range(1, 16) for _ in range(2)])
    assert {block.drop_path.p for group in network.stem_groups for block in group} == {0.0}


@pytest.mark.parametrize(("kind", "channels"), [(DropPathBasicBlock, 4), (DropPathBottleneck, 16)])
def test_a_dropped_path_leaves_the_shortcut_and_others_grow(kind, channels):
    torch.manual_seed(0)
    theirs = kind.__base__(channels, 4).eval()
    x = torch.rand(200, channels, 2, 2)
    for probability in (0.0, 0.25):
        block = kind(channels, 4, drop_probability=probability).eval()
        block.load_state_dict(theirs.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(block(x), theirs(x))
            block.drop_path.train()
            result = block(x)
            block.drop_path.p = 0.0
            last_norm = block.bn3 if kind is DropPathBottleneck else block.bn2
            for values in (last_norm.weight, last_norm.bias):
                values /= 1 - probability
            kept = block(x)
        dropped = (result == x).flatten(1).all(dim=1)
        assert dropped.float().mean().item() == pytest.approx(probability, abs=0.1)
        torch.testing.assert_close(result[~dropped], kept[~dropped])


def test_a_single_value_per_channel_is_refused_in_training():
    network = small().train()
    with pytest.raises(ValueError, match=r"trained on two images of 128 x 128 pixels at least, .* got 1 of 128 x 128"):
        network(torch.randn(1, 3, 128, 128))
    network(torch.randn(1, 3, 128, 256))
    network.eval()(torch.randn(1, 3, 128, 128))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="multiples of 128, but got 128 x 192"):
        small()(torch.randn(1, 3, 128, 192))
    with pytest.raises(ValueError, match=r"unknown backbone 'spinenet50'; known are .*spinenet49s, spinenet49, "):
        create("spinenet50")
