"""What is known of an image: categories, the targets of training and evaluation, and their checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from maskwright.structures.encoding import EncodedMasks


class Target(TypedDict):
    """What is known of one image. Boxes and masks are in the frame of the image they come with.

    Attributes:
        boxes: float32 [N, 4], xyxy pixels.
        labels: int64 [N], in 0..C-1.
        masks: bool [N, H, W]; a row without a mask (`has_mask` false) is all False and is never read. In training,
            planes of the crop. Before the crop and in evaluation, run lengths (`EncodedMasks`) or planes.
        has_mask: bool [N]; this is partial supervision, and the data set alone decides it.
        iscrowd: bool [N].
        ids: int64 [N], the annotation ids of the file.
        image_id: the image's id in the file.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | EncodedMasks
    has_mask: Tensor
    iscrowd: Tensor
    ids: Tensor
    image_id: int | str


class PanopticTarget(TypedDict):
    """The segments of one image as a map, in the frame of the image that it comes with.

    It stays a map of indices through augmentation; masks are made last, where a loss needs them.

    Attributes:
        segmentation: int32 [H, W], each pixel's row in the fields below; -1 is void.
        labels: int64 [S], in 0..C-1.
        iscrowd: bool [S].
        ids: int64 [S], the segment ids of the file.
        image_id: the image's id in the file.
    """

    segmentation: Tensor
    labels: Tensor
    iscrowd: Tensor
    ids: Tensor
    image_id: int | str


def select_rows(target: Target, rows: Bool[Tensor, " n"] | Int64[Tensor, " k"]) -> Target:
    """The target with some of its instances: those where `rows` is True, or those at the positions `rows`."""
    selected: Any = {
        key: value[rows] if isinstance(value, Tensor | EncodedMasks) else value for key, value in target.items()
    }
    return selected


def encoded_masks(target: Target) -> EncodedMasks:
    """The target's masks as run lengths, whichever of the two forms they have."""
    masks = target["masks"]
    return masks if isinstance(masks, EncodedMasks) else EncodedMasks.from_planes(masks)


_TARGET_FIELDS = {
    "boxes": (torch.float32, 2),
    "labels": (torch.int64, 1),
    "masks": (torch.bool, 3),
    "has_mask": (torch.bool, 1),
    "iscrowd": (torch.bool, 1),
    "ids": (torch.int64, 1),
}

_SEGMENT_FIELDS = {"labels": (torch.int64, 1), "iscrowd": (torch.bool, 1), "ids": (torch.int64, 1)}


def check_targets(images: Sequence[Tensor], targets: Sequence[Target], num_classes: int | None = None) -> None:
    """Refuse targets that break the contract, naming the image and the field.

    Raises:
        ValueError: a count, shape, value or label is wrong.
        TypeError: a field is missing or has the wrong dtype.
    """
    names = _check_rows(images, targets, _TARGET_FIELDS, num_classes)
    for name, image, target in zip(names, images, targets, strict=True):
        boxes, size = target["boxes"], list(image.shape[1:])
        if boxes.shape[1] != 4:
            raise ValueError(f"{name}: field 'boxes' must be [N, 4], but got {tuple(boxes.shape)}")
        if list(target["masks"].shape[1:]) != size:
            found = tuple(target["masks"].shape)
            raise ValueError(f"{name}: field 'masks' must be [N, {size[0]}, {size[1]}], but got {found}")
        broken = ~torch.isfinite(boxes).all(dim=1) | (boxes[:, 2:] <= boxes[:, :2]).any(dim=1)
        for row in broken.nonzero().flatten().tolist():
            raise ValueError(f"{name}: box {row} must have x2 > x1 and y2 > y1, but got {boxes[row].tolist()}")


def check_panoptic_targets(
    images: Sequence[Tensor], targets: Sequence[PanopticTarget], num_classes: int | None = None
) -> None:
    """Refuse panoptic targets that break the contract, naming the image and the field.

    A target without segments and a segment without pixels are fine.

    Raises:
        ValueError: a count, shape, value or label is wrong.
        TypeError: a field is missing or has the wrong dtype.
    """
    names = _check_rows(images, targets, _SEGMENT_FIELDS, num_classes)
    for name, image, target in zip(names, images, targets, strict=True):
        segmentation, count, size = target.get("segmentation"), len(target["labels"]), list(image.shape[1:])
        if not isinstance(segmentation, Tensor) or segmentation.dtype != torch.int32:
            found = segmentation.dtype if isinstance(segmentation, Tensor) else type(segmentation).__name__
            raise TypeError(f"{name}: field 'segmentation' must be a tensor of torch.int32, but got {found}")
        if list(segmentation.shape) != size:
            raise ValueError(f"{name}: field 'segmentation' must be {size}, but got {list(segmentation.shape)}")
        low, high = (int(end) for end in segmentation.aminmax()) if segmentation.numel() else (-1, -1)
        if low < -1 or high >= count:
            expected = f"-1 (void) and rows of the {count} segments"
            raise ValueError(f"{name}: field 'segmentation' must hold {expected}, but got {low}..{high}")


def _check_rows(
    images: Sequence[Tensor],
    targets: Sequence[Target] | Sequence[PanopticTarget],
    fields: Mapping[str, tuple[torch.dtype, int]],
    num_classes: int | None,
) -> Iterator[str]:
    """Check what both kinds of targets have in common, and name each target."""
    if len(images) != len(targets):
        raise ValueError(f"expected one target per image, but got {len(images)} images and {len(targets)} targets")
    for index, (image, target) in enumerate(zip(images, targets, strict=True)):
        name = f"target {index} (image_id {target.get('image_id', 'missing')})"
        _check_fields(name, target, fields)
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"the image of {name} must be [3, H, W], but got {list(image.shape)}")
        labels = target["labels"]
        if num_classes is not None and ((labels < 0) | (labels >= num_classes)).any():
            raise ValueError(f"{name}: labels must lie in 0..{num_classes - 1}, but got {labels.unique().tolist()}")
        yield name


def _check_fields(name: str, target: Target | PanopticTarget, fields: Mapping[str, tuple[torch.dtype, int]]) -> None:
    if "image_id" not in target:
        raise TypeError(f"{name}: field 'image_id' is missing")
    count = None
    for key, (dtype, dimensions) in fields.items():  # the first field counts the rows
        value = target.get(key)
        if isinstance(value, EncodedMasks):
            raise TypeError(
                f"{name}: field {key!r} holds run lengths, but a model learns from planes of the crop: bool [N, H, W], "
                "as the transforms of a training data set give them (`EncodedMasks.crop`)"
            )
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
