"""What Deep-MAC's mask branch learns from, and its losses: instances and logits in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from maskwright.models.deep_mac.config import DeepMACConfig
from maskwright.ops.boxes import expand_boxes, jitter_boxes
from maskwright.ops.crop import crop_and_resize, crop_masks, fill_boxes
from maskwright.ops.frames import cells_in_box
from maskwright.ops.losses import (
    MaskLossFunction,
    boundary_cross_entropy,
    mask_cross_entropy,
    mask_dice,
    mask_iou,
    mask_quality_loss,
    mean_per_image,
    projection_loss,
)
from maskwright.structures import Target

MASK_LOSSES: dict[str, MaskLossFunction] = {"mask_cross_entropy": mask_cross_entropy, "mask_dice": mask_dice}


class MaskInstances(NamedTuple):
    """The instances of a batch that enter the mask head in training, those of all images one after the other.

    boxes: [N, 4], as the head gets them (jittered); xyxy, pixels of the network input.
    true_boxes: [N, 4], as the targets have them.
    image_index: [N], the image of each.
    has_mask: [N], whether it has a mask.
    masks: [K, h, w] in 0..1, the targets of the K of them that have one.
    """

    boxes: Float[Tensor, "n 4"]
    true_boxes: Float[Tensor, "n 4"]
    image_index: Int64[Tensor, " n"]
    has_mask: Bool[Tensor, " n"]
    masks: Float[Tensor, "k h w"]


def choose_instances(
    targets: Sequence[Target], config: DeepMACConfig, input_size: tuple[int, int], device: torch.device
) -> MaskInstances:
    """The instances that the mask head learns from: those with a mask, with box consistency all, and never a crowd.

    Where an image has more than `max_masks_per_image`, a random choice of them. Boxes are jittered.

    Args:
        targets: per image, in pixels of the network input.
        config: of the model.
        input_size: (height, width) of the network input.
        device: of the result.
    """
    boxes, true_boxes, has_mask, masks = [], [], [], []
    for target in targets:
        rows = (~target["iscrowd"] & (target["has_mask"] | (config.box_consistency_weight > 0))).nonzero().flatten()
        if len(rows) > config.max_masks_per_image:
            rows = rows[torch.randperm(len(rows))[: config.max_masks_per_image]]
        known = target["has_mask"][rows]
        true_boxes.append(target["boxes"][rows])
        boxes.append(jitter_boxes(true_boxes[-1], input_size, config.box_jitter, config.box_jitter_ratio))
        has_mask.append(known)
        masks.append(crop_mask_targets(cast("Tensor", target["masks"])[rows[known]], boxes[-1][known], config))
    image_index = torch.repeat_interleave(torch.tensor([len(rows) for rows in boxes]))
    parts = (torch.cat(boxes), torch.cat(true_boxes), image_index, torch.cat(has_mask), torch.cat(masks))
    return MaskInstances(*(part.to(device) for part in parts))


def crop_mask_targets(
    masks: Bool[Tensor, "k height width"], boxes: Float[Tensor, "k 4"], config: DeepMACConfig
) -> Float[Tensor, "k h w"]:
    """The masks on the grids of the (widened) boxes, or whole with `predict_full_resolution_masks`; in 0..1."""
    if config.predict_full_resolution_masks:
        return masks.float()
    size = config.mask_size * config.mask_upsample
    return crop_masks(masks, expand_boxes(boxes, config.box_margin), size, config.box_frame)


@dataclass(frozen=True)
class MaskLoss:
    """The weighted losses of the mask logits of all stacks.

    The box-consistency loss compares the largest logit of each row and column with whether the box reaches it, by the
    same losses as the masks (the sum of those whose weight is not 0). It needs no mask.

    Source: `_compute_instance_masks_loss` and `_compute_per_instance_box_consistency_loss` of the originals'
    deepmac_meta_arch.py. Logits on a box's grid are there cropped once more, by the box's place in the image, before
    they are compared with the box (drawn on a raster of the grid's size that stands for the image): this compares
    a part of the box's mask with ones. We do the same, for the same results; with whole images nothing is cropped.
    """

    config: DeepMACConfig

    def __call__(
        self,
        stacks: Sequence[Float[Tensor, "n h w"]],
        instances: MaskInstances,
        num_images: int,
        frame_size: tuple[int, int],
    ) -> dict[str, Tensor]:
        """`mask_cross_entropy`, `mask_dice` and `box_consistency` where they have a weight, averaged over the stacks.

        Each is the mean over images of the mean over an image's instances: those with a mask, for the box
        consistency all.

        Args:
            stacks: the logits of each stack, a row per instance; enlarged (bilinear) to the size of the masks.
            instances: of `choose_instances`.
            num_images: of the batch; one without instances counts as 0.
            frame_size: (height, width) of the network input.
        """
        losses: dict[str, list[Tensor]] = {}
        for logits in stacks:
            with_mask = _enlarge(logits[instances.has_mask], (instances.masks.shape[-2], instances.masks.shape[-1]))
            image_index = instances.image_index[instances.has_mask]
            for name, weight in self._mask_weights().items():
                per_instance = self._loss_function(name)(with_mask, instances.masks)
                losses.setdefault(name, []).append(weight * mean_per_image(per_instance, image_index, num_images))
            if self.config.box_consistency_weight:
                per_instance = self.box_consistency(logits, instances, frame_size)
                mean = mean_per_image(per_instance, instances.image_index, num_images)
                losses.setdefault("box_consistency", []).append(self.config.box_consistency_weight * mean)
        return {name: torch.stack(values).mean() for name, values in losses.items()}

    def quality(
        self,
        qualities: Float[Tensor, " n"],
        logits: Float[Tensor, "n h w"],
        instances: MaskInstances,
        num_images: int,
    ) -> Float[Tensor, ""]:
        """The weighted loss of the predicted IoU, averaged as those of the masks, over the instances with a mask.

        The IoU is that of the mask as it is predicted, cut off at the box, with the truth on the (widened) box's grid:
        where the truth exceeds a jittered box, the mask lacks it.

        Args:
            qualities: the predicted IoU, as logits.
            logits: of the masks.
            instances: of `choose_instances`.
            num_images: of the batch.
        """
        size, margin, frame = logits.shape[-1], self.config.box_margin, self.config.box_frame
        masks = (logits[instances.has_mask] > 0) & cells_in_box(size, margin, frame).to(logits.device)
        per_instance = mask_quality_loss(qualities[instances.has_mask], mask_iou(masks, instances.masks > 0.5))
        image_index = instances.image_index[instances.has_mask]
        return self.config.mask_quality_weight * mean_per_image(per_instance, image_index, num_images)

    def box_consistency(
        self, logits: Float[Tensor, "n h w"], instances: MaskInstances, frame_size: tuple[int, int]
    ) -> Float[Tensor, " n"]:
        """The unweighted box-consistency loss of each instance; the arguments are those of the call."""
        filled = fill_boxes(instances.true_boxes, frame_size, (logits.shape[-2], logits.shape[-1]))
        if not self.config.predict_full_resolution_masks:
            own = torch.arange(len(logits), device=logits.device)
            logits, filled = (
                crop_and_resize(
                    maps[:, None], instances.boxes, own, frame_size, logits.shape[-1], self.config.box_frame
                ).squeeze(1)
                for maps in (logits, filled)
            )
        losses = [projection_loss(MASK_LOSSES[name], logits, filled) for name in self._mask_weights()]
        return torch.stack(losses).sum(dim=0)

    def _loss_function(self, name: str) -> MaskLossFunction:
        """The loss of masks; of the extents of boxes, which have no boundary, it is always that of `MASK_LOSSES`."""
        if name == "mask_cross_entropy" and self.config.boundary_weight:
            return partial(boundary_cross_entropy, boundary_weight=self.config.boundary_weight)
        return MASK_LOSSES[name]

    def _mask_weights(self) -> dict[str, float]:
        weights = {"mask_cross_entropy": self.config.cross_entropy_weight, "mask_dice": self.config.dice_weight}
        return {name: weight for name, weight in weights.items() if weight}


def _enlarge(logits: Float[Tensor, "n h w"], size: tuple[int, int]) -> Float[Tensor, "n {size[0]} {size[1]}"]:
    if (logits.shape[-2], logits.shape[-1]) == size:
        return logits
    return torch.nn.functional.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
