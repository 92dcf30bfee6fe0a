"""Any picture a person hands over -> uint8 RGB [3, H, W], upright, or one sentence saying why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from maskwright.errors import UserError
from maskwright.pictures import read_picture


def read_image(source: str | Path | Image.Image | np.ndarray | Tensor) -> UInt8[Tensor, "3 h w"]:
    """Read a picture as RGB, the way a viewer shows it.

    Paths, PIL images and arrays are read as `maskwright.pictures.read_picture` says: upright, in 8 bits, without
    transparency. Tensors are RGB [3, H, W], uint8 or float in [0, 1].

    Raises:
        UserError: the file is missing or is no readable image, or the values are of a kind named nowhere above.
        TypeError: `source` is none of the types above.
    """
    if isinstance(source, Tensor):
        return _from_tensor(source)
    return image_of(read_picture(source))


def image_of(picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[Tensor, "3 h w"]:
    """A picture as models take it."""
    return torch.from_numpy(np.array(picture.transpose(2, 0, 1), order="C"))


def _from_tensor(tensor: Tensor) -> UInt8[Tensor, "3 h w"]:
    if tensor.ndim != 3 or tensor.shape[0] != 3 or tensor.numel() == 0:
        raise UserError(f"image tensor: expected RGB of shape [3, H, W], but got {tuple(tensor.shape)}")
    if tensor.dtype == torch.uint8:
        return tensor
    if not tensor.is_floating_point():
        raise UserError(f"image tensor: expected uint8, or float in [0, 1], but got {tensor.dtype}")
    low, high = float(tensor.min()), float(tensor.max())
    if not (low >= 0 and high <= 1):  # also refuses nan
        raise UserError(f"image tensor: float values must lie in [0, 1], but they lie in [{low:g}, {high:g}]")
    return (tensor * 255).round().to(torch.uint8)
