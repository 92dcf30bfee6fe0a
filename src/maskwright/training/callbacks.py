"""What happens after each optimizer step, in this order: average the weights, record the losses, save, stop."""

# ruff: noqa: ARG002  (Lightning gives its hooks more than each of them needs)

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from maskwright.errors import UserError
from maskwright.files import write_json, write_whole
from maskwright.models.family import Family
from maskwright.models.hub import save_pretrained
from maskwright.training.options import Recipe
from maskwright.training.recipes import recipe_yaml
from maskwright.training.run_folder import (
    BEST_SCORE,
    BEST_WEIGHTS,
    LAST_CHECKPOINT,
    LAST_WEIGHTS,
    LOSSES,
    MODEL_VALUES,
    VALIDATION,
    WEIGHTS_PREFIX,
    read_best_score,
)
from maskwright.training.task import TrainingTask


class ExponentialAverage(WeightAveraging):
    """Lightning's weight averaging with a decay that warms up, so that short runs forget their first weights.

    After n averaged steps the decay is `min(decay, (1 + n) / (10 + n))`; Lightning's own `EMAWeightAveraging` has one
    decay for the whole run. Buffers (batch-norm statistics) are averaged like weights. Lightning swaps the average in
    for validation and saves it in checkpoints, its state under the name of this class.
    """

    def __init__(self, decay: float) -> None:
        """Average with at most `decay`, a number between 0 and 1."""
        super().__init__(multi_avg_fn=self._average)
        self._decay = decay

    def _average(self, averaged: list[Tensor], current: list[Tensor], steps: Tensor | int) -> None:
        count = int(steps)
        blend = get_ema_multi_avg_fn(min(self._decay, (1 + count) / (10 + count)))
        blend(averaged, current, steps)


class RunRecords(Callback):
    """Writes one line of losses per step and one line of metrics per validation, and shows the progress on stderr.

    The losses are the first rank's own, with every bit. A resumed run first drops the lines of steps after its
    checkpoint, so each step stands in the file once: Lightning's `CSVLogger` cannot. The progress bar counts optimizer
    steps; Lightning's counts batches, and of an endless loader it knows no total.
    """

    def __init__(self, folder: Path, log_every_steps: int) -> None:
        """Record into `folder`; losses leave the device every `log_every_steps` steps (on a CPU at once)."""
        self._folder = folder
        self._log_every_steps = log_every_steps
        self._batch_losses: list[dict[str, Tensor]] = []  # of the step that is being accumulated
        self._unwritten: list[tuple[int, list[dict[str, Tensor]]]] = []
        self._bar: tqdm[Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cut the records to the checkpoint's step and open the bar there."""
        if not trainer.is_global_zero:
            return
        for name in (LOSSES, VALIDATION):
            _drop_lines_after(self._folder / name, trainer.global_step)
        self._bar = tqdm(
            total=trainer.max_steps,
            initial=trainer.global_step,
            unit="step",
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 10,
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep this batch's losses; after an optimizer step, count it."""
        self._batch_losses.append(outputs["losses"])
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self._unwritten.append((trainer.global_step, self._batch_losses))
        self._batch_losses = []
        if self._bar is not None:
            self._bar.update()
        if pl_module.device.type == "cpu" or trainer.global_step % self._log_every_steps == 0:
            self._write_losses(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write first: a checkpoint never knows more than the records."""
        self._write_losses(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write down the metrics of this validation."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        metrics = cast(TrainingTask, pl_module).validation_metrics
        numbers = {name: None if math.isnan(value) else value for name, value in metrics.items()}
        _append(self._folder / VALIDATION, [{"step": trainer.global_step, **numbers}])
        shown = ("mask_ap", "box_ap", "mask_iou", "mask_iou_seen", "mask_iou_unseen", "pq", "pq_things", "pq_stuff")
        parts = [f"{name} {metrics[name]:.4f}" for name in shown if not math.isnan(metrics.get(name, math.nan))]
        tqdm.write(f"step {trainer.global_step}: " + ", ".join(parts), file=sys.stderr)  # leaves the bar whole

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _write_losses(self, trainer: Trainer) -> None:
        lines = [{"step": step, **_means(batch_losses)} for step, batch_losses in self._unwritten]
        self._unwritten = []
        if trainer.is_global_zero and lines:
            _append(self._folder / LOSSES, lines)
            if self._bar is not None:
                self._bar.set_postfix(loss=f"{lines[-1]['loss']:.4f}", refresh=False)
        broken = [line for line in lines if not math.isfinite(line["loss"])]
        # Asked of all ranks, since one that stops alone leaves the others waiting for it.
        if trainer.strategy.reduce_boolean_decision(bool(broken), all=False):
            step = (broken or lines)[0]["step"]
            raise UserError(
                f"the loss is no longer a finite number at step {step}: lower optimizer.learning_rate, lengthen "
                f"optimizer.warmup_steps or lower optimizer.gradient_clip, and start a new run"
            )


class StopRequest:
    """While entered, SIGINT and SIGTERM are noted in `signal_number`; a second one interrupts at once.

    Lightning's own handling of SIGTERM breaks off between two accumulated batches and saves nothing; Ctrl-C, in the
    middle of a step.

    Entered before loader workers are forked: they inherit the handler, and a Ctrl-C, which reaches every process of
    the terminal, then leaves them working until the run has stopped.

    Attributes:
        signal_number: the signal that came, or None.
    """

    def __init__(self, announce: bool = True) -> None:
        """Say on stderr that the signal was heard only if `announce` (one process of several does)."""
        self.signal_number: int | None = None
        self._announce = announce
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python sets no handlers
            self._previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            self.listen()
        return self

    def listen(self) -> None:
        """Put the handlers in place (again): when a fit begins, Lightning sets its own for SIGTERM."""
        for number in self._previous:
            signal.signal(number, self._on_signal)

    def __exit__(self, *_: object) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:
            return
        if self.signal_number is not None:
            raise KeyboardInterrupt
        self.signal_number = number
        if self._announce:  # print() may not be re-entered from a signal handler
            os.write(2, b"\nstopping after this step; once more to stop without a checkpoint\n")


class RunCheckpoints(Checkpoint):
    """Saves `last.ckpt` with the weights folder `last`, and the weights folder `best` after a best validation.

    Checkpoints are taken after whole optimizer steps only: when the recipe's seconds have passed, before each
    validation, when a signal asks to stop, and at the end. (Lightning's `ModelCheckpoint` may save by time between two
    accumulated batches, whose gradients are then lost.) A step that is validated is saved after its validation, since
    Lightning would not repeat it on resume.

    Attributes:
        saved_step: the step of the newest checkpoint; 0 before the first.
    """

    def __init__(self, folder: Path, recipe: Recipe, stop_request: StopRequest) -> None:
        """Save into `folder` as `recipe.trainer` says; `stop_request` is asked after every step."""
        self.saved_step = 0
        self._folder = folder
        self._recipe = recipe
        self._stop_request = stop_request
        self._saved_at = time.monotonic()
        self._weights: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and hear the signals that Lightning has taken over by now."""
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
        seconds = self._recipe.trainer.checkpoint_every_seconds
        overdue = trainer.is_global_zero and time.monotonic() - self._saved_at >= seconds
        # One decision for all ranks: clocks and the arrival of signals differ between them.
        if trainer.strategy.reduce_boolean_decision(stopping or overdue, all=False):
            stopping = trainer.strategy.reduce_boolean_decision(stopping, all=False)
            overdue = True
        is_validated = self._is_validated(trainer, step)
        if not is_validated and (stopping or overdue or self._is_validated(trainer, step + 1)):
            self._save(trainer, pl_module)
        if is_validated and not stopping:
            # Lightning validates every so many steps; the last step only when it is asked to stop there.
            trainer.should_stop = step == trainer.max_steps
        if stopping:  # at once: a step that is yet to be validated is taken again on resume
            trainer.limit_val_batches = 0
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, as best if no validation was better so far."""
        if trainer.sanity_checking:
            return
        name, score = next(iter(cast(TrainingTask, pl_module).validation_metrics.items()))
        # Of equal ones the last is taken: the first validations of a detector may all be 0.
        is_best = trainer.is_global_zero and score >= read_best_score(self._folder, name)
        self._save(trainer, pl_module, {name: score} if is_best else None)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the recipe and the model's values in; keep the weights, averaged where there is an average.

        Lightning calls checkpoint callbacks last, after `WeightAveraging` has put the average in its place.
        """
        checkpoint["recipe"] = recipe_yaml(self._recipe)
        checkpoint[MODEL_VALUES] = cast(Family[Any], pl_module.model).stored_values()
        state: dict[str, Tensor] = checkpoint["state_dict"]
        self._weights = {
            key.removeprefix(WEIGHTS_PREFIX): value for key, value in state.items() if key.startswith(WEIGHTS_PREFIX)
        }

    def _is_validated(self, trainer: Trainer, step: int) -> bool:
        is_due = step % self._recipe.trainer.validate_every_steps == 0 or step == trainer.max_steps
        return trainer.enable_validation and is_due

    def _save(self, trainer: Trainer, pl_module: LightningModule, best: Mapping[str, float] | None = None) -> None:
        """Save the checkpoint and the last weights, and the best ones with their score, `best`.

        The checkpoint comes last: whoever finds that of the last step finds the weights, too.
        """
        # Lightning writes into the system's temporary folder first; moved to another disk, a file may appear in part.
        path = self._folder / LAST_CHECKPOINT
        scratch = path.with_name(f".{LAST_CHECKPOINT}.new")
        trainer.save_checkpoint(scratch)
        if trainer.is_global_zero:
            self._save_weights(pl_module, LAST_WEIGHTS)
            if best is not None:
                self._save_weights(pl_module, BEST_WEIGHTS)
                write_json(self._folder / BEST_SCORE, {"step": trainer.global_step, **best})
            scratch.replace(path)
        self._saved_at = time.monotonic()
        self.saved_step = trainer.global_step

    def _save_weights(self, pl_module: LightningModule, name: str) -> None:
        save_pretrained(cast(Family[Any], pl_module.model), self._folder / name, state=self._weights)


def _means(batch_losses: list[dict[str, Tensor]]) -> dict[str, float]:
    return {name: float(torch.stack([one[name].float() for one in batch_losses]).mean()) for name in batch_losses[0]}


def _append(path: Path, lines: list[dict[str, Any]]) -> None:
    with path.open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))


def _drop_lines_after(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`, and a line that a crash left unfinished."""
    if not path.is_file():
        return
    kept = [line for line in path.read_text().splitlines() if line.endswith("}") and json.loads(line)["step"] <= step]
    write_whole(path, lambda temporary: temporary.write_text("".join(line + "\n" for line in kept)))
