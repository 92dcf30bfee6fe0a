"""What training, evaluation and prediction ask of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor

from maskwright.structures.plain import Category, Task
from maskwright.structures.predictions import InstancePrediction, PanopticPrediction


@dataclass(frozen=True)
class ImageGeometry:
    """Where one image lies in the network input.

    original_size: (height, width) of the image as it came.
    resized_size: (height, width) after resizing; the rest of the input, right and below, is padding.
    input_size: (height, width) of the padded network input.
    """

    original_size: tuple[int, int]
    resized_size: tuple[int, int]
    input_size: tuple[int, int]

    @property
    def scale(self) -> tuple[float, float]:
        """(x, y) factors from original pixels to input pixels."""
        (height, width), (new_height, new_width) = self.original_size, self.resized_size
        return new_width / width, new_height / height


@dataclass(frozen=True)
class ImageFeatures:
    """What `encode` keeps of a batch.

    Attributes:
        maps: feature maps [B, C, H, W] by name.
        geometry: of each image.
        images: the images themselves, as they were given.
    """

    maps: Mapping[str, Tensor]
    geometry: tuple[ImageGeometry, ...]
    images: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.geometry)


class ParameterGroup(TypedDict):
    """Parameters that train alike; a recipe scales the learning rate of a group by its name.

    weight_decay_factor: times the recipe's weight decay (0 for norms and biases, say).
    """

    name: str
    params: list[torch.nn.Parameter]
    weight_decay_factor: float


@runtime_checkable
class SegmentationModel(Protocol):
    """What training, evaluation and prediction ask of every family.

    `forward(images, targets)`: images are RGB [3, H, W], uint8 or float in [0, 1]. In training it
    returns already weighted losses whose sum is the objective; in eval one prediction per image, in
    that image's own frame, of at most `max_detections` instances with a score of `score_threshold` or more.

    task: what it finds; targets are `Target`s and predictions `InstancePrediction`s, or `PanopticTarget`s and
        `PanopticPrediction`s.
    config: the frozen dataclass of the values that it was built from.
    """

    family: str
    task: Task
    config: Any
    categories: list[Category]
    mask_classes: list[str]
    image_size: int

    @property
    def needs_boxes(self) -> bool:
        """Whether the model finds nothing by itself, so that it is trained and asked with boxes alone."""
        ...

    def forward(
        self,
        images: list[Tensor],
        targets: list[Any] | None = None,
        *,
        score_threshold: float = 0.0,
        max_detections: int = 100,
    ) -> dict[str, Tensor] | list[InstancePrediction] | list[PanopticPrediction]:
        """See the class."""
        ...

    def parameter_groups(self) -> list[ParameterGroup]:
        """Every trainable parameter, in exactly one group."""
        ...

    def class_layers(self) -> dict[str, Int64[Tensor, " rows"]]:
        """The tensors of the state dict that hold something of each class: name -> the label of each row.

        Rows are the first dimension; -1 is a row of no class (background, void).
        """
        ...


@runtime_checkable
class BoxPrompted(Protocol):
    """A model that turns boxes into masks: encode once, prompt many times, no hidden state."""

    def encode(self, images: list[Tensor]) -> ImageFeatures:
        """RGB images [3, H, W] of any size, uint8 or float in [0, 1] -> what prompting needs of them."""
        ...

    def masks_from_boxes(
        self, features: ImageFeatures, boxes: list[Tensor], labels: list[Tensor] | None = None
    ) -> list[InstancePrediction]:
        """Masks of boxes [N, 4] per image (xyxy, original pixels; N may be 0), in the order of the boxes.

        labels: what the boxes hold, int64 [N] per image: positions in `categories`, or -1 for what is not known, as
            all are where it is left out. A model whose masks depend on the class gives the mask of that class, and
            where it is not known chooses one; others need not read it. Labels of the predictions are -1.
        """
        ...
