"""Panoptic targets at the resolution of the masks: what MaX-DeepLab's losses compare with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from maskwright.structures import PanopticTarget


class MaskTargets(NamedTuple):
    """The true masks of a batch, one row for each, and the pixels of all of them flattened to P = h * w.

    mask_index: the row that each pixel belongs to; -1 where it belongs to none (void and crowds).
    labels: the class of each pixel, crowds included; -1 is void.
    semantic_weight: of each pixel in the semantic loss.
    mask_labels: the class of each row.
    mask_valid: rows with a pixel; the others are padding, crowds or too thin for this resolution.
    mask_is_thing: rows that are one instance rather than a class of stuff.
    """

    mask_index: Int64[Tensor, "b p"]
    labels: Int64[Tensor, "b p"]
    semantic_weight: Float[Tensor, "b p"]
    mask_labels: Int64[Tensor, "b k"]
    mask_valid: Bool[Tensor, "b k"]
    mask_is_thing: Bool[Tensor, "b k"]

    @property
    def crowd(self) -> Bool[Tensor, "b p"]:
        """Pixels with a class and without a mask."""
        return (self.labels >= 0) & (self.mask_index < 0)

    @property
    def masks(self) -> Float[Tensor, "b k p"]:
        """Every row as a plane of zeros and ones."""
        rows = torch.arange(self.mask_valid.shape[1], device=self.mask_index.device)
        return (self.mask_index[:, None] == rows[:, None]).float()


def create_mask_targets(
    targets: Sequence[PanopticTarget],
    isthing: Bool[Tensor, " c"],
    stride: int,
    small_instance_weight: float = 1.0,
    small_instance_area: int = 0,
) -> MaskTargets:
    """True masks from every `stride`-th pixel of the segment maps, starting at the first.

    A thing's segment is a mask; the segments of one class of stuff are one mask together; a crowd is no mask, but
    keeps its class. All targets have one size.

    isthing: of every class.
    small_instance_weight: of pixels in the semantic loss that belong to an instance of fewer than
        `small_instance_area` pixels in the map as it is given (the training crop).

    Source: `_pre_process_ground_truth` of the original's max_deeplab_loss.py (its rows are a fixed number of
    instances and every class of stuff; rows without a pixel take no part); `PanopticSampleGenerator` for the weights.
    """
    count = max([1, *(len(target["labels"]) for target in targets)])
    parts = []
    for target in targets:
        segmentation = target["segmentation"].long()
        labels, thing = target["labels"], isthing[target["labels"]]
        weights = segmentation.new_ones(len(labels), dtype=torch.float32)
        if small_instance_weight != 1:
            small = count_rows(segmentation, len(labels)) < small_instance_area
            weights[small & thing & ~target["iscrowd"]] = small_instance_weight
        sampled = segmentation[::stride, ::stride].flatten()
        padding = (0, count - len(labels))
        rows = rows_of_masks(labels, thing, len(isthing)).masked_fill(target["iscrowd"], -1)
        of_pixels = (_look_up(rows, sampled, -1), _look_up(labels, sampled, -1), _look_up(weights, sampled, 1.0))
        parts.append((*of_pixels, functional.pad(labels, padding), functional.pad(thing, padding)))
    mask_index, pixel_labels, pixel_weights, mask_labels, mask_is_thing = map(torch.stack, zip(*parts, strict=True))
    counts = torch.stack([count_rows(index, count) for index in mask_index])
    return MaskTargets(mask_index, pixel_labels, pixel_weights, mask_labels, counts > 0, mask_is_thing)


def rows_of_masks(labels: Int64[Tensor, " s"], thing: Bool[Tensor, " s"], num_classes: int) -> Int64[Tensor, " s"]:
    """The row of each segment's mask: its own for a thing, that of the first of its class for stuff."""
    own = torch.arange(len(labels), device=labels.device)
    first = own.new_full((num_classes,), len(labels)).scatter_reduce(0, labels, own, "amin")
    return torch.where(thing, own, first[labels])


def count_rows(rows: Int64[Tensor, "*any"], count: int) -> Int64[Tensor, " {count}"]:
    """How many pixels each row has, -1 being none; unlike `bincount` on a GPU it does not wait for the values."""
    flat = rows.flatten() + 1
    return flat.new_zeros(count + 1).scatter_add(0, flat, torch.ones_like(flat))[1:]


def _look_up(values: Tensor, rows: Int64[Tensor, " p"], void: float | int) -> Tensor:
    """The value of each pixel's segment, `void` where the row is -1 (the last of the padded values)."""
    return functional.pad(values, (0, 1), value=void)[rows]
