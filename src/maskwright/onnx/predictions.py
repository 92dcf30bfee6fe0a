"""What an exported model says of a picture, as arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maskwright.onnx.paste import paste_mask
from maskwright.onnx.preparation import Size


@dataclass(frozen=True)
class InstancePrediction:
    """The instances of one picture, in its own frame.

    boxes: float32 [N, 4], xyxy pixels.
    labels: int64 [N], positions in `categories`; -1 where a box was given without a class.
    scores: float32 [N], of the boxes (1 for given boxes).
    mask_scores: float32 [N], in 0..1: the IoU with the truth that is to be expected, of a model that predicts it or is
        calibrated; else the IoU to be expected if the mask's own probabilities were right.
    mask_probabilities: float32 [N, M, M], on the grid that `frame` lays on each box.
    image_size: (height, width) of the picture.
    frame: how the M x M grid lies on a box: `corner` or `pixel`.
    categories: the label space, or empty where the model is class-agnostic.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    mask_scores: np.ndarray
    mask_probabilities: np.ndarray
    image_size: Size
    frame: str
    categories: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def masks(self) -> np.ndarray:
        """Binary masks at full size, bool [N, H, W], pasted on each access."""
        planes = np.zeros((len(self), *self.image_size), dtype=bool)
        for index, plane in enumerate(planes):
            self._paste(index, plane)
        return planes

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """COCO result entries: `image_id`, `category_id` (where there is a class), `segmentation` (RLE) and `score`."""
        entries = []
        for index, label in enumerate(self.labels.tolist()):
            plane = np.zeros(self.image_size, dtype=bool)  # one at a time, however many instances there are
            self._paste(index, plane)
            entry: dict[str, Any] = {"image_id": image_id}
            if label >= 0:
                entry["category_id"] = self.categories[label]["id"] if label < len(self.categories) else 1
            score = round(float(self.scores[index] * self.mask_scores[index]), 5)
            entries.append({**entry, "segmentation": encode_mask(plane), "score": score})
        return entries

    def _paste(self, index: int, plane: np.ndarray) -> None:
        paste_mask(self.mask_probabilities[index], self.boxes[index], self.frame, plane)


@dataclass(frozen=True)
class PanopticPrediction:
    """The segments of one picture as a map, in its own frame.

    segmentation: int32 [H, W]; 0 is void, every other value is the `id` of one of `segments_info`.
    segments_info: of each segment `id`, `label`, `category_id`, `isthing`, `score` and `area` (in pixels).
    image_size: (height, width) of the picture.
    categories: the label space.
    """

    segmentation: np.ndarray
    segments_info: list[dict[str, Any]]
    image_size: Size
    categories: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.segments_info)


def encode_mask(plane: np.ndarray) -> dict[str, Any]:
    """A mask, bool [H, W], as COCO's compressed run lengths: `{"size": [height, width], "counts": str}`.

    Source: rleToString of pycocotools' maskApi.c: each count less the one two before it, in groups of five bits.
    """
    height, width = plane.shape
    padded = np.zeros(plane.size + 2, dtype=bool)
    padded[1:-1] = plane.T.ravel()
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    counts = np.diff(np.concatenate([[0], edges, [plane.size]])).tolist()
    if counts[-1] == 0:
        counts.pop()
    text = []
    for index, count in enumerate(counts):
        value, more = count - (counts[index - 2] if index > 2 else 0), True
        while more:
            group, value = value & 0x1F, value >> 5
            more = value != (-1 if group & 0x10 else 0)
            text.append(chr(group + 48 + 0x20 * more))
    return {"size": [height, width], "counts": "".join(text)}
