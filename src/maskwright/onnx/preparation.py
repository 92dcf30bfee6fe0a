"""A picture to the network's input, with numpy and Pillow."""

from __future__ import annotations

import numpy as np
from PIL import Image

from maskwright.onnx.metadata import Metadata

Size = tuple[int, int]
"""(height, width) in pixels."""


def network_input(picture: np.ndarray, metadata: Metadata) -> np.ndarray:
    """The network's input, float32 [1, 3, S, S], of a picture, uint8 RGB [H, W, 3]; as `nn.image_batch.ImageBatch`."""
    height, width = new_size = resized_size(picture.shape[:2], metadata)
    image = np.empty((3, metadata.image_size, metadata.image_size), dtype=np.float32)
    image[:] = np.array(metadata.padding, dtype=np.float32)[:, None, None]
    for plane, channel in zip(image, np.moveaxis(picture, 2, 0), strict=True):
        plane[:height, :width] = _resize(channel.astype(np.float32) / np.float32(255), new_size, metadata.resize)
    mean, std = (np.array(values, dtype=np.float32)[:, None, None] for values in (metadata.mean, metadata.std))
    image = (image - mean) / std
    return np.ascontiguousarray(image[::-1] if metadata.channel_order == "bgr" else image)[None]


def resized_size(size: tuple[int, ...], metadata: Metadata) -> Size:
    """The (height, width) that a picture of `size` = (height, width) has in the network's input."""
    if metadata.size_rule == "round":
        scale = min(metadata.image_size / side for side in size)
        height, width = (max(1, round(scale * side)) for side in size)
        return height, width
    sides, goal = np.array(size, dtype=np.float32), np.float32(metadata.image_size)
    grown = np.floor(sides * (goal / sides).max())
    shrunk = np.floor(grown * np.minimum((goal / grown).min(), np.float32(1)))
    return max(1, int(shrunk[0])), max(1, int(shrunk[1]))


def _resize(plane: np.ndarray, size: Size, method: str) -> np.ndarray:
    """One channel, float32, at another (height, width)."""
    if plane.shape == size:
        return plane
    if method == "antialias":  # Pillow's filter, of which torch's is a copy
        return np.asarray(Image.fromarray(plane).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return _interpolate(_interpolate(plane, size[0], method).T, size[1], method).T


def _interpolate(rows: np.ndarray, new_side: int, method: str) -> np.ndarray:
    """As many rows as asked for, each between two of the given ones."""
    side, new_rows = len(rows), np.arange(new_side)
    if method == "align_corners":
        positions = new_rows * ((side - 1) / max(1, new_side - 1))
    else:
        shift = 0.5 if method == "half_pixel" else 0.0
        positions = ((new_rows + shift) * (side / new_side) - shift).clip(0, side - 1)
    below = positions.astype(np.int64).clip(max=side - 1)
    weight = (positions - below).astype(np.float32)[:, None]
    return rows[below] * (1 - weight) + rows[(below + 1).clip(max=side - 1)] * weight
