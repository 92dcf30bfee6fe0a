"""Regions: the pixels of a mask inside of a part of its picture, outside of which there are none; without torch."""

from __future__ import annotations

import numpy as np

Region = tuple[np.ndarray, tuple[int, int]]
"""Pixels, bool [h, w], and the place (x, y) of the first one in the picture."""


def counts_of_region(region: Region, image_size: tuple[int, int]) -> list[int]:
    """COCO's run lengths (zeros first, column by column) of a mask of a picture of `image_size` = (height, width)."""
    pixels, (left, top) = region
    height, width = image_size
    # A 0 before the first pixel and one after each column: every run begins and ends in its own column.
    stride = pixels.shape[0] + 1
    padded = np.zeros(pixels.shape[1] * stride + 1, dtype=bool)
    padded[1:].reshape(pixels.shape[1], stride)[:, :-1] = pixels.T
    column, row = np.divmod(np.flatnonzero(padded[1:] != padded[:-1]), stride)
    changes = (left + column) * height + top + row
    # Where the region is as high as the picture, a run that ends with its column may go on in the next one.
    touching = changes[1::2][:-1] == changes[2::2]
    keep = np.ones(len(changes), dtype=bool)
    keep[1:-1] = ~np.repeat(touching, 2)
    counts = np.diff(np.concatenate([[0], changes[keep], [height * width]]))
    return counts[: -1 if counts[-1] == 0 else None].tolist()
