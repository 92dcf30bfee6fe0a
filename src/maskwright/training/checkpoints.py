"""Checkpoints that a run can be resumed from exactly, and the weights folders beside them."""

# ruff: noqa: ARG002  (Lightning gives its hooks more than each of them needs)

from __future__ import annotations

import json
import math
import time
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from maskwright.errors import UserError
from maskwright.models.family import Family
from maskwright.models.hub import save_pretrained
from maskwright.training.interruption import StopRequest
from maskwright.training.run_folder import BEST_SCORE, BEST_WEIGHTS, LAST_CHECKPOINT, LAST_WEIGHTS, write_text
from maskwright.training.task import TrainingTask


class RunCheckpoints(Checkpoint):
    """Saves `last.ckpt` with the weights folder `last`, and the weights folder `best` after a best validation.

    Checkpoints are taken after whole optimizer steps only (never between two accumulated batches): when
    `seconds` have passed, before each validation, when a signal asks to stop, and at the end. A step that
    is validated is saved after its validation, since Lightning would not repeat it on resume.

    Attributes:
        saved_step: the step of the newest checkpoint; 0 before the first.
    """

    def __init__(
        self, folder: Path, recipe: str, seconds: float, validate_every: int, stop_request: StopRequest
    ) -> None:
        """Save into `folder`.

        Args:
            folder: of the run.
            recipe: the resolved recipe as YAML, kept inside of every checkpoint.
            seconds: at most so much time passes between two checkpoints (and one step).
            validate_every: optimizer steps between validations.
            stop_request: asked after every step.
        """
        self.saved_step = 0
        self._folder = folder
        self._recipe = recipe
        self._seconds = seconds
        self._validate_every = validate_every
        self._saved_at = time.monotonic()
        self._weights: dict[str, Tensor] = {}
        self._stop_request = stop_request

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and hear the signals that Lightning has taken to itself by now."""
        self._stop_request.listen()
        self.saved_step = trainer.global_step
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an optimizer step: stop, save, or go on."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step, stopping = trainer.global_step, self._stop_request.signal_number is not None
        overdue = trainer.is_global_zero and time.monotonic() - self._saved_at >= self._seconds
        # One decision for all ranks: clocks and the arrival of signals differ between them.
        if trainer.strategy.reduce_boolean_decision(stopping or overdue, all=False):
            stopping = trainer.strategy.reduce_boolean_decision(stopping, all=False)
            overdue = True
        is_validated = self._is_validated(trainer, step)
        if not is_validated and (stopping or overdue or self._is_validated(trainer, step + 1)):
            self._save(trainer, pl_module)
        if is_validated and not stopping:
            trainer.should_stop = step == trainer.max_steps  # makes Lightning validate the last step
        if stopping:  # a step that is yet to be validated is taken again on resume
            trainer.limit_val_batches = 0
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, as best if no validation was better so far."""
        if trainer.sanity_checking:
            return
        self._save(trainer, pl_module)
        name, score = next(iter(cast(TrainingTask, pl_module).validation_metrics.items()))
        # Of equal ones the last is taken: the first validations of a detector may all be 0.
        if trainer.is_global_zero and score >= read_best_score(self._folder, name):
            self._save_weights(pl_module, BEST_WEIGHTS)
            best = {"step": trainer.global_step, name: score}
            write_text(self._folder / BEST_SCORE, json.dumps(best, indent=2) + "\n")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the recipe in; keep the weights, which are the averaged ones when there is an average.

        Lightning calls checkpoint callbacks last, after `WeightAveraging` has put the average in its place.
        """
        checkpoint["recipe"] = self._recipe
        prefix = "model."
        state: dict[str, Tensor] = checkpoint["state_dict"]
        self._weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

    def _is_validated(self, trainer: Trainer, step: int) -> bool:
        is_due = step % self._validate_every == 0 or step == trainer.max_steps
        return trainer.enable_validation and is_due

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = self._folder / LAST_CHECKPOINT
        scratch = path.with_name(f".{LAST_CHECKPOINT}.new")
        trainer.save_checkpoint(scratch)
        if trainer.is_global_zero:
            scratch.replace(path)
            self._save_weights(pl_module, LAST_WEIGHTS)
        self._saved_at = time.monotonic()
        self.saved_step = trainer.global_step

    def _save_weights(self, pl_module: LightningModule, name: str) -> None:
        save_pretrained(cast(Family[Any], pl_module.model), self._folder / name, state=self._weights)


def read_best_score(folder: Path, name: str) -> float:
    """The number `name` of the weights folder `best` of a run; minus infinity where there is none yet.

    Weights that another number chose, as an earlier version may have done, are not the best by this one.
    """
    path = folder / BEST_SCORE
    best = json.loads(path.read_text()) if path.is_file() else {}
    return float(best.get(name, -math.inf))


def read_step(checkpoint: Path) -> int:
    """The optimizer step at which a run's checkpoint was taken.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            broken = archive.testzip()  # reads everything: torch itself does not compare the check sums
        if broken is not None:
            raise ValueError(f"{broken} in it has changed")
        return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, UnpicklingError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{checkpoint} is damaged and cannot be resumed from ({reason}); put a copy of it back, "
            f"or start a new run with --trainer.output"
        ) from error
