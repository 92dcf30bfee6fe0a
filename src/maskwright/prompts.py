"""What people ask a model for: boxes, as arrays, and limits; checked before any model works, and without torch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from maskwright.errors import UserError

DEFAULT_MODEL = "deep-mac-tiny"
"""The bundled model that `load` and the command line take when none is named."""

MAX_DETECTIONS = 1000
"""So many instances a detector may find in one image, if nothing else is asked for."""


def read_boxes(boxes: Sequence[Any] | np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
    """Boxes as float32 [N, 4], xyxy, and what is wrong with those that are none, by their position.

    A box is four finite numbers with x1 < x2 and y1 < y2.

    Raises:
        UserError: an array has another shape.
    """
    problems: dict[int, str] = {}
    if isinstance(boxes, np.ndarray):
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise UserError(f"boxes: expected shape [N, 4] (x1, y1, x2, y2), but got {boxes.shape}")
        rows = boxes
    else:
        rows = [_row(index, box, problems) for index, box in enumerate(boxes)]
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is told of below
        read = np.array(rows, dtype=np.float32).reshape(-1, 4)
    for index in np.flatnonzero(~np.isfinite(read).all(axis=1)).tolist():
        problems.setdefault(index, f"expected finite numbers x1, y1, x2, y2, but got {_text(read[index])}")
    for index in np.flatnonzero((read[:, 2:] <= read[:, :2]).any(axis=1)).tolist():
        told = f"expected corners x1, y1, x2, y2 with x1 < x2 and y1 < y2, but got {_text(read[index])}"
        problems.setdefault(index, told)
    return read, problems


def clip_to_picture(boxes: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, dict[int, str]]:
    """The parts of boxes [N, 4] on a picture of `size` = (height, width), and the positions of those outside of it."""
    height, width = size
    clipped = boxes.clip(0, np.array([width, height] * 2, dtype=np.float32))
    outside = np.flatnonzero((clipped[:, 2:] <= clipped[:, :2]).any(axis=1)).tolist()
    told = f"lies outside of the image, which is {width} wide and {height} high"
    return clipped, {index: f"{_text(boxes[index])} {told}" for index in outside}


def boxes_on_picture(boxes: Sequence[Any] | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes as float32 [N, 4], xyxy, cut off at a picture of `size` = (height, width).

    Raises:
        UserError: the position of the first box that is none, or lies wholly outside.
    """
    return without_problems(*clip_to_picture(without_problems(*read_boxes(boxes)), size))


def without_problems(boxes: np.ndarray, problems: dict[int, str]) -> np.ndarray:
    """Boxes of which each is one.

    Raises:
        UserError: the first of the problems.
    """
    for index in sorted(problems):
        raise UserError(f"box {index}: {problems[index]}")
    return boxes


def check_score_threshold(value: float) -> None:
    """Refuse what is no score.

    Raises:
        UserError: it does not lie in 0..1.
    """
    if not 0 <= value <= 1:
        raise UserError(f"the score threshold must lie in 0..1, but got {value}")


def _row(index: int, box: Any, problems: dict[int, str]) -> list[float]:
    """Four numbers; NaN, and an entry in `problems`, for what is none."""
    values = box.tolist() if hasattr(box, "tolist") else box  # an array or a tensor
    numbers = isinstance(values, list | tuple) and all(
        isinstance(value, int | float | np.number) and not isinstance(value, bool) for value in values
    )
    if numbers and len(values) == 4:
        with suppress(OverflowError):
            return [float(value) for value in values]
        problems[index] = "expected finite numbers x1, y1, x2, y2, but one has too many digits"
    else:
        problems[index] = f"expected four numbers x1, y1, x2, y2, but got {repr(values)[:80]}"
    return [float("nan")] * 4


def _text(box: np.ndarray) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box.tolist()) + "]"
