"""Masks and pictures as a page shows them."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from maskwright.ops.run_lengths import Runs, region_of_runs, runs_of_plane
from maskwright.regions import Region

_LONGEST_SIDE = 2048  # of a picture on a page


def mask_json(runs: Runs, height: int) -> dict[str, Any]:
    """One mask as `canvas.js` takes it: its tight box, and the run lengths in it row by row, zeros first.

    runs: of the mask, in a picture of `height` rows.
    """
    pixels, (x, y) = region_of_runs(runs, height)
    return {"x": x, "y": y, "width": pixels.shape[1], "height": pixels.shape[0], "runs": _row_runs(pixels)}


def region_json(region: Region) -> dict[str, Any]:
    """The same of a region."""
    pixels, (left, top) = region
    shown = mask_json(runs_of_plane(pixels), len(pixels))
    return {**shown, "x": shown["x"] + left, "y": shown["y"] + top}


def _row_runs(region: Bool[np.ndarray, "h w"]) -> list[int]:
    """The lengths of the runs of False and True in turn, row by row; the first is of False, and may be 0."""
    pixels = region.ravel()
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], changes, [len(pixels)]])).tolist()
    return [0, *lengths] if len(pixels) and pixels[0] else lengths


def jpeg(picture: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """A picture for a screen; a large one is reduced."""
    return jpeg_of(Image.fromarray(picture), _LONGEST_SIDE)


def jpeg_of(picture: Image.Image, longest_side: int) -> bytes:
    """A picture as JPEG, reduced where a side is longer than `longest_side` pixels."""
    picture.thumbnail((longest_side, longest_side))
    stream = BytesIO()
    picture.save(stream, "JPEG", quality=88)
    return stream.getvalue()
