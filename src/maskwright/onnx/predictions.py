"""What an exported model says of a picture, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from maskwright.onnx.paste import paste_region
from maskwright.onnx.preparation import Size
from maskwright.regions import Region, counts_of_region


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
            pixels, (left, top) = self.region(index)
            plane[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
        return planes

    def region(self, index: int, threshold: float = 0.5) -> Region:
        """The pixels of one instance: where the probability on its box exceeds a threshold."""
        probabilities, box = self.mask_probabilities[index], self.boxes[index]
        return paste_region(probabilities, box, self.image_size, self.frame, threshold)

    def scored(self, scores: Sequence[float]) -> InstancePrediction:
        """The same instances with other scores of their boxes."""
        return replace(self, scores=np.array(scores, dtype=np.float32))

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """COCO result entries: `image_id`, `category_id` (where there is a class), `segmentation` (RLE) and `score`."""
        entries = []
        for index, label in enumerate(self.labels.tolist()):
            entry: dict[str, Any] = {"image_id": image_id}
            if label >= 0:
                entry["category_id"] = self.categories[label]["id"] if label < len(self.categories) else 1
            score = round(float(self.scores[index] * self.mask_scores[index]), 5)
            entries.append(
                {**entry, "segmentation": encode_region(self.region(index), self.image_size), "score": score}
            )
        return entries


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


def encode_region(region: Region, image_size: Size) -> dict[str, Any]:
    """A mask as COCO's compressed run lengths: `{"size": [height, width], "counts": str}`.

    Source: rleToString of pycocotools' maskApi.c: each count less the one two before it, in groups of five bits.
    """
    counts = counts_of_region(region, image_size)
    text = []
    for index, count in enumerate(counts):
        value, more = count - (counts[index - 2] if index > 2 else 0), True
        while more:
            group, value = value & 0x1F, value >> 5
            more = value != (-1 if group & 0x10 else 0)
            text.append(chr(group + 48 + 0x20 * more))
    return {"size": list(image_size), "counts": "".join(text)}
