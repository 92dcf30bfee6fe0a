"""Pictures that a page sends: checked before they are decoded, and kept as files that end with this process."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import IO

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from starlette.exceptions import HTTPException

from maskwright.apps.page.shown_masks import jpeg
from maskwright.errors import UserError
from maskwright.pictures import decoding, read_picture, register_heif

_COMMON = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "HEIF")  # and none that other programs would read
_KEPT = 64


@dataclass(frozen=True)
class SentPicture:
    """A picture that can be read.

    file: as it was sent.
    size: (height, width), upright.
    shown: a JPEG for the page.
    """

    file: IO[bytes]
    size: tuple[int, int]
    shown: bytes


class SentPictures:
    """The last few pictures that were sent, each under a key that nobody can guess.

    Of older ones nothing is left: a page that asks for one is told so, and sends it again.

    Args:
        max_pixels: of a picture.
    """

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._pictures: OrderedDict[str, SentPicture] = OrderedDict()

    def add(self, file: IO[bytes]) -> tuple[str, UInt8[np.ndarray, "h w 3"]]:
        """Keep a picture; its key, and its pixels.

        Raises:
            UserError: it is none, has too many pixels, or is damaged.
        """
        pixels = read_sent(file, self._max_pixels)
        key = secrets.token_urlsafe(16)
        self._pictures[key] = SentPicture(file, (pixels.shape[0], pixels.shape[1]), jpeg(pixels))
        if len(self._pictures) > _KEPT:
            _, oldest = self._pictures.popitem(last=False)
            oldest.file.close()
        return key, pixels

    def __getitem__(self, key: str) -> SentPicture:
        """A picture.

        Raises:
            HTTPException: it is not there, or no longer.
        """
        if key not in self._pictures:
            raise HTTPException(404, "this picture is no longer here; send it again")
        self._pictures.move_to_end(key)
        return self._pictures[key]

    def pixels(self, key: str) -> UInt8[np.ndarray, "h w 3"]:
        """The pixels of a picture, as `read_picture` reads it.

        Raises:
            HTTPException: it is not there, or no longer.
        """
        return read_sent(self[key].file, self._max_pixels)


def read_sent(file: IO[bytes], max_pixels: int) -> UInt8[np.ndarray, "h w 3"]:
    """Read a picture as `read_picture` does, unless its header says that it has more than `max_pixels`.

    Raises:
        UserError: so, or it is no picture of a common format, or is damaged.
    """
    with decoding("this picture"), Image.open(file, formats=_formats()) as image:
        if image.width * image.height > max_pixels:
            raise UserError(
                f"this picture has {image.width} x {image.height} pixels, and at most {max_pixels / 1e6:g} million are "
                "taken; shrink it, or cut it into tiles"
            )
        return read_picture(image)


@cache
def _formats() -> list[str]:
    register_heif()
    Image.init()
    return [name for name in _COMMON if name in Image.OPEN]


def lossless(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """A picture as PNG, quickly rather than small."""
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
