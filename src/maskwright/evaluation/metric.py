"""What every metric can do, and the checks that they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from maskwright.structures import Category, Target


class Metric(ABC):
    """Compares predictions with targets, image by image, and gives numbers over all images so far.

    In a distributed evaluation each process updates its own metric, and one of them merges the states of the others:
    `for state in states: metric.merge(state)`.
    """

    @abstractmethod
    def reset(self) -> None:
        """Forget all images."""

    def update(self, predictions: Sequence[Any], targets: Sequence[Any]) -> None:
        """Add a batch of images.

        Args:
            predictions: one per image, in the frame of the original image; the metric's class says of which kind.
            targets: the `Target`s or `PanopticTarget`s of these images, in the same frame.

        Raises:
            ValueError: the numbers of predictions and targets differ, or a prediction does not fit its target.
        """
        if len(predictions) != len(targets):
            raise ValueError(f"expected one prediction per target, but got {len(predictions)} and {len(targets)}")
        for prediction, target in zip(predictions, targets, strict=True):
            self._add_image(prediction, target)

    @abstractmethod
    def _add_image(self, prediction: Any, target: Any) -> None:
        """Add one image; `ValueError` where the two do not fit."""

    @abstractmethod
    def state(self) -> Any:
        """Everything counted so far, picklable, for `merge` in another process."""

    @abstractmethod
    def merge(self, state: Any) -> None:
        """Add the `state()` of another metric of the same categories."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The numbers over all images so far, by name; NaN where there is nothing to compare."""

    @abstractmethod
    def per_class(self) -> Sequence[Any]:
        """One row (a dataclass) for each class, in label order, classes without a true instance included."""


def seen_labels(categories: Sequence[Category], seen: Sequence[str]) -> list[bool]:
    """For each category, whether `seen` has its name.

    Raises:
        ValueError: `seen` has names that are not in `categories`.
    """
    if unknown := sorted(set(seen) - {category["name"] for category in categories}):
        raise ValueError(f"seen classes must be names of the categories, but these are not: {', '.join(unknown)}")
    return [category["name"] in set(seen) for category in categories]


def check_image_size(size: Sequence[int], target: Target) -> None:
    """Refuse a prediction for an image of another `size` (height, width) than the target's.

    Raises:
        ValueError: so; it names the image.
    """
    expected = tuple(target["masks"].shape[1:])
    if tuple(size) != expected:
        raise ValueError(
            f"image {target['image_id']}: predictions are for an image of {tuple(size)} (height, width), "
            f"targets of {expected}"
        )
