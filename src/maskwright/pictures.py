"""Any picture a person hands over -> uint8 RGB [H, W, 3], upright, or one sentence saying why not; without torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from maskwright.errors import UserError

HEIF_SUFFIXES = frozenset({".heic", ".heif"})
NEVER_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})  # Pillow knows them, but has no decoder
_SIXTEEN_BIT_MODES = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
_SIXTEEN_BITS_AS_32 = frozenset({"PNG", "PPM"})  # formats that have 16 bits at most, which Pillow may read as mode I
_TWELVE_BITS = 4096
_CONVERTIBLE_MODES = frozenset({"1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "LAB"})
_ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})


@cache
def register_heif() -> None:
    """Have Pillow read HEIC pictures, where pillow-heif is installed."""
    with suppress(ModuleNotFoundError):
        from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]

        register_heif_opener()


def read_picture(source: str | Path | Image.Image | np.ndarray) -> np.ndarray:
    """Read a picture as RGB, uint8 [H, W, 3], the way a viewer shows it.

    A path or PIL image is turned upright by its EXIF orientation, so that boxes are in the frame that a
    person sees. Grey, palette, CMYK and bilevel images become RGB; transparent pixels are laid on white;
    16-bit values are divided by 257 (the full range, not the used one; there is a warning where they look like 12-bit
    data). Of an animation, the first frame.
    Arrays are [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (RGB order), uint8 or uint16.

    Raises:
        UserError: the file is missing or is no readable image, or the values are of a kind named nowhere above.
        TypeError: `source` is none of the types above.
    """
    if isinstance(source, str | Path):
        return _read_file(Path(source))
    if isinstance(source, Image.Image):
        return _from_pil(source, "image")
    if isinstance(source, np.ndarray):
        return _from_array(source)
    raise TypeError(f"expected an image as a path, PIL image or numpy array, but got {type(source).__name__}")


def _read_file(path: Path) -> np.ndarray:
    if path.is_dir():
        raise UserError(f"{path}: expected an image file, but this is a folder")
    if path.is_file() and path.stat().st_size == 0:
        raise UserError(f"{path}: not an image, the file is empty")
    hint = "; for HEIC: pip install pillow-heif" if path.suffix.lower() in HEIF_SUFFIXES else ""
    with warnings.catch_warnings(), decoding(str(path), hint):
        # Pillow's remarks on odd EXIF blocks and on sizes below its hard limit
        warnings.filterwarnings("ignore", module="PIL|pillow_heif")
        register_heif()
        with Image.open(path) as image:
            return _from_pil(image, str(path))


@contextmanager
def decoding(name: str, hint: str = "") -> Iterator[None]:
    """What goes wrong while a picture is opened and decoded is told in a sentence that begins with its name.

    Args:
        name: of the picture.
        hint: what may help where its format is unknown.

    Raises:
        UserError: it is missing, no readable picture, too large or damaged.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{name}: no such file") from error
    except UnidentifiedImageError as error:
        formats = "JPEG, PNG, TIFF, WebP, BMP, GIF, ..."
        raise UserError(f"{name}: not an image in a known format ({formats}){hint}") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{name}: too large an image; shrink it, or cut it into tiles ({error})") from error
    except UserError:
        raise
    except Exception as error:  # decoders report broken data in any way there is
        raise UserError(f"{name}: the image cannot be read and may be damaged ({error})") from error


def _from_pil(image: Image.Image, name: str) -> np.ndarray:
    image.load()
    sixteen_bits = image.mode in _SIXTEEN_BIT_MODES or (image.mode == "I" and image.format in _SIXTEEN_BITS_AS_32)
    image = ImageOps.exif_transpose(image)
    if image.width == 0 or image.height == 0:
        raise UserError(f"{name}: expected an image with pixels, but its size is {image.width} x {image.height}")
    if sixteen_bits:
        return _from_array(np.asarray(image).astype(np.uint16), name)
    if image.mode in _ALPHA_MODES or (image.mode in _CONVERTIBLE_MODES and "transparency" in image.info):
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), layer)
    elif image.mode not in _CONVERTIBLE_MODES:
        raise UserError(
            f"{name}: images of mode {image.mode} are not supported; convert it to 8-bit or 16-bit integer values first"
        )
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _from_array(array: np.ndarray, name: str = "image array") -> np.ndarray:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or array.size == 0:
        raise UserError(f"{name}: expected shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], but got {array.shape}")
    if array.dtype == np.uint16:
        if 0 < array.max() < _TWELVE_BITS:
            warnings.warn(
                f"{name}: its 16-bit values are all below {_TWELVE_BITS}, as of 12-bit data, so that it is read as "
                "nearly black; multiply them by 16 first if it is",
                stacklevel=2,
            )
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if array.dtype != np.uint8:
        raise UserError(f"{name}: expected 8-bit or 16-bit values (uint8, uint16), but got {array.dtype}")
    if array.shape[2] == 4:
        return _from_pil(Image.fromarray(array), name)
    return np.broadcast_to(array, (*array.shape[:2], 3))
