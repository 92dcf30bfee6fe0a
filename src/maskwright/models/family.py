"""What the model families share. A new family is a folder, its recipes and one row of `hub.FAMILIES`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from maskwright.models.calibration import MaskCalibration
from maskwright.models.config import BoxPromptedConfig, FamilyConfig
from maskwright.nn.image_batch import ImageBatch, boxes_to_input, boxes_to_original
from maskwright.nn.mask_quality import expected_iou
from maskwright.ops.boxes import clip_boxes
from maskwright.ops.crop import crop_around
from maskwright.ops.frames import BoxFrame
from maskwright.structures import (
    Category,
    ImageFeatures,
    InstancePrediction,
    PanopticPrediction,
    ParameterGroup,
    Task,
    check_panoptic_targets,
    check_targets,
)

Config = TypeVar("Config", bound=FamilyConfig)
PromptedConfig = TypeVar("PromptedConfig", bound=BoxPromptedConfig)


class Family(nn.Module, ABC, Generic[Config]):
    """A model of a family, which satisfies `structures.SegmentationModel`.

    A subclass names its `family`, `task`, `config_class` and `compilable` methods, builds `network` and `image_batch`,
    and implements the abstract methods.

    Attributes:
        family: name of the family in recipes and weights folders.
        task: what the model finds.
        config_class: the class of `config`.
        compilable: names of the methods of `network` that `torch.compile` may compile.
        config: the values that the model was built from.
        categories: the label space, in label order.
        mask_classes: names of the classes whose masks were used in training.
        image_size: side of the square network input, in pixels.
        image_batch: images to the network's input.
    """

    family: ClassVar[str]
    task: ClassVar[Task]
    config_class: ClassVar[type[FamilyConfig]]
    compilable: ClassVar[tuple[str, ...]]
    config: Config
    image_batch: ImageBatch

    def __init__(self, config: Config | None = None, **values: Any) -> None:
        """Take a config, or its values by keyword; keywords beside a config replace its values.

        Raises:
            ValueError: a value has no meaning or does not go with another (see the config).
            TypeError: the config has no such value.
        """
        super().__init__()
        self.config = self.config_class(**values) if config is None else replace(config, **values)  # pyright: ignore[reportAttributeAccessIssue]
        self.categories: list[Category] = list(self.config.categories or [])
        self.mask_classes: list[str] = list(self.config.mask_classes or [])
        self.image_size = self.config.image_size

    @property
    def needs_boxes(self) -> bool:
        """Whether the model finds nothing by itself, so that boxes must be given."""
        return False

    @property
    def learns_from_boxes(self) -> bool:
        """Whether there is something to learn from an image in which no instance has a mask."""
        return not self.needs_boxes

    def forward(
        self,
        images: list[Tensor],
        targets: list[Any] | None = None,
        *,
        score_threshold: float = 0.0,
        max_detections: int = 100,
    ) -> dict[str, Tensor] | list[InstancePrediction] | list[PanopticPrediction]:
        """Training: weighted losses by name, whose sum is the objective. In eval: predictions per image.

        In training, `images` are RGB [3, H, W] (uint8, or float in 0..1) of one size, `image_size` or smaller crops,
        with targets in the same pixels: nothing is resized.

        In eval, images have any size. A prediction holds at most `max_detections` instances of score
        `score_threshold` or more, the highest score first. In a panoptic map, segments of a lower score are void;
        `max_detections` has no effect there.

        Raises:
            ValueError: targets that break their contract or images of several sizes in training; in eval, a model
                without a detector.
        """
        if not self.training:
            return self.predict(images, score_threshold, max_detections)
        if targets is None:
            raise ValueError("in training the model needs targets, one per image")
        check = check_panoptic_targets if self.task == "panoptic" else check_targets
        check(images, targets, len(self.categories) or None)
        for index, image in enumerate(images):
            if image.shape != images[0].shape:
                first, other = list(images[0].shape), list(image.shape)
                raise ValueError(
                    f"in training all images must have one size, but image 0 is {first} and {index} {other}"
                )
        return self.training_losses(images, targets)

    @abstractmethod
    def training_losses(self, images: list[Tensor], targets: list[Any]) -> dict[str, Tensor]:
        """`forward` in training, after its checks."""

    @abstractmethod
    def predict(
        self, images: list[Tensor], score_threshold: float, max_detections: int
    ) -> list[InstancePrediction] | list[PanopticPrediction]:
        """`forward` in eval."""

    def parameter_groups(self) -> list[ParameterGroup]:
        """`backbone` (what ImageNet weights exist for) and `heads`, each with weight decay and without; in a model that
        predicts the quality of masks, the third, `mask_quality`, is what predicts it.

        Norms and biases have no weight decay, nor have `undecayed_parameters`.
        """
        group_of = {id(p): name for name, parameters in self.named_groups().items() for p in parameters}
        undecayed = {id(parameter) for parameter in self.undecayed_parameters()}
        groups: list[ParameterGroup] = []
        for name in dict.fromkeys(["backbone", "heads", *group_of.values()]):
            members = [p for p in self.parameters() if p.requires_grad and group_of.get(id(p), "heads") == name]
            for decay in (1.0, 0.0):
                parameters = [p for p in members if (p.ndim > 1 and id(p) not in undecayed) == bool(decay)]
                groups.append({"name": name, "params": parameters, "weight_decay_factor": decay})
        return groups

    def named_groups(self) -> dict[str, Iterable[nn.Parameter]]:
        """The parameters of each group; all others are `heads`."""
        return {"backbone": self.backbone_parameters()}

    @abstractmethod
    def backbone_parameters(self) -> Iterable[nn.Parameter]:
        """The parameters of the group `backbone`."""

    def undecayed_parameters(self) -> Iterable[nn.Parameter]:
        """Parameters without weight decay beside norms and biases."""
        return ()

    @abstractmethod
    def class_layers(self) -> dict[str, Int64[Tensor, " rows"]]:
        """The tensors of the state dict that hold something of each class: name -> the label of each row.

        Rows are the first dimension; -1 is a row of no class (background, void).
        """

    def stored_values(self) -> dict[str, Any]:
        """The values that a weights folder keeps, from which the model can be built again."""
        values = asdict(self.config.without_initial_weights())
        return {**values, "categories": self.categories, "mask_classes": self.mask_classes}


class Detections(NamedTuple):
    """What a detector finds in each image, the highest score first.

    boxes: [N, 4] each, xyxy, pixels of the network input.
    labels: [N] each.
    scores: [N] each, in 0..1.
    """

    boxes: Sequence[Tensor] | Tensor
    labels: Sequence[Tensor] | Tensor
    scores: Sequence[Tensor] | Tensor


class BoxPromptedFamily(Family[PromptedConfig]):
    """A model that turns boxes into masks; it satisfies `structures.BoxPrompted`.

    A subclass implements the abstract methods, and `maps` unless they are its network's. Its network's `mask_quality`
    is a `MaskQualityHead`, or None; the subclass calls `check_input_sizes` and `freeze` once the network is there.

    Attributes:
        mask_chunk_size: boxes that enter the mask head at a time.
        mask_calibration: from raw mask scores to expected IoU (`maskwright calibrate`); None leaves them raw.
    """

    task: ClassVar[Task] = "instance"

    mask_chunk_size: int
    mask_calibration: MaskCalibration | None = None
    network: Any

    @property
    @abstractmethod
    def box_frame(self) -> BoxFrame:
        """How the grids of the masks lie on their boxes."""

    @property
    @abstractmethod
    def map_names(self) -> Sequence[str]:
        """Names of the maps of `ImageFeatures`, in the network's order."""

    @property
    def learns_from_boxes(self) -> bool:
        """See `Family`; the quality of masks is learnt from masks alone."""
        return super().learns_from_boxes and not self.config.mask_quality_alone

    def check_input_sizes(self) -> None:
        """Refuse input sizes that the backbone cannot halve often enough.

        Raises:
            ValueError: `image_size`, or the size of the second looks, if there are any.
        """
        sizes = ["image_size", "second_look_size"] if self.config.second_look_below else ["image_size"]
        divisor, part = self.network.backbone.size_divisor, f"backbone {self.config.backbone!r}"
        for name in sizes:
            check_divisor(name, getattr(self.config, name), divisor, part)

    def freeze(self) -> None:
        """With `mask_quality_alone`, let no other part of the network learn."""
        if self.config.mask_quality_alone:
            for part in self._frozen_parts():
                part.requires_grad_(False)

    def train(self, mode: bool = True) -> BoxPromptedFamily[PromptedConfig]:
        """Set the training mode; frozen parts stay in inference mode and keep their norms' statistics."""
        super().train(mode)
        if self.config.mask_quality_alone:
            for part in self._frozen_parts():
                part.eval()
        return self

    def _frozen_parts(self) -> list[nn.Module]:
        """All parts of the network but the one that predicts the quality of masks."""
        return [part for part in self.network.children() if part is not self.network.mask_quality]

    def named_groups(self) -> dict[str, Iterable[nn.Parameter]]:
        """See `Family`."""
        quality = self.network.mask_quality
        return super().named_groups() | ({} if quality is None else {"mask_quality": quality.parameters()})

    def maps(self, batch: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, ...]:
        """What the mask head reads of a batch of images."""
        return self.network.maps(batch)

    @abstractmethod
    def detect(
        self, batch: Float[Tensor, "b 3 h w"], image_sizes: list[tuple[int, int]], max_detections: int
    ) -> tuple[tuple[Tensor, ...], Detections]:
        """`maps`, and the detections of each image.

        Args:
            batch: the network's input.
            image_sizes: per image (height, width) of its part of the network input.
            max_detections: most detections of an image that are wanted; there may be more.
        """

    @abstractmethod
    def mask_logits(
        self,
        maps: tuple[Tensor, ...],
        boxes: Float[Tensor, "n 4"],
        image_index: Int64[Tensor, " n"],
        labels: Int64[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n m m"]:
        """Mask logits of boxes in pixels of the network input; a label of -1 is an unknown class."""

    @abstractmethod
    def masks_and_qualities(
        self,
        maps: tuple[Tensor, ...],
        boxes: Float[Tensor, "n 4"],
        image_index: Int64[Tensor, " n"],
        labels: Int64[Tensor, " n"] | None = None,
    ) -> tuple[Float[Tensor, "n m m"], Float[Tensor, " n"]]:
        """`mask_logits`, and the logit of each mask's IoU with the truth.

        Raises:
            ValueError: the network has no head for it (`mask_quality`).
        """

    def chunk_size(self, maps: tuple[Tensor, ...]) -> int:  # noqa: ARG002
        """Boxes that enter the mask head at a time."""
        return self.mask_chunk_size

    def on_boxes(self, logits: Float[Tensor, "n m m"]) -> Float[Tensor, "n m m"]:
        """The logits of `mask_logits` on the grids of the given boxes."""
        return logits

    def encode(self, images: list[Tensor]) -> ImageFeatures:
        """Run the backbone once; the result can be prompted with boxes any number of times.

        `images`: RGB [3, H, W] of any size, uint8 or float in 0..1.
        """
        batch, geometry = self.image_batch(images)
        return ImageFeatures(dict(zip(self.map_names, self.maps(batch), strict=True)), geometry, tuple(images))

    def masks_from_boxes(
        self, features: ImageFeatures, boxes: list[Tensor], labels: list[Tensor] | None = None
    ) -> list[InstancePrediction]:
        """Masks of given boxes, one prediction per image, instances in the order of the boxes; their labels are -1.

        Args:
            features: of `encode`.
            boxes: per image float [N, 4], xyxy pixels of the original image; N may be 0.
            labels: per image int [N], the class of each box. They are read by a model with one mask per class, which
                gives the mask of that class; where a label is -1, or all are left out, that of the class that the box
                head finds most likely.

        Raises:
            ValueError: not one tensor of boxes per image, or a box that is not finite, by image and box; labels that do
                not fit the boxes or the categories, if they are read.
        """
        check_prompts(boxes, len(features))
        return self.prompt(features, boxes, self.prompted_classes(boxes, labels))

    def prompted_classes(
        self,
        boxes: list[Tensor],  # noqa: ARG002
        labels: list[Tensor] | None,  # noqa: ARG002
    ) -> Int64[Tensor, " n"] | None:
        """The labels of all boxes that `mask_logits` reads; None if it reads none."""
        return None

    def prompt(
        self, features: ImageFeatures, boxes: Sequence[Tensor], labels: Int64[Tensor, " n"] | None
    ) -> list[InstancePrediction]:
        """`masks_from_boxes` of checked boxes; `labels` are those of all images, one after the other."""
        if not boxes:
            return []
        maps = tuple(features.maps[name] for name in self.map_names)
        in_input = [boxes_to_input(b.float(), geometry) for b, geometry in zip(boxes, features.geometry, strict=True)]
        seen = self._look(maps, in_input, labels)
        all_boxes, index = torch.cat(list(boxes)).float().cpu(), image_indices(boxes).tolist()
        for rows in self._small_rows(torch.cat(in_input).cpu()):
            images = [features.images[index[row]] for row in rows.tolist()]
            again = self._look_again(images, all_boxes[rows], None if labels is None else labels[rows])
            for first, second in zip(seen, again, strict=True):
                first[rows] = (first[rows] + second) / 2
        counts = [len(b) for b in boxes]
        by_image = zip(all_boxes.split(counts), features.geometry, *(each.split(counts) for each in seen), strict=True)
        return [self._prediction(b, geometry.original_size, *found) for b, geometry, *found in by_image]

    def _look(
        self, maps: tuple[Tensor, ...], boxes: Sequence[Float[Tensor, "_ 4"]], labels: Int64[Tensor, " n"] | None
    ) -> list[Tensor]:
        """Mask probabilities on the grids of the boxes and, with `mask_quality`, the logits of their IoU; on the CPU.

        Args:
            maps: of a batch.
            boxes: of each of its images, in pixels of the network input.
            labels: of all boxes.
        """
        size, device = self.chunk_size(maps), maps[0].device
        inputs = (torch.cat(list(boxes)), image_indices(boxes), labels)
        chunks = zip(*(value.to(device).split(size) for value in inputs if value is not None), strict=True)
        if self.config.mask_quality:
            found = [self.masks_and_qualities(maps, *chunk) for chunk in chunks]
        else:
            found = [(self.mask_logits(maps, *chunk),) for chunk in chunks]
        logits, *qualities = (torch.cat([each.float() for each in column]) for column in zip(*found, strict=True))
        return [values.detach().cpu() for values in (self.on_boxes(logits).sigmoid(), *qualities)]

    def _small_rows(self, boxes: Float[Tensor, "n 4"]) -> Iterable[Int64[Tensor, " _"]]:
        """The rows of boxes, in pixels of the network input, that are so small that they get a second look.

        They come in parts whose crops have together no more pixels than one image.
        """
        config = self.config
        small = (boxes[:, 2:] - boxes[:, :2]).abs().amax(dim=1) < config.second_look_below
        at_once = max(1, config.image_size**2 // config.second_look_size**2)
        return small.nonzero().flatten().split(at_once) if small.any() else ()

    def _look_again(
        self, images: Sequence[Tensor], boxes: Float[Tensor, "n 4"], labels: Int64[Tensor, " n"] | None
    ) -> list[Tensor]:
        """`_look` at boxes on enlarged crops around them; `images` has the image of each, `boxes` are in its pixels."""
        context = self.config.second_look_context
        crops, inside = zip(*(crop_around(*each, context) for each in zip(images, boxes, strict=True)), strict=True)
        batch, geometry = self.image_batch(crops, self.config.second_look_size)
        in_input = [boxes_to_input(box[None], place) for box, place in zip(inside, geometry, strict=True)]
        return self._look(self.maps(batch), in_input, labels)

    def mask_scores(
        self, probabilities: Float[Tensor, "n m m"], qualities: Float[Tensor, " n"] | None
    ) -> Float[Tensor, " n"]:
        """The score of each mask, in 0..1: its predicted IoU with the truth, else what its probabilities make of it
        (`expected_iou`); calibrated, if the model is.

        Args:
            probabilities: on the grids of the boxes.
            qualities: the logits of the predicted IoU; None of a model that does not predict it.
        """
        scores = expected_iou(probabilities) if qualities is None else qualities.sigmoid()
        return scores if self.mask_calibration is None else self.mask_calibration(scores)

    def _prediction(
        self, boxes: Tensor, image_size: tuple[int, int], probabilities: Tensor, qualities: Tensor | None = None
    ) -> InstancePrediction:
        return InstancePrediction(
            boxes=boxes,
            labels=torch.full((len(boxes),), -1),
            scores=torch.ones(len(boxes)),
            mask_scores=self.mask_scores(probabilities, qualities),
            mask_probabilities=probabilities,
            image_size=image_size,
            frame=self.box_frame,
            categories=tuple(self.categories),
        )

    def predict(self, images: list[Tensor], score_threshold: float, max_detections: int) -> list[InstancePrediction]:
        """The detector's boxes with their masks; boxes without any extent inside the image are left out.

        Boxes are clipped to the image before their masks are made, so that mask and box agree.
        """
        if self.needs_boxes:
            raise ValueError("this model has no detector: give it boxes through encode() and masks_from_boxes()")
        if not images:
            return []
        batch, geometry = self.image_batch(images)
        maps, found = self.detect(batch, [each.resized_size for each in geometry], max_detections)
        chosen = []
        for each, box, label, score in zip(geometry, *found, strict=True):
            clipped = clip_boxes(boxes_to_original(box, each), each.original_size)
            kept = (score >= score_threshold) & (clipped[:, 2:] > clipped[:, :2]).all(dim=1)
            first = kept.nonzero().flatten()[:max_detections]
            chosen.append((clipped[first], label[first], score[first]))
        boxes, labels, scores = zip(*chosen, strict=True)
        features = ImageFeatures(dict(zip(self.map_names, maps, strict=True)), geometry, tuple(images))
        predictions = self.prompt(features, boxes, torch.cat(labels))
        return [
            replace(prediction, labels=label.cpu(), scores=score.cpu())
            for prediction, label, score in zip(predictions, labels, scores, strict=True)
        ]


def image_indices(boxes: Sequence[Float[Tensor, "_ 4"]]) -> Int64[Tensor, " n"]:
    """The position of each box's image, for boxes that are listed by image."""
    device = boxes[0].device
    counts = torch.tensor([len(rows) for rows in boxes], device=device)
    return torch.repeat_interleave(torch.arange(len(boxes), device=device), counts)


def check_divisor(name: str, value: int, divisor: int, part: str) -> None:
    """Refuse a size that a part of the network cannot halve often enough.

    Raises:
        ValueError: `value` is not a multiple of `divisor`.
    """
    if value % divisor:
        raise ValueError(f"{name} must be a multiple of {divisor} for {part}, but got {value}")


def check_prompts(boxes: Sequence[Tensor], num_images: int) -> None:
    """Refuse boxes that a model cannot be prompted with; flipped boxes, and those outside of the image, it can.

    Args:
        boxes: per image [N, 4].
        num_images: of the features.

    Raises:
        ValueError: not one tensor [N, 4] per image, or a coordinate that is not finite, by image and box.
    """
    if len(boxes) != num_images:
        raise ValueError(f"expected boxes for {num_images} images, but got {len(boxes)}")
    for image, rows in enumerate(boxes):
        if rows.ndim != 2 or rows.shape[1] != 4:
            raise ValueError(f"boxes of image {image}: expected shape [N, 4], but got {list(rows.shape)}")
        for index in (~torch.isfinite(rows).all(dim=1)).nonzero().flatten().tolist():
            raise ValueError(f"box {index} of image {image}: expected finite numbers, but got {rows[index].tolist()}")


def check_prompt_labels(labels: Sequence[Tensor], boxes: Sequence[Tensor], num_classes: int) -> None:
    """Refuse labels that do not fit the boxes or the classes.

    Args:
        labels: per image [N], in 0..`num_classes` - 1, or -1 for an unknown class.
        boxes: per image [N, 4].
        num_classes: of the model.

    Raises:
        ValueError: not one label per box, or a label that is none, by image.
    """
    if [label.shape for label in labels] != [rows.shape[:1] for rows in boxes]:
        counts, shapes = [len(rows) for rows in boxes], [list(label.shape) for label in labels]
        raise ValueError(f"expected one label per box, for the images {counts}, but got shapes {shapes}")
    for image, label in enumerate(labels):
        if ((label < -1) | (label >= num_classes)).any():
            raise ValueError(f"labels of image {image} must lie in -1..{num_classes - 1}, but got {label.tolist()}")
