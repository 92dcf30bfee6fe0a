"""Maps of segments: each pixel belongs to one segment or to none. Colour coding, areas and boxes."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int, Int32, Int64, UInt8
from scipy import ndimage
from torch import Tensor

LARGEST_ID = 256**3 - 1


def encode_ids(ids: Int[Tensor, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Segment ids as the colours of a COCO panoptic PNG: id = R + 256 G + 65536 B.

    Raises:
        ValueError: an id is outside of 0..2^24 - 1.
    """
    values = ids.detach().cpu().numpy().astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > LARGEST_ID):
        raise ValueError(f"segment ids must be in 0..{LARGEST_ID}, but they span {values.min()}..{values.max()}")
    return np.stack([values % 256, values // 256 % 256, values // 65536], axis=2).astype(np.uint8)


def decode_ids(colours: UInt8[np.ndarray, "h w 3"]) -> Int32[Tensor, "h w"]:
    """The segment ids of a COCO panoptic PNG, the inverse of `encode_ids`."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), 2, 0)
    return torch.from_numpy(red + 256 * green + 65536 * blue)


def segment_areas(segmentation: Int[Tensor, "h w"], count: int) -> Int64[Tensor, " {count}"]:
    """How many pixels each of the segments 0..count - 1 has; negative values of the map are void."""
    return torch.bincount(segmentation[segmentation >= 0].long(), minlength=count)


def segment_boxes(segmentation: Int[Tensor, "h w"], count: int) -> Float[Tensor, "{count} 4"]:
    """The tight box of each of the segments 0..count - 1, xyxy in pixels; zeros where a segment has no pixel."""
    boxes = torch.zeros(count, 4)
    found = ndimage.find_objects(segmentation.cpu().numpy().astype(np.int32) + 1, count)
    for row, slices in enumerate(found):
        if slices is not None:
            rows, columns = slices
            boxes[row] = torch.tensor([columns.start, rows.start, columns.stop, rows.stop])
    return boxes


def rows_of_ids(ids: Int[Tensor, "h w"], segments: Int64[Tensor, " s"]) -> Int32[Tensor, "h w"]:
    """A map of ids as a map of rows: each pixel's position in `segments` (ids, all different), -1 for other ids."""
    if len(segments) == 0:
        return torch.full(ids.shape, -1, dtype=torch.int32)
    ordered, order = segments.sort()
    ids = ids.long()
    places = torch.searchsorted(ordered, ids).clamp_(max=len(segments) - 1)
    return torch.where(ordered[places] == ids, order[places], -1).int()
