"""An exported file as a model: what `load` gives the rest of the package, which sees tensors as of any other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maskwright import onnx
from maskwright.onnx.preparation import resized_size
from maskwright.structures import ImageFeatures, ImageGeometry, InstancePrediction, PanopticPrediction


class ExportedModel(nn.Module):
    """A file that `maskwright export` made, run by onnxruntime; it satisfies `structures.SegmentationModel`.

    Tensors go in and come out on the CPU, whatever the predictor's device is.

    Args:
        predictor: of the file.
    """

    def __init__(self, predictor: onnx.Predictor) -> None:
        super().__init__()
        self.predictor = predictor
        self.config = metadata = predictor.metadata
        self.family, self.task, self.image_size = metadata.family, metadata.task, metadata.image_size
        self.categories, self.mask_classes = metadata.categories, metadata.mask_classes
        self.needs_boxes = predictor.needs_boxes
        digest = torch.tensor(list(bytes.fromhex(predictor.digest)), dtype=torch.uint8)
        self.register_buffer("digest", digest)  # for `hub.model_hash`

    def forward(
        self,
        images: list[Tensor],
        targets: list[Any] | None = None,
        *,
        score_threshold: float = 0.0,
        max_detections: int = 100,
    ) -> list[InstancePrediction] | list[PanopticPrediction]:
        """Predictions per image, as of any model in eval; it cannot be trained.

        Raises:
            UserError: a file that needs boxes.
            ValueError: in training.
        """
        if targets is not None:
            raise ValueError("an exported model cannot be trained")
        options = {"score_threshold": score_threshold, "max_detections": max_detections}
        return [_as_tensors(self.predictor.predict(_picture(image), **options)) for image in images]


@dataclass(frozen=True)
class ExportedFeatures(ImageFeatures):
    """What an exported file keeps of a batch.

    encoded: of each image; `maps` is empty.
    """

    encoded: tuple[onnx.ImageFeatures, ...] = ()


class ExportedMaskModel(ExportedModel):
    """An exported file that takes boxes; it satisfies `structures.BoxPrompted`, too."""

    def encode(self, images: list[Tensor]) -> ExportedFeatures:
        """See `BoxPrompted`."""
        encoded = tuple(self.predictor.encode(_picture(image)) for image in images)
        metadata, side = self.predictor.metadata, self.image_size
        geometry = tuple(
            ImageGeometry(each.image_size, resized_size(each.image_size, metadata), (side, side)) for each in encoded
        )
        return ExportedFeatures({}, geometry, tuple(images), encoded)

    def masks_from_boxes(
        self, features: ExportedFeatures, boxes: list[Tensor], labels: list[Tensor] | None = None
    ) -> list[InstancePrediction]:
        """See `BoxPrompted`."""
        arrays = [each.numpy(force=True) for each in boxes]
        classes = [None] * len(boxes) if labels is None else [each.numpy(force=True) for each in labels]
        rows = zip(features.encoded, arrays, classes, strict=True)
        found = [_as_tensors(self.predictor.masks_from_boxes(*row)) for row in rows]
        return [replace(prediction, labels=torch.full((len(prediction),), -1)) for prediction in found]


def load_exported(path: str | Path, device: str | None = None) -> ExportedModel:
    """The model of an exported file, of the class that fits.

    Raises:
        UserError: as `onnx.Predictor`.
    """
    predictor = onnx.Predictor(path, device)
    return (ExportedMaskModel if predictor.needs_boxes else ExportedModel)(predictor)


def _picture(image: Tensor) -> np.ndarray:
    """RGB [3, H, W], uint8 or float in 0..1, as the array [H, W, 3] that `onnx` takes."""
    pixels = image if image.dtype == torch.uint8 else (image * 255).round().to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy(force=True))


def _as_tensors(prediction: Any) -> Any:
    """A prediction of `onnx` as that of the same name in `structures`."""
    kind = PanopticPrediction if isinstance(prediction, onnx.PanopticPrediction) else InstancePrediction
    values = vars(prediction)
    arrays = {name: torch.from_numpy(value) for name, value in values.items() if isinstance(value, np.ndarray)}
    return kind(**{**values, **arrays})
