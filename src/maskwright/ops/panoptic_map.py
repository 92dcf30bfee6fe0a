"""Maps of segments: each pixel belongs to one segment or to none. Colour coding, areas, boxes, COCO's entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int32, Int64, UInt8
from scipy import ndimage

LARGEST_ID = 256**3 - 1


def encode_ids(ids: Int[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Segment ids as the colours of a COCO panoptic PNG: id = R + 256 G + 65536 B.

    Raises:
        ValueError: an id is outside of 0..2^24 - 1.
    """
    values = ids.astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > LARGEST_ID):
        raise ValueError(f"segment ids must be in 0..{LARGEST_ID}, but they span {values.min()}..{values.max()}")
    return np.stack([values % 256, values // 256 % 256, values // 65536], axis=2).astype(np.uint8)


def decode_ids(colours: UInt8[np.ndarray, "h w 3"]) -> Int32[np.ndarray, "h w"]:
    """The segment ids of a COCO panoptic PNG, the inverse of `encode_ids`."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), 2, 0)
    return red + 256 * green + 65536 * blue


def segment_areas(segmentation: Int[np.ndarray, "h w"], count: int) -> Int64[np.ndarray, " {count}"]:
    """How many pixels each of the segments 0..count - 1 has; negative values of the map are void."""
    return np.bincount(segmentation[segmentation >= 0], minlength=count)


def segment_boxes(segmentation: Int[np.ndarray, "h w"], count: int) -> Float[np.ndarray, "{count} 4"]:
    """The tight box of each of the segments 0..count - 1, xyxy in pixels; zeros where a segment has no pixel."""
    boxes = np.zeros((count, 4), dtype=np.float32)
    found = ndimage.find_objects(segmentation.astype(np.int32) + 1, count)
    for row, slices in enumerate(found):
        if slices is not None:
            rows, columns = slices
            boxes[row] = columns.start, rows.start, columns.stop, rows.stop
    return boxes


def rows_of_ids(ids: Int[np.ndarray, "h w"], segments: Int64[np.ndarray, " s"]) -> Int32[np.ndarray, "h w"]:
    """A map of ids as a map of rows: each pixel's position in `segments` (ids, all different), -1 for other ids."""
    if len(segments) == 0:
        return np.full(ids.shape, -1, dtype=np.int32)
    order = segments.argsort()
    ordered = segments[order]
    places = np.searchsorted(ordered, ids).clip(max=len(segments) - 1)
    return np.where(ordered[places] == ids, order[places], -1).astype(np.int32)


def coco_entry(
    ids: Int[np.ndarray, "h w"], segments: Sequence[Mapping[str, Any]], image_id: int | str, file_name: str
) -> tuple[UInt8[np.ndarray, "h w 3"], dict[str, Any]]:
    """A predicted map of ids and its `segments_info` as the image's PNG and its entry of COCO's panoptic format.

    See `PanopticPrediction.to_coco`.

    Raises:
        ValueError: an id does not lie in 0..2^24 - 1.
    """
    rows, count = rows_of_ids(ids, np.array([info["id"] for info in segments], dtype=np.int64)), len(segments)
    areas, boxes = segment_areas(rows, count).tolist(), segment_boxes(rows, count).astype(int).tolist()
    infos = [
        {
            "id": info["id"],
            "category_id": info["category_id"],
            "area": area,
            "bbox": [left, top, right - left, bottom - top],
            "iscrowd": 0,
            "score": round(info["score"], 5),
        }
        for info, area, (left, top, right, bottom) in zip(segments, areas, boxes, strict=True)
    ]
    return encode_ids(ids), {"image_id": image_id, "file_name": file_name, "segments_info": infos}
