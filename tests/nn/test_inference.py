"""Folded networks compute what the trained ones do, and every norm behind a convolution of its own is folded."""

from __future__ import annotations

import copy
import math
import os
import platform
import subprocess
import sys
import weakref

import pytest
import small_deep_mac
import small_deep_marc
import torch
from small_max_deeplab import small_model
from torch import nn

from maskwright.nn import inference
from maskwright.nn.backbones import BACKBONES, DETECTION_BACKBONES, create_backbone, create_detection_backbone
from maskwright.nn.feature_maps import BackboneOptions
from maskwright.nn.inference import (
    fold_batch_norms,
    keep_freed_memory,
    speed_up_convolutions,
    store_weights,
    without_autocast,
)
from maskwright.nn.mask_heads import MASK_HEADS, create_mask_head
from maskwright.nn.same_padding import SamePaddedConv2d, SamePadding

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def with_random_norms(module: nn.Module) -> nn.Module:
    """In eval mode, with running statistics and affine values as training leaves them: none neutral."""
    generator = torch.Generator().manual_seed(1)
    for norm in module.modules():
        if isinstance(norm, NORMS):
            for values, low in ((norm.running_mean, -0.5), (norm.running_var, 0.5), (norm.bias, -0.5)):
                values.data.uniform_(low, low + 1, generator=generator)
            norm.weight.data.uniform_(0.7, 1.3, generator=generator)
    return module.eval()


def norms_of(module: nn.Module) -> list[str]:
    return [name for name, layer in module.named_modules() if isinstance(layer, NORMS)]


def assert_same(folded: torch.Tensor, plain: torch.Tensor) -> None:
    """To 1e-4 of the largest magnitude."""
    assert plain.isfinite().all()
    assert plain.abs().max() > 0
    torch.testing.assert_close(folded, plain, rtol=0, atol=1e-4 * float(plain.abs().max()))


@pytest.mark.parametrize("name", BACKBONES)
@torch.inference_mode()
def test_every_backbone_without_its_norms_computes_the_same(name):
    torch.manual_seed(0)
    backbone = with_random_norms(create_backbone(name, width=1 / 16))
    folded = fold_batch_norms(backbone)
    assert norms_of(backbone) != []
    # A pre-activation block's first norm reads a sum, which goes past it, too.
    assert all(name.startswith("resnet_v1") and norm.endswith(".norm0") for norm in norms_of(folded))
    images = torch.randn(1, 3, backbone.size_divisor, backbone.size_divisor)
    for ours, plain in zip(folded(images), backbone(images), strict=True):
        assert_same(ours, plain)


@pytest.mark.parametrize("name", BACKBONES)
@torch.inference_mode()
def test_every_backbone_with_faster_convolutions_computes_the_same(name):
    torch.manual_seed(0)
    plain = with_random_norms(create_backbone(name, width=1 / 16))
    fast = copy.deepcopy(plain)
    speed_up_convolutions(fast)
    assert not [layer for layer in fast.modules() if isinstance(layer, SamePadding)]
    images = torch.randn(1, 3, plain.size_divisor, 2 * plain.size_divisor)
    for ours, expected in zip(fast(images), plain(images), strict=True):
        assert_same(ours, expected)


@pytest.mark.parametrize("name", MASK_HEADS)
@torch.inference_mode()
def test_every_mask_head_with_faster_convolutions_computes_the_same(name):
    torch.manual_seed(0)
    size = {"hourglass52": 32, "hourglass100": 32}.get(name, 8)
    plain = with_random_norms(create_mask_head(name, 5, 4, mask_size=size))
    fast = copy.deepcopy(plain)
    speed_up_convolutions(fast)
    crops = torch.randn(3, 5, size, size)
    assert_same(fast(crops), plain(crops))


def test_a_single_tap_is_dilated():
    module = nn.Sequential(nn.Conv2d(2, 3, 1, stride=2, padding=1), nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 1, groups=3))
    image = torch.randn(2, 2, 9, 9)
    expected = module(image)
    speed_up_convolutions(module)
    assert [layer.dilation for layer in module] == [(2, 2), (1, 1), (1, 1)]
    torch.testing.assert_close(module(image), expected)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone is told to keep memory")
def test_freed_memory_is_used_again():
    assert keep_freed_memory()
    script = """
import resource, sys, torch
from maskwright.nn.inference import keep_freed_memory

def fresh_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    maps = [torch.zeros(5 << 20) for _ in range(5)]  # 20 MB each
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1:]:
    keep_freed_memory()
print(fresh_pages(), min(fresh_pages() for _ in range(5)))
"""
    # By default glibc learns which sizes come again and may keep some; a fixed threshold, which is replaced, does not.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    for arguments, is_fresh in (([], True), (["keep"], False)):
        command = [sys.executable, "-c", script, *arguments]
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        first, least = map(int, told.stdout.split())
        assert (least > first / 2) is is_fresh


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (4, 7)])
@pytest.mark.parametrize("kernel", [3, 5])
def test_no_map_is_padded_by_a_copy(kernel, size):
    behind = nn.Sequential(SamePadding(kernel), nn.Sequential(nn.Conv2d(2, 4, kernel, stride=2, groups=2), nn.ReLU()))
    inside = nn.Sequential(SamePaddedConv2d(2, 3, kernel, stride=2, bias=False))
    image = torch.randn(1, 2, *size)
    for module in (behind, inside):
        expected, weights = module(image), list(module.parameters())
        assert expected.shape[-2:] == (math.ceil(size[0] / 2), math.ceil(size[1] / 2))
        speed_up_convolutions(module)
        assert next(module.parameters()) is weights[0]
        torch.testing.assert_close(module(image), expected)
        assert not [part for part in module.modules() if isinstance(part, SamePadding | SamePaddedConv2d)]


@pytest.mark.parametrize("name", DETECTION_BACKBONES)
@torch.inference_mode()
def test_every_detection_backbone_keeps_only_the_norms_behind_its_pyramid(name):
    torch.manual_seed(0)
    backbone = with_random_norms(create_detection_backbone(name, BackboneOptions(width=1 / 16)))
    folded = fold_batch_norms(backbone)
    # The coarsest map goes past its norm into one more level.
    assert all(norm.startswith("pyramid.extra_blocks.norms.") for norm in norms_of(folded))
    images = torch.randn(1, 3, backbone.size_divisor, backbone.size_divisor)
    for ours, plain in zip(folded(images), backbone(images), strict=True):
        assert_same(ours, plain)


@pytest.mark.parametrize("upsample", [1, 2])
@pytest.mark.parametrize("name", MASK_HEADS)
@torch.inference_mode()
def test_every_mask_head_keeps_only_norms_before_activations(name, upsample):
    torch.manual_seed(0)
    size = {"hourglass52": 32, "hourglass100": 32}.get(name, 8)
    head = with_random_norms(create_mask_head(name, 5, 4, upsample=upsample, mask_size=size))
    folded = fold_batch_norms(head)
    # A pre-activation block's first norm reads a sum, which goes past it, too.
    assert all(norm.startswith("trunk.blocks.") and norm.endswith(".norm0") for norm in norms_of(folded))
    crops = torch.randn(3, 5, size, size)
    assert_same(folded(crops), head(crops))
    assert folded(crops[:0]).shape == head(crops[:0]).shape


def maps_of(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    network = model.get_submodule("network")
    outputs = network.maps(images) if hasattr(network, "maps") else network(images)
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return [value for value in values if value is not None]


@pytest.mark.parametrize("build", [small_deep_mac.build, small_deep_marc.build, small_model])
@torch.inference_mode()
def test_every_family_folds_to_the_same_network(build):
    """In float64: random norms magnify float32's rounding in MaX-DeepLab's attention."""
    model = with_random_norms(build()).double()
    folded = fold_batch_norms(model)
    assert len(norms_of(folded)) < len(norms_of(model))
    assert not [name for name in norms_of(folded) if name.endswith((".conv.norm", "bn1", "bn2"))]
    images = torch.randn(1, 3, model.image_size, model.image_size, dtype=torch.float64)
    for ours, plain in zip(maps_of(folded, images), maps_of(model, images), strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-9 * float(plain.abs().max()))


def test_only_a_norm_right_behind_its_convolution_is_folded():
    apart = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.BatchNorm2d(3))
    wider = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(2))
    first = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1))
    inside = nn.Sequential(nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU()), nn.BatchNorm2d(3))
    untracked = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, track_running_stats=False))
    for module in (apart, wider, first, inside, untracked):
        assert len(norms_of(fold_batch_norms(module))) == 1
    plain = nn.Sequential(nn.Conv1d(2, 3, 1, bias=False), nn.BatchNorm1d(3, affine=False))
    plain[1].running_mean.fill_(2.0)
    plain[1].running_var.fill_(4.0)
    folded = fold_batch_norms(plain)
    assert norms_of(folded) == []
    # (w x - mean) / sqrt(var + epsilon), by hand
    torch.testing.assert_close(folded[0].weight, plain[0].weight / 2, rtol=1e-4, atol=0)
    torch.testing.assert_close(folded[0].bias, torch.full((3,), -1.0), rtol=1e-4, atol=0)


def test_the_module_itself_stays_as_it_is_and_the_copy_cannot_be_saved():
    head = create_mask_head("fcn", 5, 4, upsample=2).train()
    before = copy.deepcopy(head.state_dict())
    folded = fold_batch_norms(head)
    assert head.training
    assert not any(layer.training for layer in folded.modules() if not isinstance(layer, nn.Identity))
    assert all(torch.equal(value, before[key]) for key, value in head.state_dict().items())
    assert all(parameter.requires_grad for parameter in head.parameters())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    with pytest.raises(ValueError, match="FCNHead was rebuilt for inference and has no weights to save"):
        folded.state_dict()


@torch.inference_mode()
def test_in_place_nothing_is_copied_and_what_is_replaced_is_freed():
    head = with_random_norms(create_mask_head("fcn", 5, 4, upsample=2))
    expected, crops = fold_batch_norms(head), torch.randn(2, 5, 8, 8)
    replaced = [weakref.ref(layer) for layer in head.modules() if isinstance(layer, NORMS)]
    alive: list[int] = []
    fuse = inference.fuse_conv_bn_eval

    def counting(*arguments):
        alive.append(sum(layer() is not None for layer in replaced))
        return fuse(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "fuse_conv_bn_eval", counting)
        assert fold_batch_norms(head, in_place=True) is head
    assert torch.equal(head(crops), expected(crops))
    assert len(alive) > 2
    assert alive[-1] < len(replaced) - len(alive) + 3  # each but the last ones is freed before the next


@torch.inference_mode()
def test_stored_weights_give_what_autocast_gives():
    head = fold_batch_norms(create_mask_head("fully_connected", 5, 4, mask_size=8))
    crops = torch.randn(2, 5, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        expected = head(crops)
        store_weights(head, torch.bfloat16)
        assert {parameter.dtype for parameter in head.parameters()} == {torch.bfloat16}
        assert torch.equal(head(crops), expected)


class Exact(nn.Linear):
    full_precision = True

    def forward(self, x):
        with without_autocast(x.device):
            return super().forward(x.to(self.weight.dtype))


@torch.inference_mode()
def test_parts_of_full_precision_keep_their_weights_and_their_arithmetic():
    network = nn.Sequential(nn.Linear(3, 5), Exact(5, 7), nn.Linear(7, 2))
    x, exact = torch.randn(4, 3), copy.deepcopy(network[1])
    store_weights(network, torch.bfloat16)
    assert [layer.weight.dtype for layer in network] == [torch.bfloat16, torch.float32, torch.bfloat16]
    with torch.autocast("cpu", torch.bfloat16):
        features = network[0](x)
        result = network[1](features)
        assert network(x).dtype == features.dtype == torch.bfloat16
        assert torch.is_autocast_enabled("cpu")  # again
    assert result.dtype == torch.float32
    assert torch.equal(result, exact(features.float()))
    assert torch.equal(exact(x.new_zeros(1, 5)), exact.bias[None])  # without autocast, too
