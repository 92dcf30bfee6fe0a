"""A picture of how far scores can be trusted: what came out above what was foretold."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

SIDE, MARGIN, COUNTS = 400, 48, 80  # pixels: of the square, around it, and of the counts below it
_INK, _GRID, _BAR, _GAP = (30, 30, 30), (215, 215, 215), (70, 130, 180), (225, 110, 90)


def draw_reliability(bins: Sequence[tuple[float, float, int]], title: str) -> Image.Image:
    """A bar for each bin, as high as its mean outcome; a line from there to its mean score; the counts below.

    Where scores can be trusted, bars end on the diagonal.

    Args:
        bins: of equal width from 0 to 1: mean score, mean outcome and count. The means are not read where it is 0.
        title: is written above.
    """
    height = MARGIN + SIDE + COUNTS + MARGIN
    picture = Image.new("RGB", (SIDE + 2 * MARGIN, height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    floor, base = MARGIN + SIDE, MARGIN + SIDE + COUNTS
    width, most = SIDE / len(bins), max([1, *(count for _, _, count in bins)])
    for tick in range(0, 11, 2):
        at = SIDE * tick / 10
        draw.line((MARGIN, floor - at, MARGIN + SIDE, floor - at), _GRID)
        draw.text((MARGIN - 6, floor - at), f"{tick / 10:.1f}", _INK, font, anchor="rm")
        draw.text((MARGIN + at, base + 6), f"{tick / 10:.1f}", _INK, font, anchor="mt")
    for place, (score, outcome, count) in enumerate(bins):
        if count:
            left, right = MARGIN + place * width + 2, MARGIN + (place + 1) * width - 2
            top, middle = floor - SIDE * outcome, (left + right) / 2
            draw.rectangle((left, top, right, floor), _BAR)
            draw.line((middle, top, middle, floor - SIDE * score), _GAP, width=4)
            draw.rectangle((left, base - (COUNTS - 20) * count / most, right, base), _GRID)
            draw.text((middle, base - 2), str(count), _INK, font, anchor="mb")
    draw.line((MARGIN, floor, MARGIN + SIDE, MARGIN), _INK)
    draw.text((MARGIN, MARGIN / 2), title, _INK, font, anchor="lm")
    draw.text((MARGIN + SIDE / 2, height - 6), "mask score; below, how many masks", _INK, font, anchor="mb")
    draw.text((MARGIN + 6, MARGIN + 4), "mean IoU", _INK, font, anchor="lt")
    return picture
