"""Bars with their spread, drawn with Pillow alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from maskwright.drawing.colours import Colour

_FONT_SIZE, _LINE, _GAP, _BAR_WIDTH = 15, 26, 12, 420  # pixels
_BLACK: Colour = (20, 20, 20)
_BAR: Colour = (92, 138, 200)
_PUBLISHED: Colour = (200, 80, 30)


class Bar(NamedTuple):
    """One bar of a chart.

    name: beside the bar.
    value: its length; None where there is nothing to draw.
    spread: half the length of the line over its end, if it has one.
    published: where a mark stands, if it has one.
    """

    name: str
    value: float | None
    spread: float | None = None
    published: float | None = None


def bar_chart(panels: Mapping[str, Sequence[Bar]]) -> Image.Image:
    """A picture with a panel of horizontal bars for each title; every panel has a scale of its own, which has 0."""
    font = ImageFont.load_default(_FONT_SIZE)
    names = int(max(font.getlength(bar.name) for bars in panels.values() for bar in bars))
    titles = int(max(map(font.getlength, panels)))
    numbers = int(font.getlength("-0.0000 ± 0.0000, published 0.0000"))
    height = sum(_LINE * (len(bars) + 1) + _GAP for bars in panels.values()) + _GAP
    width = max(names + _BAR_WIDTH + numbers + 4 * _GAP, titles + 2 * _GAP)
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    top = _GAP
    for title, bars in panels.items():
        draw.text((_GAP, top), title, _BLACK, font)
        low, high = _range(bars)
        for line, bar in enumerate(bars, start=1):
            _draw_bar(draw, bar, (names + 2 * _GAP, top + _LINE * line), (low, high))
            draw.text((_GAP, top + _LINE * line), bar.name, _BLACK, font)
            text = (names + _BAR_WIDTH + 3 * _GAP, top + _LINE * line)
            draw.text(text, _caption(bar), _BLACK, font)
        top += _LINE * (len(bars) + 1) + _GAP
    return picture


def _range(bars: Sequence[Bar]) -> tuple[float, float]:
    """The smallest and the largest value that must be seen; 0 is one of them or lies between them."""
    ends = [0.0]
    for bar in bars:
        if bar.value is not None:
            ends += [bar.value - (bar.spread or 0), bar.value + (bar.spread or 0)]
        if bar.published is not None:
            ends.append(bar.published)
    return min(ends), max(ends) if max(ends) > min(ends) else min(ends) + 1


def _draw_bar(draw: ImageDraw.ImageDraw, bar: Bar, corner: tuple[int, int], ends: tuple[float, float]) -> None:
    left, top = corner
    bottom, middle = top + _LINE - 6, top + (_LINE - 6) / 2

    def x(value: float) -> float:
        return left + _BAR_WIDTH * (value - ends[0]) / (ends[1] - ends[0])

    if bar.value is not None:
        start, end = sorted((x(0.0), x(bar.value)))
        draw.rectangle((start, top, end, bottom), _BAR)
        if bar.spread is not None:
            draw.line((x(bar.value - bar.spread), middle, x(bar.value + bar.spread), middle), _BLACK, 2)
    if bar.published is not None:
        draw.line((x(bar.published), top, x(bar.published), bottom), _PUBLISHED, 3)
    draw.line((x(0.0), top - 2, x(0.0), bottom + 2), _BLACK, 1)


def _caption(bar: Bar) -> str:
    value = "-" if bar.value is None else f"{bar.value:.4f}"
    spread = "" if bar.spread is None else f" ± {bar.spread:.4f}"
    published = "" if bar.published is None else f", published {bar.published:g}"
    return value + spread + published
