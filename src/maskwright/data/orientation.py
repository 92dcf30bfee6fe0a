"""In which frame the annotations of a picture with an EXIF orientation are: as stored, or upright as viewers show it.

Nothing in an annotation file says it, so evidence decides: the size that the file gives first, then whether the boxes
and polygons fit. Where both frames have one size (turned by 180 degrees, mirrored, or square) nothing decides; then
the upright picture is taken, as annotation tools show it, and the caller can say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from maskwright.errors import UserError

ExifRule = Literal["auto", "upright", "stored"]
"""The frame to take: by evidence, always the upright picture, or always the pixels as stored."""

Size = tuple[int, int]
"""(height, width) in pixels."""

TOLERANCE = 2.0
"""Pixels by which a box may reach beyond its picture and still fit it (tools round differently)."""


def exif_rule(given: str) -> ExifRule:
    """The rule of a name that a person gave.

    Raises:
        UserError: there is no such rule.
    """
    for rule in get_args(ExifRule):
        if rule == given:
            return rule
    raise UserError(f"exif must be one of {', '.join(get_args(ExifRule))}, but got {given!r}")


@dataclass(frozen=True)
class Frame:
    """The frame that a picture's annotations are in.

    upright: whether the picture is turned by its EXIF orientation; true where there is nothing to turn, too.
    size: of the picture in this frame.
    certain: whether the evidence, or the person who asked for it, decided.
    reason: why the frame was taken, in words.
    """

    upright: bool
    size: Size
    certain: bool
    reason: str


def choose_frame(
    stored: Size,
    orientation: int | None,
    listed: Size | None = None,
    reach: tuple[float, float] | None = None,
    rule: ExifRule = "auto",
) -> Frame:
    """Decide the frame of one picture.

    Args:
        stored: the size of the pixels as stored.
        orientation: the EXIF tag (1 to 8); None or any other number means that there is none.
        listed: the size that the annotation file gives, if it gives one.
        reach: the largest x and y of the picture's boxes and polygons, if it has any.
        rule: overrules the evidence.
    """
    if orientation is None or not 2 <= orientation <= 8:
        return Frame(True, stored, True, "it has no EXIF orientation to apply")
    upright = swapped(stored) if orientation >= 5 else stored
    if rule != "auto":
        return Frame(rule == "upright", upright if rule == "upright" else stored, True, f"{rule} was asked for")
    tag = f"it has the EXIF orientation {orientation}"
    if upright == stored:
        return Frame(True, upright, False, f"{tag}, and its size is the same as stored and upright")
    fits_stored, fits_upright = fits(reach, stored), fits(reach, upright)
    if listed == stored and (fits_stored or not fits_upright):
        return Frame(False, stored, True, f"{tag}, and the annotation file gives its size as stored")
    if listed == upright and (fits_upright or not fits_stored):
        return Frame(True, upright, True, f"{tag}, and the annotation file gives its upright size")
    if fits_stored != fits_upright:
        only = "upright" if fits_upright else "stored"
        return Frame(
            fits_upright, upright if fits_upright else stored, True, f"{tag}, and its boxes fit it {only} only"
        )
    return Frame(True, upright, False, f"{tag}, and neither a size nor a box says how it was annotated")


def fits(reach: tuple[float, float] | None, size: Size) -> bool:
    """Whether boxes up to the largest x and y, `reach`, lie inside a picture of `size`."""
    return reach is None or (reach[0] <= size[1] + TOLERANCE and reach[1] <= size[0] + TOLERANCE)


def swapped(size: Size) -> Size:
    """The size of the picture turned by 90 degrees."""
    return size[1], size[0]


def shows_upright_pictures(content: Mapping[str, Any]) -> bool:
    """Whether the file says that it comes from Label Studio.

    That shows pictures upright, and lists their sizes as stored. Source: HumanSignal/label-studio, issue 6608.
    """
    info = content.get("info")
    return isinstance(info, dict) and info.get("contributor") == "Label Studio"
