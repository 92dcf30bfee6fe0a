"""The types that cross module boundaries: targets, predictions, categories and the model protocols.

Boxes are xyxy, float32, in absolute pixels of the frame that the docstring names; pixel `i` covers
`[i, i + 1)`. Masks are bool outside of a model, labels are contiguous from 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, Protocol, TypedDict, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from maskwright.ops.frames import BoxFrame
from maskwright.ops.paste import encode_masks, paste_masks


class Category(TypedDict):
    """One class of a label space. Its position in the list is the label; `id` is the file's own id."""

    id: int
    name: str
    isthing: NotRequired[bool]


class Target(TypedDict):
    """What is known of one image. Boxes and masks are in the frame of the image they come with.

    boxes: float32 [N, 4], xyxy pixels.
    labels: int64 [N], in 0..C-1.
    masks: bool [N, H, W]; a row without a mask (`has_mask` false) is all False and is never read.
    has_mask: bool [N]; this is partial supervision, and the data set alone decides it.
    iscrowd: bool [N].
    ids: int64 [N], the annotation ids of the file.
    image_id: the image's id in the file.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor
    has_mask: Tensor
    iscrowd: Tensor
    ids: Tensor
    image_id: int | str


@dataclass(frozen=True)
class ImageGeometry:
    """How one image lies in its batch.

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
    """What `encode` keeps of a batch: feature maps [B, C, H, W] by name, and each image's geometry."""

    maps: Mapping[str, Tensor]
    geometry: tuple[ImageGeometry, ...]

    def __len__(self) -> int:
        return len(self.geometry)


@dataclass(frozen=True)
class InstancePrediction:
    """The instances of one image, in the frame of the original image.

    boxes: float32 [N, 4], xyxy pixels.
    labels: int64 [N]; -1 where a box was given without a class.
    scores: float32 [N], of the boxes (1 for given boxes).
    mask_scores: float32 [N], the mean certainty of the mask's own pixels, in 0..1.
    mask_probabilities: float32 [N, M, M], on the grid that `frame` lays on each box.
    image_size: (height, width) of the original image.
    frame: how the M x M grid lies on a box (`ops/frames.py`).
    categories: the label space, or empty where the model is class-agnostic.
    """

    boxes: Float[Tensor, "n 4"]
    labels: Int64[Tensor, " n"]
    scores: Float[Tensor, " n"]
    mask_scores: Float[Tensor, " n"]
    mask_probabilities: Float[Tensor, "n m m"]
    image_size: tuple[int, int]
    frame: BoxFrame
    categories: Sequence[Category] = field(default=())

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def masks(self) -> Bool[Tensor, "n h w"]:
        """Binary masks at full image size, pasted on each access (N planes of the image's size)."""
        return paste_masks(self.mask_probabilities, self.boxes, self.image_size, self.frame)

    def to_coco(self, image_id: int | str, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """COCO result entries: `image_id, category_id, segmentation` (compressed RLE) and `score`.

        `category_ids` (one per instance) overrides the model's own categories; without either, the
        `category_id` is 1. Instances are pasted and encoded one by one, inside their boxes only. There is
        no `bbox`: with it, COCO evaluation would take object sizes from boxes instead of masks.
        """
        encoded = encode_masks(self.mask_probabilities, self.boxes, self.image_size, self.frame)
        return [
            {
                "image_id": image_id,
                "category_id": category_ids[i] if category_ids is not None else self._category_id(i),
                "segmentation": segmentation,
                "score": round(float(self.scores[i] * self.mask_scores[i]), 5),
            }
            for i, segmentation in enumerate(encoded)
        ]

    def _category_id(self, index: int) -> int:
        label = int(self.labels[index])
        return self.categories[label]["id"] if 0 <= label < len(self.categories) else 1

    def to_supervision(self) -> Any:
        """The same instances as `supervision.Detections`.

        Raises:
            ModuleNotFoundError: supervision is not installed (`pip install 'maskwright[viz]'`).
        """
        try:
            import supervision
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("to_supervision() needs supervision: pip install 'maskwright[viz]'") from error
        return supervision.Detections(
            xyxy=self.boxes.cpu().numpy(),
            mask=self.masks.cpu().numpy(),
            confidence=(self.scores * self.mask_scores).cpu().numpy(),
            class_id=self.labels.cpu().numpy(),
        )


class ParameterGroup(TypedDict):
    """Parameters that train alike; a recipe scales the learning rate of a group by its name.

    weight_decay_factor: times the recipe's weight decay (0 for norms and biases, say).
    """

    name: str
    params: list[torch.nn.Parameter]
    weight_decay_factor: float


@runtime_checkable
class SegmentationModel(Protocol):
    """What every family is to training, evaluation and prediction.

    `forward(images, targets)`: images are RGB [3, H, W], uint8 or float in [0, 1]. In training it
    returns already weighted losses whose sum is the objective; in eval one prediction per image, in
    that image's own frame, of at most `max_detections` instances with a score of `score_threshold` or more.
    """

    family: str
    config: dict[str, Any]
    categories: list[Category]
    mask_classes: list[str]
    image_size: int

    def forward(
        self,
        images: list[Tensor],
        targets: list[Target] | None = None,
        *,
        score_threshold: float = 0.0,
        max_detections: int = 100,
    ) -> dict[str, Tensor] | list[InstancePrediction]:
        """See the class."""
        ...

    def parameter_groups(self) -> list[ParameterGroup]:
        """Every trainable parameter, in exactly one group."""
        ...


@runtime_checkable
class BoxPrompted(Protocol):
    """A model that turns boxes into masks: encode once, prompt many times, no hidden state."""

    def encode(self, images: list[Tensor]) -> ImageFeatures:
        """RGB images [3, H, W] of any size, uint8 or float in [0, 1] -> what prompting needs of them."""
        ...

    def masks_from_boxes(self, features: ImageFeatures, boxes: list[Tensor]) -> list[InstancePrediction]:
        """Masks of boxes [N, 4] per image (xyxy, original pixels; N may be 0), in the order of the boxes."""
        ...


_TARGET_FIELDS = {
    "boxes": (torch.float32, 2),
    "labels": (torch.int64, 1),
    "masks": (torch.bool, 3),
    "has_mask": (torch.bool, 1),
    "iscrowd": (torch.bool, 1),
    "ids": (torch.int64, 1),
}


def check_targets(images: Sequence[Tensor], targets: Sequence[Target], num_classes: int | None = None) -> None:
    """Refuse targets that break the contract, naming the image and the field.

    Raises:
        ValueError: a count, shape, value or label is wrong.
        TypeError: a field is missing or has the wrong dtype.
    """
    if len(images) != len(targets):
        raise ValueError(f"expected one target per image, but got {len(images)} images and {len(targets)} targets")
    for index, (image, target) in enumerate(zip(images, targets, strict=True)):
        name = f"target {index} (image_id {target.get('image_id', 'missing')})"
        _check_fields(name, target)
        _check_values(name, image, target, num_classes)


def _check_fields(name: str, target: Target) -> None:
    if "image_id" not in target:
        raise TypeError(f"{name}: field 'image_id' is missing")
    count = None
    for key, (dtype, dimensions) in _TARGET_FIELDS.items():  # the boxes come first and count the rows
        value = target.get(key)
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: field {key!r} must be a tensor, but got {type(value).__name__}")
        if value.dtype != dtype:
            raise TypeError(f"{name}: field {key!r} must be {dtype}, but got {value.dtype}")
        count = len(value) if count is None and value.ndim else count
        if value.ndim != dimensions or len(value) != count:
            shape = tuple(value.shape)
            raise ValueError(
                f"{name}: field {key!r} must have {dimensions} dimensions and {count} rows, but got {shape}"
            )


def _check_values(name: str, image: Tensor, target: Target, num_classes: int | None) -> None:
    boxes, labels = target["boxes"], target["labels"]
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"the image of {name} must be [3, H, W], but got {list(image.shape)}")
    if boxes.shape[1] != 4:
        raise ValueError(f"{name}: field 'boxes' must be [N, 4], but got {tuple(boxes.shape)}")
    height, width = image.shape[1:]
    if target["masks"].shape[1:] != (height, width):
        raise ValueError(
            f"{name}: field 'masks' must be [N, {height}, {width}], but got {tuple(target['masks'].shape)}"
        )
    broken = ~torch.isfinite(boxes).all(dim=1) | (boxes[:, 2:] <= boxes[:, :2]).any(dim=1)
    if broken.any():
        row = int(broken.nonzero()[0, 0])
        raise ValueError(f"{name}: box {row} must have x2 > x1 and y2 > y1, but got {boxes[row].tolist()}")
    if num_classes is not None and ((labels < 0) | (labels >= num_classes)).any():
        raise ValueError(f"{name}: labels must lie in 0..{num_classes - 1}, but got {labels.unique().tolist()}")
