"""The published recipes of Deep-MARC have the originals' values and sizes."""

from importlib.resources import files
from typing import NamedTuple

import pytest
import torch

from maskwright.models.deep_marc import DeepMARC
from maskwright.training.optimizers import learning_rate_factor
from maskwright.training.recipes import resolve_recipe


class Published(NamedTuple):
    """What the original's configuration of a recipe says, where it differs from that of the others."""

    backbone: str
    mask_head: tuple[str, int, int]  # name, width, size of the crop
    masks: tuple[bool, str, str]  # class-agnostic, learnt on which boxes, of which classes
    steps: tuple[int, int, int]  # both boundaries, the end
    mask_ap: str


FCN, HOURGLASS = ("fcn", 256, 14), ("hourglass52", 64, 32)
VOC, VOC_STEPS, COCO_STEPS = (True, "ground_truth", "voc"), (50000, 65000, 70000), (15000, 20000, 22500)
PUBLISHED = {
    "voc_r50": Published("resnet50_fpn", FCN, VOC, VOC_STEPS, "25.9"),
    "voc_r50_hg52": Published("resnet50_fpn", HOURGLASS, VOC, VOC_STEPS, "33.1"),
    "voc_r101_hg52": Published("resnet101_fpn", HOURGLASS, VOC, VOC_STEPS, "34.4"),
    "voc_spinenet143_hg52": Published("spinenet143", HOURGLASS, VOC, (219450, 226380, 231000), "38.7"),
    "coco_r50_class_specific": Published("resnet50_fpn", FCN, (False, "proposals", "all"), COCO_STEPS, "37.2"),
    "coco_r50_proposals": Published("resnet50_fpn", FCN, (True, "proposals", "all"), COCO_STEPS, "36.7"),
    "coco_r50": Published("resnet50_fpn", FCN, (True, "ground_truth", "all"), COCO_STEPS, "36.4"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_they_have_the_originals_values(name):
    recipe, published = resolve_recipe(f"deep_marc/{name}"), PUBLISHED[name]
    model, data, optimizer, trainer = recipe.model, recipe.data, recipe.optimizer, recipe.trainer
    spinenet = published.backbone == "spinenet143"
    assert (model["backbone"], model["image_size"]) == (published.backbone, 1280 if spinenet else 1024)
    assert (model["mask_head"], model["mask_head_width"], model["mask_size"]) == published.mask_head
    assert (model["class_agnostic_masks"], model["mask_boxes"], data.mask_classes) == published.masks
    assert model["mask_norm_momentum"] == (0.9 if published.mask_head == HOURGLASS else 0.003)
    anchors = (model["anchor_scale"], model["num_anchor_scales"])
    assert (anchors, model["drop_path_rate"]) == (((4, 3), 0.2) if spinenet else ((8, 1), 0))
    assert (model["norm_momentum"], model["norm_epsilon"]) == ((0.01, 1e-3) if spinenet else (0.003, 1e-4))
    assert model["trunk_norm_epsilon"] == (None if spinenet else 1e-5)  # that of torchvision's weights
    assert (model["num_proposals"], model["num_box_samples"], model["mask_upsample"]) == (1000, 512, 2)
    assert data.batch_size * trainer.devices * trainer.num_nodes * trainer.accumulate == (256 if spinenet else 64)
    assert (data.scale, data.flip, data.colour) == ((0.5, 2.0) if spinenet else (0.8, 1.25), 0.5, 0)
    assert (optimizer.name, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.9, 4e-5)
    assert (optimizer.gradient_clip, trainer.ema_decay) == (None, None)
    assert trainer.validate_every_steps == (463 if spinenet else 1848)
    first, second, end = published.steps
    assert trainer.steps == end
    peak, warmup = (0.32, 2000) if spinenet else (0.12, 500)
    rates = [
        optimizer.learning_rate * learning_rate_factor(step, options=optimizer, steps=trainer.steps)
        for step in (0, warmup, first, first + 1, second, second + 1)
    ]
    assert rates == pytest.approx([0.0067, peak, peak, peak / 10, peak / 10, peak / 100], rel=1e-5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_their_headers_say_result_and_size(name):
    header = files("maskwright.training").joinpath("recipes", f"deep_marc/{name}.yaml").read_text()
    assert f"mask AP {PUBLISHED[name].mask_ap}" in header
    millions = sum(parameter.numel() for parameter in build(name, 80).parameters()) / 1e6
    assert f"{millions:.2f} million parameters" in header


@pytest.mark.parametrize("name", PUBLISHED)
def test_their_headers_say_schedule_and_augmentation(name):
    recipe = resolve_recipe(f"deep_marc/{name}")
    folder = files("maskwright.training").joinpath("recipes", "deep_marc")
    text = folder.joinpath(f"{name}.yaml").read_text()
    if recipe.data.scale == (0.8, 1.25) or "Schedule" not in text:  # of the base
        text += folder.joinpath("coco_r50.yaml").read_text()
    first, second = recipe.optimizer.step_boundaries
    rate, steps = recipe.optimizer.learning_rate, recipe.trainer.steps
    assert f"SGD at {rate}, a tenth of it after {first:,} and a hundredth after {second:,} of {steps:,} steps" in text
    assert f"scale {recipe.data.scale[0]} to {recipe.data.scale[1]}, flip {recipe.data.flip}." in text


def test_the_parts_have_the_originals_sizes():
    """Model Garden's counts of trainable weights, less the norms and biases that torchvision's detector lacks."""
    network = build("voc_r101_hg52", 90).network
    parts = [network.backbone.trunk, network.backbone.pyramid, network.proposals, network.roi_heads, network.mask_head]
    proposal_norms = 5 * 2 * 256
    box_head_norm, convolution_biases = 2 * 1024, 4 * 256
    assert [sum(parameter.numel() for parameter in part.parameters()) for part in parts] == [
        42_500_160,
        3_937_024,
        596_495 - proposal_norms,
        15_676_871 - box_head_norm - convolution_biases,
        23_606_145,
    ]


@pytest.mark.parametrize(("name", "scale", "sizes"), [("voc_r50", 8, 1), ("voc_spinenet143_hg52", 4, 3)])
def test_anchors_are_the_originals_but_for_their_places(name, scale, sizes):
    """Source: each level's sides are `anchor_size * 2 ** (level + scale / num_scales)`, ratios are width / height.

    torchvision's ratios are height / width (the three are the same both ways), and its sides whole pixels.
    """
    network = build(name, 3).network
    generator, levels = network.proposals.anchor_generator, network.backbone.levels
    for level, cells in zip(levels, generator.cell_anchors, strict=True):
        expected = [
            (side * ratio**0.5, side / ratio**0.5)
            for side in (scale * 2 ** (level + step / sizes) for step in range(sizes))
            for ratio in (0.5, 1, 2)
        ]
        drawn = torch.stack([cells[:, 2] - cells[:, 0], cells[:, 3] - cells[:, 1]], dim=1).tolist()
        assert len(drawn) == 3 * sizes
        for (width, height), anchor in zip(sorted(expected), sorted(drawn), strict=True):
            assert anchor == pytest.approx([width, height], abs=1.0)
    outputs = [network.proposals.head.cls_logits.out_channels, network.proposals.head.bbox_pred.out_channels]
    assert outputs == [3 * sizes, 12 * sizes]


def test_tiny_s_header_says_its_size():
    header = files("maskwright.training").joinpath("recipes", "deep_marc/tiny.yaml").read_text().split("family:")[0]
    model = build("tiny", 80)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert f"{count / 1e6:.2f} million parameters" in header
    box_head = sum(parameter.numel() for parameter in model.network.roi_heads.box_head.parameters())
    assert 0.4 < box_head / count < 0.5


def build(name, classes):
    values = {**resolve_recipe(f"deep_marc/{name}").model, "pretrained_backbone": False}
    with torch.device("meta"):
        return DeepMARC(**{**values, "categories": [{"id": label, "name": str(label)} for label in range(classes)]})
