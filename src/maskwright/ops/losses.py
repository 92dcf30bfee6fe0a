"""Mask losses with the originals' normalisation: one value per instance, then a mean per image."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def mask_cross_entropy(logits: Float[Tensor, "n s s"], targets: Float[Tensor, "n s s"]) -> Float[Tensor, " n"]:
    """Sigmoid cross-entropy of each instance, the mean over its s x s cells. Targets in [0, 1] may be soft.

    Source: _compute_mask_prediction_loss of the originals' deepmac_meta_arch.py, `weighted_sigmoid`.
    """
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return losses.mean(dim=(1, 2))


def mask_dice(logits: Float[Tensor, "n s s"], targets: Float[Tensor, "n s s"]) -> Float[Tensor, " n"]:
    """Dice loss of each instance, `1 - 2 sum(p t) / max(sum(p) + sum(t), 1)` over its s x s cells.

    Source: WeightedDiceClassificationLoss of the originals (no squared terms in the denominator).
    """
    probabilities = logits.sigmoid()
    overlap = (probabilities * targets).sum(dim=(1, 2))
    total = probabilities.sum(dim=(1, 2)) + targets.sum(dim=(1, 2))
    return 1 - 2 * overlap / total.clamp(min=1)


def mean_per_image(
    loss_per_instance: Float[Tensor, " n"], image_index: Int64[Tensor, " n"], num_images: int
) -> Float[Tensor, ""]:
    """The mean over images of the mean over each image's instances; an image without any counts as 0.

    image_index: the image of each instance, in 0..num_images-1. With no instance at all the result is 0
    and still depends on `loss_per_instance`, so that a backward pass reaches the model.

    Source: _compute_deepmac_losses of the originals' deepmac_meta_arch.py (images, not instances, weigh
    alike).
    """
    counts = torch.bincount(image_index, minlength=num_images).to(loss_per_instance.dtype)
    return (loss_per_instance / counts[image_index]).sum() / num_images
