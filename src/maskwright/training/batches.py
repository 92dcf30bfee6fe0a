"""The data sets of a recipe, checked before training starts, and their loaders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from maskwright.data.coco import CocoInstances, split_by_hash
from maskwright.data.loaders import Batch, DataSet, evaluation_loader, training_loader
from maskwright.data.panoptic import CocoPanoptic
from maskwright.data.panoptic_annotations import is_panoptic
from maskwright.data.panoptic_transforms import panoptic_training_transforms
from maskwright.data.transforms import training_transforms
from maskwright.errors import UserError
from maskwright.structures import Category
from maskwright.training.options import DataOptions, InstanceDataOptions, PanopticDataOptions

AnyDataSet = TypeVar("AnyDataSet", CocoInstances, CocoPanoptic)
AnyTransforms = TypeVar("AnyTransforms")


@dataclass(frozen=True)
class DataSets:
    """Training images with what may be learnt of them, validation images with all that is known."""

    training: DataSet
    validation: DataSet


def open_data_sets(options: DataOptions, image_size: int, categories: list[Category] | None) -> DataSets:
    """Open what a recipe's `data` names; without a validation file a share of the images is set aside.

    Args:
        options: the section `data` of a recipe, whose class says what kind of data it is.
        image_size: side of the model's input; `options.side` of it is that of the training images.
        categories: the label space; None takes the training file's own.

    Raises:
        UserError: a path is missing or unusable, a class unknown, a value of the augmentation out of its range,
            or no image has a mask that may be learnt.
    """
    for key in ("images", "annotations"):
        if getattr(options, key) is None:
            raise UserError(f"the recipe leaves data.{key} open: give it with --data.{key}")
    for file in (options.annotations, options.validation_annotations):
        _require_form(file, isinstance(options, PanopticDataOptions))
    if isinstance(options, PanopticDataOptions):
        return _open_panoptic(options, image_size, categories)
    if isinstance(options, InstanceDataOptions):
        return _open_instances(options, image_size, categories)
    raise TypeError(f"options must be one of the classes of DATA_OPTIONS, but are a {type(options).__name__}")


def _require_form(annotations: str | None, panoptic: bool) -> None:
    """Refuse an annotation file of the other task."""
    if annotations is None or is_panoptic(annotations) == panoptic:
        return
    if panoptic:
        raise UserError(f"this recipe learns from COCO panoptic files, but {annotations} has no `segments_info`")
    raise UserError(f"this recipe learns from COCO instances files, but {annotations} is a COCO panoptic file")


def _open_instances(options: InstanceDataOptions, image_size: int, categories: list[Category] | None) -> DataSets:
    images, annotations = str(options.images), str(options.annotations)
    side = options.side(image_size)
    transforms = _checked(
        f"crop_size {options.crop_size}, scale {options.scale}, flip {options.flip}, colour {options.colour}",
        image_size,
        lambda: training_transforms(side, scale=options.scale, flip=options.flip, colour=options.colour),
    )
    training = CocoInstances(images, annotations, categories=categories, mask_classes=options.mask_classes)
    everything = CocoInstances(
        options.validation_images or images,
        options.validation_annotations or annotations,
        categories=training.categories,
    )
    training, validation = _split(training, everything, options)
    training.transforms = transforms
    _require_masks(training, f"{annotations}: no image to train on", "data.mask_classes")
    _require_masks(validation, *_validation_names(options))
    return DataSets(training, validation)


def _open_panoptic(options: PanopticDataOptions, image_size: int, categories: list[Category] | None) -> DataSets:
    images, annotations = str(options.images), str(options.annotations)
    transforms = _checked(
        f"scale {options.scale}, scale_steps {options.scale_steps}, flip {options.flip}",
        image_size,
        lambda: panoptic_training_transforms(
            options.side(image_size),
            scale=options.scale,
            scale_steps=options.scale_steps,
            flip=options.flip,
            auto_augmentation=options.auto_augmentation,
        ),
    )
    training = CocoPanoptic(images, annotations, options.segmentations, categories=categories)
    separate = options.validation_annotations is not None
    everything = CocoPanoptic(
        options.validation_images or images,
        options.validation_annotations or annotations,
        options.validation_segmentations if separate else options.segmentations,
        categories=training.categories,
    )
    training, validation = _split(training, everything, options)
    training.transforms = transforms
    _require_segments(training, f"{annotations}: no image to train on", "data.annotations")
    _require_segments(validation, *_validation_names(options))
    return DataSets(training, validation)


def _checked(values: str, image_size: int, create: Callable[[], AnyTransforms]) -> AnyTransforms:
    """What `create` makes of `values`, the section `data`'s, or one sentence about them."""
    try:
        return create()
    except ValueError as error:
        raise UserError(
            f"training images cannot be cropped by model.image_size {image_size} and data's {values}: {error}"
        ) from error


def _split(training: AnyDataSet, everything: AnyDataSet, options: DataOptions) -> tuple[AnyDataSet, AnyDataSet]:
    """The two as they are where they come from two files, else a share of the same images each."""
    if options.validation_annotations is not None:
        return training, everything
    kept, set_aside = split_by_hash(training.file_names, options.validation_share)
    return training.subset(kept), everything.subset(set_aside)


def _validation_names(options: DataOptions) -> tuple[str, str]:
    """How an error about the validation images begins, and which key it points to."""
    key = "data.validation_share" if options.validation_annotations is None else "data.validation_annotations"
    return f"{options.validation_annotations or options.annotations}: no image to validate on", key


def _require_masks(dataset: CocoInstances, what: str, key: str) -> None:
    masks, boxes = dataset.count_instances()
    if masks == 0:
        raise UserError(
            f"{what} has an instance with a usable mask ({len(dataset)} images, {boxes} instances with a box only, "
            f"mask classes: {', '.join(dataset.mask_classes)}); see {key}, and `maskwright data check` for the file"
        )


def _require_segments(dataset: CocoPanoptic, what: str, key: str) -> None:
    if dataset.count_segments() == 0:
        raise UserError(
            f"{what} has a usable segment that is no crowd ({len(dataset)} images); see {key}, "
            "and `maskwright data check` for the file"
        )


def contents(dataset: DataSet) -> str:
    """How much there is to learn or to measure, in words."""
    if isinstance(dataset, CocoPanoptic):
        return f"{len(dataset)} images, {dataset.count_segments()} segments; {len(dataset.categories)} classes"
    masks, boxes = dataset.count_instances()
    return (
        f"{len(dataset)} images, {masks} instances with masks, {boxes} with boxes only; "
        f"masks of {len(dataset.mask_classes)} of {len(dataset.categories)} classes"
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
