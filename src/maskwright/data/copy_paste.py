"""Objects of one training crop laid over another, so that a mask head learns what occludes and what is occluded."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from maskwright.data.transforms import tight_boxes, toss
from maskwright.structures import Target, select_rows

_LARGEST_SHARE = 0.25
"""Of the crop: larger objects are not pasted; they would leave little of what is there."""
_LEAST_VISIBLE = 0.2
"""Of an object's mask, or of its box where it has none: an object of which less is left is dropped."""


def copy_paste(images: list[Tensor], targets: list[Target], share: float) -> tuple[list[Tensor], list[Target]]:
    """Lay objects of the crop before it in the batch over a `share` of the crops.

    Of the other crop, each object with a mask is taken with probability 1/2 and stays at its place. What it covers is
    cut out of the masks below, whose boxes become tight again. All randomness is torch's.

    Args:
        images: uint8 RGB, all of one size.
        targets: theirs; the masks are planes.
        share: probability that a crop gets something pasted.

    Source: Ghiasi et al., "Simple copy-paste is a strong data augmentation", arXiv 2012.07177. Departures: a crop's own
    augmentation takes the place of the second scale jitter, and objects larger than a quarter of it are not pasted.
    """
    mixed = [
        _paste(images[i], targets[i], images[i - 1], targets[i - 1]) if toss(share) else (images[i], targets[i])
        for i in range(len(images))
    ]
    return [image for image, _ in mixed], [target for _, target in mixed]


def _paste(
    image: UInt8[Tensor, "3 h w"], target: Target, other_image: UInt8[Tensor, "3 h w"], other: Target
) -> tuple[UInt8[Tensor, "3 h w"], Target]:
    """Some objects of the other crop over this one."""
    is_small = cast("Tensor", other["masks"]).flatten(1).float().mean(dim=1) <= _LARGEST_SHARE
    taken = other["has_mask"] & ~other["iscrowd"] & is_small & (torch.rand(len(is_small)) < 0.5)
    pasted = select_rows(other, taken)
    cover = cast("Tensor", pasted["masks"]).any(dim=0)
    below = _cover(target, cover)
    joined = {name: torch.cat([below[name], pasted[name]]) for name in below if name != "image_id"}
    return torch.where(cover, other_image, image), Target(**{**target, **joined})


def _cover(target: Target, cover: Bool[Tensor, "h w"]) -> Target:
    """The target without the pixels of `cover` and without the objects that these hide."""
    masks = cast("Tensor", target["masks"])
    left = masks & ~cover
    area, area_left = masks.flatten(1).sum(dim=1), left.flatten(1).sum(dim=1)
    visible = torch.where(target["has_mask"], area_left / area.clamp(min=1), 1 - _covered_share(target["boxes"], cover))
    tight, _ = tight_boxes(left)
    is_cut = target["has_mask"] & (area_left < area)
    boxes = torch.where(is_cut[:, None], tight, target["boxes"])
    return select_rows(Target(**{**target, "masks": left, "boxes": boxes}), visible >= _LEAST_VISIBLE)


def _covered_share(boxes: Tensor, cover: Bool[Tensor, "h w"]) -> Tensor:
    """The share of each box's pixels that lies in `cover`."""
    rows = [cover[y1 : y2 + 1, x1 : x2 + 1].float().mean() for x1, y1, x2, y2 in boxes.long().tolist()]
    return torch.stack([torch.zeros(()), *rows])[1:].nan_to_num()
