"""What models are given: the values of their constructors and boxes, each refused by name where it has no meaning."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def check_label_space(categories: Any, mask_classes: Any) -> None:
    """Refuse what is no label space; null is one without classes.

    Raises:
        ValueError: `categories` is no list of mappings with a whole number `id` and a text `name`, each unique, or
            `mask_classes` no list of texts.
    """
    for label, category in enumerate(_as_list("categories", categories)):
        identity, name = (category.get("id"), category.get("name")) if isinstance(category, Mapping) else (None, None)
        if not _is_whole(identity) or not isinstance(name, str):
            raise ValueError(
                f"categories: number {label} must have a whole number 'id' and a text 'name', but got {category!r}"
            )
    for field in ("id", "name"):
        counts = Counter(category[field] for category in categories or [])
        repeated = [value for value, count in counts.items() if count > 1]
        if repeated:
            raise ValueError(f"categories: each needs its own {field}, but these repeat: {repeated}")
    for name in _as_list("mask_classes", mask_classes):
        if not isinstance(name, str):
            raise ValueError(f"mask_classes must be names of classes, but got {name!r}")


def check_numbers(
    values: Mapping[str, Any],
    *,
    smallest: Mapping[str, int],
    weights: Iterable[str] = (),
    factors: Iterable[str] = (),
    shares: Iterable[str] = (),
) -> None:
    """Refuse numbers without a meaning.

    Args:
        values: of a constructor, by name.
        smallest: names of whole numbers, and the least that each may be.
        weights: names of finite numbers of at least 0.
        factors: names of finite numbers above 0.
        shares: names of numbers in 0..1.

    Raises:
        ValueError: the first such, by name.
    """
    for name, least in smallest.items():
        if not _is_whole(values[name]) or values[name] < least:
            raise ValueError(f"{name} must be at least {least} and a whole number, but got {values[name]!r}")
    for names, has_meaning, expected in (
        (weights, lambda value: value >= 0, "be at least 0 and finite"),
        (factors, lambda value: value > 0, "be above 0 and finite"),
        (shares, lambda value: 0 <= value <= 1, "lie in 0..1"),
    ):
        for name in names:
            if not _is_finite(values[name]) or not has_meaning(values[name]):
                raise ValueError(f"{name} must {expected}, but got {values[name]!r}")


def check_boxes(boxes: Sequence[Tensor], num_images: int) -> None:
    """Refuse boxes that a model cannot be prompted with; flipped boxes, and those outside of the image, it can.

    Args:
        boxes: per image [N, 4].
        num_images: of the features.

    Raises:
        ValueError: not one tensor [N, 4] per image, or a coordinate that is not finite, by image and box.
    """
    if len(boxes) != num_images:
        raise ValueError(f"expected boxes for {num_images} images, but got {len(boxes)}")
    for image, rows in enumerate(boxes):
        if rows.ndim != 2 or rows.shape[1] != 4:
            raise ValueError(f"boxes of image {image}: expected shape [N, 4], but got {list(rows.shape)}")
        for index in (~torch.isfinite(rows).all(dim=1)).nonzero().flatten().tolist():
            raise ValueError(f"box {index} of image {image}: expected finite numbers, but got {rows[index].tolist()}")


def check_labels(labels: Sequence[Tensor], boxes: Sequence[Tensor], num_classes: int) -> None:
    """Refuse labels that do not fit the boxes or the classes.

    Args:
        labels: per image [N], in 0..`num_classes` - 1, or -1 for a class that is not known.
        boxes: per image [N, 4].
        num_classes: of the model.

    Raises:
        ValueError: not one label per box, or a label that is none, by image.
    """
    if [label.shape for label in labels] != [rows.shape[:1] for rows in boxes]:
        counts, shapes = [len(rows) for rows in boxes], [list(label.shape) for label in labels]
        raise ValueError(f"expected one label per box, for the images {counts}, but got shapes {shapes}")
    for image, label in enumerate(labels):
        if ((label < -1) | (label >= num_classes)).any():
            raise ValueError(f"labels of image {image} must lie in -1..{num_classes - 1}, but got {label.tolist()}")


def _as_list(name: str, value: Any) -> Sequence[Any]:
    if value is not None and not isinstance(value, list | tuple):
        raise ValueError(f"{name} must be a list, but got {value!r}")
    return value or []


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
