"""From mask and class logits to a map of segments, as MaX-DeepLab's `PanopticMerging` does it, with numpy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from maskwright.onnx.metadata import Metadata
from maskwright.onnx.predictions import PanopticPrediction
from maskwright.onnx.preparation import Size, resized_size

_STRIP = 4  # rows of logits that are enlarged at a time


@dataclass(frozen=True)
class _Slots:
    """What each slot shows: its most probable class but void, that class's probability, and whether that is enough."""

    labels: np.ndarray
    confidence: np.ndarray
    detected: np.ndarray
    isthing: np.ndarray


def merge_masks(
    mask_logits: np.ndarray, class_logits: np.ndarray, image_size: Size, metadata: Metadata, score_threshold: float
) -> PanopticPrediction:
    """The segments of one picture.

    Args:
        mask_logits: float32 [slots, h, w].
        class_logits: float32 [slots, classes + 1], void last.
        image_size: (height, width) of the picture.
        metadata: of the model; its `merging` are the values of `MaXDeepLabConfig`.
        score_threshold: segments of a lower score are void.
    """
    slots = _classify(class_logits, metadata)
    assign = _assign_pixels if metadata.merging["merging"] == "pixelwise" else _assign_masks
    slot, probability, confident = assign(mask_logits, slots, metadata)
    segments, scores = _segments(slot, probability, confident, slots, metadata)
    height, width = resized_size(image_size, metadata)
    original = _resize_nearest(segments[:height, :width], image_size)
    areas = np.bincount(original.ravel() + 1, minlength=len(scores) + 1)[1:]
    kept = np.flatnonzero((areas > 0) & (scores >= score_threshold))
    ids = np.zeros(len(scores) + 1, dtype=np.int32)  # the last stands for void, -1
    ids[kept] = np.arange(len(kept)) + 1
    infos = []
    for number, row in enumerate(kept.tolist(), 1):
        label = int(slots.labels[row])
        category = metadata.categories[label]
        infos.append(
            {
                "id": number,
                "label": label,
                "category_id": category["id"],
                "isthing": bool(slots.isthing[row]),
                "score": float(scores[row]),
                "area": int(areas[row]),
            }
        )
    return PanopticPrediction(ids[original], infos, image_size, metadata.categories)


def _classify(class_logits: np.ndarray, metadata: Metadata) -> _Slots:
    probabilities = _softmax(class_logits, axis=1)[:, :-1]
    labels, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    isthing = np.array([category.get("isthing", True) for category in metadata.categories])[labels]
    for_things, for_stuff = (metadata.merging[name] for name in ("class_threshold", "stuff_class_threshold"))
    threshold = np.where(isthing, for_things, for_things if for_stuff is None else for_stuff).astype(np.float32)
    return _Slots(labels, confidence, confidence >= threshold, isthing)


def _softmax(values: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(values - values.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def _assign_pixels(mask_logits: np.ndarray, slots: _Slots, metadata: Metadata) -> tuple[np.ndarray, ...]:
    """Each pixel's detected slot with the largest logit, its probability among them, and whether it is confident."""
    detected, others = np.flatnonzero(slots.detected), np.flatnonzero(~slots.detected)
    if len(detected) == 0:
        nothing = np.zeros((metadata.image_size,) * 2, dtype=np.int64)
        return nothing, nothing.astype(np.float32), nothing.astype(bool)
    strips = []
    for logits in _enlarged(mask_logits, metadata.image_size):
        largest, position = logits[detected].max(axis=0), logits[detected].argmax(axis=0)
        unsurpassed = largest >= logits[others].max(axis=0, initial=-np.inf)
        probability = 1 / np.exp(logits[detected] - largest).sum(axis=0)
        confident = unsurpassed & (probability > np.float32(metadata.merging["pixel_threshold"]))
        strips.append((detected[position], probability, confident))
    return tuple(np.concatenate(parts) for parts in zip(*strips, strict=True))


def _assign_masks(mask_logits: np.ndarray, slots: _Slots, metadata: Metadata) -> tuple[np.ndarray, ...]:
    """Whole masks, the best first, each laid where no earlier one lies; the probability is the largest of a pixel."""
    values, threshold = metadata.merging, np.float32(metadata.merging["pixel_threshold"])
    probabilities = _softmax(mask_logits, axis=0)
    inside = probabilities > threshold
    mean = (probabilities * inside).sum(axis=(1, 2)) / inside.sum(axis=(1, 2)).clip(1)
    score = slots.confidence ** values["class_exponent"] * mean ** values["mask_exponent"]
    best_first = np.argsort(-score, kind="stable")
    order = best_first[slots.detected[best_first]]
    parts = []
    for logits in _enlarged(mask_logits, metadata.image_size):
        strip = _softmax(logits, axis=0)
        parts.append((strip.max(axis=0), strip[order] > threshold))
    probability = np.concatenate([largest for largest, _ in parts])
    slot, taken = np.zeros(probability.shape, dtype=np.int64), np.zeros(probability.shape, dtype=bool)
    for position, mask in zip(order, np.concatenate([masks for _, masks in parts], axis=1), strict=True):
        free = mask & ~taken
        if free.sum() > values["overlap_threshold"] * mask.sum():
            slot[free] = position
            taken |= free
    return slot, probability, taken


def _enlarged(mask_logits: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """The logits at the size of the network's input, corner pixels on one another, a few rows at a time."""
    last = mask_logits.shape[1] - 1
    stride = (size - 1) // last
    columns, column_weight = np.divmod(np.arange(size), stride)
    right, column_weight = (columns + 1).clip(max=last), (column_weight / stride).astype(np.float32)
    for top in range(0, last, _STRIP):
        end = min(top + _STRIP, last) * stride + (1 if top + _STRIP >= last else 0)
        rows, row_weight = np.divmod(np.arange(top * stride, end), stride)
        row_weight = (row_weight / stride).astype(np.float32)[:, None]
        lines = mask_logits[:, rows] * (1 - row_weight) + mask_logits[:, (rows + 1).clip(max=last)] * row_weight
        yield lines[:, :, columns] * (1 - column_weight) + lines[:, :, right] * column_weight


def _segments(
    slot: np.ndarray, probability: np.ndarray, confident: np.ndarray, slots: _Slots, metadata: Metadata
) -> tuple[np.ndarray, np.ndarray]:
    """The slot that stands for each pixel's segment, -1 for void, and the score of each such slot.

    Slots of one class of stuff are one segment, for which the first of them stands.
    """
    own = np.arange(len(slots.labels))
    first = np.full(len(metadata.categories), len(own))
    np.minimum.at(first, slots.labels, own)
    rows = np.where(slots.isthing, own, first[slots.labels])
    segments = np.where(confident, rows[slot], -1)
    limits = (metadata.merging["thing_area_limit"], metadata.merging["stuff_area_limit"])
    areas = np.bincount(segments.ravel() + 1, minlength=len(rows) + 1)[1:]
    large = np.append(areas >= np.where(slots.isthing, *limits), False)
    certainty = probability * slots.confidence[slot]
    total = np.bincount(segments.ravel() + 1, weights=certainty.ravel(), minlength=len(rows) + 1)[1:]
    return np.where(large[segments], segments, -1), total / areas.clip(1)


def _resize_nearest(segments: np.ndarray, size: Size) -> np.ndarray:
    """The map at another (height, width), each pixel from the nearest, first and last pixels on one another."""
    for axis, new_side in enumerate(size):
        side = segments.shape[axis]
        step = np.float32((side - 1) / (new_side - 1) if new_side > 1 else 0)
        rows = np.floor(np.arange(new_side, dtype=np.float32) * step + np.float32(0.5)).astype(np.int64)
        segments = segments.take(rows.clip(max=side - 1), axis=axis)
    return segments
