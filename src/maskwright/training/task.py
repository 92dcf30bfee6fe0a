"""The LightningModule of every family: its losses, its optimizer and its validations."""

# ruff: noqa: ARG002  (Lightning gives its hooks more than each of them needs)

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed
from lightning.pytorch import LightningModule
from torch import Tensor

from maskwright.evaluation.measurement import measurements_of
from maskwright.models.family import Family
from maskwright.training.optimizers import create_optimizer, create_schedule, learning_rate_factor
from maskwright.training.options import Recipe

Batch = tuple[list[Tensor], list[Any]]


class TrainingTask(LightningModule):
    """Trains a model on the sum of its own losses and validates it as `measurements_of` says.

    The random state is set for every batch from (seed, batch, rank), so that a resumed run draws exactly what the
    unbroken one would have drawn: Lightning's checkpoints do not hold the random state.

    Attributes:
        model: the model.
        validation_metrics: what the last validation gave, the same on every rank; by the first of them, which is
            the higher the better, the best weights of a run are chosen.
    """

    def __init__(self, model: Family[Any], recipe: Recipe) -> None:
        """Wrap `model` for a run of `recipe`.

        Raises:
            TypeError: as `measurements_of`.
            UserError: the optimizer's values do not fit the model.
        """
        super().__init__()
        self.model = model
        self.validation_metrics: dict[str, float] = {}
        self._optimizer_options = recipe.optimizer
        self._steps = recipe.trainer.steps
        self._seed = recipe.trainer.seed
        self._measurements = measurements_of(model)
        self.configure_optimizers()  # refuses now what would otherwise fail when a run has begun

    def configure_optimizers(self) -> Any:
        """One optimizer over the model's parameter groups, its schedule stepped with it."""
        groups = self.model.parameter_groups()
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
        objective = torch.stack(list(losses.values())).sum()
        detached = {"loss": objective.detach(), **{name: loss.detach() for name, loss in losses.items()}}
        self.log_dict({f"train/{name}": loss for name, loss in detached.items()}, batch_size=len(images))
        factor = learning_rate_factor(self.global_step, options=self._optimizer_options, steps=self._steps)
        self.log("learning_rate", self._optimizer_options.learning_rate * factor, batch_size=len(images))
        return {"loss": objective, "losses": detached}

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation's images."""
        for measurement in self._measurements:
            measurement.metric.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Every measurement of these images; `predictions` are those of the last, masks of the true boxes or maps."""
        images, targets = batch
        predictions = [measurement.update(images, targets) for measurement in self._measurements]
        return {"predictions": predictions[-1]}

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
