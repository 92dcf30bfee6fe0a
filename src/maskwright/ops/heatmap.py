"""CenterNet's objects as points: target maps of given boxes, and boxes read from predicted maps.

Boxes here are xyxy in cells of the map (pixels of the network input divided by the stride). Pairs are
(y, x) and (height, width), the order of the channels of the originals' maps.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from maskwright.ops.boxes import clip_boxes

_PEAK_TOLERANCE = 1e-6


def gaussian_radius(sizes: Float[Tensor, "n 2"], min_overlap: float = 0.7) -> Float[Tensor, " n"]:
    """How far, in cells, a box's corners may move so that its IoU with itself stays about `min_overlap`.

    sizes: (height, width) of each box, in cells.

    The smallest of three cases (one corner moves in and one out, both in, both out), each the root of a quadratic
    equation. The root is divided by 2 instead of 2a: a known error of CenterNet, kept because its results have it.

    Source: max_distance_for_overlap of the originals' target_assigner.py; CornerNet, arXiv 1808.01244, 3.1.
    """
    half, area = sizes.sum(dim=1), sizes.prod(dim=1)
    cases = (
        (1.0, -half, area * (1 - min_overlap) / (1 + min_overlap)),
        (4.0, -2 * half, (1 - min_overlap) * area),
        (4 * min_overlap, 2 * min_overlap * half, (min_overlap - 1) * area),
    )
    roots = [(-b + torch.sqrt(b**2 - 4 * a * c)) / 2 for a, b, c in cases]
    return torch.stack(roots).amin(dim=0)


def center_cells(boxes: Float[Tensor, "n 4"], map_size: tuple[int, int]) -> Int64[Tensor, "n 2"]:
    """The cell (y, x) that holds each box's centre; a centre outside of the map takes the nearest cell.

    map_size: (height, width) of the map.

    Source: CenterNetBoxTargetAssigner of the originals. Departure: there a centre outside is an error.
    """
    centers = (boxes[:, [1, 0]] + boxes[:, [3, 2]]) / 2
    return torch.minimum(centers.floor().long().clamp(min=0), centers.new_tensor(map_size).long() - 1)


def center_heatmap(
    boxes: Float[Tensor, "n 4"],
    labels: Int64[Tensor, " n"],
    num_classes: int,
    map_size: tuple[int, int],
    min_overlap: float = 0.7,
) -> Float[Tensor, "{num_classes} {map_size[0]} {map_size[1]}"]:
    """The target of one image's centre maps: a Gaussian around each box's centre cell, in its class's plane.

    labels: in 0..num_classes-1. Where boxes of a class overlap, the larger value counts. N may be 0.

    The value is exactly 1 in the centre cells and nowhere else. The standard deviation is a sixth of the
    diameter `2 floor(radius) + 1`, and the Gaussian is not cut off.

    Source: CenterNetCenterHeatmapTargetAssigner of the originals' target_assigner.py.
    """
    height, width = map_size
    cells = center_cells(boxes, map_size)
    radius = gaussian_radius(boxes[:, [3, 2]] - boxes[:, [1, 0]], min_overlap).floor().clamp(min=0)
    sigma = ((2 * radius + 1) / 6)[:, None, None]
    y = torch.arange(height, device=boxes.device)[None, :, None] - cells[:, 0, None, None]
    x = torch.arange(width, device=boxes.device)[None, None, :] - cells[:, 1, None, None]
    gaussians = torch.exp(-(y**2 + x**2) / (2 * sigma**2))
    heatmap = boxes.new_zeros(num_classes, height, width)
    planes = labels[:, None, None].expand_as(gaussians)
    return heatmap.scatter_reduce(0, planes, gaussians, "amax")


def size_and_offset_targets(
    boxes: Float[Tensor, "n 4"], cells: Int64[Tensor, "n 2"]
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n 2"]]:
    """The targets in each box's centre cell: (height, width), and the centre minus the cell (y, x).

    Source: CenterNetBoxTargetAssigner of the originals' target_assigner.py.
    """
    low, high = boxes[:, [1, 0]], boxes[:, [3, 2]]
    return high - low, (low + high) / 2 - cells


def keep_peaks(scores: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """The scores that are the largest of their 3 x 3 neighbourhood (to 1e-6); the others become 0.

    A plateau keeps all of its cells.

    Source: top_k_feature_map_locations of the originals' center_net_meta_arch.py.
    """
    highest = torch.nn.functional.max_pool2d(scores, 3, stride=1, padding=1)
    return scores * ((scores - highest).abs() < _PEAK_TOLERANCE)


def top_k_cells(
    scores: Float[Tensor, "b c h w"], k: int
) -> tuple[Float[Tensor, "b k"], Int64[Tensor, "b k"], Int64[Tensor, "b k 2"]]:
    """The `k` highest scores of each image over all classes and cells: scores, labels and cells (y, x).

    The highest come first, equal ones in the order of row, column and class, on every device. If the maps hold fewer
    than `k` values, all are returned.

    Raises:
        ValueError: `k` is less than 1.

    Source: top_k_feature_map_locations of the originals' center_net_meta_arch.py.
    """
    if k < 1:
        raise ValueError(f"the number of detections must be at least 1, but got {k}")
    _, num_classes, _, width = scores.shape
    flat = scores.permute(0, 2, 3, 1).flatten(1)
    k = min(k, flat.shape[1])
    # torch.topk takes any of several equal values. So take the values above the k-th, which are certain, then those
    # equal to it, lowest position first, and sort by position and then, stably, by value.
    values, above = flat.topk(k, dim=1)
    smallest = values[:, -1:]
    positions = torch.arange(flat.shape[1], device=flat.device)
    equal = torch.where(flat == smallest, positions, flat.shape[1]).topk(k, dim=1, largest=False).values
    above = torch.where(values > smallest, above, flat.shape[1])
    candidates = torch.cat([above, equal], dim=1).sort(dim=1).values
    found = torch.where(candidates < flat.shape[1], flat.gather(1, candidates.clamp(max=flat.shape[1] - 1)), -torch.inf)
    values, order = found.sort(dim=1, descending=True, stable=True)
    index = candidates.gather(1, order[:, :k])
    cell = index // num_classes
    return values[:, :k], index % num_classes, torch.stack([cell // width, cell % width], dim=2)


def decode_boxes(
    cells: Int64[Tensor, "b k 2"], sizes: Float[Tensor, "b 2 h w"], offsets: Float[Tensor, "b 2 h w"]
) -> Float[Tensor, "b k 4"]:
    """The boxes, xyxy in cells and clipped to the map, that the maps predict in the given cells (y, x).

    sizes: (height, width) maps in cells; negative values count as 0.
    offsets: (y, x) from the cell to the box's centre.

    Source: prediction_tensors_to_boxes of the originals' center_net_meta_arch.py.
    """
    height, width = sizes.shape[2:]
    image = torch.arange(len(cells), device=cells.device)[:, None]
    y, x = cells.unbind(dim=2)
    half = sizes[image, :, y, x].clamp(min=0) / 2
    centers = cells + offsets[image, :, y, x]
    boxes = torch.cat([centers - half, centers + half], dim=2)[..., [1, 0, 3, 2]]
    return clip_boxes(boxes, (height, width))
