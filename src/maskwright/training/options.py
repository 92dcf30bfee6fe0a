"""A recipe and its sections `data`, `optimizer` and `trainer`: each value with its default, meaning and check."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, ClassVar, Literal

from maskwright.data.copy_paste import copy_paste
from maskwright.data.dataset import DataSource, Mix, Transforms
from maskwright.data.orientation import ExifRule
from maskwright.data.panoptic_transforms import panoptic_training_transforms
from maskwright.data.shards import index_path
from maskwright.data.transforms import training_transforms
from maskwright.data.union import UnionSource
from maskwright.errors import UserError
from maskwright.structures import Task


def _require(section: str, options: Any, condition: str, *names: str) -> None:
    """Refuse the first of the named values that breaks `condition` ("> 0" or ">= 0"); None passes."""
    for name in names:
        value = getattr(options, name)
        if value is not None and (value < 0 or (condition == "> 0" and value == 0)):
            raise UserError(f"{section}.{name} must be {condition}, but got {value}")


def _require_shares(section: str, options: Any, *names: str) -> None:
    """Refuse the first of the named values that is no share or probability."""
    for name in names:
        if not 0 <= getattr(options, name) <= 1:
            raise UserError(f"{section}.{name} must lie in 0..1, but got {getattr(options, name)}")


def _shards(folder: str, exif: ExifRule) -> DataSource:
    """What the images of a folder of shards are opened from."""
    if exif != "auto":
        raise UserError(f"exif has no use beside shards ({folder}): give --exif to `maskwright data shards`")
    return DataSource(folder, index_path(folder))


def _require_range(name: str, factors: tuple[float, float] | None) -> None:
    """Refuse a pair of factors out of order; None passes."""
    if factors is not None and not 0 < factors[0] <= factors[1]:
        raise UserError(f"{name} must be two factors with 0 < smallest <= largest, but got {list(factors)}")


@dataclass(frozen=True)
class DataOptions(ABC):
    """What is learnt from, and how it reaches the model; each task has keys of its own beside these.

    Attributes:
        images: folder of the training images.
        annotations: annotation file of the training images: COCO instances, with boxes for every class and masks for
            some, or COCO panoptic where the model finds panoptic maps.
        validation_images: folder of the validation images; `images` where it is left out.
        validation_annotations: a file of the same kind to validate on, or a folder of shards; left out,
            `validation_share` is set aside.
        validation_share: share of the training images, chosen by a hash of the file name and so that both sides have
            masks if two images do, that is validated on
            and never trained on when there is no `validation_annotations`.
        exif: what annotations of images with an EXIF orientation were drawn on: `upright`, `stored`, or `auto`, which
            goes by sizes and boxes.
        batch_size: images per device and pass; a step takes `trainer.accumulate` passes.
        num_workers: loader processes per device; 0 loads in the training process.
        flip: probability of a horizontal flip.
    """

    task: ClassVar[Task]

    images: str | None = None
    annotations: str | None = None
    validation_images: str | None = None
    validation_annotations: str | None = None
    validation_share: float = 0.1
    exif: ExifRule = "auto"
    batch_size: int = 4
    num_workers: int = 2
    flip: float = 0.5

    def __post_init__(self) -> None:
        _require("data", self, "> 0", "batch_size")
        _require("data", self, ">= 0", "num_workers")
        _require_shares("data", self, "flip", "validation_share")
        self._require_validation_file("validation_images")
        if not self.has_validation_files and not 0 < self.validation_share < 1:
            raise UserError(
                f"data.validation_share must lie between 0 and 1 when there is no data.validation_annotations, "
                f"but got {self.validation_share}"
            )

    def _require_validation_file(self, key: str) -> None:
        if getattr(self, key) is not None and self.validation_annotations is None:
            raise UserError(f"data.{key} has no use without data.validation_annotations, the file that goes with it")

    @property
    def has_validation_files(self) -> bool:
        """Whether files name the validation images; if not, a share of the training images is set aside."""
        return self.validation_annotations is not None

    def side(self, image_size: int) -> int:
        """Side of the square training crops, in pixels, of a model whose input has `image_size`."""
        return image_size

    def training_source(self) -> DataSource | UnionSource:
        """What the training images are opened from.

        Raises:
            UserError: `images` or `annotations` is left open.
        """
        return self._training_files()

    def validation_source(self) -> DataSource | UnionSource:
        """What the validation images are opened from, or those of which a share is set aside: with all that is known.

        Raises:
            UserError: `images` or `annotations` is left open.
        """
        return self._validation_files()

    def _training_files(self) -> DataSource:
        if self.images is None or self.annotations is None:
            key = "images" if self.images is None else "annotations"
            raise UserError(f"the recipe leaves data.{key} open: give it with --data.{key}")
        return DataSource(self.images, self.annotations, exif=self.exif)

    def _validation_files(self) -> DataSource:
        training = self._training_files()
        return DataSource(
            self.validation_images or training.images,
            self.validation_annotations or training.annotations,
            exif=self.exif,
        )

    @property
    def mix(self) -> Mix | None:
        """What is done to a training batch once its samples are augmented."""
        return None

    @abstractmethod
    def transforms(self, image_size: int) -> Transforms:
        """The training augmentation, for a model whose input has `image_size`.

        Raises:
            ValueError: a value is out of its range.
        """


@dataclass(frozen=True)
class SetOptions:
    """One of the sets that a model of instances is trained on together.

    Attributes:
        images: folder of the images.
        annotations: COCO instances file of the training images.
        shards: a folder of shards that holds both, in their place.
        name: what messages and the names of images call it; left out, the end of the path of `annotations` or `shards`.
        mask_classes: whose masks are learnt from this set: `all`, `voc`, `non_voc`, or a list of class names; `[]` of a
            set of boxes. Another set may have masks of the same classes.
        share: share of the draws that come from this set, relative to the other sets; all sets have one, or none.
            Left out, every image is drawn alike.
        exif: as `data.exif`, of this set.
        validation_annotations: COCO instances file of images in the same folder to validate on, or a folder of shards.
    """

    images: str | None = None
    annotations: str | None = None
    name: str | None = None
    mask_classes: str | list[str] = "all"
    share: float | None = None
    exif: ExifRule = "auto"
    validation_annotations: str | None = None
    shards: str | None = None

    def __post_init__(self) -> None:
        self._files()

    @property
    def path(self) -> Path:
        """The path that it is called by where it has no name."""
        files = self._files()
        return index_path(self.shards).absolute().parent if self.shards else Path(files.annotations).with_suffix("")

    def training_source(self) -> DataSource:
        """What its training images are opened from."""
        return replace(self._files(), mask_classes=self.mask_classes)

    def validation_source(self) -> DataSource:
        """What its validation images are opened from, or those of which a share is set aside: with all masks."""
        files = self._files()
        return replace(files, annotations=self.validation_annotations or files.annotations)

    def _files(self) -> DataSource:
        if self.shards is not None and self.images is None and self.annotations is None:
            return _shards(self.shards, self.exif)
        if self.shards is not None or self.images is None or self.annotations is None:
            given = [key for key in ("images", "annotations", "shards") if getattr(self, key) is not None]
            raise UserError(
                "data.sets: each set needs images and annotations, or else shards alone, but one has "
                + (" and ".join(given) or "none of these")
            )
        return DataSource(self.images, self.annotations, exif=self.exif)


@dataclass(frozen=True)
class InstanceDataOptions(DataOptions):
    """Data of a model that finds instances.

    Attributes:
        shards: folder of the training images and annotations that `maskwright data shards` wrote, in place of `images`
            and `annotations`; to the bit the same is learnt.
        sets: several sets to train on together, in place of `images` and `annotations`: a list of mappings with
            `images` and `annotations`, or `shards`, and, as wanted, `name`, `mask_classes`, `share` (of the draws),
            `exif` and `validation_annotations`. Classes are united by name. Where a set has `validation_annotations`,
            those of all sets that do are validated on; where none has, `validation_share` of all images is.
        mask_classes: whose masks are learnt: `all`, `voc`, `non_voc`, or a list of class names. The other
            classes count as box-only; validation still measures them, as unseen.
        crop_size: side of the square training crops in pixels; left out, the model's `image_size`. A model can
            be trained on crops that are smaller than the images it predicts on.
        draw: which training images are drawn: `all`, or the `learnable` ones, in which there is something to learn for
            the model. That is a mask, where the model has no detector and no other loss of boxes; else all are.
        scale: smallest and largest side of the random square crop, relative to the image's long side: at 1 the
            whole image fits, below it is zoomed in, above it is zoomed out. `null` crops nothing: images come whole,
            at the top left of the square as in inference.
        object_crops: share of the crops that are laid around one object with a mask instead, however small.
        object_scale: smallest and largest side of such a crop, relative to the long side of the object's box.
        copy_paste: share of the crops over which objects with masks of another crop of the batch are laid.
        colour: strength of the colour jitter; 0 leaves colours alone, 0.25 is the original's.
    """

    task = "instance"

    shards: str | None = None
    sets: list[SetOptions] = field(default_factory=list)
    mask_classes: str | list[str] = "all"
    crop_size: int | None = None
    draw: Literal["all", "learnable"] = "all"
    scale: tuple[float, float] | None = (0.6, 1.3)
    object_crops: float = 0.0
    object_scale: tuple[float, float] = (1.5, 4.0)
    copy_paste: float = 0.0
    colour: float = 0.25

    def __post_init__(self) -> None:
        if self.sets:
            validation = ("validation_images", "validation_annotations")
            self._refuse_beside("sets", "images", "annotations", *validation, "shards")
        super().__post_init__()
        _require("data", self, "> 0", "crop_size")
        _require("data", self, ">= 0", "colour")
        _require_range("data.scale", self.scale)
        _require_range("data.object_scale", self.object_scale)
        _require_shares("data", self, "object_crops", "copy_paste")
        if self.copy_paste and self.batch_size == 1:
            raise UserError("data.copy_paste takes objects from other crops of a batch: data.batch_size must be > 1")
        if self.sets:
            self._check_sets()
        if self.shards is not None:
            self._refuse_beside("shards", "images", "annotations")
            self._training_files()

    def _refuse_beside(self, own: str, *keys: str) -> None:
        for key in keys:
            if getattr(self, key) is not None:
                files = "data.images and data.annotations"
                raise UserError(f"a recipe has data.{own}, or else {files}: not data.{key} too")

    def _check_sets(self) -> None:
        for key, default in (("mask_classes", "all"), ("exif", "auto")):
            if getattr(self, key) != default:
                raise UserError(f"data.{key} has no use beside data.sets: give {key} to each of the sets that need it")
        shares = {name: one.share for name, one in self.named_sets.items()}
        missing = [name for name, share in shares.items() if share is None]
        if missing and len(missing) < len(shares):
            raise UserError(f"data.sets: all sets have a share, or none; it is missing in {', '.join(missing)}")
        for name, share in shares.items():
            if share is not None and not 0 < share < inf:
                raise UserError(f"data.sets: the share of {name} must be > 0, but is {share}")

    @property
    def named_sets(self) -> dict[str, SetOptions]:
        """The sets by name: their own, else as much of the end of the path of their annotations as tells them apart.

        Raises:
            UserError: two have the same.
        """
        paths = [one.path.parts for one in self.sets]
        longest = max(map(len, paths), default=0)
        depth = 1
        while depth < longest and len({path[-depth:] for path in paths}) < len(paths):
            depth += 1
        names = [one.name or "/".join(path[-depth:]) for one, path in zip(self.sets, paths, strict=True)]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"data.sets: two sets are called {name}; give each a name of its own")
        return dict(zip(names, self.sets, strict=True))

    @property
    def has_validation_files(self) -> bool:
        """See `DataOptions`; of any set."""
        return super().has_validation_files or any(one.validation_annotations is not None for one in self.sets)

    def side(self, image_size: int) -> int:
        """`crop_size`, or the model's own."""
        return self.crop_size or image_size

    def _training_files(self) -> DataSource:
        return super()._training_files() if self.shards is None else _shards(self.shards, self.exif)

    def training_source(self) -> DataSource | UnionSource:
        """With the masks of `mask_classes` alone."""
        if not self.sets:
            return replace(self._training_files(), mask_classes=self.mask_classes)
        sets = self.named_sets
        shares = {name: one.share for name, one in sets.items() if one.share is not None}
        return UnionSource({name: one.training_source() for name, one in sets.items()}, shares or None)

    def validation_source(self) -> DataSource | UnionSource:
        """Of several sets, those that have `validation_annotations`, if any has."""
        if not self.sets:
            return self._validation_files()
        separate = self.has_validation_files
        return UnionSource(
            {
                name: one.validation_source()
                for name, one in self.named_sets.items()
                if one.validation_annotations is not None or not separate
            }
        )

    def transforms(self, image_size: int) -> Transforms:
        """See `DataOptions`."""
        return training_transforms(
            self.side(image_size),
            scale=self.scale,
            object_crops=self.object_crops,
            object_scale=self.object_scale,
            flip=self.flip,
            colour=self.colour,
        )

    @property
    def mix(self) -> Mix | None:
        """See `DataOptions`."""
        return partial(copy_paste, share=self.copy_paste) if self.copy_paste else None


@dataclass(frozen=True)
class PanopticDataOptions(DataOptions):
    """Data of a model that finds all segments of an image.

    Attributes:
        segmentations: folder of the PNGs of `annotations`; left out, the one beside the file that is named like it.
        validation_segmentations: the same of `validation_annotations`.
        scale: smallest and largest factor by which an image is resized once it fits into the crop: at 1 the whole
            image fits, above it is zoomed in, below it is zoomed out. `null` crops nothing: images come whole, at the
            top left of the square as in inference.
        scale_steps: how many factors there are, at equal distances.
        auto_augmentation: change colours and sharpness by the policy of the original's L recipes.
    """

    task = "panoptic"

    segmentations: str | None = None
    validation_segmentations: str | None = None
    scale: tuple[float, float] | None = (0.5, 1.5)
    scale_steps: int = 10
    auto_augmentation: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_validation_file("validation_segmentations")
        _require("data", self, "> 0", "scale_steps")
        _require_range("data.scale", self.scale)

    def training_source(self) -> DataSource:
        """With the folder of the PNGs."""
        return replace(self._training_files(), segmentations=self.segmentations)

    def validation_source(self) -> DataSource:
        """With the folder of the PNGs."""
        folder = self.validation_segmentations if self.has_validation_files else self.segmentations
        return replace(self._validation_files(), segmentations=folder)

    def transforms(self, image_size: int) -> Transforms:
        """See `DataOptions`."""
        return panoptic_training_transforms(
            self.side(image_size),
            scale=self.scale,
            scale_steps=self.scale_steps,
            flip=self.flip,
            auto_augmentation=self.auto_augmentation,
        )


DATA_OPTIONS: dict[Task, type[DataOptions]] = {
    options.task: options for options in (InstanceDataOptions, PanopticDataOptions)
}
"""The keys of a recipe's section `data` by what its model finds."""


@dataclass(frozen=True)
class OptimizerOptions:
    """How the weights follow the gradient. The model's parameter groups scale learning rate and decay.

    Attributes:
        name: the optimizer.
        learning_rate: the peak, after warm-up.
        learning_rate_factors: factors on it by name of the model's parameter group (`backbone`, `heads`, ...).
        weight_decay: decoupled for adamw, an L2 term for adam and sgd (added to the gradient: weight times this).
        betas: adam's and adamw's decay rates of the two moments.
        epsilon: adam's and adamw's term in the denominator.
        momentum: share of the earlier gradients that sgd keeps at each step.
        schedule: the learning rate after the warm-up. `constant` stays; `cosine` falls to zero from the end of
            the warm-up to the last step; `step` is multiplied by `step_factor` after each of `step_boundaries`;
            `polynomial` is (1 - step / steps) ** `polynomial_power`, counted from the first step of the run, so
            that it is a little below the peak when the warm-up ends.
        step_boundaries: of `step`, in optimizer steps, rising; a boundary itself still has the earlier rate.
        step_factor: of `step`.
        polynomial_power: of `polynomial`.
        warmup_steps: steps of linear warm-up.
        warmup_start_factor: share of `learning_rate` that the first step of the warm-up takes; left out, the
            warm-up rises from zero, and the first step takes the first rise.
        gradient_clip: largest norm of the gradient; left out, gradients are not clipped.
    """

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = 5e-4
    learning_rate_factors: dict[str, float] = field(default_factory=dict)
    weight_decay: float = 0.02
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    momentum: float = 0.9
    schedule: Literal["cosine", "constant", "step", "polynomial"] = "cosine"
    step_boundaries: list[int] = field(default_factory=list)
    step_factor: float = 0.1
    polynomial_power: float = 0.9
    warmup_steps: int = 100
    warmup_start_factor: float | None = None
    gradient_clip: float | None = 10.0

    def __post_init__(self) -> None:
        _require("optimizer", self, "> 0", "learning_rate", "epsilon", "gradient_clip", "polynomial_power")
        _require("optimizer", self, ">= 0", "weight_decay", "momentum", "warmup_steps", "step_factor")
        boundaries = self.step_boundaries
        if self.schedule == "step" and not boundaries:
            raise UserError("optimizer.step_boundaries must name the steps after which schedule `step` changes")
        if any(step < 1 for step in boundaries) or boundaries != sorted(set(boundaries)):
            raise UserError(f"optimizer.step_boundaries must be rising steps of at least 1, but got {boundaries}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas must lie in 0..1 (1 excluded), but got {list(self.betas)}")
        if self.warmup_start_factor is not None and not 0 <= self.warmup_start_factor <= 1:
            raise UserError(f"optimizer.warmup_start_factor must lie in 0..1, but got {self.warmup_start_factor}")


@dataclass(frozen=True)
class TrainerOptions:
    """How long to train, on what devices, and what is written.

    Attributes:
        steps: optimizer steps of the whole run.
        output: folder of the run; left out, `runs/` followed by the recipe's name.
        initial_weights: where the weights of a new run come from: a bundled model, a weights folder or a Hub
            repository of the same family; left out, they are random (the backbone's as the model says).
        seed: of the first weights, the data order, the augmentation and the model's own randomness.
        precision: number format; the mixed ones keep the weights in float32.
        accumulate: batches whose gradients are added up for one step.
        ema_decay: decay of the exponential moving average of the weights that is validated and saved (it warms
            up over the first steps); `null` switches it off.
        validate_every_steps: steps between validations; the last step is always validated. The weights folder `best`
            of a run is that of the validation with the highest `mask_ap` where the model finds instances by itself,
            `mask_iou` where boxes are given to it, and `pq` where it finds panoptic maps.
        checkpoint_every_seconds: time between checkpoints: what a crash can lose.
        log_every_steps: steps between two records of losses and learning rate.
        accelerator: `auto` takes a GPU where there is one; `cpu` or `gpu` insist.
        devices: `auto` or the number of devices (processes on a CPU) per machine.
        num_nodes: machines.
        strategy: Lightning's name of the parallel strategy, `auto` or `ddp` for instance.
        sync_batchnorm: batch norms take the statistics over all devices (on GPUs only; on a CPU each process takes
            its own).
        channels_last: keep images and weights in channels-last memory order (faster on most GPUs).
    """

    steps: int = 1000
    output: str | None = None
    initial_weights: str | None = None
    seed: int = 0
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32"
    accumulate: int = 1
    ema_decay: float | None = 0.999
    validate_every_steps: int = 500
    checkpoint_every_seconds: float = 30.0
    log_every_steps: int = 10
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int | Literal["auto"] = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    sync_batchnorm: bool = False
    channels_last: bool = False

    def __post_init__(self) -> None:
        _require("trainer", self, "> 0", "steps", "accumulate", "validate_every_steps", "log_every_steps", "num_nodes")
        _require("trainer", self, ">= 0", "seed", "checkpoint_every_seconds")
        if self.devices != "auto" and self.devices < 1:
            raise UserError(f"trainer.devices must be auto or > 0, but got {self.devices}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(f"trainer.ema_decay must lie between 0 and 1 or be null, but got {self.ema_decay}")


@dataclass(frozen=True)
class Recipe:
    """One experiment with all of its values: what `maskwright train` runs, and saves with every run.

    Attributes:
        family: name of the model's family.
        model: the values of the family's config by name, without `mask_classes`. They become a config once the data
            sets are open, which decide the classes.
        data: what is learnt from; its class is `DATA_OPTIONS` of the family's task.
        optimizer: how the weights follow the gradient.
        trainer: how long to train, on what devices, and what is written.
        name: where the recipe comes from: its name in the package or the stem of its file.
    """

    family: str
    model: dict[str, Any] = field(default_factory=dict)
    data: DataOptions = field(default_factory=InstanceDataOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    name: str = "recipe"
