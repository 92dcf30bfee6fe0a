"""Exponential moving average of the weights, for validation and for every saved model."""

from __future__ import annotations

from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class ExponentialAverage(WeightAveraging):
    """Lightning's weight averaging with a decay that warms up, so that short runs forget their first weights.

    After n averaged steps the decay is `min(decay, (1 + n) / (10 + n))`. Buffers (batch-norm statistics)
    are averaged like weights. Lightning swaps the average in for validation and saves it in checkpoints.
    """

    def __init__(self, decay: float) -> None:
        """Average with at most `decay`, a number between 0 and 1."""
        super().__init__(multi_avg_fn=self._average)
        self._decay = decay

    def _average(self, averaged: list[Tensor], current: list[Tensor], steps: Tensor | int) -> None:
        count = int(steps)
        blend = get_ema_multi_avg_fn(min(self._decay, (1 + count) / (10 + count)))
        blend(averaged, current, steps)
