"""Any picture a person hands over -> uint8 RGB [3, H, W], upright, or one sentence saying why not."""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from maskwright.data.orientation import ExifRule, choose_frame
from maskwright.errors import UserError

UNCERTAIN_FRAME = (
    "images with an EXIF orientation whose size does not tell whether they were annotated as stored are taken upright: "
    "`maskwright data check --images` names them, --exif (data.exif in a recipe) overrules"
)
"""The warning about annotations whose frame is not certain; it names no image, so that it is given once."""

_HEIF_SUFFIXES = frozenset({".heic", ".heif"})
_NEVER_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})  # Pillow knows them, but has no decoder
_SIXTEEN_BIT_MODES = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
_SIXTEEN_BITS_AS_32 = frozenset({"PNG", "PPM"})  # formats that have 16 bits at most, which Pillow may read as mode I
_TWELVE_BITS = 4096
_CONVERTIBLE_MODES = frozenset({"1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "LAB"})
_ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})


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
    readable = Image.OPEN.keys() - _NEVER_DECODED
    return _HEIF_SUFFIXES | {suffix for suffix, name in Image.registered_extensions().items() if name in readable}


@cache
def register_heif() -> None:
    """Have Pillow read HEIC pictures, where pillow-heif is installed."""
    with suppress(ModuleNotFoundError):
        from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]

        register_heif_opener()


def read_image(source: str | Path | Image.Image | np.ndarray | Tensor) -> UInt8[Tensor, "3 h w"]:
    """Read a picture as RGB, the way a viewer shows it.

    A path or PIL image is turned upright by its EXIF orientation, so that boxes are in the frame that a
    person sees. Grey, palette, CMYK and bilevel images become RGB; transparent pixels are laid on white;
    16-bit values are divided by 257 (the full range, not the used one; there is a warning where they look like 12-bit
    data). Of an animation, the first frame.
    Arrays are [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (RGB order), uint8 or uint16. Tensors are RGB
    [3, H, W], uint8 or float in [0, 1].

    Raises:
        UserError: the file is missing or is no readable image, or the values are of a kind named nowhere above.
        TypeError: `source` is none of the types above.
    """
    if isinstance(source, str | Path):
        return _read_file(Path(source))
    if isinstance(source, Image.Image):
        return _from_pil(source, "image")
    if isinstance(source, Tensor):
        return _from_tensor(source)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    raise TypeError(f"expected an image as a path, PIL image, numpy array or tensor, but got {type(source).__name__}")


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


def _read_file(path: Path) -> UInt8[Tensor, "3 h w"]:
    if path.is_dir():
        raise UserError(f"{path}: expected an image file, but this is a folder")
    try:
        with warnings.catch_warnings():
            # Pillow's remarks on odd EXIF blocks and on sizes below its hard limit
            warnings.filterwarnings("ignore", module="PIL|pillow_heif")
            register_heif()
            with Image.open(path) as image:
                return _from_pil(image, str(path))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except UnidentifiedImageError as error:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: not an image, the file is empty") from error
        hint = "; for HEIC: pip install pillow-heif" if path.suffix.lower() in _HEIF_SUFFIXES else ""
        raise UserError(
            f"{path}: not an image in a known format (JPEG, PNG, TIFF, WebP, BMP, GIF, ...){hint}"
        ) from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: too large an image; shrink it, or cut it into tiles ({error})") from error
    except UserError:
        raise
    except Exception as error:  # decoders report broken data in any way there is
        raise UserError(f"{path}: the image cannot be read and may be damaged ({error})") from error


def _from_pil(image: Image.Image, name: str) -> UInt8[Tensor, "3 h w"]:
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
    return _channels_first(np.asarray(image if image.mode == "RGB" else image.convert("RGB")))


def _from_array(array: np.ndarray, name: str = "image array") -> UInt8[Tensor, "3 h w"]:
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
    return _channels_first(np.broadcast_to(array, (*array.shape[:2], 3)))


def _channels_first(array: np.ndarray) -> UInt8[Tensor, "3 h w"]:
    return torch.from_numpy(np.array(array.transpose(2, 0, 1), order="C"))


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
