"""True masks and the losses: cases computed by hand, order of things, images that teach little or nothing."""

from __future__ import annotations

import math

import pytest
import torch
from small_max_deeplab import config_of, target

from maskwright.models.max_deeplab.losses import MaXDeepLabLoss, matched_dice, mean_of_nonzero
from maskwright.models.max_deeplab.mask_targets import create_mask_targets
from maskwright.models.max_deeplab.network import MaXDeepLabOutputs

ISTHING = torch.tensor([False, True, False])  # sky, cat, grass
VOID = 3


def true_masks(*targets, stride=1, **options):
    return create_mask_targets(targets, ISTHING, stride, **options)


def quarters():
    """[4, 4]: sky, two cats and grass, a quarter each."""
    segmentation = torch.zeros(4, 4)
    segmentation[:2, 2:], segmentation[2:, :2], segmentation[2:, 2:] = 1, 2, 3
    return target(segmentation, [0, 1, 1, 2])


def random_outputs(batch=1, slots=6, size=4, channels=5, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).requires_grad_()

    feature = torch.nn.functional.normalize(draw(batch, channels, size, size).detach(), dim=1).requires_grad_()
    return MaXDeepLabOutputs(
        draw(batch, slots, size, size), draw(batch, slots, VOID + 1), feature, draw(batch, VOID + 1, size, size)
    )


def perfect_outputs(masks, labels, slots=6):
    """Slot i shows mask i for certain; the others are void."""
    size = masks.shape[1:]
    mask_logits = torch.full((1, slots, *size), -50.0)
    mask_logits[0, : len(masks)][masks] = 50.0
    class_logits = torch.full((1, slots, VOID + 1), -50.0)
    class_logits[0, torch.arange(slots), torch.tensor([*labels, *[VOID] * (slots - len(masks))])] = 50.0
    return MaXDeepLabOutputs(mask_logits, class_logits, torch.ones(1, 1, *size), torch.zeros(1, VOID + 1, *size))


class TestTrueMasks:
    def test_every_stride_th_pixel_counts_and_what_it_misses_is_no_mask(self):
        segmentation = torch.zeros(5, 5)
        segmentation[1:4, 1:4] = 1  # between the pixels 0 and 4
        segmentation[4, 4] = -1
        masks = true_masks(target(segmentation, [0, 1]), stride=4)
        assert masks.mask_index.tolist() == [[0, 0, 0, -1]]
        assert masks.labels.tolist() == [[0, 0, 0, -1]]
        assert masks.mask_valid.tolist() == [[True, False]]

    def test_stuff_of_one_class_is_one_mask_and_things_are_each_their_own(self):
        masks = true_masks(target(torch.tensor([[0, 1, 2, 3]]), [2, 1, 2, 1]))
        assert masks.mask_index.tolist() == [[0, 1, 0, 3]]
        assert masks.mask_is_thing.tolist() == [[False, True, False, True]]
        assert masks.masks.sum(dim=2).tolist() == [[2, 1, 0, 1]]

    def test_a_crowd_keeps_its_class_and_is_no_mask(self):
        masks = true_masks(target(torch.tensor([[0, 1, -1]]), [1, 1], crowds=[1]))
        assert masks.mask_index.tolist() == [[0, -1, -1]]
        assert masks.labels.tolist() == [[1, 1, -1]]
        assert masks.crowd.tolist() == [[False, True, False]]

    def test_small_instances_weigh_more_by_their_area_before_the_stride(self):
        segmentation = torch.zeros(5, 5)
        segmentation[:, 2:], segmentation[0, 0] = 1, 2
        masks = true_masks(target(segmentation, [0, 1, 1]), stride=2, small_instance_weight=3.0, small_instance_area=15)
        assert masks.semantic_weight.tolist() == [[3, 1, 1, 1, 1, 1, 1, 1, 1]]

    def test_images_without_a_segment_stand_beside_others(self):
        masks = true_masks(target(torch.full((4, 4), -1), []), quarters())
        assert masks.mask_valid.sum(dim=1).tolist() == [0, 4]
        assert masks.mask_index[0].unique().tolist() == [-1]


class TestByHand:
    def test_dice_of_a_pair(self):
        """Overlap 3 of 4 pixels, slot mass 5 on true masks: 1 - (2 * 3 + 1) / (5 + 4 + 1), times 0.5."""
        overlap = torch.tensor([[[3.0, 0.0], [2.0, 1.0]]])
        of_class = torch.tensor([[[0.5, 0.0], [0.0, 0.0]]])
        losses = matched_dice(overlap, torch.tensor([[4.0, 2.0]]), of_class, torch.tensor([[0, -1]]))
        assert losses.tolist() == pytest.approx([0.3 * 0.5])

    def test_zeros_are_left_out_of_the_mean_and_the_largest_may_be_chosen(self):
        losses = torch.tensor([[0.0, 1.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
        assert mean_of_nonzero(losses).tolist() == [2, 0]
        assert mean_of_nonzero(losses, 0.25).tolist() == [3, 0]

    def test_uniform_predictions_cost_the_logarithm_of_their_number(self):
        outputs = MaXDeepLabOutputs(
            torch.zeros(1, 6, 4, 4), torch.zeros(1, 6, 4), torch.ones(1, 2, 4, 4) / 2**0.5, torch.zeros(1, 4, 4, 4)
        )
        losses = MaXDeepLabLoss(config_of())(outputs, true_masks(quarters()))
        assert losses["mask_id"].item() == pytest.approx(0.3 * math.log(6))
        assert losses["semantic"].item() == pytest.approx(math.log(4))
        assert losses["instance_discrimination"].item() == pytest.approx(math.log(4))
        # Overlap 4 / 6, slot mass 16 / 6, area 4; each of four pairs weighs its class's probability, 1 / 4.
        dice = 1 - (8 / 6 + 1) / (16 / 6 + 4 + 1)
        assert losses["mask_dice"].item() == pytest.approx(3 * 0.75 / 6 * 4 * dice / 4, rel=1e-5)
        # Matched: 4 slots of weight 3/4 times their dice (4/6) / ((4 + 16/6) / 2); unmatched: 2 of 1/4 times 1e-5.
        matched = 0.75 * (4 / 6) / ((4 + 16 / 6) / 2)
        assert losses["mask_class"].item() == pytest.approx(3 * math.log(4) * (4 * matched + 2 * 0.25e-5) / 6, rel=1e-4)

    def test_the_paper_s_weight_of_unmatched_slots_is_the_labelled_share(self):
        """A slot alone, three quarters of whose probability lies on void."""
        outputs = random_outputs(slots=1)._replace(mask_logits=torch.zeros(1, 1, 4, 4))
        segmentation = torch.zeros(4, 4)
        segmentation[:3] = -1
        masks = true_masks(target(segmentation, [1], crowds=[0]))
        void = -outputs.class_logits.log_softmax(dim=2)[0, 0, VOID].item()
        losses = {0.75: MaXDeepLabLoss(config_of()), 0.25: MaXDeepLabLoss(config_of(unmatched_weight="labelled_share"))}
        for share, loss in losses.items():
            assert loss(outputs, masks)["mask_class"].item() == pytest.approx(3 * 0.25 * share * void, rel=1e-4)

    def test_perfect_masks_cost_nothing_but_the_semantic_map(self):
        masks = torch.stack([quarters()["segmentation"] == row for row in range(4)])
        losses = MaXDeepLabLoss(config_of())(perfect_outputs(masks, [0, 1, 1, 2]), true_masks(quarters()))
        assert losses["mask_dice"].item() == pytest.approx(0, abs=1e-6)
        assert losses["mask_id"].item() == pytest.approx(0, abs=1e-6)
        assert losses["mask_class"].item() == pytest.approx(0, abs=1e-6)


class TestOrder:
    def test_slots_and_segments_may_come_in_any_order(self):
        outputs = random_outputs()
        losses = MaXDeepLabLoss(config_of())(outputs, true_masks(quarters()))
        order = torch.tensor([3, 5, 0, 1, 4, 2])
        shuffled = outputs._replace(
            mask_logits=outputs.mask_logits[:, order], class_logits=outputs.class_logits[:, order]
        )
        rows = torch.tensor([2, 0, 3, 1])
        other = target(rows[quarters()["segmentation"].long()], torch.tensor([0, 1, 1, 2])[rows.argsort()].tolist())
        again = MaXDeepLabLoss(config_of())(shuffled, true_masks(other))
        for name, loss in losses.items():
            torch.testing.assert_close(again[name], loss, msg=name)

    def test_labels_may_come_in_any_order(self):
        outputs = random_outputs()
        losses = MaXDeepLabLoss(config_of())(outputs, true_masks(quarters()))
        order = [2, 0, 1]  # new label -> old label
        other = target(quarters()["segmentation"], [order.index(label) for label in (0, 1, 1, 2)])
        moved = outputs._replace(
            class_logits=outputs.class_logits[..., [*order, VOID]],
            semantic_logits=outputs.semantic_logits[:, [0, *(label + 1 for label in order)]],
        )
        again = MaXDeepLabLoss(config_of())(moved, create_mask_targets([other], ISTHING[order], 1))
        for name, loss in losses.items():
            torch.testing.assert_close(again[name], loss, msg=name)

    def test_a_batch_costs_the_mean_of_its_images(self):
        outputs = random_outputs(batch=2)
        targets = [quarters(), target(torch.full((4, 4), -1), [])]
        together = MaXDeepLabLoss(config_of())(outputs, true_masks(*targets))
        alone = [
            MaXDeepLabLoss(config_of())(MaXDeepLabOutputs(*(value[i : i + 1] for value in outputs)), true_masks(one))
            for i, one in enumerate(targets)
        ]
        for name, loss in together.items():
            torch.testing.assert_close(loss, (alone[0][name] + alone[1][name]) / 2, msg=name)


@pytest.mark.parametrize("contrast_pixels", [0, 8])
@pytest.mark.parametrize(
    "scene",
    [
        target(torch.full((4, 4), -1), []),
        target(torch.zeros(4, 4), [1]),
        target(torch.zeros(4, 4), [0]),
        target(torch.zeros(4, 4), [1], crowds=[0]),
        target(torch.arange(16).reshape(4, 4), [1] * 16),
    ],
    ids=["no segment", "one thing", "one stuff", "one crowd", "more masks than slots"],
)
def test_odd_images_break_nothing(scene, contrast_pixels):
    outputs = random_outputs()
    losses = MaXDeepLabLoss(config_of(contrast_pixels=contrast_pixels))(outputs, true_masks(scene))
    assert all(loss.isfinite() for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    gradients = [value.grad for value in outputs if value.grad is not None]
    assert len(gradients) == len(outputs)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[1].any()


def test_a_crowd_costs_nothing_but_makes_every_slot_less_sure():
    outputs = random_outputs()
    scene = target(torch.zeros(4, 4), [1], crowds=[0])
    loss = MaXDeepLabLoss(config_of())(outputs, true_masks(scene))["mask_id"]
    assert loss.item() == 0
    loss.backward()
    probabilities = outputs.mask_logits.detach().softmax(dim=1)
    torch.testing.assert_close(outputs.mask_logits.grad, 0.3 * probabilities)


def test_void_teaches_nothing_but_that_slots_are_void():
    losses = MaXDeepLabLoss(config_of())(random_outputs(), true_masks(target(torch.full((4, 4), -1), [])))
    assert [name for name, loss in losses.items() if loss.item() != 0] == ["mask_class"]


def test_a_given_assignment_is_taken():
    outputs, masks = random_outputs(), true_masks(quarters())
    best = MaXDeepLabLoss(config_of())(outputs, masks)
    other = MaXDeepLabLoss(config_of())(outputs, masks, torch.tensor([[5, 4, 3, 2]]))
    assert best["mask_id"] != other["mask_id"]
    assert best["semantic"] == other["semantic"]
