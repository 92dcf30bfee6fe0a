"""From the score that a model gives a mask to the IoU that is to be expected of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class MaskCalibration:
    """A rising curve, linear between its knots: raw mask score -> expected IoU, all in 0..1.

    It keeps the order of the masks. Beyond the first and the last knot it is flat.

    Attributes:
        scores: raw mask scores of the knots, strictly increasing.
        ious: the expected IoU at each knot, strictly increasing.

    Raises:
        ValueError: the knots are no such curve.
    """

    scores: Sequence[float]
    ious: Sequence[float]

    def __post_init__(self) -> None:
        for name, values in (("scores", self.scores), ("ious", self.ious)):
            numbers = isinstance(values, list | tuple) and all(type(value) in (int, float) for value in values)
            rising = numbers and all(first < second for first, second in pairwise(values))
            if not rising or not values or not 0 <= values[0] <= values[-1] <= 1:
                raise ValueError(f"mask_calibration: {name} must be numbers that rise within 0..1, but got {values!r}")
        if len(self.scores) != len(self.ious):
            raise ValueError(
                f"mask_calibration: expected as many scores as ious, but got {len(self.scores)} and {len(self.ious)}"
            )

    def __call__(self, scores: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The expected IoU of masks with these raw scores, float32; the operations can be exported."""
        knots, ious = (scores.new_tensor(values, dtype=torch.float64) for values in (self.scores, self.ious))
        risen = (scores.double()[:, None] - knots[:-1]).clamp(min=0).minimum(knots.diff())  # within each piece
        return (ious[0] + (risen * (ious.diff() / knots.diff())).sum(dim=1)).float()

    def stored_values(self) -> dict[str, Any]:
        """The knots, as a weights folder keeps them."""
        return {"scores": list(self.scores), "ious": list(self.ious)}
