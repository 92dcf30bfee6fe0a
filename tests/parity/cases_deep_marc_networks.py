"""Deep-MARC's networks alone: backbones, feature pyramid and mask heads, in both modes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from cases_deep_mac_networks import HOURGLASS_MOMENTUM, INFERENCE, TRAINING
from cases_deep_mac_ops import assert_near, channels_first
from norm_statistics import NormStatistics
from parity_data import ParityData, below
from rounding import Results, Rounding
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import Conv2dNormActivation

from maskwright.convert.deep_marc import DEEP_MARC, skip_background
from maskwright.convert.tables import load_variables, module_table
from maskwright.nn.feature_maps import BackboneOptions
from maskwright.nn.feature_pyramids import DetectionPyramidBackbone, pad_as_tensorflow
from maskwright.nn.mask_heads import ConvolutionalHead, FCNHead, MaskHeadSettings, create_mask_head
from maskwright.nn.resnet import ResNetTrunk
from maskwright.nn.spinenet import SpineNet, SpineNetSize

GRADIENT = 1e-3
RESNETS: dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}


def check_spinenet(data: ParityData, file: str) -> None:
    """All five maps, by the static rule."""
    config, arrays = data.files[file]["config"], data.arrays(file)
    names = ("endpoints_num_filters", "filter_size_scale", "resample_alpha", "block_repeats")

    def create() -> SpineNet:
        size, options = (
            SpineNetSize(*(config[name] for name in names)),
            BackboneOptions(norm_epsilon=config["norm_epsilon"]),
        )
        network = SpineNet(size, options)
        load_variables(network, module_table(network, DEEP_MARC), below(arrays, "w:"), "backbone")
        return network.eval()

    def infer(network: SpineNet) -> Results:
        with torch.inference_mode():
            maps = network(channels_first(arrays["image"]).double())
        assert network.levels == tuple(range(config["min_level"], config["max_level"] + 1))
        return {f"maps/{level}": values.permute(0, 2, 3, 1) for level, values in zip(network.levels, maps, strict=True)}

    Rounding(create, infer).check("maps", below(arrays, "out_"), INFERENCE)


def create_resnet(model_id: int, width: float, norm_epsilon: float) -> ResNetTrunk:
    """The original's ResNet: for depths under 50 with the shortcut of the first block that torchvision's lack."""
    trunk = ResNetTrunk(*RESNETS[model_id], width, 0.003, norm_epsilon)
    first = trunk.get_submodule("layer1.0")
    if isinstance(first, BasicBlock):
        channels = trunk.channels[0]

        def norm(size: int) -> nn.Module:
            return nn.BatchNorm2d(size, eps=norm_epsilon)

        first.downsample = Conv2dNormActivation(channels, channels, 1, norm_layer=norm, activation_layer=None)
    return trunk


def create_backbone(trunk: ResNetTrunk, channels: int, norm_epsilon: float) -> DetectionPyramidBackbone:
    """The original's pyramid on `trunk`."""
    options = BackboneOptions(norm_momentum=0.003, norm_epsilon=norm_epsilon, padding="same")
    return DetectionPyramidBackbone(trunk, channels, options)


def check_resnet_fpn(data: ParityData, file: str) -> None:
    """The maps of the ResNet (odd sizes, too) and those of the pyramid."""
    config, arrays = data.files[file]["config"], data.arrays(file)
    trunk = create_resnet(config["model_id"], config["depth_multiplier"], config["norm_epsilon"])
    network = create_backbone(trunk, config["fpn_filters"], config["norm_epsilon"]).eval()
    weights = below(arrays, "w:")
    load_variables(trunk, module_table(trunk, DEEP_MARC), weights, "backbone")
    image = channels_first(arrays["image"])
    with torch.no_grad():
        for level, output in enumerate(trunk(image), start=2):
            assert_near(output, channels_first(arrays[f"backbone_{level}"]), f"backbone_{level}", INFERENCE)
        if "fpn_2" not in arrays:
            return
        load_variables(network.pyramid, module_table(network.pyramid, DEEP_MARC), weights, "decoder")
        # 64 x 96 pixels are no multiple of the divisor, but the pyramid takes them.
        levels = dict(zip(map(str, network.levels), trunk(image), strict=False))
        for level, output in network.pyramid(levels).items():
            assert_near(output, channels_first(arrays[f"fpn_{level}"]), f"fpn_{level}", INFERENCE)


def check_symmetric_padding_is_another_function(data: ParityData, file: str) -> None:
    """What torchvision's own padding makes of the same weights: why `padding` is a choice."""
    config, arrays = data.files[file]["config"], data.arrays(file)
    trunk = create_resnet(config["model_id"], config["depth_multiplier"], config["norm_epsilon"]).eval()
    load_variables(trunk, module_table(trunk, DEEP_MARC), below(arrays, "w:"), "backbone")
    image, expected = channels_first(arrays["image"]), channels_first(arrays["backbone_2"])
    with torch.no_grad():
        symmetric = trunk(image)[0]
        pad_as_tensorflow(trunk)
        same = trunk(image)[0]
    scale = float(expected.std())
    assert float((same - expected).abs().mean()) < 1e-5 * scale
    assert float((symmetric - expected).abs().mean()) > 0.1 * scale


def create_head(config: Mapping[str, Any], in_channels: int, num_masks: int) -> ConvolutionalHead:
    """The mask head of a fixture."""
    momentum, epsilon = 1 - config["norm_momentum"], config["norm_epsilon"]
    upsample = config["upsample_factor"]
    if config["convnet_variant"] == "default":
        settings = MaskHeadSettings(
            in_channels, config["num_filters"], num_masks, upsample, None, momentum, norm_epsilon=epsilon
        )
        return FCNHead(settings, config["num_convs"], config.get("use_separable_conv", False))
    name = config["convnet_variant"]
    head = create_mask_head(
        name,
        in_channels,
        config["num_filters"],
        num_masks,
        upsample,
        norm_momentum=HOURGLASS_MOMENTUM,
        norm_epsilon=epsilon,
    )
    assert isinstance(head, ConvolutionalHead)
    head.enlarge_norm.momentum = momentum  # the original has one momentum for it, one for the hourglass
    return head


def check_mask_head(data: ParityData, file: str) -> None:
    """Logits in inference: of the one mask, or of the classes asked for, with and without the background's."""
    config, arrays = data.files[file]["config"], data.arrays(file)
    crops = channels_first(arrays["roi_features"])
    classes = torch.from_numpy(arrays["roi_classes"].ravel()).long()
    expected = torch.from_numpy(arrays["logits"]).flatten(0, 1)
    variables, num_classes = below(arrays, "w:"), config["num_classes"]
    for skip in (False,) if config["class_agnostic"] else (False, True):
        num_masks = 1 if config["class_agnostic"] else num_classes - skip
        head = create_head(config, crops.shape[1], num_masks).eval()
        table = module_table(head, DEEP_MARC)
        load_variables(head, skip_background(table) if skip else table, variables, "mask_head")
        with torch.no_grad():
            logits = head(crops)
        if config["class_agnostic"]:
            assert_near(logits.squeeze(1), expected, "logits", INFERENCE)
            continue
        rows = (classes >= int(skip)).nonzero().flatten()
        assert len(rows)
        assert_near(logits[rows, classes[rows] - int(skip)], expected[rows], "logits", INFERENCE)


def check_mask_head_in_training(data: ParityData, file: str) -> None:
    """Logits, gradients of everything, and the statistics after one step."""
    config, arrays = data.files[file]["config"], data.arrays(file)
    in_channels = arrays["roi_features"].shape[-1]
    table = module_table(create_head(config, in_channels, 1), DEEP_MARC)

    def create() -> nn.Module:
        head = create_head(config, in_channels, 1).train()
        load_variables(head, table, below(arrays, "w:"), "mask_head")
        return head

    def step(head: nn.Module) -> Results:
        statistics = NormStatistics(head)
        crops = channels_first(arrays["roi_features"]).double().requires_grad_()
        logits = head(crops).squeeze(1)
        (logits * torch.from_numpy(arrays["cotangent"]).flatten(0, 1)).sum().div(1000).backward()
        assert crops.grad is not None
        results = {"out/logits": logits.detach()[None], "in/gradient": crops.grad.permute(0, 2, 3, 1)[None]}
        results |= {f"grad/{table[name].path}": _as_recorded(value.grad) for name, value in head.named_parameters()}
        after = statistics.after(biased=lambda norm: _keeps_biased_variance(table[f"{norm}.running_var"].path, config))
        return results | {f"after/{table[name].path}": value for name, value in after.items()}

    rounding = Rounding(create, step)
    rounding.check("out", {"logits": arrays["logits_train"]}, TRAINING)
    rounding.check("in", {"gradient": arrays["grad_roi_features"]}, GRADIENT)
    rounding.check("grad", below(arrays, "grad:mask_head/"), GRADIENT)
    rounding.check("after", below(arrays, "after:mask_head/"), TRAINING)


def _as_recorded(gradient: torch.Tensor | None) -> torch.Tensor:
    """Of a parameter: kernels have the window first and the outputs last."""
    assert gradient is not None
    return gradient.permute(2, 3, 1, 0) if gradient.ndim == 4 else gradient


def _keeps_biased_variance(path: str, config: Mapping[str, Any]) -> bool:
    """The norms of the hourglasses and the synchronised ones."""
    return config["use_sync_bn"] or "_hourglass" in path
