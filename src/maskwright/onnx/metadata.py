"""What an exported file says of itself, so that it can be used without the model's code."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

KEY = "maskwright"
"""The key of the file's metadata whose value is the JSON text of a `Metadata`."""


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """The metadata of an exported file.

    id: of the model and the export; the two files of a pair have the same.
    graph: what the file is: `encoder` and `masks` (a pair), `single`, `detector` or `panoptic`.
    family: of the model.
    raw_image: whether the file takes a picture as it is, or the network's input.
    image_size: side of the square network input, in pixels.
    resize: how a picture is interpolated: `antialias`, `half_pixel`, `tf1` or `align_corners`.
    size_rule: how its new sides are rounded: `round` or `floor_twice`.
    channel_order: `rgb` or `bgr`.
    mean, std: of the normalisation; in 0..1, in RGB order.
    padding: the colour right of and below the picture, in 0..1, RGB.
    precision: in which the weights are stored: `float32`, `float16` or `int8`.
    categories: the label space, in label order.
    mask_classes: names of the classes whose masks the model has learnt.
    box_frame: how the grid of a mask lies on its box: `corner` or `pixel`; null of panoptic models.
    mask_calibration: of calibrated models, the curve that is in `mask_scores`: `scores` (raw) and `ious` of its knots.
    second_look: which boxes are to be looked at again, and how: `below`, `context` and `size` as `second_look_...` of
        the model's config; null where the model does not look again, or the file cannot.
    merging: of panoptic models, the values with which the masks are merged.
    """

    id: str
    graph: str
    family: str
    raw_image: bool
    image_size: int
    resize: str
    size_rule: str
    channel_order: str
    mean: list[float]
    std: list[float]
    padding: list[float]
    precision: str
    categories: list[dict[str, Any]]
    mask_classes: list[str]
    box_frame: str | None = None
    mask_calibration: dict[str, list[float]] | None = None
    second_look: dict[str, Any] | None = None
    merging: dict[str, Any] = field(default_factory=dict)

    @property
    def task(self) -> str:
        """What the model finds, `instance` or `panoptic`."""
        return "panoptic" if self.graph == "panoptic" else "instance"

    def to_json(self) -> str:
        """The text that the file holds."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Metadata:
        """The metadata in a file's text.

        Raises:
            ValueError: it is no such text, or of a version that has other values.
        """
        values = json.loads(text)
        if not isinstance(values, dict) or values.keys() != {entry.name for entry in fields(cls)}:
            raise ValueError("it was exported by another version of maskwright")
        return cls(**values)


def encoder_path(path: Path) -> Path:
    """Where the encoder of the pair lies whose other file is `path`: `FILE.encoder.onnx` beside `FILE.onnx`."""
    return path.with_name(f"{path.stem}.encoder{path.suffix}")
