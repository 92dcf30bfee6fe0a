"""The one LightningModule: any family's losses, and the validations of what it is for."""

# ruff: noqa: ARG002  (Lightning gives its hooks more than each of them needs)

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
import torch.distributed
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from maskwright.evaluation.measurement import measurements_of
from maskwright.structures import SegmentationModel
from maskwright.training.optimizers import create_optimizer, create_schedule, learning_rate_factor
from maskwright.training.options import OptimizerOptions

Batch = tuple[list[Tensor], list[Any]]


class TrainingTask(LightningModule):
    """Trains a model on the sum of its own losses and validates it as `measurements_of` says; none is special.

    The random state is set anew for every batch from (seed, batch, rank), so that a resumed run draws
    exactly what the unbroken one would have drawn.

    Attributes:
        model: the model.
        validation_metrics: what the last validation gave, the same on every rank; by the first of them, which is
            the higher the better, the best weights of a run are chosen.
    """

    def __init__(self, model: nn.Module, optimizer: OptimizerOptions, steps: int, seed: int) -> None:
        """Wrap `model` for a run of `steps` optimizer steps.

        Raises:
            TypeError: as `measurements_of`.
            UserError: the optimizer's values do not fit the model.
        """
        super().__init__()
        self.model = model
        self.validation_metrics: dict[str, float] = {}
        self._optimizer_options = optimizer
        self._steps = steps
        self._seed = seed
        self._measurements = measurements_of(model)
        groups = cast(SegmentationModel, model).parameter_groups()
        create_optimizer(groups, optimizer)  # refuses now what would else fail when a run has begun

    def configure_optimizers(self) -> Any:
        """One optimizer over the model's parameter groups, its schedule stepped with it."""
        groups = cast(SegmentationModel, self.model).parameter_groups()
        optimizer = create_optimizer(groups, self._optimizer_options)
        schedule = create_schedule(optimizer, self._optimizer_options, self._steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the random state for this batch; `batch_idx` goes on counting when a run is resumed."""
        torch.manual_seed(int(np.random.SeedSequence([self._seed, batch_idx, self.global_rank]).generate_state(1)[0]))

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """The objective under `loss`, and each weighted loss by name under `losses` (detached)."""
        images, targets = batch
        losses: dict[str, Tensor] = self.model(images, targets)
        total = torch.stack(list(losses.values())).sum()
        parts = {name: loss.detach() for name, loss in losses.items()}
        self.log_dict({f"train/{name}": loss for name, loss in parts.items()}, batch_size=len(images))
        self.log("train/loss", total.detach(), batch_size=len(images))
        self.log("learning_rate", self._learning_rate(), batch_size=len(images))
        return {"loss": total, "losses": {"loss": total.detach(), **parts}}

    def _learning_rate(self) -> float:
        options = self._optimizer_options
        return options.learning_rate * learning_rate_factor(self.global_step, options=options, steps=self._steps)

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation's images."""
        for measurement in self._measurements:
            measurement.metric.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Every measurement of these images."""
        images, targets = batch
        for measurement in self._measurements:
            measurement.update(images, targets)

    def on_validation_epoch_end(self) -> None:
        """Put the images of all ranks together and log the numbers."""
        if self.trainer.world_size > 1:
            for metric in (measurement.metric for measurement in self._measurements):
                states: list[Any] = [None] * self.trainer.world_size
                torch.distributed.all_gather_object(states, metric.state())
                metric.reset()
                for state in states:
                    metric.merge(state)
        if self.trainer.sanity_checking:
            return
        numbers = [measurement.compute() for measurement in self._measurements]
        self.validation_metrics = {name: value for values in numbers for name, value in values.items()}
        logged = {
            f"validation/{name}": float(value) for name, value in self.validation_metrics.items() if value == value
        }
        self.log_dict(logged, sync_dist=True)
