"""Boxes: clipping, margins and the random jitter of training boxes. xyxy, pixels."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

JitterMode = Literal[
    "default", "expand", "shrink", "expand_symmetric", "shrink_symmetric", "expand_symmetric_xy", "shrink_symmetric_xy"
]
_SMALLEST_EXTENT = 1e-6  # of the image


def clip_boxes(boxes: Float[Tensor, "*any 4"], image_size: tuple[int, int]) -> Float[Tensor, "*any 4"]:
    """The boxes, clipped to an image of `image_size` = (height, width) pixels."""
    height, width = image_size
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))


def expand_boxes(boxes: Float[Tensor, "n 4"], margin: float) -> Float[Tensor, "n 4"]:
    """The boxes with each side moved outwards by `margin` times the box's own width or height; not clipped."""
    size = boxes[:, 2:] - boxes[:, :2]
    return torch.cat([boxes[:, :2] - margin * size, boxes[:, 2:] + margin * size], dim=1)


def jitter_boxes(
    boxes: Float[Tensor, "n 4"],
    image_size: tuple[int, int],
    mode: JitterMode,
    ratio: float,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n 4"]:
    """The boxes with randomly moved edges, at least 1e-6 of the image wide and high, clipped to the image.

    boxes: xyxy, pixels of an image of `image_size` = (height, width).
    mode: the distance of each edge from the box's centre is multiplied by 1 + U, where U is uniform in
        [-ratio, ratio] (`default`), [0, ratio] (`expand*`) or [-ratio, 0] (`shrink*`). There is one factor per edge,
        per axis (`*_symmetric`), or per box (`*_symmetric_xy`). The symmetric modes limit the factor so that the box
        stays inside the image and keeps its centre.
    ratio: at least 0; with 0, boxes only get the smallest extent and are clipped.

    Source: random_jitter_boxes of the originals' preprocessor.py.
    """
    height, width = image_size
    image_extent = boxes.new_tensor([width, height])
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = torch.maximum((boxes[:, 2:] - boxes[:, :2]).abs(), image_extent * _SMALLEST_EXTENT) / 2
    factors_per_box = {"symmetric": 2, "xy": 1}.get(mode.rsplit("_", 1)[-1], 4)
    device = boxes.device if generator is None else generator.device
    random = torch.rand(len(boxes), factors_per_box, generator=generator, device=device).to(boxes)
    low = 0.0 if mode.startswith("expand") else -ratio
    high = 0.0 if mode.startswith("shrink") else ratio
    factors = 1 + low + (high - low) * random
    if factors_per_box < 4:
        largest = (torch.minimum(center, image_extent - center) / half).abs()
        if factors_per_box == 1:
            largest = largest.amin(dim=1, keepdim=True)
        factors = torch.minimum(factors, largest).expand(-1, 2).repeat(1, 2)
    jittered = torch.cat([center - half * factors[:, :2], center + half * factors[:, 2:]], dim=1)
    return clip_boxes(jittered, image_size)
