"""MaX-DeepLab's network: published sizes, shapes, options, export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_max_deeplab import WITHOUT_GRADIENT, config_of
from torch import Tensor, nn

from maskwright.models.max_deeplab.blocks import AxialBlock, BottleneckStageBlock, StageBlock
from maskwright.models.max_deeplab.config import ENCODER_SIZES
from maskwright.models.max_deeplab.dual_path import DualPathLayer
from maskwright.models.max_deeplab.model import backbone_parameters
from maskwright.models.max_deeplab.network import MaXDeepLabNetwork
from maskwright.models.max_deeplab.stages import keep_probability
from maskwright.nn.efficientnet_lite import SIZES, published_weights
from maskwright.nn.inference import fold_batch_norms

WIDTHS: dict[str, Any] = {
    "image_size": 65,
    "num_mask_slots": 6,
    "stem_width": 1 / 8,
    "backbone_width": 1 / 32,
    "transformer_width": 1 / 8,
    "memory_channels": 16,
    "memory_feature_channels": 12,
    "feed_forward_channels": 24,
    "num_heads": 2,
    "semantic_channels": 8,
    "low_level_channels": [4, 4],
    "pixel_head_channels": 8,
    "pixel_feature_channels": 8,
}


def small(**values: Any) -> MaXDeepLabNetwork:
    torch.manual_seed(0)
    return MaXDeepLabNetwork(config_of(**{"num_classes": 5, **WIDTHS, **values}))


def open_branches(network: nn.Module) -> None:
    """Norms that start at zero hide what is behind them."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.weight.any():
            nn.init.ones_(module.weight)


def draw_norms(network: nn.Module) -> None:
    """Random statistics, scales and offsets, of which none hides or ends what lies before it."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.2, 0.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


@pytest.mark.parametrize(
    ("backbone", "encoder", "whole"),
    [("max_deeplab_s", 61_726_624, 77_756_942), ("max_deeplab_l", 450_523_232, 450_871_278)],
)
def test_published_sizes(backbone: str, encoder: int, whole: int):
    with torch.device("meta"):
        network = MaXDeepLabNetwork(config_of(133, backbone=backbone))
    assert sum(parameter.numel() for parameter in network.encoder.parameters()) == encoder
    assert sum(parameter.numel() for parameter in network.parameters()) == whole


@pytest.mark.parametrize("backbone", list(ENCODER_SIZES))
@pytest.mark.parametrize("num_classes", [1, 5])
def test_training_step_reaches_every_parameter(backbone: str, num_classes: int):
    network = small(backbone=backbone, num_classes=num_classes, drop_path_keep=1.0)
    open_branches(network)
    outputs = network(torch.rand(2, 3, 65, 65) * 2 - 1)
    assert outputs.mask_logits.shape == (2, 6, 17, 17)
    assert outputs.class_logits.shape == (2, 6, num_classes + 1)
    assert outputs.pixel_feature.shape == (2, 8, 17, 17)
    assert outputs.semantic_logits.shape == (2, num_classes + 1, 17, 17)
    torch.testing.assert_close(outputs.pixel_feature.norm(dim=1), torch.ones(2, 17, 17))
    sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    still = [name for name, p in network.named_parameters() if p.grad is not None and not p.grad.any()]
    assert not [name for name in still if not name.endswith(WITHOUT_GRADIENT)]


def test_void_starts_likely():
    logits = small().eval()(torch.zeros(1, 3, 65, 65)).class_logits
    assert logits.softmax(-1)[..., -1].mean().item() == pytest.approx(0.9, abs=0.05)


def test_images_of_a_batch_are_independent_at_inference():
    network = small().eval().double()
    open_branches(network)
    batch = torch.rand(2, 3, 65, 81).double() * 2 - 1
    with torch.inference_mode():
        together, alone = network(batch), network(batch[1:])
    for both, one in zip(together, alone, strict=True):
        torch.testing.assert_close(both[1:], one)


@pytest.mark.parametrize("backbone", ["max_deeplab_s", "efficientnet_lite0"])
def test_a_larger_image_than_in_training_and_a_size_that_does_not_fit(backbone: str):
    network = small(backbone=backbone).eval()
    assert network(torch.zeros(1, 3, 81, 81)).mask_logits.shape == (1, 6, 21, 21)
    assert network(torch.zeros(1, 3, 97, 129)).mask_logits.shape == (1, 6, 25, 33)
    for size in ((64, 65), (65, 70)):
        with pytest.raises(ValueError, match="16 k \\+ 1"):
            network(torch.zeros(1, 3, *size))
    with pytest.raises(ValueError, match="16 k \\+ 1"):
        small(image_size=64)
    with pytest.raises(ValueError, match="drop_path_keep must be above 0 and at most 1, but got 0"):
        small(drop_path_keep=0.0)
    with pytest.raises(ValueError, match="needs categories"):
        small(num_classes=0)


def test_folding_batch_norms_changes_nothing():
    network = small().eval().double()
    draw_norms(network)
    folded = fold_batch_norms(network)
    assert sum(isinstance(m, nn.Identity) for m in folded.modules()) > 60
    image = torch.rand(1, 3, 65, 65).double()
    with torch.inference_mode():
        for one, other in zip(folded(image), network(image), strict=True):
            torch.testing.assert_close(one, other)


def test_activation_checkpointing_changes_neither_gradients_nor_statistics():
    image, results = torch.rand(2, 3, 65, 65), []
    for checkpointing in (False, True):
        network = small(activation_checkpointing=checkpointing, drop_path_keep=0.5)
        open_branches(network)
        torch.manual_seed(3)
        outputs = network(image)
        (outputs.mask_logits.square().mean() + outputs.class_logits.square().mean()).backward()
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        results.append((gradients, list(network.buffers())))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backbone", list(ENCODER_SIZES))
def test_gradients_are_the_slopes_of_the_outputs(backbone: str, training: bool):
    """Whatever is computed in place, checkpointed or dropped: also the outputs without gradients are the same."""
    network = small(backbone=backbone, activation_checkpointing=True, drop_path_keep=0.5).double().train(training)
    draw_norms(network)
    image = torch.rand(2, 3, 65, 65).double() * 2 - 1
    factors = [torch.randn_like(output) for output in network(image)]

    def total() -> Tensor:
        torch.manual_seed(3)
        return sum(((o * factor).sum() for o, factor in zip(network(image), factors, strict=True)), torch.zeros(()))

    loss = total()
    loss.backward()
    parameters = [p for p in network.parameters() if p.grad is not None]
    directions = [torch.randn_like(p) * p.detach().abs().mean() for p in parameters]
    slope = sum((p.grad * d).sum().item() for p, d in zip(parameters, directions, strict=True) if p.grad is not None)
    step, values = 1e-9, []  # few of the thousands of ReLUs turn within it
    with torch.no_grad():
        assert total() == loss
        for factor in (step, -2 * step):
            torch._foreach_add_(parameters, directions, alpha=factor)
            values.append(total().item())
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=1e-4)


def test_activation_checkpointing_keeps_less_for_the_gradients():
    kept: dict[bool, int] = {}
    for checkpointing in (False, True):
        network = small(activation_checkpointing=checkpointing)
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = network(torch.rand(2, 3, 65, 65))
        kept[checkpointing] = sum(sizes.values())
        del outputs
    assert kept[True] < 0.6 * kept[False]


def test_share_of_branches_that_drop_path_keeps():
    assert [keep_probability(0.8, "linear", stage) for stage in range(5)] == pytest.approx([1, 0.95, 0.9, 0.85, 0.8])
    assert [keep_probability(0.8, "constant", stage) for stage in range(5)] == [0.8] * 5
    with pytest.raises(ValueError, match=r"drop_path_keep must be above 0 and at most 1, but got 1.5"):
        config_of(drop_path_keep=1.5)


def test_constants_of_the_heads_and_of_the_semantic_decoder():
    network = small().train()
    assert network.mask_head.norm.weight.tolist() == pytest.approx([0.1])
    assert network.semantic_decoder is not None
    assert [block.conv.dilation for block in network.semantic_decoder.aspp.atrous] == [(6, 6), (12, 12), (18, 18)]
    assert network.semantic_decoder.aspp.dropout.p == 0.1
    nn.init.constant_(network.pixel_head.norm.weight, 1e-4)
    short = network.pixel_head(torch.rand(2, network.encoder.decoder.out_channels, 9, 9))
    torch.testing.assert_close(short.norm(dim=1), torch.ones(2, 9, 9))


@pytest.mark.parametrize(
    ("backbone", "expected"), [("max_deeplab_s", [2, 2]), ("max_deeplab_l", [2, 2, 3, 2, 3, 3, 3, 3, 3, 3])]
)
def test_the_two_latest_maps_of_a_stride_join_the_decoder(backbone: str, expected: list[int]):
    network, joined = small(backbone=backbone).eval(), []
    for stage in network.encoder.decoder.stages:
        stage.fuse.register_forward_pre_hook(lambda _, inputs: joined.append(len(inputs[0])))
    network.masks(torch.zeros(1, 3, 65, 65))
    assert joined == expected


def test_drop_path_grows_with_depth():
    drops: dict[str, dict[str, list[float]]] = {}
    for size in "sl":
        encoder = small(backbone=f"max_deeplab_{size}").encoder
        drops[size] = {
            number: [round(block.drop_path.p, 3) for block in stage.blocks] for number, stage in encoder.stages.items()
        }
        drops[size]["last"] = [round(block.drop_path.p, 3) for block in encoder.decoder.stages[-1].extra.blocks]
        transformers = [layer for layer in encoder.modules() if isinstance(layer, DualPathLayer)]
        drops[size]["transformers"] = [
            round(drop.p, 3) for layer in transformers for drop in (layer.drop_memory, layer.drop_pixel)
        ]
    assert drops["s"]["transformers"] == [0.15, 0.15, *[0.2] * 6]
    assert drops["l"]["transformers"] == [*[0.1] * 2, *[0.15] * 6, *[0.2] * 18]
    assert drops["s"]["3"] == [0.0] * 4
    assert drops["s"]["4"] == [0.0, *[0.15] * 5]
    assert drops["s"]["5"] == [0.15, 0.2, 0.2]
    assert drops["s"]["last"] == [0.0]
    assert drops["l"]["2"] == [0.0, 0.05, 0.05]
    assert drops["l"]["4"] == [0.1, 0.15, 0.15]
    assert drops["l"]["last"] == [0.05] * 3


def test_drop_path_leaves_single_images_as_they_are():
    torch.manual_seed(0)
    pixel, memory = torch.rand(60, 8, 3, 3), torch.rand(60, 5, 8)  # activated, so that ReLU does not change them
    layer = DualPathLayer(8, 8, 4, num_heads=2, feed_forward_channels=8, drop_probability=0.5).train()
    open_branches(layer)
    new_pixel, new_memory = layer(pixel, memory)
    same = [(new == old).flatten(1).all(dim=1) for new, old in ((new_pixel, pixel), (new_memory, memory))]
    assert 15 < same[0].sum() < 45
    assert 5 < same[1].sum() < 30  # both of the memory's branches are dropped
    block = AxialBlock(8, 8, 8, num_heads=2, drop_probability=0.5).train()
    open_branches(block)
    assert 15 < (block(pixel) == pixel).flatten(1).all(dim=1).sum() < 45


@pytest.mark.parametrize("backbone", list(ENCODER_SIZES))
def test_branches_begin_at_nothing(backbone: str):
    encoder = small(backbone=backbone).encoder.eval()
    for module in encoder.modules():
        if isinstance(module, StageBlock):
            x = torch.rand(1, module.get_submodule("conv1.conv").in_channels, 5, 5)
            assert not module.branch(x).any()
        if isinstance(module, DualPathLayer):
            x, memory = torch.rand(1, module.pixel_conv1.conv.in_channels, 5, 5), torch.rand(1, 6, 16)
            for new, old in zip(module(x, memory), (x, memory), strict=True):
                assert torch.equal(new, old)


def test_a_trunk_replaces_the_stages_up_to_stride_16():
    with torch.device("meta"):
        encoder = MaXDeepLabNetwork(config_of(5, backbone="efficientnet_lite0")).encoder
    assert encoder.trunk is not None
    assert list(encoder.stages) == ["5"]
    assert not hasattr(encoder, "stem")
    low_level, pixel = encoder.trunk(torch.empty(2, 3, 321, 321, device="meta"))
    assert {stride: tuple(x.shape) for stride, x in low_level.items()} == {4: (2, 128, 81, 81), 8: (2, 256, 41, 41)}
    assert pixel.shape == (2, 256, 21, 21)
    assert len([layer for layer in encoder.modules() if isinstance(layer, DualPathLayer)]) == 3
    own = {id(parameter) for parameter in encoder.trunk.trunk.parameters()}
    assert {id(parameter) for parameter in backbone_parameters(encoder)} == own


def test_a_trunk_keeps_the_weights_of_imagenet():
    pytest.importorskip(SIZES["efficientnet_lite0"].package)
    network = small(backbone="efficientnet_lite0", backbone_width=1.0, pretrained_backbone=True)
    assert network.encoder.trunk is not None
    published = published_weights("efficientnet_lite0")
    weight = network.encoder.trunk.trunk.get_parameter("stages.3.0.project.0.weight")
    assert torch.equal(weight, published["_blocks.5._project_conv.weight"])
    with pytest.raises(ValueError, match="ImageNet weights fit width 1"):
        small(backbone="efficientnet_lite0", pretrained_backbone=True)


def test_frozen_levels_of_a_trunk_do_not_learn():
    network = small(backbone="efficientnet_lite0", frozen_levels=2).train()
    assert network.encoder.trunk is not None
    before = {name: value.clone() for name, value in network.encoder.trunk.trunk.state_dict().items()}
    outputs = network(torch.rand(2, 3, 65, 65))
    (outputs.mask_logits.square().mean() + outputs.semantic_logits.square().mean()).backward()
    learning = {n for n, p in network.encoder.trunk.trunk.named_parameters() if p.grad is not None}
    changed = {n for n, value in network.encoder.trunk.trunk.state_dict().items() if not torch.equal(value, before[n])}
    stages = {"stages.3", "stages.4", "stages.5", "stages.6"}  # those of the levels of strides 16 and 32
    assert {name[:8] for name in learning} == {name[:8] for name in changed} == stages


@pytest.mark.parametrize("values", [{"pretrained_backbone": True}, {"frozen_levels": 1}])
def test_published_sizes_have_nothing_pretrained_to_start_from(values: dict[str, Any]):
    with pytest.raises(
        ValueError, match=f"{next(iter(values))} is for the backbones efficientnet_lite0; max_deeplab_l"
    ):
        config_of(backbone="max_deeplab_l", **values)


def test_blocks_of_the_published_small_network():
    with torch.device("meta"):
        encoder = MaXDeepLabNetwork(config_of(133)).encoder
    assert [type(block) for block in encoder.stages["4"].blocks] == [BottleneckStageBlock, *[AxialBlock] * 5]
    layers = [name for name, module in encoder.named_modules() if isinstance(module, DualPathLayer)]
    assert len(layers) == 4


@pytest.mark.parametrize("backbone", ["max_deeplab_s", "efficientnet_lite0"])
def test_export(backbone: str):
    network = small(backbone=backbone).eval()
    image = torch.rand(1, 3, 65, 65)
    exported = torch.export.export(network, (image,), strict=False).module()
    with torch.inference_mode():
        for one, other in zip(exported(image), network(image), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "size"), [("max_deeplab_s", 641), ("max_deeplab_s", 1025), ("max_deeplab_l", 1025)]
)
def test_full_size(backbone: str, size: int):
    network = MaXDeepLabNetwork(config_of(133, backbone=backbone, image_size=size)).eval()
    with torch.inference_mode():
        masks, classes = network.masks(torch.zeros(1, 3, size, size))
    assert masks.shape == (1, 128, size // 4 + 1, size // 4 + 1)
    assert classes.shape == (1, 128, 134)
