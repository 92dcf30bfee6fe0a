"""What a run tells while it goes: `losses.jsonl`, `validation.jsonl` and the progress bar on stderr."""

# ruff: noqa: ARG002  (Lightning gives its hooks more than each of them needs)

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from tqdm import tqdm

from maskwright.errors import UserError
from maskwright.training.run_folder import LOSSES, VALIDATION
from maskwright.training.task import TrainingTask


class RunRecords(Callback):
    """Writes one line of losses per step and one line of metrics per validation, and shows the progress.

    The values are the first rank's own, with every bit. A resumed run first drops the lines of steps
    after its checkpoint, so each step stands in the file once. The progress bar counts optimizer steps.
    """

    def __init__(self, folder: Path, every: int) -> None:
        """Record into `folder`; losses leave the device every `every` steps (on a CPU at once)."""
        self._folder = folder
        self._every = every
        self._batches: list[dict[str, Tensor]] = []
        self._pending: list[tuple[int, list[dict[str, Tensor]]]] = []
        self._bar: tqdm[Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cut the records to the checkpoint's step and open the bar there."""
        if not trainer.is_global_zero:
            return
        for name in (LOSSES, VALIDATION):
            _cut_after(self._folder / name, trainer.global_step)
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
        self._batches.append(outputs["losses"])
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self._pending.append((trainer.global_step, self._batches))
        self._batches = []
        if self._bar is not None:
            self._bar.update()
        if pl_module.device.type == "cpu" or trainer.global_step % self._every == 0:
            self._flush(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint never knows more than the records."""
        self._flush(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write down the metrics of this validation."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        metrics = cast(TrainingTask, pl_module).validation_metrics
        values = {name: None if math.isnan(value) else value for name, value in metrics.items()}
        _append(self._folder / VALIDATION, [{"step": trainer.global_step, **values}])
        self.say(f"step {trainer.global_step}: " + ", ".join(_shown(metrics)))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def say(self, sentence: str) -> None:
        """A line on stderr that leaves the progress bar whole."""
        tqdm.write(sentence, file=sys.stderr)

    def _flush(self, trainer: Trainer) -> None:
        lines = [{"step": step, **_means(batches)} for step, batches in self._pending]
        self._pending = []
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


def _means(batches: list[dict[str, Tensor]]) -> dict[str, float]:
    return {name: float(torch.stack([losses[name].float() for losses in batches]).mean()) for name in batches[0]}


def _shown(metrics: dict[str, float]) -> list[str]:
    names = ("mask_ap", "box_ap", "mask_iou", "mask_iou_seen", "mask_iou_unseen", "pq", "pq_things", "pq_stuff")
    return [f"{name} {metrics[name]:.4f}" for name in names if not math.isnan(metrics.get(name, math.nan))]


def _append(path: Path, lines: list[dict[str, Any]]) -> None:
    with path.open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))


def _cut_after(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`, and a line that a crash left unfinished."""
    if not path.is_file():
        return
    kept = [line for line in path.read_text().splitlines() if line.endswith("}") and json.loads(line)["step"] <= step]
    replacement = path.with_name(f".{path.name}.new")
    replacement.write_text("".join(line + "\n" for line in kept))
    replacement.replace(path)
