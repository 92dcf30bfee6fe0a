"""What the families share: prompting with boxes, and the checks of a training batch."""

from __future__ import annotations

import math

import pytest
import small_deep_mac
import small_deep_marc
import torch
from small_max_deeplab import scene, small_model

from maskwright.models.family import check_prompts

FAMILIES = [small_deep_mac.build, small_deep_marc.build, small_model]
PROMPTED = [small_deep_mac.build, small_deep_marc.build]


@pytest.mark.parametrize("build", FAMILIES)
def test_a_training_batch_has_targets_and_one_size(build):
    model = build().train()
    images = [torch.rand(3, 65, 65), torch.rand(3, 65, 49)]
    panoptic = model.task == "panoptic"
    targets = [scene(), scene()] if panoptic else [small_deep_mac.make_target([], size=65) for _ in images]
    with pytest.raises(ValueError, match="needs targets, one per image"):
        model(images)
    for target in targets[1:]:
        for key in ("segmentation", "masks"):
            if key in target:
                target[key] = target[key][..., :49]
    with pytest.raises(ValueError, match=r"one size, but image 0 is \[3, 65, 65\] and 1 \[3, 65, 49\]"):
        model(images, targets)


@pytest.mark.parametrize("build", FAMILIES)
def test_compilable_methods_are_the_network_s(build):
    model = build()
    assert model.compilable
    assert all(callable(getattr(model.network, name)) for name in model.compilable)


@pytest.mark.parametrize("build", FAMILIES)
def test_every_parameter_is_in_one_group(build):
    model = build()
    grouped = [id(parameter) for group in model.parameter_groups() for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)


def test_boxes():
    check_prompts([torch.tensor([[30.0, 20.0, 4.0, 3.0], [-900.0, 5.0, -800.0, 5.0]]), torch.zeros(0, 4)], 2)
    check_prompts([torch.tensor([[1, 2, 3, 4]])], 1)


@pytest.mark.parametrize("build", PROMPTED)
@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[[1.0, 2.0, 3.0, 4.0]]], "expected boxes for 2 images, but got 1"),
        ([[], [[1.0, 2.0, 3.0]]], r"boxes of image 1: expected shape \[N, 4\], but got \[1, 3\]"),
        ([[], [1.0, 2.0, 3.0, 4.0]], r"boxes of image 1: expected shape \[N, 4\], but got \[4\]"),
        ([[], [[1.0, 2, 3, 4], [1, math.nan, 3, 4]]], "box 1 of image 1: expected finite numbers, but got .1.0, nan"),
        ([[[math.inf, 2.0, 3.0, 4.0]], []], "box 0 of image 0: expected finite numbers, but got .inf"),
    ],
)
@torch.inference_mode()
def test_wrong_boxes_are_named_by_image_and_box(build, boxes, message):
    model = build().eval()
    features = model.encode([torch.rand(3, 40, 60), torch.rand(3, 40, 60)])
    rows = [torch.tensor(b, dtype=torch.float32) if b else torch.zeros(0, 4) for b in boxes]
    with pytest.raises(ValueError, match=message):
        model.masks_from_boxes(features, rows)


@pytest.mark.parametrize("build", PROMPTED)
@torch.inference_mode()
def test_labels_change_no_class_agnostic_mask(build):
    model = build().eval()
    features, boxes = model.encode([torch.rand(3, 40, 60)]), [torch.tensor([[4.0, 3.0, 50.0, 30.0]] * 2)]
    (without,) = model.masks_from_boxes(features, boxes)
    (given,) = model.masks_from_boxes(features, boxes, [torch.tensor([-1, 0])])
    assert torch.equal(given.mask_probabilities, without.mask_probabilities)
    assert given.labels.tolist() == without.labels.tolist() == [-1, -1]


@pytest.mark.parametrize("build", PROMPTED)
@torch.inference_mode()
def test_flipped_boxes_and_those_outside_have_masks(build):
    model = build().eval()
    boxes = torch.tensor([[50.0, 30.0, 4.0, 3.0], [-900.0, -80.0, -800.0, -20.0], [9.0, 9.0, 9.0, 9.0]])
    (prediction,) = model.masks_from_boxes(model.encode([torch.rand(3, 40, 60)]), [boxes])
    assert torch.equal(prediction.boxes, boxes)
    assert prediction.mask_probabilities.isfinite().all()
