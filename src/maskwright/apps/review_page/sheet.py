"""A contact sheet of the worst masks: one HTML file that needs no server and loads nothing."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from maskwright.apps.page.shown_masks import jpeg_of
from maskwright.apps.review_page.completed import CompletedFile, CompletedMask
from maskwright.apps.review_page.redraw import picture_of
from maskwright.apps.run_summary import RunSummary
from maskwright.errors import UserError
from maskwright.files import write_text

_SIDE = 320  # of a crop on the sheet, in pixels
_MARGIN = 0.25  # around a box, in sides of it
_COLOUR = np.array([255, 96, 0])
_HEAD = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 1rem; color: #1a1a1a; background: #fff; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)); gap: 1rem; }}
figure {{ margin: 0; overflow-wrap: anywhere; }}
img {{ width: 100%; height: 200px; object-fit: contain; background: #222; }}
</style>
<h1>{title}</h1>
<p>{told}</p>
<main>
"""


def write_sheet(completed: CompletedFile, masks: Sequence[CompletedMask], out: Path, summary: RunSummary) -> int:
    """Write the masks, each in a crop of its picture, to the HTML file `out`, and return how many there are.

    Masks whose picture cannot be read are counted in `summary`.

    Raises:
        UserError: no picture can be read, or the file cannot be written.
    """
    pictures: dict[int, Image.Image | None] = {}
    figures = []
    for mask in sorted(masks, key=lambda mask: mask.image):  # a picture is read once, and one at a time is in memory
        if mask.image not in pictures:
            pictures = {mask.image: _read(completed, mask.image, summary)}
        picture = pictures[mask.image]
        if picture is not None:
            figures.append((mask.quality, mask.position, _figure(completed, mask, picture)))
    if not figures:
        raise UserError(f"none of the pictures of {completed.path} can be read")
    title = _text(f"Masks of {completed.path.name}")
    told = f"{len(figures)} of {len(completed.masks)} completed masks, the lowest quality first."
    body = "".join(figure for *_, figure in sorted(figures))
    write_text(out, f"{_HEAD.format(title=title, told=told)}{body}</main>\n</html>\n")
    return len(figures)


def _read(completed: CompletedFile, image: int, summary: RunSummary) -> Image.Image | None:
    try:
        return Image.fromarray(picture_of(completed, image))
    except UserError as error:
        summary.note("failed", "picture that cannot be read", error)
        return None


def _figure(completed: CompletedFile, mask: CompletedMask, picture: Image.Image) -> str:
    told = f"{mask.category} {mask.quality:.3f}, annotation {mask.id}, {completed.image_names[mask.image]}".strip()
    content = base64.b64encode(jpeg_of(_crop(completed, mask, picture), _SIDE)).decode()
    text = _text(told)
    image = f'<img alt="{text}" src="data:image/jpeg;base64,{content}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>\n"


def _crop(completed: CompletedFile, mask: CompletedMask, picture: Image.Image) -> Image.Image:
    """The picture around the box, with the mask in colour and the box as a line."""
    x1, y1, x2, y2 = mask.box
    reach_x, reach_y = _MARGIN * (x2 - x1), _MARGIN * (y2 - y1)
    left, right = _within(x1 - reach_x, x2 + reach_x, picture.width)
    top, bottom = _within(y1 - reach_y, y2 + reach_y, picture.height)
    pixels = np.array(picture.crop((left, top, right, bottom)))
    (inside,) = completed.encoded(mask.segmentation, mask.image).crop(left, top, right, bottom).numpy()
    pixels[inside] = (pixels[inside] * 0.5 + _COLOUR * 0.5).astype(np.uint8)
    crop = Image.fromarray(pixels)
    corners = (round(x1) - left, round(y1) - top, round(x2) - left, round(y2) - top)
    ImageDraw.Draw(crop).rectangle(corners, outline="white", width=max(1, max(crop.size) // 200))
    return crop


def _within(low: float, high: float, size: int) -> tuple[int, int]:
    """A range of whole pixels of `size`, at least one."""
    start = min(max(0, round(low)), size - 1)
    return start, min(max(start + 1, round(high) + 1), size)


def _text(value: str) -> str:
    """Text for HTML in ASCII, whatever it holds."""
    return escape(value).encode("ascii", "xmlcharrefreplace").decode()
