"""Recipe in, trained model out: one run and its folder."""

from __future__ import annotations

import logging
import shlex
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from maskwright.errors import UserError
from maskwright.models.hub import family_class
from maskwright.training.options import Recipe
from maskwright.training.recipes import read_recipe_file, recipe_names, recipe_yaml, resolve_recipe

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from maskwright.training.batches import DataSets
    from maskwright.training.checkpoints import RunCheckpoints
    from maskwright.training.interruption import StopRequest

RECIPE = "recipe.yaml"

# What may differ between a run and its continuation; anything else would make it another experiment.
_FREE_ON_RESUME = {
    "data": {"images", "validation_images", "num_workers"},
    "trainer": {
        "steps", "output", "validate_every_steps", "checkpoint_every_seconds", "log_every_steps", "accelerator",
        "devices", "num_nodes", "strategy",
    },
}  # fmt: skip


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    directory: of the run, with the weights folders `last` and (after a validation) `best`.
    step: the optimizer step of the newest checkpoint, counted from the beginning of the run.
    metrics: of the last validation of this call; empty where there was none.
    signal_number: the signal that stopped the run early, or None.
    """

    directory: Path
    step: int
    metrics: dict[str, float]
    signal_number: int | None


def main(arguments: Sequence[str]) -> int:
    """`maskwright train RECIPE [--resume last] [--SECTION.KEY VALUE ...]`; the exit code.

    0 when the run is finished, 130 after Ctrl-C (with a checkpoint), 143 after SIGTERM.

    Raises:
        UserError: the recipe, the data or the run's folder cannot be used.
    """
    if not arguments or arguments[0].startswith("-"):
        names = ", ".join(recipe_names())
        raise UserError(f"expected a recipe first, as in `maskwright train NAME|FILE`; the recipes are {names}")
    name, *overrides = arguments
    overrides, resume = _take_resume(overrides)
    result = train(resolve_recipe(name, overrides), resume=resume)
    if result.signal_number is not None:
        again = shlex.join(["maskwright", "train", name, *overrides, "--resume", "last"])
        print(f"stopped at step {result.step} with a checkpoint; go on with: {again}", file=sys.stderr)
        return 128 + result.signal_number
    score = result.metrics.get("mask_iou")
    print(result.directory / "best" if (result.directory / "best").is_dir() else result.directory / "last")
    print(f"finished {result.step} steps" + ("" if score is None else f"; mask_iou {score:.4f}"), file=sys.stderr)
    return 0


def train(recipe: Recipe, *, resume: bool = False) -> TrainingResult:
    """Train as the recipe says, in its `trainer.output` folder (else `runs/NAME`).

    The folder gets `recipe.yaml` (resolved), `last.ckpt`, the weights folders `last` and `best` (averaged
    weights), `losses.jsonl`, `validation.jsonl` and `tensorboard/`. A resumed run gives the same losses,
    to the bit, as one that was never broken off (same machine, number of threads and devices).

    Args:
        recipe: of `resolve_recipe`.
        resume: go on from the folder's last checkpoint, or from the start if it was stopped before the first.

    Raises:
        UserError: the folder holds another run, the data or a model value cannot be used, or the loss is no
            longer finite.
    """
    try:
        from lightning.fabric.utilities.rank_zero import rank_zero_only

        from maskwright.training.batches import open_data_sets
        from maskwright.training.interruption import StopRequest
    except ModuleNotFoundError as error:
        raise UserError("training needs Lightning: pip install 'maskwright[train]'") from error
    # Processes that the first one starts find its folder already in use, rightly.
    is_first = getattr(rank_zero_only, "rank", 0) == 0
    directory = Path(recipe.trainer.output or Path("runs") / recipe.name)
    if is_first:
        _check_directory(directory, recipe, resume)
    checkpoint = directory / "last.ckpt" if resume and (directory / "last.ckpt").is_file() else None
    start = 0 if checkpoint is None else _step_of(checkpoint)
    if start >= recipe.trainer.steps:
        raise UserError(f"{directory}: this run has taken its {start} steps; raise --trainer.steps to go on")
    data_sets = open_data_sets(recipe.data, recipe.model["image_size"], recipe.model.get("categories"))
    model = build_model(recipe, data_sets)
    if is_first:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / RECIPE).write_text(recipe_yaml(recipe))
    with StopRequest(announce=is_first) as stop_request:
        return _fit(recipe, directory, model, data_sets, checkpoint, stop_request, start)


def build_model(recipe: Recipe, data_sets: DataSets) -> nn.Module:
    """The recipe's model with first weights by the recipe's seed, knowing its classes.

    Raises:
        UserError: the constructor refuses a value.
    """
    values = dict(recipe.model)
    values["categories"] = data_sets.training.categories
    values["mask_classes"] = data_sets.training.mask_classes
    torch.manual_seed(recipe.trainer.seed)
    try:
        model = family_class(recipe.family)(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"model: {error}") from error
    return model.to(memory_format=torch.channels_last) if recipe.trainer.channels_last else model


def _fit(
    recipe: Recipe,
    directory: Path,
    model: nn.Module,
    data_sets: DataSets,
    checkpoint: Path | None,
    stop_request: StopRequest,
    start: int,
) -> TrainingResult:
    from maskwright.training.batches import TrainingData
    from maskwright.training.checkpoints import RunCheckpoints
    from maskwright.training.task import TrainingTask

    task = TrainingTask(model, recipe.optimizer, recipe.trainer.steps, recipe.trainer.seed)
    checkpoints = RunCheckpoints(
        directory,
        recipe_yaml(recipe),
        recipe.trainer.checkpoint_every_seconds,
        recipe.trainer.validate_every_steps,
        stop_request,
    )
    trainer = _create_trainer(recipe, directory, checkpoints, start)
    data = TrainingData(data_sets, recipe.data, recipe.trainer.seed)
    if trainer.is_global_zero:
        _announce(recipe, directory, model, data_sets, trainer, start)
    try:
        # `last.ckpt` is our own file; even so, nothing but tensors and plain values is read from it.
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as error:
        if stop_request.signal_number is None:
            raise
        raise KeyboardInterrupt from error  # Lightning turns a second Ctrl-C into an exit
    return TrainingResult(directory, checkpoints.saved_step, task.validation_metrics, stop_request.signal_number)


def _create_trainer(recipe: Recipe, directory: Path, checkpoints: RunCheckpoints, start: int) -> Trainer:
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import TensorBoardLogger

    from maskwright.training.averaging import ExponentialAverage
    from maskwright.training.records import RunRecords

    _quieten_lightning()
    options = recipe.trainer
    callbacks: list[Callback] = [RunRecords(directory, options.log_every_steps)]
    if options.ema_decay is not None:
        callbacks.append(ExponentialAverage(options.ema_decay))
    callbacks.append(checkpoints)
    return Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=options.strategy,
        precision=options.precision,
        max_steps=options.steps,
        accumulate_grad_batches=options.accumulate,
        gradient_clip_val=recipe.optimizer.gradient_clip,
        val_check_interval=options.validate_every_steps * options.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=1,
        log_every_n_steps=options.log_every_steps,
        callbacks=callbacks,
        logger=TensorBoardLogger(directory, name="tensorboard", version="", purge_step=start or None),
        default_root_dir=directory,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,  # the loaders give every rank its own share
    )


def _check_directory(directory: Path, recipe: Recipe, resume: bool) -> None:
    """Refuse to overwrite anything, and to continue a run as another experiment."""
    saved = directory / RECIPE
    if not resume:
        if saved.is_file():
            raise UserError(
                f"{directory} already holds a run: continue it with --resume last, "
                f"or give another folder with --trainer.output"
            )
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise UserError(f"{directory} is not an empty folder: give another one with --trainer.output")
        return
    if not saved.is_file():
        raise UserError(f"{directory} holds no run to resume; leave --resume out to start one")
    before, now = asdict(read_recipe_file(saved)), asdict(recipe)
    if before["family"] != now["family"]:
        raise UserError(f"{saved}: this run trains family {before['family']}, not {now['family']}")
    for section in ("model", "data", "optimizer", "trainer"):
        for key in before[section].keys() - _FREE_ON_RESUME.get(section, set()):
            if before[section][key] != now[section][key]:
                raise UserError(
                    f"{saved}: {section}.{key} is {before[section][key]!r} in this run and cannot become "
                    f"{now[section][key]!r} on resume; start a new run with --trainer.output"
                )


def _step_of(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])


def _announce(
    recipe: Recipe, directory: Path, model: nn.Module, data_sets: DataSets, trainer: Trainer, start: int
) -> None:
    """What is about to happen, on stderr."""
    options, batch_size = recipe.trainer, recipe.data.batch_size
    parameters = sum(parameter.numel() for parameter in model.parameters())
    training, classes = data_sets.training, len(data_sets.training.categories)
    effective = batch_size * trainer.world_size * options.accumulate
    lines = [
        f"run: {directory}, " + (f"resumed at step {start} of {options.steps}" if start else f"{options.steps} steps"),
        f"model: {recipe.family}, {parameters / 1e6:.2f} million parameters",
        f"training: {len(training)} images, masks of {len(training.mask_classes)} of {classes} classes",
        f"validation: {len(data_sets.validation)} images",
        f"device: {trainer.strategy.root_device}, {trainer.world_size} process(es), precision {options.precision}",
        f"batch: {effective} images ({batch_size} per device x {trainer.world_size} device(s) x "
        f"{options.accumulate} accumulated)",
    ]
    if training.skipped:
        counts = ", ".join(f"{count} {kind}" for kind, count in training.skipped.items())
        lines.append(f"skipped annotations: {counts} (`maskwright data check` names each)")
    print("\n".join(lines), file=sys.stderr)


def _quieten_lightning() -> None:
    """Keep what Lightning says about itself off the screen; its warnings about the run stay."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)


def _take_resume(arguments: list[str]) -> tuple[list[str], bool]:
    """The arguments without `--resume last`, and whether it was there."""
    joined = [argument for argument in arguments if argument != "--resume=last"]
    resume = len(joined) < len(arguments)
    while "--resume" in joined:
        at = joined.index("--resume")
        if joined[at + 1 : at + 2] != ["last"]:
            raise UserError("--resume takes one value, `last`: the run in the folder of --trainer.output is continued")
        del joined[at : at + 2]
        resume = True
    return joined, resume
