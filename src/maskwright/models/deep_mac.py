"""Deep-MAC: a deep, class-agnostic mask head on box crops of a CenterNet-style feature map."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from maskwright.models.centernet import CenterNetLoss, decode
from maskwright.models.deep_mac_losses import MaskLoss, choose_instances
from maskwright.models.deep_mac_network import DeepMACNetwork, Maps
from maskwright.models.values import check_boxes, check_label_space, check_numbers
from maskwright.nn.image_batch import ChannelOrder, ImageBatch, ResizeMethod, boxes_to_input, boxes_to_original
from maskwright.ops.boxes import JitterMode, clip_boxes, expand_boxes, jitter_boxes
from maskwright.ops.crop import crop_masks
from maskwright.ops.frames import BoxFrame, margin_crop_matrix
from maskwright.structures import (
    Category,
    ImageFeatures,
    InstancePrediction,
    ParameterGroup,
    Target,
    Task,
    check_targets,
)

_SMALLEST = {
    "image_size": 1,
    "detector_width": 1,
    "frozen_levels": 0,
    "mask_head_width": 1,
    "mask_size": 1,
    "mask_upsample": 1,
    "pixel_embedding_dim": 1,
    "instance_embedding_dim": 1,
    "embedding_width": 1,
    "max_masks_per_image": 1,
    "mask_chunk_size": 1,
    "postprocess_crop_size": 2,
}
_WEIGHTS = (
    "object_center_weight",
    "box_size_weight",
    "box_offset_weight",
    "cross_entropy_weight",
    "dice_weight",
    "box_consistency_weight",
    "box_margin",
    "box_jitter_ratio",
)
_MAP_NAMES = ("pixel_embedding", "instance_embedding", "image")


class DeepMAC(nn.Module):
    """Masks for boxes of any class, trained with masks of only some classes.

    With its detector it finds the boxes, too. Without one (`detector: null`) it trains and predicts from given
    boxes alone, as in the paper's section "without a detector".

    Args:
        categories: the label space, in label order; empty for a class-agnostic model without a detector.
        mask_classes: names of the classes whose masks were used in training.
        image_size: side of the square network input, in pixels; a multiple of the backbone's `size_divisor`.
        detector: `centernet`, which learns from the boxes of all classes, or null; boxes are then given.
        detector_width: channels of the hidden layer of the detector's heads.
        backbone: hourglass10, hourglass20, hourglass32, hourglass52 or hourglass104; resnet18_fpn, resnet34_fpn,
            resnet50_fpn or resnet101_fpn (torchvision's), resnet_v1_18_fpn, resnet_v1_34_fpn, resnet_v1_50_fpn or
            resnet_v1_101_fpn (the original's); efficientnet_lite0_fpn (`nn.backbones`).
        pretrained_backbone: start the backbone from ImageNet weights (read here, in the constructor).
        frozen_levels: so many levels of a pyramid backbone's trunk, finest first, stay as they are.
        mask_head: hourglass10, hourglass20, hourglass32, hourglass52 or hourglass100, hourglass20_uniform_size,
            hourglass20_no_shortcut, resnet4, resnet8, resnet12, resnet16 or resnet20, resnet20_dilated10,
            resnet20_dilated20, fcn, fcn_separable, fully_connected or fully_connected4 (`nn.mask_heads`).
        mask_head_width: initial channels of the mask head (`num_init_channels` in the original).
        mask_size: side of the square crop that enters the mask head.
        mask_upsample: how much larger than the crop the mask head's output is.
        pixel_embedding_dim: channels of the map that is cropped.
        instance_embedding_dim: channels of the vector read at the box centre.
        embedding_width: channels of the hidden layer of the two embedding heads.
        embedding_kernel: its kernel; [3, 3] in the paper's checkpoints, [1, 3] in later code of the original.
        use_coordinates: give the head two channels of box coordinates.
        use_instance_embedding: give the head the instance vector, tiled.
        use_image_crop: give the head the normalised image itself, cropped like the pixel embedding.
        box_frame: how the mask's grid lies on a box (`ops/frames.py`).
        box_margin: widens the crop by this share of the box on every side, so that the head sees context.
        box_jitter: how boxes are disturbed in training (`ops.boxes.jitter_boxes`).
        box_jitter_ratio: by how much; 0 leaves them.
        predict_full_resolution_masks: the mask head sees no crop but the whole feature map for each box, with
            coordinates relative to the box's centre, and learns the image's whole mask. It costs the head
            (image_size / 4 / mask_size)^2 times as much; image_size / 4 must be a multiple of its size divisor.
            Predictions are cut out along the box. Not with jitter, margin, upsampling, image crop, the `pixel` frame
            or a fully connected head.
        postprocess_crop_size: side of the grid on which they are cut out.
        object_center_weight: weight of the detector's loss of its centre maps.
        box_size_weight: weight of its loss of heights and widths.
        box_offset_weight: weight of its loss of the centres' offsets.
        min_box_overlap: sets the radius of its Gaussian targets (`ops.heatmap.gaussian_radius`).
        cross_entropy_weight: weight of the per-pixel loss (the original: 5).
        dice_weight: weight of the dice loss.
        box_consistency_weight: weight of the loss that holds every box, with a mask or without, against the extent of
            its predicted mask (`deep_mac_losses.MaskLoss`); then all boxes enter the mask head in training.
        max_masks_per_image: at most so many instances of an image enter the mask head in training.
        mask_chunk_size: at inference boxes enter the mask head in chunks of so many; on a CPU of 16 (bfloat16: 32).
        resize: how an image's pixels are interpolated, see `ImageBatch`.
        image_mean: what is subtracted from the channels, in 0..1, in RGB order.
        image_std: what they are then divided by.
        channel_order: the order in which the network takes them.
        norm_momentum: of the batch norms, in torch's sense (the original: 0.9).
        width: scales the channels of the backbone and of all hidden layers, for tests.

    Raises:
        ValueError: an unknown name, a meaningless value, a detector without categories, an indivisible `image_size`.

    Source: arXiv 2104.00613; Object Detection API `deepmac_meta_arch.py`.
    """

    family = "deep_mac"
    task: Task = "instance"

    def __init__(
        self,
        *,
        categories: list[Category] | None = None,
        mask_classes: list[str] | None = None,
        image_size: int = 512,
        detector: Literal["centernet"] | None = None,
        detector_width: int = 256,
        backbone: str = "hourglass104",
        pretrained_backbone: bool = False,
        frozen_levels: int = 0,
        mask_head: str = "hourglass52",
        mask_head_width: int = 64,
        mask_size: int = 32,
        mask_upsample: int = 1,
        pixel_embedding_dim: int = 16,
        instance_embedding_dim: int = 32,
        embedding_width: int = 256,
        embedding_kernel: Sequence[int] = (3, 3),
        use_coordinates: bool = True,
        use_instance_embedding: bool = True,
        use_image_crop: bool = False,
        box_frame: BoxFrame = "corner",
        box_margin: float = 0.0,
        box_jitter: JitterMode = "default",
        box_jitter_ratio: float = 0.0,
        predict_full_resolution_masks: bool = False,
        postprocess_crop_size: int = 256,
        object_center_weight: float = 1.0,
        box_size_weight: float = 0.1,
        box_offset_weight: float = 1.0,
        min_box_overlap: float = 0.7,
        cross_entropy_weight: float = 5.0,
        dice_weight: float = 0.0,
        box_consistency_weight: float = 0.0,
        max_masks_per_image: int = 100,
        mask_chunk_size: int = 128,
        resize: ResizeMethod = "antialias",
        image_mean: Sequence[float] = (0.485, 0.456, 0.406),
        image_std: Sequence[float] = (0.229, 0.224, 0.225),
        channel_order: ChannelOrder = "rgb",
        norm_momentum: float = 0.1,
        width: float = 1.0,
    ) -> None:
        self.config: dict[str, Any] = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__()
        _check_values(self.config)
        self.categories: list[Category] = list(categories or [])
        self.mask_classes: list[str] = list(mask_classes or [])
        self.image_size = image_size
        self.detector = detector
        self.box_jitter: JitterMode = box_jitter
        self.box_jitter_ratio = box_jitter_ratio
        crop_frame = None if predict_full_resolution_masks else box_frame
        self.mask_loss = MaskLoss(cross_entropy_weight, dice_weight, box_consistency_weight, crop_frame)
        self.max_masks_per_image = max_masks_per_image
        self.mask_chunk_size = mask_chunk_size
        self.image_batch = ImageBatch(image_size, resize, image_mean, image_std, channel_order)
        self.centernet_loss = CenterNetLoss(object_center_weight, box_size_weight, box_offset_weight, min_box_overlap)
        self.network = self._create_network()

    @property
    def needs_boxes(self) -> bool:
        """Whether the model has no detector."""
        return self.detector is None

    def _create_network(self) -> DeepMACNetwork:
        if self.detector not in (None, "centernet"):
            raise ValueError(f"detector must be 'centernet' or null, but got {self.detector!r}")
        if self.detector and not self.categories:
            raise ValueError("a model with a detector needs categories, the classes that it tells apart, but got none")
        if self.config["predict_full_resolution_masks"] and self.box_jitter_ratio:
            raise ValueError("predict_full_resolution_masks needs box_jitter_ratio 0: there is no crop to disturb")
        names = inspect.signature(DeepMACNetwork.__init__).parameters
        shared = {name: value for name, value in self.config.items() if name in names}
        network = DeepMACNetwork(num_classes=len(self.categories) if self.detector else None, **shared)
        divisor = network.backbone.size_divisor
        if self.image_size % divisor:
            name = self.config["backbone"]
            raise ValueError(
                f"image_size must be a multiple of {divisor} for backbone {name!r}, but got {self.image_size}"
            )
        return network

    def forward(
        self,
        images: list[Tensor],
        targets: list[Target] | None = None,
        *,
        score_threshold: float = 0.0,
        max_detections: int = 100,
    ) -> dict[str, Tensor] | list[InstancePrediction]:
        """Training: already weighted losses by name, whose sum is the objective. In eval: predictions per image.

        In training, `images` are RGB [3, H, W] (uint8, or float in 0..1) of one size, `image_size` or smaller crops,
        with boxes and masks in the same pixels: nothing is resized. Only boxes with `has_mask` that are no crowd
        enter the mask head; all that are no crowd train the detector.

        In eval, images have any size. A prediction holds at most `max_detections` instances of score
        `score_threshold` or more, the highest score first; the others cost no mask head.

        Raises:
            ValueError: in eval mode without a detector, since there are no boxes to predict
                (use `encode` and `masks_from_boxes`); targets that break their contract.
        """
        if not self.training:
            return self._predict(images, score_threshold, max_detections)
        if targets is None:
            raise ValueError("in training the model needs targets, one per image")
        check_targets(images, targets, len(self.categories) or None)
        self._check_training_size(images)
        stacks, detector_stacks = self.network.stack_outputs(self.image_batch.stack(images))
        losses = self.mask_losses(stacks, targets)
        if self.detector is None:
            return losses
        found = [~target["iscrowd"] for target in targets]
        boxes = [target["boxes"][rows] for target, rows in zip(targets, found, strict=True)]
        labels = [target["labels"][rows] for target, rows in zip(targets, found, strict=True)]
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        stride = self.network.backbone.strides[-1]
        return self.centernet_loss(detector_stacks, boxes, labels, sizes, stride) | losses

    def mask_losses(self, stacks: Sequence[Maps], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Losses of the mask head on ground-truth boxes, averaged over the stacks, then per image.

        Source: `_compute_masks_loss`; departures: see `DeepMACNetwork`.
        """
        size = (stacks[0][2].shape[-2], stacks[0][2].shape[-1])
        instances = choose_instances(
            targets,
            self.max_masks_per_image,
            lambda boxes: jitter_boxes(boxes, size, self.box_jitter, self.box_jitter_ratio),
            self._mask_targets,
            stacks[0][0].device,
            boxes_alone=self.mask_loss.box_consistency_weight > 0,
        )
        logits = [self.network.head_logits(m, instances.boxes, instances.image_index).float() for m in stacks]
        return self.mask_loss(logits, instances, len(targets), size)

    def encode(self, images: list[Tensor]) -> ImageFeatures:
        """Run the backbone once; the result can be prompted with boxes any number of times.

        `images`: RGB [3, H, W] of any size, uint8 or float in 0..1.
        """
        batch, geometry = self.image_batch(images)
        return ImageFeatures(dict(zip(_MAP_NAMES, self.network.maps(batch), strict=True)), geometry)

    def masks_from_boxes(
        self,
        features: ImageFeatures,
        boxes: list[Tensor],
        labels: list[Tensor] | None = None,  # noqa: ARG002
    ) -> list[InstancePrediction]:
        """Masks of given boxes, one prediction per image, instances in the order of the boxes.

        Args:
            features: of `encode`.
            boxes: per image float [N, 4], xyxy pixels of the original image; N may be 0.
            labels: not read, since masks are class-agnostic.

        Raises:
            ValueError: not one tensor of boxes per image, or a box that is not finite, by image and box.
        """
        check_boxes(boxes, len(features))
        if not boxes:
            return []
        pixel_embedding, instance_embedding, image = (features.maps[name] for name in _MAP_NAMES)
        maps = (pixel_embedding, instance_embedding, image)
        counts = [len(b) for b in boxes]
        scaled = [boxes_to_input(b.float(), lies) for b, lies in zip(boxes, features.geometry, strict=True)]
        image_index = torch.repeat_interleave(torch.arange(len(boxes)), torch.tensor(counts))
        probabilities = self._mask_probabilities(maps, torch.cat(scaled), image_index)
        return [
            self._prediction(b.float().cpu(), p, lies.original_size)
            for b, p, lies in zip(boxes, probabilities.split(counts), features.geometry, strict=True)
        ]

    def _predict(self, images: list[Tensor], score_threshold: float, max_detections: int) -> list[InstancePrediction]:
        """The detector's boxes with their masks.

        Source: `DeepMACMetaArch.postprocess`. Departures: boxes are clipped to the image before their masks are
        made rather than after, so that mask and box agree, and boxes without any extent inside it are left out.
        """
        if self.detector is None:
            raise ValueError("this model has no detector: give it boxes through encode() and masks_from_boxes()")
        batch, geometry = self.image_batch(images)
        maps, detector_maps = self.network.maps_and_detection(batch)
        sizes = [lies.resized_size for lies in geometry]
        found = decode(detector_maps, sizes, self.network.backbone.strides[-1], max_detections)
        boxes, labels, scores = [], [], []
        for lies, box, label, score in zip(geometry, *found, strict=True):
            clipped = clip_boxes(boxes_to_original(box, lies), lies.original_size)
            kept = (score > 0) & (score >= score_threshold) & (clipped[:, 2:] > clipped[:, :2]).all(dim=1)
            boxes.append(clipped[kept])
            labels.append(label[kept].cpu())
            scores.append(score[kept].cpu())
        features = ImageFeatures(dict(zip(_MAP_NAMES, maps, strict=True)), geometry)
        predictions = self.masks_from_boxes(features, boxes)
        return [replace(p, labels=lab, scores=s) for p, lab, s in zip(predictions, labels, scores, strict=True)]

    def parameter_groups(self) -> list[ParameterGroup]:
        """`backbone` (its trunk, without the pyramid) and `heads`, each with weight decay and, for norms, without."""
        groups: list[ParameterGroup] = []
        trunk = {id(parameter) for parameter in self.network.backbone.trunk_parameters()}
        for name in ("backbone", "heads"):
            members = [p for p in self.parameters() if p.requires_grad and (id(p) in trunk) == (name == "backbone")]
            for decay in (1.0, 0.0):
                parameters = [p for p in members if (p.ndim > 1) == bool(decay)]
                groups.append({"name": name, "params": parameters, "weight_decay_factor": decay})
        return groups

    def class_layers(self) -> dict[str, Int64[Tensor, " rows"]]:
        """The last layers of the detector's centre maps, which have a row per class."""
        labels = torch.arange(len(self.categories))
        stacks = range(len(self.network.detector or ()))
        return {f"network.detector.{i}.center.2.{kind}": labels for i in stacks for kind in ("weight", "bias")}

    def _check_training_size(self, images: Sequence[Tensor]) -> None:
        for index, image in enumerate(images):
            if image.shape != images[0].shape:
                first, other = list(images[0].shape), list(image.shape)
                raise ValueError(
                    f"in training all images must have one size, but image 0 is {first} and {index} {other}"
                )

    def _mask_targets(
        self, masks: Bool[Tensor, "k height width"], boxes: Float[Tensor, "k 4"]
    ) -> Float[Tensor, "k h w"]:
        if self.network.predict_full_resolution_masks:
            return masks.float()
        size = self.network.mask_size * self.network.mask_upsample
        return crop_masks(masks, expand_boxes(boxes, self.network.box_margin), size, self.network.box_frame)

    def _mask_probabilities(
        self, maps: Maps, boxes: Float[Tensor, "n 4"], image_index: Int64[Tensor, " n"]
    ) -> Float[Tensor, "n m m"]:
        boxes, image_index = boxes.to(maps[0].device), image_index.to(maps[0].device)
        size = self.mask_chunk_size
        if boxes.device.type == "cpu":
            # Measured: activations of so many bytes fit the cache, and memory that is freed is used again.
            size = min(size, 64 // maps[0].element_size())
        chunks = zip(boxes.split(size), image_index.split(size), strict=True)
        logits = torch.cat([self.network.mask_logits(maps, b, index).float() for b, index in chunks])
        return self._without_margin(logits).sigmoid().detach().cpu()

    def _without_margin(self, logits: Float[Tensor, "n m m"]) -> Float[Tensor, "n m m"]:
        """Logits on the widened box -> logits on the box itself, on a grid of the same size."""
        if not self.network.box_margin:
            return logits
        matrix = margin_crop_matrix(logits.shape[-1], self.network.box_margin, self.network.box_frame).to(logits)
        with torch.autocast(logits.device.type, enabled=False):  # it would bring the masks down to 8 bits
            return matrix @ logits @ matrix.T

    def _prediction(self, boxes: Tensor, probabilities: Tensor, image_size: tuple[int, int]) -> InstancePrediction:
        inside = probabilities > 0.5
        certainty = (probabilities * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
        return InstancePrediction(
            boxes=boxes,
            labels=torch.full((len(boxes),), -1),
            scores=torch.ones(len(boxes)),
            mask_scores=certainty,
            mask_probabilities=probabilities,
            image_size=image_size,
            frame=self.network.box_frame,
            categories=tuple(self.categories),
        )


def _check_values(config: dict[str, Any]) -> None:
    check_label_space(config["categories"], config["mask_classes"])
    shares = ("min_box_overlap", "norm_momentum")
    check_numbers(config, smallest=_SMALLEST, weights=_WEIGHTS, factors=("width",), shares=shares)
    if config["box_jitter"] not in get_args(JitterMode):
        raise ValueError(
            f"box_jitter must be one of {', '.join(get_args(JitterMode))}, but got {config['box_jitter']!r}"
        )
