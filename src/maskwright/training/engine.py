"""One run on Lightning, through its public interface: model, data, callbacks and trainer put together."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from maskwright.data.dataset import SegmentationDataset
from maskwright.data.problems import reading_notes
from maskwright.errors import UserError
from maskwright.models.hub import family_class
from maskwright.signals import Terminated
from maskwright.training.averaging import ExponentialAverage
from maskwright.training.checkpoints import RunCheckpoints, read_step
from maskwright.training.data_sets import DataSets, TrainingData, open_data_sets, prepare_data_sets
from maskwright.training.initial_weights import start_from
from maskwright.training.interruption import StopRequest
from maskwright.training.options import Recipe
from maskwright.training.recipes import recipe_yaml
from maskwright.training.records import RunRecords
from maskwright.training.rehearsal import rehearse
from maskwright.training.run_folder import (
    LAST_CHECKPOINT,
    TENSORBOARD,
    check_new,
    check_resumable,
    run_folder,
    take,
)
from maskwright.training.task import TrainingTask


def fit(recipe: Recipe, resume: bool, data_sets: DataSets | None = None) -> dict[str, Any]:
    """Train as `run.train` says; the values of its `TrainingResult`.

    Raises:
        UserError: as `run.train`.
    """
    folder = run_folder(recipe)
    if is_first_process():  # the others find a folder that the first one has already taken
        if resume:
            check_resumable(folder, recipe)
        else:
            check_new(folder)
    checkpoint = folder / LAST_CHECKPOINT if resume and (folder / LAST_CHECKPOINT).is_file() else None
    start = 0 if checkpoint is None else read_step(checkpoint)
    if start >= recipe.trainer.steps:
        raise UserError(f"{folder}: this run has taken its {start} steps; raise --trainer.steps to go on")
    if data_sets is None:
        data_sets = open_data_sets(recipe.data, recipe.model["image_size"], recipe.model.get("categories"))
    else:
        data_sets = prepare_data_sets(data_sets, recipe.data, recipe.model["image_size"])
    task = TrainingTask(build_model(recipe, data_sets), recipe.optimizer, recipe.trainer.steps, recipe.trainer.seed)
    if checkpoint is None and recipe.trainer.initial_weights is not None:
        start_from(task.model, recipe.trainer.initial_weights, announce=is_first_process())
    if is_first_process() and not resume:
        rehearse(task.model, recipe)
    with StopRequest(announce=is_first_process()) as stop_request:
        checkpoints = _create_checkpoints(recipe, folder, stop_request)
        try:
            trainer = _create_trainer(recipe, folder, checkpoints, start)
        except (MisconfigurationException, ValueError) as error:
            raise UserError(f"trainer: {' '.join(str(error).split())}") from error
        if is_first_process():  # from here on the folder is this run's
            take(folder, recipe_yaml(recipe))
            _announce(recipe, folder, task.model, data_sets, trainer, start)
        _run(trainer, task, TrainingData(data_sets, recipe.data, recipe.trainer.seed), checkpoint, stop_request)
    return {
        "folder": folder,
        "step": checkpoints.saved_step,
        "metrics": task.validation_metrics,
        "signal_number": stop_request.signal_number,
        "is_first_process": trainer.is_global_zero,
    }


def build_model(recipe: Recipe, data_sets: DataSets) -> nn.Module:
    """The recipe's model with first weights by the recipe's seed, knowing its classes.

    Raises:
        UserError: the seed is no seed to torch, or the constructor refuses a value.
    """
    values = dict(recipe.model)
    values["categories"] = data_sets.training.categories
    if data_sets.training.task == "instance":  # of a panoptic map every class has masks
        values["mask_classes"] = data_sets.training.mask_classes
    if recipe.trainer.initial_weights is not None and "pretrained_backbone" in values:
        values["pretrained_backbone"] = False  # other weights take their place
    try:
        torch.manual_seed(recipe.trainer.seed)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"trainer.seed must be below 2**64, but got {recipe.trainer.seed}") from error
    try:
        model = family_class(recipe.family)(**values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"model: {' '.join(str(error).split())}") from error
    model.train()  # lets the model put its frozen parts into inference mode; Lightning leaves modes as they are
    return model.to(memory_format=torch.channels_last) if recipe.trainer.channels_last else model


def is_first_process() -> bool:
    """Whether this is the process that a person started (or rank 0 of those that a cluster started)."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _run(
    trainer: Trainer, task: TrainingTask, data: TrainingData, checkpoint: Path | None, stop_request: StopRequest
) -> None:
    try:
        # `last.ckpt` is our own file; even so, nothing but tensors and plain values is read from it.
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as error:
        if stop_request.signal_number is None:
            raise
        # Lightning turns a second signal, and SIGTERM before the first step, into an exit.
        raise (Terminated if stop_request.signal_number == signal.SIGTERM else KeyboardInterrupt) from error


def _create_checkpoints(recipe: Recipe, folder: Path, stop_request: StopRequest) -> RunCheckpoints:
    options = recipe.trainer
    return RunCheckpoints(
        folder, recipe_yaml(recipe), options.checkpoint_every_seconds, options.validate_every_steps, stop_request
    )


def _create_trainer(recipe: Recipe, folder: Path, checkpoints: RunCheckpoints, start: int) -> Trainer:
    _quieten_lightning()
    options = recipe.trainer
    callbacks: list[Callback] = [RunRecords(folder, options.log_every_steps)]
    if options.ema_decay is not None:
        callbacks.append(ExponentialAverage(options.ema_decay))
    callbacks.append(checkpoints)
    return Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=options.strategy,
        sync_batchnorm=options.sync_batchnorm and options.accelerator != "cpu" and torch.cuda.is_available(),
        precision=options.precision,
        max_steps=options.steps,
        accumulate_grad_batches=options.accumulate,
        gradient_clip_val=recipe.optimizer.gradient_clip,
        val_check_interval=options.validate_every_steps * options.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=1,
        log_every_n_steps=options.log_every_steps,
        callbacks=callbacks,
        logger=TensorBoardLogger(folder, name=TENSORBOARD, version="", purge_step=start or None),
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,  # the loaders give every rank its own share
    )


def _announce(
    recipe: Recipe, folder: Path, model: nn.Module, data_sets: DataSets, trainer: Trainer, start: int
) -> None:
    """What is about to happen, on stderr."""
    options, batch_size = recipe.trainer, recipe.data.batch_size
    parameters = sum(parameter.numel() for parameter in model.parameters())
    effective = batch_size * trainer.world_size * options.accumulate
    lines = [
        f"run: {folder}, " + (f"resumed at step {start} of {options.steps}" if start else f"{options.steps} steps"),
        f"model: {recipe.family}, {parameters / 1e6:.2f} million parameters",
        "training: " + data_sets.training.contents(),
        "validation: " + data_sets.validation.contents(),
        f"device: {trainer.strategy.root_device}, {trainer.world_size} process(es), precision {options.precision}",
        f"batch: {effective} images ({batch_size} per device x {trainer.world_size} device(s) x "
        f"{options.accumulate} accumulated)",
    ]
    lines += _reading_notes("training", data_sets.training)
    if recipe.data.validation_annotations is not None:  # else both come from one file, or from no file
        lines += _reading_notes("validation", data_sets.validation)
    print("\n".join(lines), file=sys.stderr)


def _reading_notes(name: str, dataset: SegmentationDataset) -> list[str]:
    return reading_notes(f"the {name} file", dataset.skipped, dataset.repaired)


def _quieten_lightning() -> None:
    """Keep what Lightning says about itself off the screen; its warnings about the run stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # frozen parts are
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
