"""What Label Studio reads: masks as brush strokes, and the tags of a labelling configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as XML

import numpy as np
from jaxtyping import Int64

from maskwright.errors import UserError
from maskwright.ops.run_lengths import runs_of_plane
from maskwright.structures import EncodedMasks

_SIZES = np.array([3, 4, 8, 16])  # bits that the length of a run may have; Label Studio's own choice
_CHANNELS = 4  # red, green, blue and opacity


@dataclass(frozen=True)
class BrushTags:
    """The tags of a labelling configuration between which brush strokes lie.

    brush, image: the names of `BrushLabels` and of the `Image` that it belongs to.
    key: of a task's data, under which the address of the picture is.
    labels: that strokes may have.
    """

    brush: str
    image: str
    key: str
    labels: Sequence[str]

    @classmethod
    def read(cls, configuration: str) -> BrushTags:
        """Those of the first `BrushLabels` of a labelling configuration.

        Raises:
            UserError: it is no XML, or has no `BrushLabels` of an `Image`.
        """
        try:
            root = XML.fromstring(configuration)
        except (XML.ParseError, ValueError) as error:
            raise UserError(f"the labelling configuration is not XML: {error}") from error
        images = {image.get("name"): image.get("value", "").removeprefix("$") for image in root.iter("Image")}
        for brush in root.iter("BrushLabels"):
            image = brush.get("toName", "")
            if image in images:
                labels = [label.get("alias", label.get("value", "")) for label in brush.iter("Label")]
                return cls(brush.get("name", ""), image, images[image], labels)
        raise UserError("the labelling configuration has no <BrushLabels> whose toName is the name of an <Image>")

    def configuration(self) -> str:
        """A labelling configuration with these tags, and with boxes that a backend answers."""
        view = XML.Element("View")
        XML.SubElement(view, "Image", name=self.image, value=f"${self.key}", zoom="true")
        brush = XML.SubElement(view, "BrushLabels", name=self.brush, toName=self.image)
        boxes = XML.SubElement(view, "RectangleLabels", name="box", toName=self.image, smart="true")
        for parent in (brush, boxes):
            for label in self.labels:
                XML.SubElement(parent, "Label", value=label)
        XML.indent(view)
        return XML.tostring(view, encoding="unicode") + "\n"

    def stroke(self, mask: EncodedMasks, label: str, score: float, identity: str) -> dict[str, Any]:
        """One mask as a region of a prediction.

        Args:
            mask: the only one of its picture here.
            label: one of `labels`.
            score: of the mask, in 0..1.
            identity: of the region, which no other one of its task has.
        """
        height, width = mask.image_size
        return {
            "id": identity,
            "type": "brushlabels",
            "from_name": self.brush,
            "to_name": self.image,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {"format": "rle", "rle": brush_run_lengths(mask), "brushlabels": [label]},
            "score": round(score, 5),
        }


def model_version(name: str, weights: str) -> str:
    """What Label Studio calls a model: its name, and the begin of the hash of its weights."""
    return f"{name} {weights[:8]}".strip()


def brush_run_lengths(mask: EncodedMasks) -> list[int]:
    """A mask as the bytes of Label Studio's run lengths: an opaque white stroke on a transparent picture.

    Args:
        mask: the only one of its picture here.

    The bits are: the number of samples (32), of bits in a sample less 1 (5), in a length of each of four kinds less 1
    (4 each); then of each run a 1, the kind of its length (2), the length less 1 (as the kind says) and the sample (8).

    Source: `decode_rle` of label-studio-sdk, after the rle-pack of thi.ng/umbrella.
    """
    height, width = mask.image_size
    _, top, _, bottom = mask.extents()[0].tolist()
    (rows,) = mask.crop(0, top, width, bottom).numpy()
    edges = (runs_of_plane(rows.T) + top * width).ravel()  # row by row
    lengths = np.diff(np.concatenate([[0], edges, [height * width]])) * _CHANNELS
    lengths, samples = _split(lengths, np.arange(len(lengths)) % 2 * 255)
    kinds = np.searchsorted(1 << _SIZES, lengths)
    codes = (((4 + kinds << _SIZES[kinds]) + lengths - 1) << 8) + samples
    header, header_sizes = [height * width * _CHANNELS, 7, *(_SIZES - 1)], [32, 5, 4, 4, 4, 4]
    return _pack(np.concatenate([header, codes]), np.concatenate([header_sizes, 11 + _SIZES[kinds]]))


def _split(
    lengths: Int64[np.ndarray, " n"], samples: Int64[np.ndarray, " n"]
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """The same runs, none of them empty or longer than can be said."""
    longest = 1 << int(_SIZES[-1])
    parts = -(-lengths // longest)
    split = np.full(parts.sum(), longest)
    filled = parts > 0
    split[parts.cumsum()[filled] - 1] = (lengths - (parts - 1) * longest)[filled]
    return split, np.repeat(samples, parts)


def _pack(codes: Int64[np.ndarray, " n"], sizes: Int64[np.ndarray, " n"]) -> list[int]:
    """The bytes of codes of so many bits each, at most 32; bits that are missing at the end are 0."""
    places = np.arange(31, -1, -1)
    bits = (codes[:, None] >> places & 1).astype(bool)
    return np.packbits(bits[places < sizes[:, None]]).tolist()
