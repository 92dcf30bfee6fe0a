"""From mask and class logits to a map of segments: pixel by pixel, or mask by mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from maskwright.models.max_deeplab.config import MaXDeepLabConfig
from maskwright.models.max_deeplab.mask_targets import count_rows, rows_of_masks
from maskwright.ops.resize import resize_nearest
from maskwright.structures import ImageGeometry, PanopticPrediction, SegmentInfo

_STRIP = 4  # rows of logits that are enlarged at a time: those of 128 slots stay in a processor's cache
_NEGLIGIBLE = 25.0  # 128 exp(-25) is 2e-9
_ROUNDING = 0.1  # much more than that of an interpolated logit


class SlotMap(NamedTuple):
    """Which slot each pixel of the network's input belongs to.

    slot: its position; meaningless where the pixel is not confident and nothing is detected.
    probability: of the most probable slot: among those that are detected, or in maskwise merging among all.
    confident: whether the pixel is part of a segment; the others are void.
    """

    slot: Int64[Tensor, "h w"]
    probability: Float[Tensor, "h w"]
    confident: Bool[Tensor, "h w"]


class SlotClasses(NamedTuple):
    """What each slot shows: its most probable class but void, that class's probability, and whether that is enough."""

    labels: Int64[Tensor, " n"]
    confidence: Float[Tensor, " n"]
    detected: Bool[Tensor, " n"]


@dataclass(frozen=True)
class PanopticMerging:
    """Merges the masks of the slots into segments.

    Source: arXiv 2012.00759, section 3.1; `PostProcessor` of the original's post_processor/max_deeplab.py.
    """

    config: MaXDeepLabConfig

    def __call__(
        self,
        mask_logits: Float[Tensor, "n h w"],
        class_logits: Float[Tensor, "n classes"],
        geometry: ImageGeometry,
        score_threshold: float = 0.0,
    ) -> PanopticPrediction:
        """The segments of one image, in its original frame.

        A segment's score is the mean, over its pixels of the input, of the pixel's probability times that of the
        class; segments below `score_threshold` are void. Ids count from 1, in the order of the slots.
        """
        classes = self.classify(class_logits)
        slots = self.assign(mask_logits, classes, geometry.input_size)
        segments, scores = self.segments(slots, classes)
        scores = scores.cpu()
        height, width = geometry.resized_size
        original = resize_nearest(segments[:height, :width], geometry.original_size).cpu()
        areas = count_rows(original, len(scores))
        kept = ((areas > 0) & (scores >= score_threshold)).nonzero().flatten()
        new_ids = torch.zeros(len(scores) + 1, dtype=torch.int32)  # the last stands for void, -1
        new_ids[kept] = torch.arange(len(kept), dtype=torch.int32) + 1
        labels = classes.labels.cpu()
        infos = [self._info(i, int(labels[row]), scores[row], areas[row]) for i, row in enumerate(kept.tolist(), 1)]
        return PanopticPrediction(new_ids[original], infos, geometry.original_size, tuple(self.config.categories or ()))

    def classify(self, class_logits: Float[Tensor, "n classes"]) -> SlotClasses:
        """What each slot shows; void, the last of the classes, is no class."""
        confidence, labels = class_logits.float().softmax(dim=1)[:, :-1].max(dim=1)
        for_things, for_stuff = self.config.class_threshold, self.config.stuff_class_threshold
        isthing = torch.tensor(self.config.isthing, device=labels.device)[labels]
        threshold = torch.where(isthing, for_things, for_things if for_stuff is None else for_stuff)
        return SlotClasses(labels, confidence, confidence >= threshold)

    def assign(self, mask_logits: Float[Tensor, "n h w"], classes: SlotClasses, size: tuple[int, int]) -> SlotMap:
        """The slot of every pixel of the input, whose (height, width) is `size`."""
        mask_logits = mask_logits.float()
        if self.config.merging == "pixelwise":
            return assign_pixels(mask_logits, classes.detected, size, self.config.pixel_threshold)
        probabilities = mask_logits.softmax(dim=0)
        inside = probabilities > self.config.pixel_threshold
        mean = (probabilities * inside).sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp(min=1)
        score = classes.confidence**self.config.class_exponent * mean**self.config.mask_exponent
        best_first = score.argsort(descending=True, stable=True)
        order = best_first[classes.detected[best_first]]
        return assign_masks(mask_logits, order, size, self.config.pixel_threshold, self.config.overlap_threshold)

    def segments(self, slots: SlotMap, classes: SlotClasses) -> tuple[Int64[Tensor, "h w"], Float[Tensor, " n"]]:
        """The slot that stands for each pixel's segment, -1 for void, and the score of each such slot.

        Slots of one class of stuff are one segment, for which the first of them stands.
        """
        thing = torch.tensor(self.config.isthing, device=classes.labels.device)[classes.labels]
        rows = rows_of_masks(classes.labels, thing, self.config.num_classes)
        segments = torch.where(slots.confident, rows[slots.slot], -1)
        areas = count_rows(segments, len(rows))
        large = areas >= torch.where(thing, self.config.thing_area_limit, self.config.stuff_area_limit)
        certainty = slots.probability * classes.confidence[slots.slot]
        index = segments.flatten() + 1
        total = certainty.new_zeros(len(rows) + 1).scatter_add(0, index, certainty.flatten())[1:]
        kept = functional.pad(large, (0, 1))[segments]
        return torch.where(kept, segments, -1), total / areas.clamp(min=1)

    def _info(self, segment_id: int, label: int, score: Tensor, area: Tensor) -> SegmentInfo:
        category = (self.config.categories or [])[label]
        return {
            "id": segment_id,
            "label": label,
            "category_id": category["id"],
            "isthing": category.get("isthing", True),
            "score": float(score),
            "area": int(area),
        }


def assign_pixels(
    mask_logits: Float[Tensor, "n h w"], detected: Bool[Tensor, " n"], size: tuple[int, int], threshold: float
) -> SlotMap:
    """Each pixel's detected slot with the largest logit.

    A pixel is confident if the probability of that slot among the detected ones exceeds `threshold`, and no other
    slot has a larger logit there: pixels of a slot that is not detected are void.
    """
    if not detected.any():
        nothing = torch.zeros(size, device=mask_logits.device)
        return SlotMap(nothing.long(), nothing, nothing.bool())
    order, strips = torch.cat([detected.nonzero().flatten(), (~detected).nonzero().flatten()]), []
    contending = _contending(mask_logits, detected)
    for slots, logits in enlarged_strips(
        mask_logits, size, lambda top, bottom: order[contending[order, top:bottom].any(dim=1)]
    ):
        count = int(detected[slots].sum())
        largest, position = logits[:count].max(dim=0)
        unsurpassed = largest >= logits[count:].amax(dim=0) if count < len(slots) else torch.ones_like(largest).bool()
        probability = 1 / logits[:count].sub_(largest).exp_().sum(dim=0)
        strips.append(SlotMap(slots[position], probability, unsurpassed & (probability > threshold)))
    return SlotMap(*(torch.cat(parts) for parts in zip(*strips, strict=True)))


def _contending(mask_logits: Float[Tensor, "n h w"], detected: Bool[Tensor, " n"]) -> Bool[Tensor, "n h-1"]:
    """The slots that can affect a pixel between two rows of logits, before these are enlarged.

    No value interpolated between four logits exceeds the largest of them. A detected slot whose four logits lie
    `_NEGLIGIBLE` below all four of another has too small a share of the pixels' probabilities for float32. A slot that
    is not detected matters only if its logit can be the largest; a margin for rounding is enough there.
    """
    upper = _largest_of_four(mask_logits)
    lower = -_largest_of_four(-mask_logits[detected])
    margin = torch.where(detected, _NEGLIGIBLE, _ROUNDING)[:, None, None]
    return (upper > lower.amax(dim=0) - margin).any(dim=2)


def _largest_of_four(x: Float[Tensor, "n h w"]) -> Float[Tensor, "n h-1 w-1"]:
    pairs = torch.maximum(x[:, 1:], x[:, :-1])
    return torch.maximum(pairs[:, :, 1:], pairs[:, :, :-1])


def assign_masks(
    mask_logits: Float[Tensor, "n h w"],
    order: Int64[Tensor, " k"],
    size: tuple[int, int],
    pixel_threshold: float,
    overlap_threshold: float,
) -> SlotMap:
    """The masks of the slots in `order`, each laid where no earlier one lies.

    A mask is the pixels at which its slot's probability, among all slots, exceeds `pixel_threshold`; it is left out
    whole where no more than a share of `overlap_threshold` of it is free.
    """
    parts, every = [], torch.arange(len(mask_logits), device=mask_logits.device)
    for _, logits in enlarged_strips(mask_logits, size, lambda *_: every):
        probabilities = logits.softmax(dim=0)
        parts.append((probabilities.amax(dim=0), probabilities[order] > pixel_threshold))
    probability = torch.cat([largest for largest, _ in parts])
    masks = torch.cat([inside for _, inside in parts], dim=1)
    slot = torch.zeros(size, dtype=torch.int64, device=masks.device)
    taken = torch.zeros(size, dtype=torch.bool, device=masks.device)
    for position, mask in zip(order, masks, strict=True):
        free = mask & ~taken
        free &= free.sum() > overlap_threshold * mask.sum()
        slot = torch.where(free, position, slot)
        taken |= free
    return SlotMap(slot, probability, taken)


def enlarged_strips(
    mask_logits: Float[Tensor, "n h w"], size: tuple[int, int], choose: Callable[[int, int], Int64[Tensor, " k"]]
) -> Iterator[tuple[Int64[Tensor, " k"], Float[Tensor, "k rows {size[1]}"]]]:
    """The logits at `size`, corner pixels on one another, a few rows at a time so that memory stays small.

    Both sides are `s k + 1` for the maps' stride s and their sides k + 1. `choose` picks the slots of a strip from
    its first and its last row of logits; they come with what is enlarged, theirs alone.
    """
    stride, last = (size[0] - 1) // (mask_logits.shape[1] - 1), mask_logits.shape[1] - 1
    for top in range(0, last, _STRIP):
        bottom = min(top + _STRIP, last)
        slots = choose(top, bottom)
        rows = mask_logits[slots, top : bottom + 1]
        new_size = (stride * (bottom - top) + 1, size[1])
        strip = functional.interpolate(rows[None], size=new_size, mode="bilinear", align_corners=True)[0]
        yield slots, strip if bottom == last else strip[:, :-1]
