"""Image -> instances, for people: paths, PIL images, arrays or tensors in; checked boxes; any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from maskwright.data.images import read_image
from maskwright.errors import UserError
from maskwright.models.hub import from_pretrained
from maskwright.ops.boxes import clip_boxes
from maskwright.structures import BoxPrompted, ImageFeatures, InstancePrediction, SegmentationModel

DEFAULT_MODEL = "deep-mac-tiny"
"""The bundled model that `load` and the command line take when none is named."""

ImageSource = str | Path | Image.Image | np.ndarray | Tensor
BoxSource = Sequence[Any] | np.ndarray | Tensor  # rows of four numbers; `check_boxes` says which row is none


def load(name_or_path: str | Path = DEFAULT_MODEL, device: str | None = None) -> Predictor:
    """A predictor of a bundled model, a weights folder, or a Hub repository (`owner/name`).

    `device`: see `Predictor`.

    Raises:
        UserError: there is no such model, its files are damaged, or the device is not there.
    """
    return Predictor(from_pretrained(name_or_path), device)


class Predictor:
    """A model in eval mode on a device, and the way from pictures and boxes to predictions.

    Args:
        model: of any family.
        device: `cpu`, `cuda`, `cuda:1`, ...; None or `auto` takes a GPU where there is one.

    Raises:
        UserError: the device is unknown or not there.
    """

    def __init__(self, model: nn.Module, device: str | None = None) -> None:
        self.device = choose_device(device)
        self.model = model.eval().to(self.device)

    @property
    def needs_boxes(self) -> bool:
        """Whether the model has no detector, so that `predict` must be given boxes."""
        return cast(SegmentationModel, self.model).needs_boxes

    def predict(
        self,
        image: ImageSource,
        boxes: BoxSource | None = None,
        labels: Sequence[int] | Tensor | None = None,
        score_threshold: float = 0.3,
    ) -> InstancePrediction:
        """The instances of one image: one per given box, in their order, or those that the detector finds.

        Args:
            image: anything `read_image` takes; a file's EXIF orientation is applied first.
            boxes: [N, 4] xyxy, pixels of the (upright) image; N may be 0. What exceeds the image is cut off.
            labels: with boxes, their classes as positions in `model.categories`; without them labels are -1.
            score_threshold: without boxes, the smallest score of a detection. Given boxes are all answered.

        Returns:
            A prediction on the CPU, in pixels of the (upright) image.

        Raises:
            UserError: an unreadable image; a box that is no box or lies outside of the image; no boxes for a
                model without a detector.
        """
        if boxes is not None:
            # A wrong box is told before the network's work, not after it.
            pixels = read_image(image)
            checked = boxes_inside(check_boxes(boxes), _size(pixels))
            return self.masks_from_boxes(self.encode(pixels), checked, labels)
        if self.needs_boxes:
            raise UserError("this model has no detector: it needs boxes [[x1, y1, x2, y2], ...] beside the image")
        with torch.inference_mode():
            found = self.model([read_image(image).to(self.device)], score_threshold=score_threshold)[0]
        return _on_cpu(found)

    def encode(self, image: ImageSource) -> ImageFeatures:
        """The features of one image, to be prompted with boxes any number of times.

        Raises:
            UserError: an unreadable image, or a model that takes no boxes.
        """
        with torch.inference_mode():
            return self._box_prompted().encode([read_image(image).to(self.device)])

    def masks_from_boxes(
        self, features: ImageFeatures, boxes: BoxSource, labels: Sequence[int] | Tensor | None = None
    ) -> InstancePrediction:
        """Masks of boxes on an image that `encode` has seen; arguments, result and errors as in `predict`."""
        (geometry,) = features.geometry
        checked = boxes_inside(check_boxes(boxes), geometry.original_size)
        with torch.inference_mode():
            predicted = _on_cpu(self._box_prompted().masks_from_boxes(features, [checked.to(self.device)])[0])
        if labels is None:
            return predicted
        classes = torch.as_tensor(labels, dtype=torch.int64).cpu()
        if classes.shape != (len(checked),):
            raise UserError(f"expected one label per box ({len(checked)}), but got shape {tuple(classes.shape)}")
        return replace(predicted, labels=classes)

    def _box_prompted(self) -> BoxPrompted:
        if not isinstance(self.model, BoxPrompted):
            raise UserError(f"{type(self.model).__name__} takes no boxes: it finds the instances itself")
        return self.model


def choose_device(device: str | None) -> torch.device:
    """The torch device of a name; None or `auto` is the GPU where there is one, else the CPU.

    Raises:
        UserError: the name is unknown, or the device is not there.
    """
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).cpu()  # the device `meta` has no values to give back
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {device!r} cannot be used here ({reason}); expected cpu, cuda or auto") from error
    return chosen


def check_boxes(boxes: BoxSource) -> Float[Tensor, "n 4"]:
    """Boxes as float32 [N, 4], xyxy.

    Raises:
        UserError: the position of the first box that is not four finite numbers with x1 < x2 and y1 < y2.
    """
    if isinstance(boxes, np.ndarray | Tensor):
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise UserError(f"boxes: expected shape [N, 4] (x1, y1, x2, y2), but got {tuple(boxes.shape)}")
        checked = torch.as_tensor(boxes).detach().cpu().float()
    else:
        rows = [_row(index, box) for index, box in enumerate(boxes)]
        checked = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    for index in (~torch.isfinite(checked).all(dim=1)).nonzero().flatten().tolist():
        raise UserError(f"box {index}: expected finite numbers x1, y1, x2, y2, but got {_text(checked[index])}")
    for index in (checked[:, 2:] <= checked[:, :2]).any(dim=1).nonzero().flatten().tolist():
        raise UserError(
            f"box {index}: expected corners x1, y1, x2, y2 with x1 < x2 and y1 < y2, but got {_text(checked[index])}"
        )
    return checked


def boxes_inside(boxes: Float[Tensor, "n 4"], image_size: tuple[int, int]) -> Float[Tensor, "n 4"]:
    """The parts of the boxes that lie on an image of `image_size` = (height, width) pixels.

    Raises:
        UserError: the position of the first box that lies wholly outside.
    """
    clipped = clip_boxes(boxes, image_size)
    for index in (clipped[:, 2:] <= clipped[:, :2]).any(dim=1).nonzero().flatten().tolist():
        height, width = image_size
        raise UserError(
            f"box {index}: {_text(boxes[index])} lies outside of the image, which is {width} wide and {height} high"
        )
    return clipped


def _row(index: int, box: Any) -> list[float]:
    values = box.tolist() if isinstance(box, np.ndarray | Tensor) else box
    numbers = isinstance(values, list | tuple) and all(
        isinstance(value, int | float | np.number) and not isinstance(value, bool) for value in values
    )
    if not numbers or len(values) != 4:
        raise UserError(f"box {index}: expected four numbers x1, y1, x2, y2, but got {str(values)[:80]}")
    try:
        return [float(value) for value in values]
    except OverflowError as error:
        raise UserError(f"box {index}: expected finite numbers x1, y1, x2, y2, but one has too many digits") from error


def _text(box: Tensor) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box.tolist()) + "]"


def _size(pixels: Tensor) -> tuple[int, int]:
    return pixels.shape[1], pixels.shape[2]


def _on_cpu(prediction: InstancePrediction) -> InstancePrediction:
    tensors = {name: value.cpu() for name, value in vars(prediction).items() if isinstance(value, Tensor)}
    return replace(prediction, **tensors)
