"""Masks and pictures as a page shows them."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from maskwright.structures import EncodedMasks

_LONGEST_SIDE = 2048  # of a picture on a page


def mask_json(masks: EncodedMasks) -> dict[str, Any]:
    """One mask as `canvas.js` takes it: its tight box, and the run lengths in it row by row, zeros first."""
    x1, y1, x2, y2 = masks.extents()[0].tolist()
    (region,) = masks.crop(x1, y1, x2, y2).numpy()
    return {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "runs": _row_runs(region)}


def region_json(region: Bool[Tensor, "h w"], origin: tuple[int, int]) -> dict[str, Any]:
    """The same of a mask that is known inside of a region only, whose first pixel has the (x, y) `origin`."""
    shown = mask_json(EncodedMasks.from_planes(region[None]))
    return {**shown, "x": shown["x"] + origin[0], "y": shown["y"] + origin[1]}


def _row_runs(region: Bool[np.ndarray, "h w"]) -> list[int]:
    """The lengths of the runs of False and True in turn, row by row; the first is of False, and may be 0."""
    pixels = region.ravel()
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], changes, [len(pixels)]])).tolist()
    return [0, *lengths] if len(pixels) and pixels[0] else lengths


def jpeg(pixels: UInt8[Tensor, "3 h w"]) -> bytes:
    """A picture for a screen; a large one is reduced."""
    return jpeg_of(Image.fromarray(pixels.permute(1, 2, 0).numpy()), _LONGEST_SIDE)


def jpeg_of(picture: Image.Image, longest_side: int) -> bytes:
    """A picture as JPEG, reduced where a side is longer than `longest_side` pixels."""
    picture.thumbnail((longest_side, longest_side))
    stream = BytesIO()
    picture.save(stream, "JPEG", quality=88)
    return stream.getvalue()
