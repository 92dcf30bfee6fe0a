"""The pictures of annotation files as uint8 RGB [H, W, 3], in the frame of their annotations."""

from __future__ import annotations

import os
import warnings
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image

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


def read_annotated_picture(
    path: Path | PictureBytes, size: tuple[int, int], source: str, exif: ExifRule = "auto"
) -> UInt8[np.ndarray, "h w 3"]:
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
            image = read_picture(stored)
    except Exception as error:  # decoders report broken data in any way there is
        raise UserError(f"cannot read the image {path}: {error}") from error
    if not frame.certain:
        warnings.warn(UNCERTAIN_FRAME, stacklevel=2)
    found = image.shape[:2]
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
