"""The second look at small boxes, as `models/family.py` takes it, with numpy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from maskwright.onnx.metadata import Metadata


def small_rows(boxes: np.ndarray, metadata: Metadata, at_once: int) -> list[np.ndarray]:
    """The rows of boxes [N, 4], in pixels of the network's input, that get a second look, `at_once` in a part."""
    if metadata.second_look is None:
        return []
    longer_sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    rows = np.flatnonzero(longer_sides < metadata.second_look["below"])
    return [rows[first : first + at_once] for first in range(0, len(rows), at_once)]


def square_around(picture: np.ndarray, box: np.ndarray, context: float) -> tuple[np.ndarray, np.ndarray]:
    """The square part of a picture [H, W, 3] around a box, and the box in its pixels; as `ops.crop.crop_around`."""
    x1, y1, x2, y2 = box.tolist()
    side = max(1, round(context * max(x2 - x1, y2 - y1)))
    left, right = _part_around((x1 + x2) / 2, side, picture.shape[1])
    top, bottom = _part_around((y1 + y2) / 2, side, picture.shape[0])
    return picture[top:bottom, left:right], box - np.array([left, top, left, top], dtype=np.float32)


def _part_around(center: float, side: int, length: int) -> tuple[int, int]:
    side = min(side, length)
    start = round(min(max(center - side / 2, 0), length - side))
    return start, start + side


def mean_of_looks(
    first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], metadata: Metadata
) -> dict[str, np.ndarray]:
    """The outputs of a file of masks of both looks at the same boxes as one; `mask_scores` are those of the mean."""
    mean = {name: (values + second[name]) / 2 for name, values in first.items()}
    if "mask_quality_logits" in mean:
        scores = 1 / (1 + np.exp(-mean["mask_quality_logits"].astype(np.float64)))
    else:
        scores = _expected_iou(mean["mask_probabilities"])
    if curve := metadata.mask_calibration:
        scores = np.interp(scores, curve["scores"], curve["ious"])
    return {**mean, "mask_scores": scores.astype(np.float32)}


def _expected_iou(probabilities: np.ndarray) -> np.ndarray:
    """The IoU with the truth that is to be expected of each mask if each of its pixels' probabilities were right."""
    mask = probabilities > 0.5
    intersection = (probabilities * mask).sum(axis=(1, 2))
    union = np.where(mask, 1, probabilities).sum(axis=(1, 2))
    return intersection / union.clip(min=1)  # which only that of an empty mask can be below
