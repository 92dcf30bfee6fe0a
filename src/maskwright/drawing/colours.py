"""Colours that one can tell apart where it matters: of neighbours, or of classes."""

from __future__ import annotations

import colorsys
from functools import cache
from hashlib import blake2b

import numpy as np
from jaxtyping import Float

Colour = tuple[int, int, int]

PALETTE_SIZE = 512

_SHADES = ((0.80, 1.00), (1.00, 0.75), (0.45, 1.00), (0.70, 0.55))  # (saturation, value), cycled through
_GOLDEN_RATIO = 0.618034
_CHANNEL_WEIGHTS = np.sqrt([2.0, 4.0, 3.0])  # how strongly the eye tells steps of red, green and blue apart


def instance_colours(boxes: Float[np.ndarray, "n 4"]) -> list[Colour]:
    """A colour per box (xyxy): far from those of boxes that touch it or lie close.

    All are different up to half of `PALETTE_SIZE` boxes; of more, colours come again, far apart.
    """
    size = min(PALETTE_SIZE, 2 * len(boxes))  # with a choice left for the last box, too
    palette, distances = _palette(size)
    chosen = np.zeros(len(boxes), dtype=int)
    unused = np.ones(size, dtype=bool)
    for index, box in enumerate(boxes):
        reach = 0.25 * (box[2:] - box[:2])
        low, high = box[:2] - reach, box[2:] + reach
        earlier = boxes[:index]
        near = (earlier[:, :2] < high).all(axis=1) & (earlier[:, 2:] > low).all(axis=1)
        neighbours = np.unique(chosen[:index][near])
        candidates = np.flatnonzero(unused)
        best = 0
        if len(neighbours):
            best = int(distances[np.ix_(candidates, neighbours)].min(axis=1).argmax())
        chosen[index] = candidates[best]
        unused[candidates[best]] = False
        if unused.sum() * 2 <= size:
            unused[:] = True
    return [palette[row] for row in chosen.tolist()]


def class_colour(number: int | None, name: str) -> Colour:
    """The colour of a class in every image: by its number, or by its name where it has none."""
    if number is None:
        number = int.from_bytes(blake2b(name.encode(errors="replace"), digest_size=8).digest())
    return _palette(PALETTE_SIZE)[0][number % PALETTE_SIZE]


@cache
def _palette(count: int) -> tuple[list[Colour], Float[np.ndarray, "count count"]]:
    """`count` different colours, and how far apart they look; each turn of the shades goes once around the hues."""
    found: dict[Colour, None] = {}
    index = 0
    while len(found) < count:  # hues of two turns may round to one colour
        found[_colour(index)] = None
        index += 1
    colours = list(found)
    weighted = np.array(colours, dtype=float).reshape(-1, 3) * _CHANNEL_WEIGHTS
    return colours, np.linalg.norm(weighted[:, None] - weighted[None], axis=2)


def _colour(index: int) -> Colour:
    saturation, value = _SHADES[index // 12 % len(_SHADES)]
    red, green, blue = colorsys.hsv_to_rgb((0.58 + index * _GOLDEN_RATIO) % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)
