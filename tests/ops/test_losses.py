import math

import pytest
import torch

from maskwright.ops.losses import (
    boundary_cells,
    boundary_cross_entropy,
    gathered_l1,
    mask_cross_entropy,
    mask_dice,
    mask_iou,
    mean_per_image,
    penalty_reduced_focal,
)


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


def test_focal_loss_by_hand():
    logits = torch.tensor([0.0, math.log(3), 0.0, 9.0]).reshape(1, 1, 2, 2)
    targets = torch.tensor([1.0, 0.5, 0.0, 0.0]).reshape(1, 1, 2, 2)
    valid = torch.tensor([[[True, True], [True, False]]])
    positive = 0.5**2 * math.log(2)
    near = 0.5**4 * 0.75**2 * math.log(4)
    far = 0.5**2 * math.log(2)
    assert penalty_reduced_focal(logits, targets, valid).item() == pytest.approx(positive + near + far)


def test_focal_loss_takes_only_a_target_of_exactly_one_as_a_centre():
    logits = torch.full((1, 1, 1, 1), 2.0)
    valid = torch.ones(1, 1, 1, dtype=torch.bool)
    almost = penalty_reduced_focal(logits, torch.full((1, 1, 1, 1), 1 - 1e-6), valid)
    assert almost.item() == pytest.approx(0, abs=1e-12)
    assert penalty_reduced_focal(logits, torch.ones(1, 1, 1, 1), valid).item() > 1e-3


def test_focal_loss_is_finite_without_a_gradient_where_it_is_clipped():
    logits = torch.tensor([-200.0, 200.0, -1.0]).reshape(1, 1, 1, 3).requires_grad_()
    targets = torch.tensor([1.0, 0.0, 1.0]).reshape(1, 1, 1, 3)
    loss = penalty_reduced_focal(logits, targets, torch.ones(1, 1, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == pytest.approx(-2 * math.log(1e-4) + (1 - 0.26894) ** 2 * -math.log(0.26894), rel=1e-3)
    assert logits.grad is not None
    assert (logits.grad.flatten() == 0).tolist() == [True, True, False]


def test_gathered_l1_sums_over_cells_and_channels():
    maps = torch.arange(2 * 2 * 2 * 3.0).reshape(2, 2, 2, 3)
    targets = torch.tensor([[5.5, 11.0], [14.0, 18.0]])
    loss = gathered_l1(maps, targets, torch.tensor([0, 1]), torch.tensor([[1, 2], [0, 1]]))
    assert loss.item() == abs(5 - 5.5) + abs(11 - 11) + abs(13 - 14) + abs(19 - 18)


def test_gathered_l1_of_no_cell_is_zero_and_keeps_the_graph():
    maps = torch.ones(1, 2, 3, 3, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    gathered_l1(maps, torch.zeros(0, 2), none, none.reshape(0, 2)).backward()
    assert maps.grad is not None
    assert maps.grad.abs().sum() == 0


def test_iou_of_masks_by_hand():
    masks = torch.tensor([[[1, 1, 0]], [[0, 0, 1]], [[0, 0, 0]], [[1, 1, 1]]], dtype=torch.bool)
    truth = torch.tensor([[[0, 1, 1]], [[1, 1, 0]], [[0, 0, 0]], [[1, 1, 1]]], dtype=torch.bool)
    assert mask_iou(masks, truth).tolist() == pytest.approx([1 / 3, 0, 0, 1])


def test_boundary_cells_by_hand():
    masks = torch.zeros(2, 4, 5)
    masks[0, :, :2] = 1.0  # cut off above, below and left: its boundary is at the third column
    masks[0, 3, 4] = 0.5  # no more than half is outside
    masks[1] = 1.0
    expected = torch.tensor([[False, True, True, False, False]] * 4)
    assert torch.equal(boundary_cells(masks), torch.stack([expected, torch.zeros(4, 5, dtype=torch.bool)]))
    corner = torch.zeros(1, 3, 3)
    corner[0, 0, 0] = 1.0
    assert boundary_cells(corner)[0].int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert boundary_cells(torch.zeros(0, 4, 5)).shape == (0, 4, 5)


def test_the_boundary_counts_more_in_the_cross_entropy():
    """Three cells in a row and three times: columns 0 and 1 are the boundary, wrong in column 1 alone."""
    targets = torch.tensor([[[1.0, 0.0, 0.0]] * 3])
    logits = torch.tensor([[[2.0, 2.0, -2.0]] * 3])
    right, wrong = math.log1p(math.exp(-2)), math.log1p(math.exp(2))
    found = boundary_cross_entropy(logits, targets, 3.0)
    assert found.tolist() == pytest.approx([(4 * right + 4 * wrong + right) / 9])
    assert boundary_cross_entropy(logits, targets, 0.0).tolist() == pytest.approx(
        mask_cross_entropy(logits, targets).tolist()
    )
