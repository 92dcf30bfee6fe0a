"""Texts in pictures: a font that has their letters, and room for them."""

from __future__ import annotations

import os
import unicodedata
import warnings
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskwright.drawing.colours import Colour

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Rectangle = tuple[float, float, float, float]

FONT_FOLDERS = (
    "~/.local/share/fonts",
    "~/.fonts",
    "/usr/local/share/fonts",
    "/usr/share/fonts",
    "~/Library/Fonts",
    "/Library/Fonts",
    "/System/Library/Fonts",
    "$WINDIR/Fonts",
)
"""Where systems keep their fonts."""

_FONT_SUFFIXES = frozenset({".otf", ".ttc", ".ttf"})
_PLAIN = (
    "notosans",
    "dejavusans.",
    "arial",
    "liberationsans",
    "segoeui",
    "helvetica",
)  # first, if they have the letters
_STYLED = ("bold", "condensed", "italic", "light", "mono", "oblique", "serif", "thin")  # last


def drawable_name(name: str, number: int | None) -> str:
    """A class's name as it can be written here: as it is, or else, with a warning, in ASCII or as its number."""
    if font_file(name) is not None:
        return name
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().strip()
    written = plain if any(map(str.isalnum, plain)) else "class" if number is None else f"class {number}"
    _warn_of_missing_font(name, written)
    return written


_warned: list[str] = []


def _warn_of_missing_font(name: str, written: str) -> None:
    if not _warned:
        _warned.append(name)
        warnings.warn(
            f"no font of this system has the letters of {name!r}: overlays say {written!r} (install one that has them, "
            "such as Noto Sans)",
            stacklevel=3,
        )


class CaptionWriter:
    """Writes captions on a picture, in a size that follows the picture's.

    size: height of the text in pixels.
    """

    def __init__(self, canvas: Image.Image) -> None:
        self.size = max(10.0, float(np.hypot(*canvas.size)) / 65)
        self._canvas_size = canvas.size
        self._draw = ImageDraw.Draw(canvas)
        self._placed = np.zeros((0, 4))

    def place(self, caption: str, anchor: tuple[float, float], centred: bool = False) -> Rectangle:
        """Where a caption lies: with its lower left corner, or its middle, at `anchor`; within the picture."""
        left, top, right, bottom = self._extent(caption)
        padding = self.size / 5
        width, height = right - left + 2 * padding, bottom - top + 2 * padding
        x = anchor[0] - centred * width / 2
        y = anchor[1] - height / 2 if centred else anchor[1] - height if anchor[1] >= height else anchor[1]
        x = min(max(0.0, x), max(0.0, self._canvas_size[0] - width))
        y = min(max(0.0, y), max(0.0, self._canvas_size[1] - height))
        return x, y, x + width, y + height

    def is_free(self, place: Rectangle) -> bool:
        """Whether no caption is written there yet."""
        left, top, right, bottom = place
        placed = self._placed
        covered = (placed[:, 0] < right) & (placed[:, 2] > left) & (placed[:, 1] < bottom) & (placed[:, 3] > top)
        return not covered.any()

    def write(self, caption: str, place: Rectangle, colour: Colour) -> None:
        """Write a caption at a place of `place`, on a ground of that colour."""
        self._placed = np.concatenate([self._placed, [place]])
        self._draw.rectangle(place, fill=colour)
        bright = np.dot(colour, (0.299, 0.587, 0.114)) > 140
        left, top, _, _ = self._extent(caption)
        padding = self.size / 5
        corner = (place[0] + padding - left, place[1] + padding - top)
        self._draw.text(corner, caption, fill="black" if bright else "white", font=_font_of(caption, self.size))

    def _extent(self, caption: str) -> Rectangle:
        left, top, right, bottom = self._draw.textbbox((0, 0), caption, font=_font_of(caption, self.size))
        return float(left), float(top), float(right), float(bottom)


def _font_of(text: str, size: float) -> Font:
    return _font(font_file(text) or "", size)


@cache
def _font(file: str, size: float) -> Font:
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)


@cache
def font_file(text: str) -> str | None:
    """A font that has all letters of a text: an empty text is Pillow's own, None is none."""
    letters = {letter for letter in text if unicodedata.category(letter) not in ("Cf", "Mn", "Zs")}  # unseen alone
    return next((file for file in ("", *_system_fonts()) if all(_has(file, letter) for letter in letters)), None)


@cache
def _system_fonts() -> tuple[str, ...]:
    folders = (Path(os.path.expandvars(folder)).expanduser() for folder in FONT_FOLDERS)
    files = {file for folder in folders for file in folder.rglob("*") if file.suffix.lower() in _FONT_SUFFIXES}

    def rank(file: Path) -> tuple[bool, bool, str]:
        name = file.name.lower()
        return any(word in name for word in _STYLED), not name.startswith(_PLAIN), str(file)

    return tuple(map(str, sorted(files, key=rank)))


@cache
def _has(file: str, letter: str) -> bool:
    """Whether a font draws a letter as anything but the picture that it has for missing ones."""
    try:
        return _drawn(file, letter) not in (_drawn(file, "\uffff"), _drawn(file, " "))
    except (OSError, UnicodeEncodeError):
        return False


def _drawn(file: str, letter: str) -> bytes:
    picture = Image.new("L", (40, 40))
    ImageDraw.Draw(picture).text((8, 8), letter, fill=255, font=_font(file, 20.0))
    return picture.tobytes()
