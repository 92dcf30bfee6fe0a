from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from maskwright.nn.backbones import create_detection_backbone
from maskwright.nn.feature_maps import BackboneOptions
from maskwright.nn.feature_pyramids import DetectionPyramidBackbone
from maskwright.nn.same_padding import SamePaddedConv2d, SamePaddedMaxPool2d


def create(name: str, **options) -> DetectionPyramidBackbone:
    torch.manual_seed(0)
    backbone = create_detection_backbone(name, BackboneOptions(**options))
    assert isinstance(backbone, DetectionPyramidBackbone)
    return backbone


def small(name: str, **options) -> DetectionPyramidBackbone:
    return create(name, width=1 / 16, **options)


@pytest.mark.parametrize(("name", "trunk"), [("resnet50_fpn", 23_561_152), ("resnet101_fpn", 42_605_504)])
def test_published_sizes_have_the_originals_counts(name, trunk):
    """Parameters and moving statistics, counted in the original."""
    with torch.device("meta"):
        backbone = create(name)
    for part, expected in ((backbone.trunk, trunk), (backbone.pyramid, 3_939_584)):
        assert sum(t.numel() for t in part.state_dict().values() if t.is_floating_point()) == expected


def test_the_trunk_takes_torchvisions_weights():
    with torch.device("meta"):
        ours = create("resnet50_fpn").trunk.state_dict()
        theirs = torchvision.models.resnet50().state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items() if not k.startswith("fc.")}


@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_every_parameter_has_a_gradient(padding):
    backbone = small("resnet50_fpn", padding=padding).train()
    sum(features.square().mean() for features in backbone(torch.randn(2, 3, 128, 128))).backward()
    assert not [name for name, value in backbone.named_parameters() if not (value.grad.abs() > 0).any()]


@pytest.mark.parametrize("kernel", [3, 7])
def test_same_padding_mirrors_symmetric_padding_of_even_sizes(kernel):
    """With stride 2 torch sees one column more on the left and at the top, TensorFlow on the right and bottom."""
    symmetric = nn.Conv2d(2, 3, kernel, stride=2, padding=kernel // 2)
    same = SamePaddedConv2d(2, 3, kernel, stride=2)
    same.load_state_dict({"weight": symmetric.weight.flip(2, 3), "bias": symmetric.bias})
    x = torch.randn(1, 2, 8, 12)
    torch.testing.assert_close(same(x.flip(2, 3)).flip(2, 3), symmetric(x))
    pooled = SamePaddedMaxPool2d(3, stride=2)(x.relu().flip(2, 3)).flip(2, 3)
    torch.testing.assert_close(pooled, nn.MaxPool2d(3, stride=2, padding=1)(x.relu()))


def test_same_padding_replaces_what_pads_and_strides():
    layers = dict(small("resnet50_fpn", padding="same").named_modules())
    kinds = (nn.Conv2d, nn.MaxPool2d)
    strided = {
        k: type(layer) for k, layer in layers.items() if isinstance(layer, kinds) and layer.stride in (2, (2, 2))
    }
    projections = {name for name in strided if name.endswith("downsample.0")}
    assert len(strided) - len(projections) == 6  # stem, pool, three groups, level 6
    for name, kind in strided.items():
        assert (kind in (SamePaddedConv2d, SamePaddedMaxPool2d)) == (name not in projections), name


def test_same_padding_of_odd_sizes_is_symmetric():
    layer = SamePaddedConv2d(1, 1, 3, stride=2, bias=False)
    nn.init.ones_(layer.weight)
    assert layer(torch.ones(1, 1, 5, 4)).tolist() == [[[[6.0, 4.0], [9.0, 6.0], [6.0, 4.0]]]]


def test_the_coarsest_level_is_made_before_the_norms():
    backbone = small("resnet50_fpn").eval()
    with torch.no_grad():
        x = torch.randn(1, 3, 128, 128)
        before = backbone(x)[4]
        backbone.pyramid.extra_blocks.norms[3].weight.zero_()
        torch.testing.assert_close(backbone(x)[4], before)
        assert backbone(x)[3].abs().max() == 0


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiples of 64, but got 64 x 96"):
        small("resnet50_fpn")(torch.randn(1, 3, 64, 96))


def test_the_trunk_may_have_an_epsilon_of_its_own():
    def epsilons(module):
        return {norm.eps for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)}

    backbone = small("resnet18_fpn", norm_epsilon=1e-4, trunk_norm_epsilon=1e-5)
    assert (epsilons(backbone.trunk), epsilons(backbone.pyramid)) == ({1e-5}, {1e-4})
    backbone = small("resnet18_fpn", norm_epsilon=1e-4)
    assert epsilons(backbone) == {1e-4}


def test_one_image_of_the_smallest_size_can_be_trained_on():
    """Its coarsest level has one value per channel: it goes by the running statistics, and leaves them as they are."""
    backbone = small("resnet18_fpn").train()
    coarsest, finest = backbone.pyramid.extra_blocks.norms[-1], backbone.pyramid.extra_blocks.norms[0]
    maps = backbone(torch.randn(1, 3, 64, 64))
    assert maps[4].shape[-2:] == (1, 1)
    assert (coarsest.running_mean == 0).all()
    assert (finest.running_mean != 0).any()
