"""One run, from a recipe to trained weights: data, model and callbacks put together for Lightning's Trainer."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from maskwright.data.dataset import SegmentationDataset
from maskwright.data.problems import reading_notes
from maskwright.errors import UserError
from maskwright.models.family import Family
from maskwright.models.hub import family_class
from maskwright.signals import Terminated
from maskwright.structures import Category
from maskwright.training.callbacks import ExponentialAverage, RunCheckpoints, RunRecords, StopRequest
from maskwright.training.data_sets import DataSets, TrainingData, drawn_images, open_data_sets, prepare_data_sets
from maskwright.training.initial_weights import start_from
from maskwright.training.options import InstanceDataOptions, Recipe
from maskwright.training.recipes import recipe_yaml
from maskwright.training.rehearsal import rehearse
from maskwright.training.run_folder import (
    BEST_WEIGHTS,
    LAST_WEIGHTS,
    TENSORBOARD,
    check_new,
    read_run,
    run_folder,
    shorten,
    take,
)
from maskwright.training.task import TrainingTask
from maskwright.training.validation_pictures import ValidationPictures


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    folder: of the run.
    step: the optimizer step of the newest checkpoint, counted from the beginning of the run.
    metrics: of the last validation of this call; empty where there was none.
    signal_number: the signal that stopped the run early, or None.
    is_first_process: false in the processes that the first one started for further devices.
    """

    folder: Path
    step: int
    metrics: dict[str, float]
    signal_number: int | None
    is_first_process: bool

    @property
    def best(self) -> Path:
        """The weights folder of the best validation; it is there after the first one."""
        return self.folder / BEST_WEIGHTS

    @property
    def last(self) -> Path:
        """The weights folder of the newest checkpoint."""
        return self.folder / LAST_WEIGHTS


def train_recipe(recipe: Recipe, *, resume: bool = False, data_sets: DataSets | None = None) -> TrainingResult:
    """Train as the recipe says, in its `trainer.output` folder (else `runs/NAME`).

    The folder gets `recipe.yaml` (resolved), `last.ckpt`, the weights folders `last` and `best` (averaged
    weights; the best by the first number of `evaluation.measurement.measurements_of`, which `best.json` names),
    `losses.jsonl`, `validation.jsonl` and `tensorboard/`. A resumed run gives the same losses,
    to the bit, as one that was never broken off (same machine, number of threads and devices; on a GPU only
    as far as its kernels are deterministic).

    Args:
        recipe: of `resolve_recipe`.
        resume: go on from the folder's last checkpoint, or from the start if it was stopped before the first.
        data_sets: your own data, in place of the files that the recipe names (see `SegmentationDataset`).

    Raises:
        UserError: the folder holds another run, the data or a model value cannot be used, or the loss is no
            longer finite.
    """
    folder = run_folder(recipe)
    saved = read_run(folder) if resume else None
    if saved is not None:
        saved.require_same_recipe(recipe)
    elif is_first_process():  # the others find a folder that the first one has already taken
        check_new(folder)
    start = 0 if saved is None else saved.step
    if start >= recipe.trainer.steps:
        raise UserError(f"{folder}: this run has taken its {start} steps; raise --trainer.steps to go on")
    data_sets = _open(recipe, data_sets, [] if saved is None else saved.categories)
    model = build_model(recipe, data_sets)
    if saved is not None:
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        saved.require_same_model(model.stored_values(), shapes)
    task = TrainingTask(model, recipe)
    checkpoint = None if saved is None else saved.checkpoint
    if checkpoint is None and recipe.trainer.initial_weights is not None:
        start_from(model, recipe.trainer.initial_weights, announce=is_first_process())
    if is_first_process() and not resume:
        rehearse(model, recipe)
    drawn = replace(data_sets, training=drawn_images(data_sets.training, recipe.data, model.learns_from_boxes))
    data = TrainingData(drawn, recipe.data, recipe.trainer.seed)
    with StopRequest(announce=is_first_process()) as stop_request:
        checkpoints = RunCheckpoints(folder, recipe, stop_request)
        trainer = _create_trainer(recipe, folder, checkpoints, start)
        if is_first_process():  # from here on the folder is this run's
            take(folder, recipe_yaml(recipe))
            _announce(recipe, folder, model, data_sets, len(drawn.training), trainer, start)
        with _errors_of_fit_told(stop_request):
            # `last.ckpt` is our own file; even so, nothing but tensors and plain values is read from it.
            trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    is_whole = checkpoints.saved_step == recipe.trainer.steps  # also where a signal came during the last validation
    stopped_by = None if is_whole else stop_request.signal_number
    return TrainingResult(folder, checkpoints.saved_step, task.validation_metrics, stopped_by, trainer.is_global_zero)


@contextmanager
def _errors_of_fit_told(stop_request: StopRequest) -> Iterator[None]:
    """Say that memory is short; let what Lightning makes of a second signal be that signal again."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        advice = "give a smaller data.batch_size, and a larger trainer.accumulate in its place"
        raise UserError(f"out of memory ({str(error).splitlines()[0]}): {advice}") from error
    except SystemExit as error:  # also its answer to SIGTERM before the first step
        if stop_request.signal_number is None:
            raise
        raise (Terminated if stop_request.signal_number == signal.SIGTERM else KeyboardInterrupt) from error


def _open(recipe: Recipe, data_sets: DataSets | None, saved_categories: list[Category]) -> DataSets:
    """The data sets of a run; files that list its classes in another order than it began with are mapped by name."""
    image_size = recipe.model["image_size"]
    if data_sets is not None:
        return prepare_data_sets(data_sets, recipe.data, image_size)
    opened = open_data_sets(recipe.data, image_size, recipe.model.get("categories"))
    before, now = ([category["name"] for category in some] for some in (saved_categories, opened.training.categories))
    if before != now and sorted(before) == sorted(now):
        return open_data_sets(recipe.data, image_size, saved_categories)
    return opened


def build_model(recipe: Recipe, data_sets: DataSets) -> Family[Any]:
    """The recipe's model with first weights by the recipe's seed, knowing its classes.

    Raises:
        UserError: the seed is no seed to torch, or the constructor refuses a value.
    """
    values = dict(recipe.model)
    values["categories"] = data_sets.training.categories
    if data_sets.training.task == "instance":  # of a panoptic map every class has masks
        values["mask_classes"] = data_sets.training.find_mask_classes()
    try:
        torch.manual_seed(recipe.trainer.seed)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"trainer.seed must be below 2**64, but got {recipe.trainer.seed}") from error
    family = family_class(recipe.family)
    try:
        config = family.config_class(**values)
        if recipe.trainer.initial_weights is not None:
            config = config.without_initial_weights()
        model = family(config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"model: {' '.join(str(error).split())}") from error
    model.train()  # lets the model put its frozen parts into inference mode; Lightning leaves modes as they are
    return model.to(memory_format=torch.channels_last) if recipe.trainer.channels_last else model


def is_first_process() -> bool:
    """Whether this is the process that a person started (or rank 0 of those that a cluster started)."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _create_trainer(recipe: Recipe, folder: Path, checkpoints: RunCheckpoints, start: int) -> Trainer:
    """The Trainer of a run that begins after step `start`.

    Raises:
        UserError: a value of the section `trainer` does not fit the others or the machine.
    """
    _quieten_lightning()
    options = recipe.trainer
    callbacks: list[Callback] = [] if options.ema_decay is None else [ExponentialAverage(options.ema_decay)]
    callbacks += [RunRecords(folder, options.log_every_steps), ValidationPictures(), checkpoints]
    try:
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
            val_check_interval=options.validate_every_steps * options.accumulate,  # Lightning counts batches here
            check_val_every_n_epoch=None,  # the training loader has no end, so there are no epochs
            num_sanity_val_steps=1,
            log_every_n_steps=options.log_every_steps,
            callbacks=callbacks,
            # Without `purge_step` the steps after the checkpoint would stand in TensorBoard twice.
            logger=TensorBoardLogger(folder, name=TENSORBOARD, version="", purge_step=start or None),
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,  # the loaders give every rank its own share
        )
    except (MisconfigurationException, ValueError) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error


def _seen(model: Family[Any]) -> list[str]:
    """The classes whose masks are learnt, by name; nothing of a panoptic model, which learns all."""
    if model.task == "panoptic":
        return []
    return [f"seen classes, whose masks are learnt: {len(model.mask_classes)} ({shorten(model.mask_classes)})"]


def _announce(
    recipe: Recipe, folder: Path, model: Family[Any], data_sets: DataSets, drawn: int, trainer: Trainer, start: int
) -> None:
    """What is about to happen, on stderr."""
    options, batch_size = recipe.trainer, recipe.data.batch_size
    parameters = sum(parameter.numel() for parameter in model.parameters())
    undrawn = len(data_sets.training) - drawn
    effective = batch_size * trainer.world_size * options.accumulate
    lines = [
        f"run: {folder}, " + (f"resumed at step {start} of {options.steps}" if start else f"{options.steps} steps"),
        f"model: {recipe.family}, {parameters / 1e6:.2f} million parameters",
        "training: " + data_sets.training.contents(),
        *([f"images without a mask are not drawn: {undrawn}"] if undrawn else []),
        *_seen(model),
        "validation: " + data_sets.validation.contents(),
        f"device: {trainer.strategy.root_device}, {trainer.world_size} process(es), precision {options.precision}",
        f"batch: {effective} images ({batch_size} per device x {trainer.world_size} device(s) x "
        f"{options.accumulate} accumulated)",
    ]
    files = "files" if isinstance(recipe.data, InstanceDataOptions) and recipe.data.sets else "file"
    lines += _reading_notes(f"the training {files}", data_sets.training)
    if recipe.data.has_validation_files:  # else both come from the same files, or from none
        lines += _reading_notes(f"the validation {files}", data_sets.validation)
    print("\n".join(lines), file=sys.stderr)


def _reading_notes(name: str, dataset: SegmentationDataset) -> list[str]:
    return reading_notes(name, dataset.skipped, dataset.repaired)


def _quieten_lightning() -> None:
    """Keep what Lightning says about itself off the screen; its warnings about the run stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # frozen parts are
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
