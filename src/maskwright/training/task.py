"""The one LightningModule: any family's losses; mask IoU from ground-truth boxes and detections' AP as validation."""

# ruff: noqa: ARG002  (Lightning gives its hooks more than each of them needs)

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
import torch.distributed
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from maskwright.evaluation.coco_ap import CocoAP
from maskwright.evaluation.mask_iou import MaskIoU
from maskwright.structures import BoxPrompted, SegmentationModel, Target, select_rows
from maskwright.training.optimizers import create_optimizer, create_schedule, learning_rate_factor
from maskwright.training.options import OptimizerOptions

Batch = tuple[list[Tensor], list[Target]]

# What a validation reports of `CocoAP.compute`.
_DETECTION_METRICS = [
    f"{kind}_{statistic}{group}"
    for kind in ("box", "mask")
    for statistic in ("ap", "ap50", "ap75")
    for group in ("", "_seen", "_unseen")
]


class TrainingTask(LightningModule):
    """Trains a model on the sum of its own losses and validates its masks; no family is special.

    Validation measures masks from ground-truth boxes (`MaskIoU`); of a model with a detector it also measures
    what the model finds by itself (`CocoAP`, with the data set's targets as the truth).

    The random state is set anew for every batch from (seed, batch, rank), so that a resumed run draws
    exactly what the unbroken one would have drawn.

    Attributes:
        model: the model.
        validation_metrics: what the last validation gave, the same on every rank: `MaskIoU.compute`, and for a
            model with a detector `box_` and `mask_` `ap`, `ap50` and `ap75` of all, seen and unseen classes.
    """

    def __init__(self, model: nn.Module, optimizer: OptimizerOptions, steps: int, seed: int) -> None:
        """Wrap `model` for a run of `steps` optimizer steps.

        Raises:
            TypeError: the model cannot be prompted with boxes, so its masks cannot be validated.
            UserError: the optimizer's values do not fit the model.
        """
        super().__init__()
        if not isinstance(model, BoxPrompted):
            raise TypeError(
                f"validation needs a model with encode() and masks_from_boxes(), got {type(model).__name__}"
            )
        self.model = model
        self.validation_metrics: dict[str, float] = {}
        self._optimizer_options = optimizer
        self._steps = steps
        self._seed = seed
        family = cast(SegmentationModel, model)
        self._metric = MaskIoU(family.categories, family.mask_classes)
        self._detection_metric = None if family.needs_boxes else CocoAP(family.categories, family.mask_classes)
        create_optimizer(family.parameter_groups(), optimizer)  # refuses now what would else fail when a run has begun

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
        """Forget the last validation's instances."""
        for metric in self._metrics():
            metric.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Masks from the ground-truth boxes of the instances whose mask is known, and detections of all instances."""
        images, targets = batch
        known = [_with_known_masks(target) for target in targets]
        model = cast(BoxPrompted, self.model)
        predictions = model.masks_from_boxes(model.encode(images), [target["boxes"] for target in known])
        self._metric.update(predictions, known)
        if self._detection_metric is not None:
            self._detection_metric.update(self.model(images, score_threshold=0.0, max_detections=100), targets)

    def on_validation_epoch_end(self) -> None:
        """Put the instances of all ranks together and log their means."""
        if self.trainer.world_size > 1:
            for metric in self._metrics():
                states: list[Any] = [None] * self.trainer.world_size
                torch.distributed.all_gather_object(states, metric.state())
                metric.reset()
                for state in states:
                    metric.merge(state)
        if self.trainer.sanity_checking:
            return
        self.validation_metrics = self._metric.compute()
        if self._detection_metric is not None:
            values = self._detection_metric.compute()
            self.validation_metrics |= {name: values[name] for name in _DETECTION_METRICS}
        logged = {
            f"validation/{name}": float(value) for name, value in self.validation_metrics.items() if value == value
        }
        self.log_dict(logged, sync_dist=True)

    def _metrics(self) -> list[MaskIoU | CocoAP]:
        return [self._metric] if self._detection_metric is None else [self._metric, self._detection_metric]


def _with_known_masks(target: Target) -> Target:
    return select_rows(target, target["has_mask"] & ~target["iscrowd"])
