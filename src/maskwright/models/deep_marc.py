"""Deep-MARC: Mask R-CNN with a deep mask head, trained on ground-truth boxes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from maskwright.models.deep_marc_network import BoxHead, DeepMARCNetwork, Maps
from maskwright.models.roi_heads import Sample, image_indices
from maskwright.models.values import check_boxes, check_label_space, check_labels, check_numbers
from maskwright.nn.feature_maps import Padding
from maskwright.nn.hourglass import Hourglass
from maskwright.nn.image_batch import ChannelOrder, ImageBatch, ResizeMethod, boxes_to_input, boxes_to_original
from maskwright.ops.boxes import clip_boxes
from maskwright.ops.crop import crop_masks
from maskwright.ops.losses import mask_cross_entropy
from maskwright.structures import (
    Category,
    ImageFeatures,
    InstancePrediction,
    ParameterGroup,
    Target,
    Task,
    check_targets,
)

MaskBoxes = Literal["ground_truth", "proposals"]
ImagePadding = Literal["black", "mean"]

_SMALLEST = {
    "image_size": 1,
    "frozen_levels": 0,
    "num_anchor_scales": 1,
    "num_proposals": 1,
    "num_box_samples": 1,
    "mask_head_width": 1,
    "mask_size": 1,
    "mask_upsample": 1,
    "max_masks_per_image": 1,
    "mask_chunk_size": 1,
}


class DeepMARC(nn.Module):
    """Mask R-CNN whose mask head may be deep, and learns on ground-truth boxes: then it masks unseen classes, too.

    It finds boxes by itself (of all classes that have boxes in training) and takes given ones.

    Args:
        categories: the label space, in label order.
        mask_classes: names of the classes whose masks were used in training.
        image_size: side of the square network input, in pixels; a multiple of the backbone's `size_divisor`.
        backbone: resnet18_fpn, resnet34_fpn, resnet50_fpn or resnet101_fpn, efficientnet_lite0_fpn; spinenet49s,
            spinenet49, spinenet96, spinenet143, spinenet143l or spinenet190 (`nn.backbones`).
        pretrained_backbone: start the backbone from ImageNet weights (read here, in the constructor).
        padding: of the backbone, see `create_detection_backbone`.
        frozen_levels: so many levels of a pyramid backbone's trunk, finest first, stay as they are.
        drop_path_rate: of a SpineNet, see there.
        anchor_scale: side of a level's smallest square anchor, in cells (the originals: 8 for ResNets, 3 or 4 for
            SpineNets); each size comes with the aspect ratios 0.5, 1 and 2.
        num_anchor_scales: sizes of anchors per level, equal factors apart; the next would be the next level's first.
        box_head: `4conv1fc`, the original's, or `2fc`, which is faster.
        num_proposals: boxes per image that the first stage hands to the second.
        num_box_samples: so many of them per image train the second stage, at most a quarter of them on objects.
        min_box_score: candidates of at most this score are not detected, whatever the threshold of a call
            (the original: 0.05). It spares their non-maximum suppression.
        mask_head: hourglass10, hourglass20, hourglass32, hourglass52 or hourglass100, hourglass20_uniform_size,
            hourglass20_no_shortcut, resnet4, resnet8, resnet12, resnet16 or resnet20, resnet20_dilated10,
            resnet20_dilated20, fcn, fcn_separable, fully_connected or fully_connected4 (`nn.mask_heads`).
        mask_head_width: channels of the mask head (`num_filters` in the original): 64 of the hourglasses, 256 of `fcn`.
        mask_size: side of the square crop that enters the mask head.
        mask_upsample: how much larger than the crop the mask head's output is.
        class_agnostic_masks: one mask per box, which any class can learn from and use; else one per class.
        mask_boxes: on which boxes the masks are learnt: `ground_truth`, with which they generalise to unseen
            classes, or `proposals`, the sampled ones that lie on an object, which include the ground truth.
        mask_weight: weight of the masks' loss; those of the boxes have weight 1.
        max_masks_per_image: at most so many boxes of an image enter the mask head in training.
        mask_chunk_size: at inference boxes enter the mask head in chunks of so many.
        resize: how an image's pixels are interpolated, see `ImageBatch`.
        image_mean: what is subtracted from the channels, in 0..1, in RGB order.
        image_std: what they are then divided by.
        channel_order: the order in which the network takes them.
        image_padding: beside an image that is not square: `black`, as in training, or `mean`, the original's.
        norm_momentum: of the batch norms outside of the mask head, in torch's sense.
        norm_epsilon: of the batch norms, but for the hourglasses' (1e-5).
        trunk_norm_epsilon: of those of a pyramid backbone's trunk, see `create_detection_backbone`.
        mask_norm_momentum: of the mask head's batch norms, in torch's sense.
        width: scales the channels of the backbone and of all hidden layers, for tests.

    Raises:
        ValueError: an unknown name, a meaningless value, no categories, or an indivisible `image_size`.

    Source: arXiv 2104.00613, section 3 and appendix; official/projects/deepmac_maskrcnn of the TensorFlow Model Garden.
    Departures; the detector is torchvision's:
    - The first stage has no batch norms; anchors lie on the upper left corners of cells, not their centres, and have
      sides of whole pixels. Its class loss is the mean over the 256 anchors per image that are sampled (the original:
      their sum, divided by 512 per image, which is half of it). Its box loss is the smooth L1 of beta 1 / 9 (nine
      times the original's Huber loss of delta 1 / 9), summed over the sampled anchors on objects and divided by the
      number of all samples (the original: per level the sum over all anchors on objects, divided by 4 times their
      number).
    - The second stage's convolutions have no biases, and its hidden layer has no batch norm. Its box loss is the
      smooth L1 of beta 1 / 9, summed over the samples on objects and divided by the number of all samples (the
      original: the Huber loss of delta 1, divided by 4 times the number of those on objects).
    - Boxes are cut off at the image rather than at the padded network input, before their masks are made.
    - Box crops: see `crop_levels`. Masks are on the `pixel` frame, and their targets are cut from the full-size masks
      inside the training box (the original resamples a crop of 112 x 112).
    - Only boxes whose mask is learnt enter the mask head and its norms (the original's are filled up with empty
      rows). No outer boxes, no cascade, no separable convolutions.
    - A given box without a label has, in a model with one mask per class, the mask of the class that the box head
      finds most likely (the original's: that of the background).
    """

    family = "deep_marc"
    task: Task = "instance"
    needs_boxes = False

    def __init__(
        self,
        *,
        categories: list[Category] | None = None,
        mask_classes: list[str] | None = None,
        image_size: int = 1024,
        backbone: str = "resnet50_fpn",
        pretrained_backbone: bool = False,
        padding: Padding = "symmetric",
        frozen_levels: int = 0,
        drop_path_rate: float = 0.0,
        anchor_scale: float = 8.0,
        num_anchor_scales: int = 1,
        box_head: BoxHead = "4conv1fc",
        num_proposals: int = 1000,
        num_box_samples: int = 512,
        min_box_score: float = 0.05,
        mask_head: str = "hourglass52",
        mask_head_width: int = 64,
        mask_size: int = 32,
        mask_upsample: int = 2,
        class_agnostic_masks: bool = True,
        mask_boxes: MaskBoxes = "ground_truth",
        mask_weight: float = 1.0,
        max_masks_per_image: int = 128,
        mask_chunk_size: int = 128,
        resize: ResizeMethod = "antialias",
        image_mean: Sequence[float] = (0.485, 0.456, 0.406),
        image_std: Sequence[float] = (0.229, 0.224, 0.225),
        channel_order: ChannelOrder = "rgb",
        image_padding: ImagePadding = "black",
        norm_momentum: float = 0.1,
        norm_epsilon: float = 1e-5,
        trunk_norm_epsilon: float | None = None,
        mask_norm_momentum: float = 0.1,
        width: float = 1.0,
    ) -> None:
        self.config: dict[str, Any] = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__()
        _check_values(self.config)
        self.categories: list[Category] = list(categories or [])
        self.mask_classes: list[str] = list(mask_classes or [])
        self.image_size = image_size
        self.mask_boxes: MaskBoxes = mask_boxes
        self.mask_weight = mask_weight
        self.max_masks_per_image = max_masks_per_image
        self.mask_chunk_size = mask_chunk_size
        beside = image_mean if image_padding == "mean" else 0.0
        self.image_batch = ImageBatch(image_size, resize, image_mean, image_std, channel_order, padding=beside)
        self.network = self._create_network()

    def _create_network(self) -> DeepMARCNetwork:
        if not self.categories:
            raise ValueError("Deep-MARC needs categories, the classes that its detector tells apart, but got none")
        for name, known in (("mask_boxes", get_args(MaskBoxes)), ("image_padding", get_args(ImagePadding))):
            if self.config[name] not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, but got {self.config[name]!r}")
        names = inspect.signature(DeepMARCNetwork.__init__).parameters
        shared = {name: value for name, value in self.config.items() if name in names}
        network = DeepMARCNetwork(num_classes=len(self.categories), **shared)
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
        with boxes and masks in the same pixels: nothing is resized. All boxes that are no crowd train the detector;
        those of them with `has_mask` (and proposals on them) enter the mask head.

        In eval, images have any size. A prediction holds at most `max_detections` instances of score
        `score_threshold` or more, the highest score first; the others cost no mask head.

        Raises:
            ValueError: targets that break their contract.
        """
        if not self.training:
            return self._predict(images, score_threshold, max_detections)
        if targets is None:
            raise ValueError("in training the model needs targets, one per image")
        check_targets(images, targets, len(self.categories))
        self._check_training_size(images)
        maps = self.network.maps(self.image_batch.stack(images))
        device = maps[0].device
        objects = [(~target["iscrowd"]).nonzero().flatten().to(device) for target in targets]
        boxes = [target["boxes"].to(device)[rows] for target, rows in zip(targets, objects, strict=True)]
        labels = [target["labels"].to(device)[rows] for target, rows in zip(targets, objects, strict=True)]
        losses, samples = self.network.detector_losses(maps, boxes, labels)
        if self.mask_boxes == "ground_truth":
            mask_boxes = list(zip(boxes, objects, strict=True))
        else:
            mask_boxes = [(box, objects[i][rows]) for i, (box, rows) in enumerate(samples)]
        return losses | {"mask_cross_entropy": self.mask_weight * self._mask_loss(maps, mask_boxes, targets)}

    def _mask_loss(self, maps: Maps, boxes: Sequence[Sample], targets: Sequence[Target]) -> Tensor:
        """Loss of the masks on those of the boxes whose object has a mask that may be learnt."""
        kept = [self._with_mask(sample, target) for sample, target in zip(boxes, targets, strict=True)]
        size = self.network.mask_size * self.config["mask_upsample"]
        crops = [
            crop_masks(target["masks"].to(box.device), box, size, "pixel", rows)
            for (box, rows), target in zip(kept, targets, strict=True)
        ]
        labels = torch.cat([t["labels"].to(rows.device)[rows] for (_, rows), t in zip(kept, targets, strict=True)])
        all_boxes = [box for box, _ in kept]
        logits = self.network.mask_logits(maps, torch.cat(all_boxes), image_indices(all_boxes), labels)
        return mask_loss(logits.float(), torch.cat(crops))

    def _with_mask(self, sample: Sample, target: Target) -> Sample:
        """The boxes whose mask may be learnt; where there are too many, a random choice of them."""
        boxes, rows = sample
        kept = target["has_mask"].to(rows.device)[rows].nonzero().flatten()
        if len(kept) > self.max_masks_per_image:
            kept = kept[torch.randperm(len(kept), device=kept.device)[: self.max_masks_per_image]]
        return boxes[kept], rows[kept]

    def encode(self, images: list[Tensor]) -> ImageFeatures:
        """Run the backbone once; the result can be prompted with boxes any number of times.

        `images`: RGB [3, H, W] of any size, uint8 or float in 0..1.
        """
        batch, geometry = self.image_batch(images)
        return self._features(self.network.maps(batch), geometry)

    def masks_from_boxes(
        self, features: ImageFeatures, boxes: list[Tensor], labels: list[Tensor] | None = None
    ) -> list[InstancePrediction]:
        """Masks of given boxes, one prediction per image, instances in the order of the boxes; their labels are -1.

        Args:
            features: of `encode`.
            boxes: per image float [N, 4], xyxy pixels of the original image; N may be 0.
            labels: per image int [N], the class of each box, whose mask it is that a model with one mask per class
                gives; where it is -1, or left out, it is that of the class that its box head finds most likely. A
                model with class-agnostic masks has one mask for all.

        Raises:
            ValueError: not one tensor of boxes per image, or a box that is not finite, by image and box; labels
                that do not fit the boxes or the categories.
        """
        check_boxes(boxes, len(features))
        if labels is not None:
            check_labels(labels, boxes, len(self.categories))
        wanted = torch.cat(labels) if labels and not self.network.class_agnostic_masks else None
        return self._masks(features, boxes, wanted)

    def _predict(self, images: list[Tensor], score_threshold: float, max_detections: int) -> list[InstancePrediction]:
        """The detector's boxes with their masks."""
        if not images:
            return []
        batch, geometry = self.image_batch(images)
        maps = self.network.maps(batch)
        found = self.network.detect(maps, [lies.resized_size for lies in geometry])
        boxes, labels, scores = [], [], []
        for lies, box, label, score in zip(geometry, *found, strict=True):
            clipped = clip_boxes(boxes_to_original(box, lies), lies.original_size)
            kept = (score >= score_threshold) & (clipped[:, 2:] > clipped[:, :2]).all(dim=1)
            first = kept.nonzero().flatten()[:max_detections]
            boxes.append(clipped[first])
            labels.append(label[first])
            scores.append(score[first].cpu())
        predictions = self._masks(self._features(maps, geometry), boxes, torch.cat(labels))
        named = zip(predictions, labels, scores, strict=True)
        return [replace(p, labels=label.cpu(), scores=score) for p, label, score in named]

    def _features(self, maps: Maps, geometry: tuple[Any, ...]) -> ImageFeatures:
        names = [str(level) for level in self.network.backbone.levels]
        return ImageFeatures(dict(zip(names, maps, strict=True)), geometry)

    def _masks(
        self, features: ImageFeatures, boxes: Sequence[Tensor], labels: Int64[Tensor, " n"] | None
    ) -> list[InstancePrediction]:
        """`masks_from_boxes`, of the classes `labels` if the model has one mask per class."""
        if not boxes:
            return []
        maps = tuple(features.maps.values())
        scaled = [boxes_to_input(b.float(), lies) for b, lies in zip(boxes, features.geometry, strict=True)]
        probabilities = self._mask_probabilities(maps, torch.cat(scaled), image_indices(scaled), labels)
        return [
            self._prediction(b.float().cpu(), p, lies.original_size)
            for b, p, lies in zip(boxes, probabilities.split([len(b) for b in boxes]), features.geometry, strict=True)
        ]

    def _mask_probabilities(
        self, maps: Maps, boxes: Float[Tensor, "n 4"], image_index: Int64[Tensor, " n"], labels: Tensor | None
    ) -> Float[Tensor, "n m m"]:
        size, device = self.mask_chunk_size, maps[0].device
        inputs = [value.to(device).split(size) for value in (boxes, image_index, labels) if value is not None]
        logits = [self._mask_logits(maps, *chunk).float() for chunk in zip(*inputs, strict=True)]
        return torch.cat(logits).sigmoid().detach().cpu()

    def _mask_logits(self, maps: Maps, boxes: Tensor, image_index: Tensor, labels: Tensor | None = None) -> Tensor:
        """`DeepMARCNetwork.mask_logits`, where a label may be -1: that of the most likely class."""
        if labels is not None and (labels < 0).any():
            likeliest = self.network.likeliest_class(maps, boxes, image_index)
            labels = torch.where(labels < 0, likeliest, labels)
        return self.network.mask_logits(maps, boxes, image_index, labels)

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
            frame="pixel",
            categories=tuple(self.categories),
        )

    def parameter_groups(self) -> list[ParameterGroup]:
        """`backbone` (without its pyramid) and `heads`, each with weight decay and without.

        Norms and biases have none, nor has anything in an hourglass of the mask head.
        """
        trunk = getattr(self.network.backbone, "trunk", self.network.backbone)  # a SpineNet has no pyramid
        backbone = {id(parameter) for parameter in trunk.parameters()}
        hourglasses = [part for part in self.network.mask_head.children() if isinstance(part, Hourglass)]
        undecayed = {id(parameter) for part in hourglasses for parameter in part.parameters()}
        groups: list[ParameterGroup] = []
        for name in ("backbone", "heads"):
            members = [p for p in self.parameters() if p.requires_grad and (id(p) in backbone) == (name == "backbone")]
            for decay in (1.0, 0.0):
                parameters = [p for p in members if (p.ndim > 1 and id(p) not in undecayed) == bool(decay)]
                groups.append({"name": name, "params": parameters, "weight_decay_factor": decay})
        return groups

    def class_layers(self) -> dict[str, Int64[Tensor, " rows"]]:
        """The box head's two outputs, and with one mask per class the last layer of the mask head."""
        labels = torch.arange(len(self.categories))
        with_background = torch.cat([torch.tensor([-1]), labels])
        rows = {"cls_score": with_background, "bbox_pred": with_background.repeat_interleave(4)}
        kinds = ("weight", "bias")
        layers = {f"network.roi_heads.box_predictor.{k}.{kind}": row for k, row in rows.items() for kind in kinds}
        if not self.network.class_agnostic_masks:
            for name, values in list(self.network.mask_head.named_parameters())[-2:]:
                layers[f"network.mask_head.{name}"] = labels.repeat_interleave(len(values) // len(labels))
        return layers

    def _check_training_size(self, images: Sequence[Tensor]) -> None:
        for index, image in enumerate(images):
            if image.shape != images[0].shape:
                first, other = list(images[0].shape), list(image.shape)
                raise ValueError(
                    f"in training all images must have one size, but image 0 is {first} and {index} {other}"
                )


def mask_loss(logits: Float[Tensor, "n m m"], targets: Float[Tensor, "n m m"]) -> Float[Tensor, ""]:
    """Cross-entropy per cell, the mean over all cells of all boxes; 0 without a box. Targets in [0, 1] may be soft.

    Source: official/vision/losses/maskrcnn_losses.py, `MaskrcnnLoss`, which divides by 0.01 cells more.
    """
    return mask_cross_entropy(logits, targets).sum() / max(1, len(logits))


def _check_values(config: dict[str, Any]) -> None:
    check_label_space(config["categories"], config["mask_classes"])
    check_numbers(
        config,
        smallest=_SMALLEST,
        weights=("mask_weight",),
        factors=("anchor_scale", "norm_epsilon", "width"),
        shares=("min_box_score", "drop_path_rate", "norm_momentum", "mask_norm_momentum"),
    )
