"""The terms of the losses one by one, on a handful of pixels: what each weight, limit and constant does."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from small_max_deeplab import config_of, target

from maskwright.models.max_deeplab.losses import (
    MaXDeepLabLoss,
    draw_pixels,
    mask_contrast,
    matched_dice,
    mean_of_nonzero,
    pixel_contrast,
    similarities,
    slot_mass,
)
from maskwright.models.max_deeplab.mask_targets import MaskTargets, create_mask_targets
from maskwright.models.max_deeplab.network import MaXDeepLabOutputs

ISTHING = torch.tensor([False, True])  # sky, cat
SKY, CAT, VOID = range(3)
TEMPERATURE = 0.3


def line(rows: Sequence[int], labels: list[int], crowds: list[int] | None = None) -> MaskTargets:
    """An image of one line of pixels, each of the segment at that row of `labels`, or void (-1)."""
    return create_mask_targets([target(torch.tensor([rows]), labels, crowds)], ISTHING, 1)


def outputs_of(masks: torch.Tensor, classes: torch.Tensor) -> MaXDeepLabOutputs:
    """Of one image; the pixel features and the semantic logits are zeros."""
    size = masks.shape[1:]
    return MaXDeepLabOutputs(masks[None], classes[None], torch.zeros(1, 1, *size), torch.zeros(1, VOID + 1, *size))


def random_outputs() -> MaXDeepLabOutputs:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 4, 1, 6), (1, 4, VOID + 1), (1, 3, 1, 6), (1, VOID + 1, 1, 6)]
    return MaXDeepLabOutputs(*(torch.randn(shape, generator=generator).requires_grad_() for shape in shapes))


SCENE = line([0, 0, 1, 2, 3, -1], [SKY, CAT, CAT, CAT], crowds=[3])
FACTORS = {
    "pq_weight": {"mask_class", "mask_dice"},
    "mask_id_weight": {"mask_id"},
    "instance_discrimination_weight": {"instance_discrimination"},
    "semantic_weight": {"semantic"},
}


@pytest.mark.parametrize("weight", FACTORS)
def test_each_weight_multiplies_its_own_terms(weight):
    outputs = random_outputs()
    once, twice = (MaXDeepLabLoss(config_of(**{weight: value}))(outputs, SCENE) for value in (1.7, 3.4))
    for name, loss in once.items():
        assert twice[name].item() == pytest.approx(loss.item() * (2 if name in FACTORS[weight] else 1)), name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"contrast_pixels": -1}, "contrast_pixels must be at least 0 and a whole number, but got -1"),
        ({"mask_id_top_k": 0.0}, "mask_id_top_k must be above 0 and at most 1, but got 0.0"),
        ({"semantic_top_k": 1.5}, "semantic_top_k must be above 0 and at most 1, but got 1.5"),
    ],
)
def test_values_without_a_meaning_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        MaXDeepLabLoss(config_of(**values))


def test_void_counts_for_nothing_and_a_crowd_against_a_slot():
    """One mask of 2 pixels, 1 of a crowd, 1 void; a slot with a probability of 1/2 everywhere."""
    masks = line([0, 0, 1, -1], [CAT, CAT], crowds=[1])
    mass = slot_mass(torch.full((1, 1, 4), 0.5), masks.masks, masks.labels)
    assert (mass.labelled.item(), mass.void.item(), mass.everywhere.item()) == (1.5, 0.5, 2.0)
    classes = torch.tensor([[[0.0, math.log(2), 0.0]]])
    dice, of_class = similarities(mass, masks.masks.sum(dim=2), classes, masks.mask_labels)
    assert dice[0, 0].tolist() == pytest.approx([1 / ((2 + 1.5) / 2)], rel=1e-4)
    assert of_class[0, 0].tolist() == pytest.approx([1 / 2])


def test_matching_needs_both_the_mask_and_the_class():
    """Slot 0 fits the mask best, slot 1 its class best, slot 2 both well."""
    masks = line([0, 0, -1, -1], [CAT])
    sure = torch.tensor([0.70, 0.01, 0.29]).log()[:, None, None].expand(3, 1, 2)
    logits = torch.cat([sure, torch.zeros(3, 1, 2)], dim=2)
    classes = torch.tensor([[0.98, 0.01, 0.01], [0.005, 0.99, 0.005], [0.1, 0.8, 0.1]]).log()
    loss = MaXDeepLabLoss(config_of(mask_id_weight=1.0))(outputs_of(logits, classes), masks)["mask_id"]
    assert loss.item() == pytest.approx(-math.log(0.29), rel=1e-4)


def test_what_weighs_a_loss_is_not_taught_by_it():
    outputs = random_outputs()
    losses = MaXDeepLabLoss(config_of())(outputs, SCENE)
    of_class = torch.autograd.grad(losses["mask_class"], outputs.mask_logits, retain_graph=True, allow_unused=True)
    of_dice = torch.autograd.grad(losses["mask_dice"], outputs.class_logits, allow_unused=True)
    assert of_class == of_dice == (None,)


def test_a_match_weighs_a_little_even_where_nothing_fits():
    """The class of the match has no probability, nor has its mask: each of them weighs 1e-5."""
    nothing = torch.zeros(1, 1, 1)
    loss = matched_dice(nothing, torch.tensor([[4.0]]), nothing, torch.tensor([[0]]))
    assert loss.tolist() == pytest.approx([1e-5 * (1 - 1 / 5)])
    masks = line([0, 0], [CAT])
    logits = torch.tensor([[[-200.0, -200.0]], [[0.0, 0.0]]])  # slot 0 has no pixel
    losses = MaXDeepLabLoss(config_of(pq_weight=1.0))(outputs_of(logits, torch.zeros(2, 3)), masks, torch.tensor([[0]]))
    # Slot 0: 3/4 times 1e-5; slot 1, void: 1/4 times its share of void pixels, 0, that is 1e-5; their mean.
    assert losses["mask_class"].item() == pytest.approx(math.log(3) * 1e-5 / 2, rel=1e-3)


def test_pixels_of_small_instances_weigh_in_the_semantic_loss():
    masks = line([0, 0, 0, 1, 2, -1], [SKY, CAT, CAT], crowds=[2])
    weighted = create_mask_targets(
        [target(torch.tensor([[0, 0, 0, 1, 2, -1]]), [SKY, CAT, CAT], [2])], ISTHING, 1, 3.0, 2
    )
    assert weighted.semantic_weight.tolist() == [[1, 1, 1, 3, 1, 1]]  # the crowd is as small
    outputs = outputs_of(torch.zeros(2, 1, 6), torch.zeros(2, 3))
    plain, heavy = (MaXDeepLabLoss(config_of())(outputs, targets)["semantic"].item() for targets in (masks, weighted))
    assert plain == pytest.approx(math.log(3))
    assert heavy == pytest.approx(math.log(3) * 7 / 5)


def test_a_mask_of_one_pixel_is_a_mask():
    assert line([0, 1, -1], [SKY, CAT, CAT]).mask_valid.tolist() == [[True, True, False]]


def test_half_a_loss_of_the_largest_share_rounds_to_even():
    losses = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    assert mean_of_nonzero(losses, 0.3).tolist() == [4.5]  # 1.5 of them are 2
    assert mean_of_nonzero(losses, 0.5).tolist() == [4.5]  # so are 2.5


class TestMaskContrast:
    FEATURES = torch.tensor([[[1.0, 0.0, 0.6, 1.0], [0.0, 1.0, 0.8, 0.0]]])

    def test_each_pixel_of_a_thing_is_told_from_the_means_of_all_masks(self):
        """Masks: a cat of two pixels, with the mean (1, 1) / sqrt(2); sky of one; a row without a pixel."""
        masks = line([0, 0, 1, -1], [CAT, SKY, CAT])
        losses = mask_contrast(self.FEATURES, masks, masks.masks)
        own, sky = math.sqrt(0.5) / TEMPERATURE, torch.tensor([0.6, 0.8]) / TEMPERATURE
        expected = [-own + math.log(math.exp(own) + math.exp(other)) for other in sky.tolist()]
        assert losses[0].tolist() == pytest.approx([*expected, 0, 0])

    def test_the_gradient_reaches_a_pixel_through_the_mean_of_its_mask(self):
        masks = line([0, 0, 1, -1], [CAT, SKY])
        features = self.FEATURES.clone().requires_grad_()
        mask_contrast(features, masks, masks.masks)[0, 0].backward()
        assert features.grad is not None
        assert features.grad[0, :, 1].any()  # the other pixel of the cat
        assert features.grad[0, :, 2].any()  # sky
        assert not features.grad[0, :, 3].any()


class TestPixelContrast:
    def test_all_pixels_of_a_mask_are_to_be_alike(self):
        """A cat of two pixels, sky, a crowd; all are drawn, and void as well since nothing else is left."""
        masks = line([0, 0, 1, 2, -1], [CAT, SKY, CAT], crowds=[2])
        features = torch.tensor([[[1.0, 0.0, 1.0, 0.6, 0.0], [0.0, 1.0, 0.0, 0.8, 1.0]]])
        losses = pixel_contrast(features, masks, masks.masks.sum(dim=2), 9)
        logits = features[0].T @ features[0] / TEMPERATURE
        surprise = -logits.log_softmax(dim=0)  # of each row for each column
        cat = ((surprise[:2, 0].sum() / 2).item(), (surprise[:2, 1].sum() / 2).item())
        assert sorted(losses[0].tolist()) == pytest.approx(sorted([*cat, surprise[2, 2].item(), 0, 0]))

    def test_pixels_without_a_mask_are_to_be_like_none(self):
        """Nothing is lost there, but the gradient drives what is alike apart."""
        masks = line([0, 0], [CAT], crowds=[0])
        features = torch.tensor([[[1.0, 0.6], [0.0, 0.8]]], requires_grad=True)
        losses = pixel_contrast(features, masks, masks.masks.sum(dim=2), 2)
        assert losses.tolist() == [[0, 0]]
        losses.sum().backward()
        assert features.grad is not None
        assert features.grad[0, 0, 0] > 0

    def test_small_masks_are_drawn_oftener_and_void_never(self):
        """A cat of 7 pixels, sky of one, a crowd of 2, void of 6: chances 7^-0.6 for each of the cat's, else 1."""
        torch.manual_seed(0)
        rows = [0] * 7 + [1] + [2] * 2 + [-1] * 6
        one = line(rows, [CAT, SKY, CAT], crowds=[2])
        times = 20_000
        masks = MaskTargets(*(value.expand(times, -1) for value in one))
        drawn = draw_pixels(masks, one.masks.sum(dim=2).expand(times, -1), 1)[:, 0]
        shares = torch.bincount(drawn, minlength=len(rows)) / times
        whole = 7 * 7**-0.6 + 3
        assert shares[:7].tolist() == pytest.approx([7**-0.6 / whole] * 7, abs=0.01)
        assert shares[7:10].tolist() == pytest.approx([1 / whole] * 3, abs=0.015)
        assert not shares[10:].any()
        four = draw_pixels(masks, one.masks.sum(dim=2).expand(times, -1), 4)
        assert four.shape == (times, 4)
        assert four.sort(dim=1).values.diff(dim=1).all()
