"""Sizes and index maps as the DeepLab2 originals resize them: corner pixels on one another."""

from __future__ import annotations

import torch
from jaxtyping import Int, Int64
from torch import Tensor


def fitted_size(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) at which an image of `size` = (height, width) fits inside of `target`.

    The image is enlarged or shrunk until both of its sides reach those of `target`, then shrunk until none exceeds
    them; each time both sides are rounded down, in float32, so that one may come out a pixel smaller than by rounding
    once (333 x 500 into 1025 x 1025: 682 x 1025).

    Source: preprocess_utils.resize_to_range of deeplab2, with `min_resize_value` = `max_resize_value` = crop size.
    """
    sides, goal = torch.tensor(size, dtype=torch.float32), torch.tensor(target, dtype=torch.float32)
    grown = (sides * (goal / sides).max()).floor()
    shrunk = (grown * (goal / grown).min().clamp(max=1)).floor()
    height, width = shrunk.clamp(min=1).int().tolist()
    return height, width


def resize_nearest(segmentation: Int[Tensor, "h w"], size: tuple[int, int]) -> Int[Tensor, "{size[0]} {size[1]}"]:
    """The map at another (height, width), each pixel from the nearest, first and last pixels on one another.

    Pixel i of n takes pixel `i * (m - 1) / (n - 1)` of m, computed in float32 and rounded half away from zero; of one
    pixel only, the first.

    Source: tf.compat.v1.image.resize_nearest_neighbor with align_corners, as the originals resize label maps.
    """
    rows, columns = (
        _nearest_indices(extent, new, segmentation.device) for extent, new in zip(segmentation.shape, size, strict=True)
    )
    return segmentation[rows][:, columns]


def _nearest_indices(extent: int, size: int, device: torch.device) -> Int64[Tensor, " {size}"]:
    step = torch.tensor((extent - 1) / (size - 1) if size > 1 else 0.0, dtype=torch.float32, device=device)
    return (torch.arange(size, device=device) * step + 0.5).floor().long().clamp(max=extent - 1)
