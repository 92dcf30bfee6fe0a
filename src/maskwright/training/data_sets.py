"""The data sets of a recipe, checked before training starts, and their loaders."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from maskwright.data.dataset import DataSource, SegmentationDataset, split_by_hash
from maskwright.data.formats import open_data_set
from maskwright.data.loaders import Batch, evaluation_loader, training_loader
from maskwright.data.union import UnionSource, open_union
from maskwright.errors import UserError
from maskwright.structures import Category, Task
from maskwright.training.options import DataOptions, InstanceDataOptions


@dataclass(frozen=True)
class DataSets:
    """Training images with what may be learnt of them, validation images with all that is known."""

    training: SegmentationDataset
    validation: SegmentationDataset


def open_data_sets(options: DataOptions, image_size: int, categories: list[Category] | None) -> DataSets:
    """Open what a recipe's `data` names; without a validation file a share of the images is set aside.

    Args:
        options: the section `data` of a recipe, whose class says what kind of data it is.
        image_size: side of the model's input; `options.side` of it is that of the training images.
        categories: the label space; None takes the training file's own, or unites those of several sets.

    Raises:
        UserError: a path is missing or unusable, a class unknown, a value of the augmentation out of its range,
            or no image has a mask that may be learnt.
    """
    training = _open(replace(options.training_source(), categories=categories), options.task)
    validation = _open(replace(options.validation_source(), categories=training.categories), options.task)
    return prepare_data_sets(_split(training, validation, options), options, image_size)


def prepare_data_sets(data_sets: DataSets, options: DataOptions, image_size: int) -> DataSets:
    """Give the training images the recipe's augmentation, where they have none, and check that both can be used.

    Args:
        data_sets: of `open_data_sets`, or your own.
        options: the section `data` of a recipe.
        image_size: side of the model's input.

    Raises:
        UserError: they do not fit the recipe or one another, a value of the augmentation is out of its range, or no
            image has a mask that may be learnt.
    """
    training, validation = data_sets.training, data_sets.validation
    if training.task != options.task or validation.task != options.task:
        raise UserError(
            f"this recipe learns from targets of the task {options.task!r}, but the data sets are of the tasks "
            f"{training.task!r} (training) and {validation.task!r} (validation)"
        )
    if training.categories != validation.categories:
        raise UserError("the training and the validation data set must have the same categories, in the same order")
    if training.transforms is None:
        try:
            training.transforms, training.mix = options.transforms(image_size), options.mix
        except ValueError as error:
            raise UserError(
                f"training images cannot be cropped by model.image_size {image_size} and data's values: {error}"
            ) from error
    training_key = "mask_classes" if options.task == "instance" else "annotations"
    validation_key = "validation_annotations" if options.has_validation_files else "validation_share"
    _require_instances(training, "to train on", training_key)
    _require_instances(validation, "to validate on", validation_key)
    return data_sets


def drawn_images(training: SegmentationDataset, options: DataOptions, learns_from_boxes: bool) -> SegmentationDataset:
    """The training images that are drawn, by `InstanceDataOptions.draw`; `training` itself where all of them are."""
    if learns_from_boxes or not isinstance(options, InstanceDataOptions) or options.draw == "all":
        return training
    with_masks = np.unique(training.instances.images[training.instances.has_mask])
    return training if len(with_masks) == len(training) else training.subset(with_masks.tolist())


def _open(source: DataSource | UnionSource, task: Task) -> SegmentationDataset:
    return open_union(source, task) if isinstance(source, UnionSource) else open_data_set(source, task)


def _split(training: SegmentationDataset, validation: SegmentationDataset, options: DataOptions) -> DataSets:
    """The two as they are where they come from two files, else a share of the same images each."""
    if options.has_validation_files:
        return DataSets(training, validation)
    kept, set_aside = split_by_hash(
        training.split_keys,
        options.validation_share,
        learnable=lambda index: bool(training.mask_labels(index)),
        measurable=lambda index: bool(validation.mask_labels(index)),
    )
    return DataSets(training.subset(kept), validation.subset(set_aside))


def _require_instances(dataset: SegmentationDataset, purpose: str, key: str) -> None:
    """Refuse a data set without anything to learn or to measure; `key` of the recipe decides what there is."""
    if any(dataset.mask_labels(index) for index in range(len(dataset))):
        return
    if dataset.task == "panoptic":
        missing = f"a usable segment that is no crowd ({len(dataset)} images)"
    else:
        missing = (
            f"an instance with a usable mask ({len(dataset)} images, {len(dataset.instances.labels)} instances, "
            f"mask classes: {', '.join(dataset.mask_classes)})"
        )
    raise UserError(
        f"{dataset.source}: no image {purpose} has {missing}; see data.{key}, and `maskwright data check` for a file"
    )


class TrainingData(LightningDataModule):
    """Loaders for one rank; the training loader starts at the step of the checkpoint that is resumed."""

    def __init__(self, data_sets: DataSets, options: DataOptions, seed: int) -> None:
        """Serve `data_sets` in batches of `options.batch_size` in an order fixed by `seed`."""
        super().__init__()
        self._data_sets = data_sets
        self._options = options
        self._seed = seed

    def train_dataloader(self) -> DataLoader:
        """Endless batches of this rank, from the trainer's current step on."""
        trainer = self._running_trainer()
        return training_loader(
            self._data_sets.training,
            batch_size=self._options.batch_size,
            seed=self._seed,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            start_step=trainer.global_step * trainer.accumulate_grad_batches,
            num_workers=self._options.num_workers,
        )

    def val_dataloader(self) -> DataLoader:
        """This rank's share of the validation images, each once."""
        trainer = self._running_trainer()
        return evaluation_loader(
            self._data_sets.validation,
            batch_size=self._options.batch_size,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            num_workers=self._options.num_workers,
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Images go to the device; targets only for training, since the metric works on the CPU."""
        if self._running_trainer().training:
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        images, targets = batch
        return super().transfer_batch_to_device(images, device, dataloader_idx), targets

    def _running_trainer(self) -> Trainer:
        if self.trainer is None:
            raise RuntimeError("TrainingData gives loaders only while a Trainer runs with it")
        return self.trainer
