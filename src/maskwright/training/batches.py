"""The data sets of a recipe, checked before training starts, and their loaders."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from maskwright.data.coco import CocoInstances, Transforms, split_by_hash
from maskwright.data.loaders import Batch, evaluation_loader, training_loader
from maskwright.data.transforms import training_transforms
from maskwright.errors import UserError
from maskwright.structures import Category
from maskwright.training.options import DataOptions


@dataclass(frozen=True)
class DataSets:
    """Training images with the masks that may be learnt, validation images with all masks."""

    training: CocoInstances
    validation: CocoInstances


def open_data_sets(options: DataOptions, image_size: int, categories: list[Category] | None) -> DataSets:
    """Open what a recipe's `data` names; without a validation file a share of the images is set aside.

    Args:
        options: the section `data` of a recipe.
        image_size: side of the model's input; training images come out at this size
            unless `options.crop_size` says otherwise.
        categories: the label space; None takes the training file's own.

    Raises:
        UserError: a path is missing or unusable, a class unknown, a value of the augmentation out of its range,
            or no image has a mask that may be learnt.
    """
    for key in ("images", "annotations"):
        if getattr(options, key) is None:
            raise UserError(f"the recipe leaves data.{key} open: give it with --data.{key}")
    images, annotations = str(options.images), str(options.annotations)
    transforms = _training_transforms(options, image_size)
    training = CocoInstances(images, annotations, categories=categories, mask_classes=options.mask_classes)
    if options.validation_annotations is not None:
        validation = CocoInstances(
            options.validation_images or images, options.validation_annotations, categories=training.categories
        )
    else:
        everything = CocoInstances(images, annotations, categories=training.categories)
        kept, set_aside = split_by_hash(training.file_names, options.validation_share)
        training, validation = training.subset(kept), everything.subset(set_aside)
    training.transforms = transforms
    _require_masks(training, f"{annotations}: no image to train on", "data.mask_classes")
    key = "data.validation_share" if options.validation_annotations is None else "data.validation_annotations"
    _require_masks(validation, f"{options.validation_annotations or annotations}: no image to validate on", key)
    return DataSets(training, validation)


def _training_transforms(options: DataOptions, image_size: int) -> Transforms:
    try:
        return training_transforms(
            options.crop_size or image_size, scale=options.scale, flip=options.flip, colour=options.colour
        )
    except ValueError as error:
        raise UserError(
            f"training images cannot be cropped by model.image_size {image_size} and data's crop_size "
            f"{options.crop_size}, scale {options.scale}, flip {options.flip}, colour {options.colour}: {error}"
        ) from error


def _require_masks(dataset: CocoInstances, what: str, key: str) -> None:
    masks, boxes = dataset.count_instances()
    if masks == 0:
        raise UserError(
            f"{what} has an instance with a usable mask ({len(dataset)} images, {boxes} instances with a box only, "
            f"mask classes: {', '.join(dataset.mask_classes)}); see {key}, and `maskwright data check` for the file"
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
