"""MaX-DeepLab's losses: PQ-style, mask id, instance discrimination and semantic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from maskwright.models.max_deeplab.config import MaXDeepLabConfig
from maskwright.models.max_deeplab.mask_targets import MaskTargets
from maskwright.models.max_deeplab.network import MaXDeepLabOutputs
from maskwright.ops.matching import match_masks

_SMALLEST_WEIGHT = 1e-5
_POSITIVE_SHARE = 0.75  # of the PQ-style loss; the rest is for slots without a mask
_CONTRAST_TEMPERATURE = 0.3
_SAMPLING_EXPONENT = 0.6
_IMPOSSIBLE = -99999.0


@dataclass(frozen=True)
class MaXDeepLabLoss:
    """The weighted losses of a batch against its true masks.

    Source: arXiv 2012.00759, sections 3.2 and 3.4; `MaXDeepLabLoss` of the original's max_deeplab_loss.py and
    `DeepLabFamilyLoss`, with these departures: the assignment is the true optimum (`match_masks`); where an image
    has more masks than there are slots, the pixels of a mask without a slot are taught no slot (the original asks
    them for a logit of -99999, and adds up the classes of such masks on slot 0).
    """

    config: MaXDeepLabConfig

    def __call__(
        self, outputs: MaXDeepLabOutputs, targets: MaskTargets, matching: Int64[Tensor, "b k"] | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """`mask_class`, `mask_dice`, `mask_id`, `instance_discrimination`, `semantic`, each a mean over the images."""
        return {name: losses.mean() for name, losses in self.per_image(outputs, targets, matching).items()}

    def per_image(
        self, outputs: MaXDeepLabOutputs, targets: MaskTargets, matching: Int64[Tensor, "b k"] | None = None
    ) -> dict[str, Float[Tensor, " b"]]:
        """The same losses for each image. All are finite, and 0 where there is nothing to learn from an image.

        matching: the slot of each true mask, -1 for none; left out, it is computed.
        """
        masks, config = targets.masks, self.config
        features = outputs.pixel_feature.float().flatten(2)
        if config.contrast_pixels:
            discrimination = pixel_contrast(features, targets, masks.sum(dim=2), config.contrast_pixels)
        else:
            discrimination = mask_contrast(features, targets, masks)
        mask_logits = outputs.mask_logits.float().flatten(2)
        log_probabilities = mask_logits.log_softmax(dim=1)
        class_logits = outputs.class_logits.float()
        mass = slot_mass(log_probabilities.exp(), masks, targets.labels)
        dice, class_probability = similarities(mass, masks.sum(dim=2), class_logits, targets.mask_labels)
        semantic_logits = outputs.semantic_logits.float().flatten(2)  # channel 0 is void and never taught
        semantic = functional.cross_entropy(semantic_logits, targets.labels + 1, ignore_index=0, reduction="none")
        in_crowds = gradient_without_truth(mask_logits, targets.crowd)
        if matching is None:  # it waits for the GPU, so all that needs no matching is computed before
            matching = match_masks(dice * class_probability, targets.mask_valid)
        mask_id = cross_entropy_at(log_probabilities, _look_up(matching, targets.mask_index, -1)) + in_crowds
        instance_weight = config.instance_discrimination_weight
        weighted = {
            "mask_class": (config.pq_weight, self._mask_class(class_logits, targets, matching, mass, dice), 1.0),
            "mask_id": (config.mask_id_weight, mask_id, config.mask_id_top_k),
            "instance_discrimination": (instance_weight, discrimination, config.instance_discrimination_top_k),
            "semantic": (config.semantic_weight, semantic * targets.semantic_weight, config.semantic_top_k),
        }
        losses = {name: weight * mean_of_nonzero(loss, top) for name, (weight, loss, top) in weighted.items()}
        dice_weight = config.pq_weight * _POSITIVE_SHARE / class_logits.shape[1]
        mask_dice = matched_dice(mass.overlap, masks.sum(dim=2), class_probability, matching)
        return losses | {"mask_dice": dice_weight * mask_dice}

    def _mask_class(
        self,
        class_logits: Float[Tensor, "b n classes"],
        targets: MaskTargets,
        matching: Int64[Tensor, "b k"],
        mass: SlotMass,
        dice: Float[Tensor, "b k n"],
    ) -> Float[Tensor, "b n"]:
        """Cross entropy of every slot with the class of its mask or with void, weighted."""
        share = mass.void / (mass.everywhere + 1e-5)
        weight = (share if self.config.unmatched_weight == "void_share" else 1 - share).clamp(min=_SMALLEST_WEIGHT)
        void = torch.full_like(weight, class_logits.shape[2] - 1, dtype=torch.int64)
        matched = _at_match(dice, matching).clamp(min=_SMALLEST_WEIGHT)
        labels = _put_at_match(void, matching, targets.mask_labels)
        weights = _put_at_match((1 - _POSITIVE_SHARE) * weight, matching, _POSITIVE_SHARE * matched)
        return functional.cross_entropy(class_logits.transpose(1, 2), labels, reduction="none") * weights


class SlotMass(NamedTuple):
    """How much probability each slot has, summed over pixels.

    overlap: inside of each true mask.
    labelled: where a class is known, crowds included; without gradient.
    void: where none is known; without gradient.
    everywhere: over the whole image; without gradient.
    """

    overlap: Float[Tensor, "b k n"]
    labelled: Float[Tensor, "b n"]
    void: Float[Tensor, "b n"]
    everywhere: Float[Tensor, "b n"]


def slot_mass(
    probabilities: Float[Tensor, "b n p"], masks: Float[Tensor, "b k p"], labels: Int64[Tensor, "b p"]
) -> SlotMass:
    """The sums that all terms of the PQ-style loss are made of; labels of -1 are void."""
    overlap = masks @ probabilities.transpose(1, 2)
    with torch.no_grad():
        void = (labels == -1).float()
        on_void = (probabilities @ void[:, :, None])[:, :, 0]
        on_labelled = (probabilities @ (1 - void)[:, :, None])[:, :, 0]
    return SlotMass(overlap, on_labelled, on_void, on_labelled + on_void)


@torch.no_grad()
def similarities(
    mass: SlotMass,
    areas: Float[Tensor, "b k"],
    class_logits: Float[Tensor, "b n classes"],
    mask_labels: Int64[Tensor, "b k"],
) -> tuple[Float[Tensor, "b k n"], Float[Tensor, "b k n"]]:
    """How well each slot's mask fits each true mask (dice), and the slot's probability of that mask's class.

    Void pixels count for nothing, those of crowds count against a slot. The product is what is matched.

    Source: arXiv 2012.00759, equation 9.
    """
    dice = mass.overlap / ((areas[:, :, None] + mass.labelled[:, None]) / 2 + 1e-5)
    probabilities = class_logits.softmax(dim=2).transpose(1, 2)
    rows = mask_labels[:, :, None].expand(-1, -1, probabilities.shape[2])
    return dice, probabilities.gather(1, rows)


def matched_dice(
    overlap: Float[Tensor, "b k n"],
    areas: Float[Tensor, "b k"],
    class_probability: Float[Tensor, "b k n"],
    matching: Int64[Tensor, "b k"],
) -> Float[Tensor, " b"]:
    """Dice loss of every matched pair, weighted by the slot's probability of the class; the sum of each image.

    Only pixels of true masks count, neither void nor crowds.
    """
    inside = _at_match(overlap.sum(dim=1, keepdim=True).expand_as(overlap), matching)
    losses = 1 - (2 * _at_match(overlap, matching) + 1) / (inside + areas + 1)
    weights = _at_match(class_probability, matching).clamp(min=_SMALLEST_WEIGHT) * (matching >= 0)
    return (losses * weights).sum(dim=1)


def cross_entropy_at(log_probabilities: Float[Tensor, "b n p"], index: Int64[Tensor, "b p"]) -> Float[Tensor, "b p"]:
    """Minus the log probability that each pixel gives to its own index; 0 where that is -1."""
    return functional.nll_loss(log_probabilities, index, ignore_index=-1, reduction="none")


def gradient_without_truth(logits: Float[Tensor, "b n p"], where: Bool[Tensor, "b p"]) -> Float[Tensor, "b p"]:
    """Zeros whose gradient, at these pixels, lowers each logit in proportion to its probability.

    Source: the original's softmax cross entropy (TensorFlow's) has this gradient where no index is the true one.
    """
    normalizer = logits.logsumexp(dim=1)
    return torch.where(where, normalizer - normalizer.detach(), 0.0)


def mask_contrast(
    features: Float[Tensor, "b d p"], targets: MaskTargets, masks: Float[Tensor, "b k p"]
) -> Float[Tensor, "b p"]:
    """Pulls each pixel of an instance to the mean feature of its own mask, away from the others; 0 for other pixels.

    The other masks include those of stuff. The gradient reaches the means, too.

    Source: arXiv 2012.00759, equation 14.
    """
    means = functional.normalize(masks @ features.transpose(1, 2), dim=2, eps=1e-6)
    logits = (means @ features / _CONTRAST_TEMPERATURE).masked_fill(~targets.mask_valid[:, :, None], _IMPOSSIBLE)
    instance = torch.where(_look_up(targets.mask_is_thing, targets.mask_index, False), targets.mask_index, -1)
    return cross_entropy_at(logits.log_softmax(dim=1), instance)


def pixel_contrast(
    features: Float[Tensor, "b d p"], targets: MaskTargets, areas: Float[Tensor, "b k"], count: int
) -> Float[Tensor, "b s"]:
    """Pulls each of `count` drawn pixels to those of its own mask, away from the others; 0 for pixels of no mask.

    Source: `_compute_instance_discrimination_loss` of the original with `sample_k` above 0, the k-means form.
    """
    drawn = draw_pixels(targets, areas, count)
    index = targets.mask_index.gather(1, drawn)
    feature = features.gather(2, drawn[:, None].expand(-1, features.shape[1], -1))
    alike = ((index[:, :, None] == index[:, None]) & (index >= 0)[:, None]).float()
    logits = feature.transpose(1, 2) @ feature / _CONTRAST_TEMPERATURE  # symmetric
    losses = -(alike * logits.log_softmax(dim=1)).sum(dim=1) / alike.sum(dim=1).clamp(min=1)
    return losses + gradient_without_truth(logits, index < 0)


def draw_pixels(targets: MaskTargets, areas: Float[Tensor, "b k"], count: int) -> Int64[Tensor, "b s"]:
    """Positions of `count` different pixels of each image, or of all where it has fewer.

    A pixel's chance grows as the area of its mask falls (Gumbel draws without replacement); a crowd's pixels count
    as masks of one pixel, as in the original, and void is drawn only where nothing else is left.

    Source: the sampling of `_compute_instance_discrimination_loss` of the original.
    """
    own_area = _look_up(areas, targets.mask_index, 1.0)
    chance = (-_SAMPLING_EXPONENT * own_area.clamp(min=1).log()).masked_fill(targets.labels < 0, _IMPOSSIBLE)
    gumbel = -torch.empty_like(chance).exponential_().log()
    return (chance + gumbel).topk(min(count, chance.shape[1]), dim=1).indices


def mean_of_nonzero(losses: Float[Tensor, "b n"], top_k: float = 1.0) -> Float[Tensor, " b"]:
    """The mean over those of the largest share `top_k` of losses that are not 0, per image; 0 where all are.

    Source: `compute_average_top_k_loss` of the original's base_loss.py (halves round to even).
    """
    if top_k < 1:
        losses = losses.topk(round(top_k * losses.shape[1]), dim=1).values
    return losses.sum(dim=1) / (losses != 0).sum(dim=1).clamp(min=1)


def _look_up(values: Tensor, index: Int64[Tensor, "b p"], otherwise: float | int | bool) -> Tensor:
    """Each pixel's value by its row, `otherwise` where the row is -1."""
    return torch.where(index >= 0, values.gather(1, index.clamp(min=0)), otherwise)


def _at_match(values: Float[Tensor, "b k n"], matching: Int64[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """Each mask's value at its slot; meaningless where it has none."""
    return values.gather(2, matching.clamp(min=0)[:, :, None])[:, :, 0]


def _put_at_match(slots: Tensor, matching: Int64[Tensor, "b k"], values: Tensor) -> Tensor:
    """The values of the slots, those of matched slots replaced by the values of their masks."""
    nowhere = slots.shape[1]  # a column for masks without a slot, cut off at the end
    padded = functional.pad(slots, (0, 1))
    return padded.scatter(1, torch.where(matching < 0, nowhere, matching), values)[:, :nowhere]
