import math

import pytest
import torch

from maskwright.ops.losses import mask_cross_entropy, mask_dice, mean_per_image


def test_cross_entropy_is_the_mean_over_cells_with_soft_targets():
    logits = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[2.0, -2.0], [2.0, -2.0]]])
    targets = torch.tensor([[[1.0, 0.0], [0.25, 0.5]], [[1.0, 0.0], [0.5, 0.5]]])
    certain, split = math.log1p(math.exp(-2)), math.log1p(math.exp(-2)) + 1
    assert mask_cross_entropy(logits, targets).tolist() == pytest.approx([math.log(2), (certain + split) / 2])


def test_dice_by_hand():
    logits = torch.zeros(2, 2, 2)  # probability 0.5 in each of four cells
    targets = torch.stack([torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.zeros(2, 2)])
    assert mask_dice(logits, targets).tolist() == pytest.approx([1 - 2 * 1 / 4, 1])


def test_dice_of_next_to_nothing_is_bounded_by_the_smallest_denominator():
    logits = torch.tensor([[[math.log(0.1 / 0.9), -50.0], [-50.0, -50.0]]])
    targets = torch.tensor([[[0.2, 0.0], [0.0, 0.0]]])
    assert mask_dice(logits, targets).tolist() == pytest.approx([1 - 2 * 0.1 * 0.2 / 1])


def test_images_weigh_alike_whatever_their_number_of_instances():
    losses = torch.tensor([1.0, 2.0, 3.0, 10.0])
    assert mean_per_image(losses, torch.tensor([0, 0, 0, 1]), 2).item() == pytest.approx((2 + 10) / 2)


def test_an_image_without_instances_counts_as_zero():
    losses = torch.tensor([4.0, 6.0])
    assert mean_per_image(losses, torch.tensor([2, 2]), 4).item() == pytest.approx(5 / 4)


@pytest.mark.parametrize("loss", [mask_cross_entropy, mask_dice])
def test_no_instance_at_all_is_zero_and_keeps_the_graph(loss):
    weight = torch.ones((), requires_grad=True)
    logits = torch.zeros(0, 4, 4) * weight
    result = mean_per_image(loss(logits, torch.zeros(0, 4, 4)), torch.zeros(0, dtype=torch.int64), 3)
    result.backward()
    assert result.item() == 0
    assert weight.grad is not None
    assert weight.grad.item() == 0
