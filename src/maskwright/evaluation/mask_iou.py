"""Mean mask IoU where prediction i belongs to target row i: how well boxes were turned into masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from maskwright.evaluation.calibration import (
    Accepted,
    ReliabilityBin,
    accept_table,
    expected_calibration_error,
    rank_correlation,
    reliability,
)
from maskwright.evaluation.metric import Metric, check_image_size, seen_labels
from maskwright.ops.paste import paste_binary_region
from maskwright.structures import Category, EncodedMasks, InstancePrediction, Target, encoded_masks

# COCO's size classes: areas below the first are small, below the second medium, else large (pixels).
SMALL_AREA, MEDIUM_AREA = 32**2, 96**2


@dataclass(frozen=True)
class ClassMaskIoU:
    """One class of `MaskIoU.per_class`; `mask_iou` is NaN where the class has no instance."""

    name: str
    seen: bool
    instances: int
    mask_iou: float


@dataclass(frozen=True)
class ScoreQuality:
    """How well mask scores foretell the IoU (`evaluation/calibration.py`).

    Attributes:
        error: the expected calibration error.
        spearman: the rank correlation of score and IoU; NaN where all are equal.
        bins: mean score and mean IoU in bins of the score.
        accepted: what is accepted at some thresholds of the score.
    """

    error: float
    spearman: float
    bins: list[ReliabilityBin]
    accepted: list[Accepted]


class MaskIoU(Metric):
    """Mean IoU of predicted and true masks at the original resolution, with boxes given.

    Every instance that has a mask and is no crowd counts once. A prediction has one instance for each row of its
    target, in the same order. Methods without boxes may give the masks themselves instead, bool [N, H, W];
    those have no scores.
    `seen` names the classes whose masks the model was trained on; all others are unseen.

    Source: the mIoU of arXiv 2104.00613, section "without a detector"; COCO's size limits.
    """

    def __init__(self, categories: Sequence[Category], seen: Sequence[str]) -> None:
        """Start with no instances.

        Args:
            categories: the label space of the targets, in label order.
            seen: names of categories.

        Raises:
            ValueError: `seen` has names that are not in `categories`.
        """
        self.names = [category["name"] for category in categories]
        self.seen = torch.tensor(seen_labels(categories, seen), dtype=torch.bool)
        self.reset()

    def reset(self) -> None:
        """Forget all instances."""
        self._states: list[Tensor] = []

    def _add_image(self, prediction: InstancePrediction | Bool[Tensor, "_ _ _"], target: Target) -> None:
        if len(prediction) != len(target["labels"]):
            raise ValueError(
                f"image {target['image_id']}: expected a prediction for each of the {len(target['labels'])} target "
                f"rows, but got {len(prediction)}"
            )
        check_image_size(prediction.shape[1:] if isinstance(prediction, Tensor) else prediction.image_size, target)
        rows = (target["has_mask"] & ~target["iscrowd"]).nonzero().flatten()
        truth = encoded_masks(target)
        instances = [
            (label, *_iou_and_area(prediction, row, truth[torch.tensor([row])]), _score(prediction, row))
            for row, label in zip(rows.tolist(), target["labels"][rows].tolist(), strict=True)
        ]
        self._states.append(torch.tensor(instances, dtype=torch.float64).reshape(-1, 4))

    def state(self) -> Float64[Tensor, "n 4"]:
        """All instances so far: label, IoU, area of the true mask in pixels, mask score; what `merge` takes.

        The score is NaN where the masks themselves were given.
        """
        return torch.cat([torch.zeros(0, 4, dtype=torch.float64), *self._states])

    def merge(self, state: Float64[Tensor, "n 4"]) -> None:
        """Add the instances of another process's `state()`."""
        self._states.append(state.cpu())

    def compute(self) -> dict[str, float]:
        """The means over all instances so far; NaN where a group has none.

        Returns:
            `mask_iou`, `mask_iou_seen`, `mask_iou_unseen`: means over instances; `class_mask_iou`,
            `class_mask_iou_seen`, `class_mask_iou_unseen`: means over the classes that have instances;
            `mask_iou_small`, `mask_iou_medium`, `mask_iou_large`: means over instances by the area of the
            true mask (below 32^2, below 96^2, the rest); `instances`, `instances_seen`, `instances_unseen`:
            how many.
        """
        labels, ious, areas, _ = self.state().unbind(1)
        seen = self.seen[labels.long()]
        small, large = areas < SMALL_AREA, areas >= MEDIUM_AREA
        classes = [row for row in self.per_class() if row.instances]
        return {
            "mask_iou": _mean(ious),
            "mask_iou_seen": _mean(ious[seen]),
            "mask_iou_unseen": _mean(ious[~seen]),
            "class_mask_iou": _mean([row.mask_iou for row in classes]),
            "class_mask_iou_seen": _mean([row.mask_iou for row in classes if row.seen]),
            "class_mask_iou_unseen": _mean([row.mask_iou for row in classes if not row.seen]),
            "mask_iou_small": _mean(ious[small]),
            "mask_iou_medium": _mean(ious[~small & ~large]),
            "mask_iou_large": _mean(ious[large]),
            "instances": float(len(ious)),
            "instances_seen": float(seen.sum()),
            "instances_unseen": float((~seen).sum()),
        }

    def per_class(self) -> list[ClassMaskIoU]:
        """Mean IoU over the instances of each class, in label order, classes without instances included."""
        labels, ious, _, _ = self.state().unbind(1)
        rows = []
        for label, name in enumerate(self.names):
            own = ious[labels == label]
            rows.append(ClassMaskIoU(name, bool(self.seen[label]), len(own), _mean(own)))
        return rows

    def score_quality(self) -> ScoreQuality | None:
        """How well the scores of the masks foretell their IoU; None without masks, or where they have no scores."""
        _, ious, _, scores = self.state().numpy().T
        if not len(scores) or np.isnan(scores).any():
            return None
        return ScoreQuality(
            expected_calibration_error(scores, ious),
            rank_correlation(scores, ious),
            reliability(scores, ious),
            accept_table(scores, ious),
        )


def _score(prediction: InstancePrediction | Tensor, row: int) -> float:
    return math.nan if isinstance(prediction, Tensor) else float(prediction.mask_scores[row])


def _iou_and_area(prediction: InstancePrediction | Tensor, row: int, truth: EncodedMasks) -> tuple[float, int]:
    """IoU of the instance `row` with its true mask, the only one of `truth`, and the area of that in pixels.

    The prediction is pasted into the region of its box only: it is empty elsewhere, and the rest of the true mask only
    adds to the union.
    """
    if isinstance(prediction, Tensor):
        region, left, top = prediction[row], 0, 0
    else:
        region, (left, top) = paste_binary_region(
            prediction.mask_probabilities[row], prediction.boxes[row], prediction.image_size, prediction.frame
        )
    height, width = region.shape
    area = int(truth.areas())
    true_region = truth.crop(left, top, left + width, top + height)[0]
    intersection = int((region.cpu() & true_region).count_nonzero())
    union = int(region.count_nonzero()) + area - intersection
    return (intersection / union if union else 0.0), area


def _mean(values: Tensor | Sequence[float]) -> float:
    # `fsum` is exact, so the order in which processes gave their instances changes no digit.
    numbers = values.tolist() if isinstance(values, Tensor) else values
    return math.fsum(numbers) / len(numbers) if len(numbers) else math.nan
