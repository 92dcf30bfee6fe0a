"""Any picture a person hands over -> uint8 RGB [3, H, W], upright, or one sentence saying why not."""

from __future__ import annotations

import os
import warnings
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image
from torch import Tensor

from maskwright.data.orientation import ExifRule, choose_frame
from maskwright.errors import UserError
from maskwright.pictures import HEIF_SUFFIXES, NEVER_DECODED, read_picture, register_heif

UNCERTAIN_FRAME = (
    "images with an EXIF orientation whose size does not tell whether they were annotated as stored are taken upright: "
    "`maskwright data check --images` names them, --exif (data.exif in a recipe) overrules"
)
"""The warning about annotations whose frame is not certain; it names no image, so that it is given once."""


class PictureBytes(BytesIO):
    """The bytes of a picture's file, which messages call by `name`."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self._name = name

    def __repr__(self) -> str:
        return self._name


@cache
def picture_suffixes() -> frozenset[str]:
    """Lower-case file suffixes that are taken for pictures when a folder is searched: of all formats that are read."""
    Image.init()
    readable = Image.OPEN.keys() - NEVER_DECODED
    return HEIF_SUFFIXES | {suffix for suffix, name in Image.registered_extensions().items() if name in readable}


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
    return torch.from_numpy(np.array(read_picture(source).transpose(2, 0, 1), order="C"))


def read_annotated_image(
    path: Path | PictureBytes, size: tuple[int, int], source: str, exif: ExifRule = "auto"
) -> UInt8[Tensor, "3 h w"]:
    """The image at `path` as RGB, in the (height, width) that the annotation file `source` gives for it.

    An EXIF orientation is applied where the annotations are in the upright frame (`choose_frame`). Where that is not
    certain, there is a warning.

    Raises:
        UserError: the file is missing, cannot be read as an image, or has another size.
    """
    if isinstance(path, Path):
        require_file(path, source)
    try:
        register_heif()
        with Image.open(path) as stored:
            orientation = stored.getexif().get(ExifTags.Base.Orientation)
            frame = choose_frame((stored.height, stored.width), orientation, size, rule=exif)
            if not frame.upright:
                stored.getexif().pop(ExifTags.Base.Orientation, None)
            image = read_image(stored)
    except Exception as error:  # decoders report broken data in any way there is
        raise UserError(f"cannot read the image {path}: {error}") from error
    if not frame.certain:
        warnings.warn(UNCERTAIN_FRAME, stacklevel=2)
    found = tuple(image.shape[1:])
    if found != size:
        raise UserError(
            f"the image {path} has {found[0]} x {found[1]} pixels (height x width), "
            f"but {source} says {size[0]} x {size[1]}"
        )
    return image


def require_file(path: Path, source: str) -> None:
    """Refuse a file of the annotation file `source` that is not there.

    Raises:
        UserError: it does not exist.
    """
    if not os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises: name too long)
        raise UserError(f"the image {path}, listed in {source}, does not exist")


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
