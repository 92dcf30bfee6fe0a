"""Losses with the originals' normalisation: of masks (per instance, then a mean per image) and of CenterNet's maps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

MaskLossFunction = Callable[[Tensor, Tensor], Tensor]
"""Logits and targets [n, ...] to one value per instance [n]."""


def mask_cross_entropy(logits: Float[Tensor, "n ..."], targets: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
    """Sigmoid cross-entropy of each instance, the mean over its cells. Targets in [0, 1] may be soft.

    Source: _compute_mask_prediction_loss of the originals' deepmac_meta_arch.py, `weighted_sigmoid`.
    """
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return losses.flatten(1).mean(dim=1)


def boundary_cross_entropy(
    logits: Float[Tensor, "n h w"], targets: Float[Tensor, "n h w"], boundary_weight: float
) -> Float[Tensor, " n"]:
    """`mask_cross_entropy` as a weighted mean: cells on the mask's boundary count `1 + boundary_weight` times."""
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    weights = 1 + boundary_weight * boundary_cells(targets)
    return (weights * losses).sum(dim=(1, 2)) / weights.sum(dim=(1, 2))


def boundary_cells(masks: Float[Tensor, "n h w"]) -> Bool[Tensor, "n h w"]:
    """The cells of a mask (above 0.5) that have one outside of it among their 8 neighbours, and the other way round.

    What lies beyond the grid is neither: where a mask is cut off there is no boundary.
    """
    inside = (masks > 0.5).float()[:, None]
    most, least = (sign * torch.nn.functional.max_pool2d(sign * inside, 3, stride=1, padding=1) for sign in (1, -1))
    return (most != least).squeeze(1)


def mask_dice(logits: Float[Tensor, "n ..."], targets: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
    """Dice loss of each instance, `1 - 2 sum(p t) / max(sum(p) + sum(t), 1)` over its cells.

    Source: WeightedDiceClassificationLoss of the originals (no squared terms in the denominator).
    """
    probabilities, targets = logits.sigmoid().flatten(1), targets.flatten(1)
    overlap = (probabilities * targets).sum(dim=1)
    total = probabilities.sum(dim=1) + targets.sum(dim=1)
    return 1 - 2 * overlap / total.clamp(min=1)


def mask_iou(masks: Bool[Tensor, "n ..."], truth: Bool[Tensor, "n ..."]) -> Float[Tensor, " n"]:
    """IoU of each mask with the truth, in cells of the grid that they share; 0 where both are empty. No gradient."""
    overlap = (masks & truth).flatten(1).sum(dim=1)
    union = (masks | truth).flatten(1).sum(dim=1)
    return overlap / union.clamp(min=1)


def mask_quality_loss(qualities: Float[Tensor, " n"], iou: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Cross-entropy of the predicted IoU, given as logits, with the IoU: least where the prediction is its mean.

    Departure from Mask Scoring R-CNN and SAM: they take the squared difference, which is least at the same prediction
    but whose gradient vanishes where a prediction is far off.
    """
    return torch.nn.functional.binary_cross_entropy_with_logits(qualities, iou, reduction="none")


def projection_loss(
    loss: MaskLossFunction, logits: Float[Tensor, "n h w"], targets: Float[Tensor, "n h w"]
) -> Float[Tensor, " n"]:
    """`loss` of the largest logit against the largest target of each column, and of each row; the sum of both.

    Source: _compute_per_instance_box_consistency_loss of the originals' deepmac_meta_arch.py. Departure: with the
    cross-entropy, maps that are not square are an error there; here each of the two is a mean over its own cells.
    """
    columns = loss(logits.amax(dim=1), targets.amax(dim=1))
    return columns + loss(logits.amax(dim=2), targets.amax(dim=2))


def mean_per_image(
    loss_per_instance: Float[Tensor, " n"], image_index: Int64[Tensor, " n"], num_images: int
) -> Float[Tensor, ""]:
    """The mean over images of each image's mean over its instances; an image without instances counts as 0.

    image_index: the image of each instance, in 0..num_images-1. With no instance at all the result is 0
    and still depends on `loss_per_instance`, so that a backward pass reaches the model.

    Source: _compute_deepmac_losses of the originals' deepmac_meta_arch.py (images, not instances, have
    equal weight).
    """
    counts = torch.bincount(image_index, minlength=num_images).to(loss_per_instance.dtype)
    return (loss_per_instance / counts[image_index]).sum() / num_images


def penalty_reduced_focal(
    logits: Float[Tensor, "b c h w"], targets: Float[Tensor, "b c h w"], valid: Bool[Tensor, "b h w"]
) -> Float[Tensor, ""]:
    """CenterNet's focal loss of centre maps, summed over all valid cells: to be divided by the number of boxes.

    targets: 1 in the centre cells, a Gaussian around them; a target below 1 reduces the penalty by `(1 - t)^4`.
    valid: the cells that show the image rather than padding.

    Probabilities are clipped to 1e-4 from either end, where the gradient is 0.

    Source: PenaltyReducedLogisticFocalLoss of the originals (alpha 2, beta 4); arXiv 1904.07850, equation 1.
    """
    probabilities = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
    positive = (1 - probabilities) ** 2 * probabilities.log()
    negative = (1 - targets) ** 4 * probabilities**2 * (1 - probabilities).log()
    return -(torch.where(targets == 1, positive, negative) * valid[:, None]).sum()


def gathered_l1(
    maps: Float[Tensor, "b c h w"],
    targets: Float[Tensor, "n c"],
    image_index: Int64[Tensor, " n"],
    cells: Int64[Tensor, "n 2"],
) -> Float[Tensor, ""]:
    """The sum of absolute differences of maps and targets in the given cells: to be divided by the number of cells.

    image_index: the row of `maps` that each cell belongs to.
    cells: (y, x). N may be 0; the result is then 0 and still depends on the maps.

    Source: L1LocalizationLoss on get_batch_predictions_from_indices of the originals.
    """
    found = maps[image_index, :, cells[:, 0], cells[:, 1]]
    return (found - targets).abs().sum()
