"""MaX-DeepLab: end-to-end panoptic segmentation with a mask transformer."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from maskwright.models.max_deeplab.decoder import DECODER_STRIDE
from maskwright.models.max_deeplab.dual_path import DualPathLayer
from maskwright.models.max_deeplab.encoder import ENCODER_SIZES, MaXDeepLabEncoder
from maskwright.models.max_deeplab.losses import MaXDeepLabLoss, UnmatchedWeight
from maskwright.models.max_deeplab.mask_targets import create_mask_targets
from maskwright.models.max_deeplab.network import Backbone, MaXDeepLabNetwork
from maskwright.models.max_deeplab.post_processing import Merging, PanopticMerging
from maskwright.models.max_deeplab.stages import DropPathSchedule
from maskwright.models.values import check_label_space, check_numbers
from maskwright.nn.image_batch import ImageBatch
from maskwright.structures import (
    Category,
    PanopticPrediction,
    PanopticTarget,
    ParameterGroup,
    Task,
    check_panoptic_targets,
)

_GREY = [0.5, 0.5, 0.5]
_FACTORS = ("stem_width", "backbone_width", "transformer_width")
_CHANNELS = (
    "memory_channels",
    "memory_feature_channels",
    "feed_forward_channels",
    "semantic_channels",
    "pixel_head_channels",
    "pixel_feature_channels",
)
_SMALLEST = {
    "image_size": 1,
    "num_mask_slots": 1,
    "feed_forward_channels": 1,
    "num_heads": 1,
    "semantic_channels": 1,
    "pixel_head_channels": 1,
    "pixel_feature_channels": 1,
    "contrast_pixels": 0,
    "small_instance_area": 0,
    "thing_area_limit": 0,
    "stuff_area_limit": 0,
}
_WEIGHTS = (
    "pq_weight",
    "mask_id_weight",
    "instance_discrimination_weight",
    "semantic_weight",
    "small_instance_weight",
    "class_exponent",
    "mask_exponent",
)


class MaXDeepLab(nn.Module):
    """A panoptic map of an image, without boxes: each slot of a memory becomes a mask with a class, or void.

    Args:
        categories: the label space, in label order; things and stuff in any order, things alone or stuff alone, too. A
            category that does not say `isthing` is a thing.
        mask_classes: of no meaning here, since all masks are learnt; the model's own is empty.
        image_size: side of the square network input, in pixels; `16 k + 1`.
        backbone: the published size.
        num_mask_slots: at most so many masks are found in an image.
        stem_width: multiplies the channels of the first layers.
        backbone_width: multiplies the channels of the stages and of the decoder.
        transformer_width: multiplies the channels within the layers that join memory and pixels.
        memory_channels: of the memory; null: the backbone's own (256 in S, 512 in L).
        memory_feature_channels: of what the class head and the mask head read; null: likewise.
        feed_forward_channels: hidden channels of the memory's feed-forward networks.
        num_heads: of all attentions.
        semantic_channels: of the semantic decoder and head.
        low_level_channels: to which the semantic decoder reduces the maps at strides 8 and 4.
        pixel_head_channels: hidden channels of the head of the pixel features.
        pixel_feature_channels: of the pixel features, with which the masks are made.
        drop_path_keep: share of the branches that drop path keeps in the last stage.
        drop_path_schedule: `linear` falls from 1 to that share, stage by stage; `constant` is that share everywhere.
        norm_momentum: of the batch norms, in torch's sense (the original: 0.01).
        activation_checkpointing: recompute each block in the backward pass instead of keeping its activations: less
            memory, more time.
        pq_weight: weight of the PQ-style loss, which is `mask_class` and `mask_dice` together.
        mask_id_weight: weight of the cross entropy of each pixel's slot.
        instance_discrimination_weight: weight of the loss that tells the pixel features of instances apart.
        semantic_weight: weight of the auxiliary semantic segmentation.
        unmatched_weight: what a slot without a mask weighs in `mask_class`: the share of its probability that lies on
            void, as in the original's code, or the share on labelled pixels, as in the paper.
        contrast_pixels: 0 compares pixels with the mean feature of each mask; above 0 so many pixels are drawn and
            compared with each other.
        semantic_top_k: share of pixels, those with the largest loss, that the mean of the semantic loss is taken over.
        mask_id_top_k: the same of the cross entropy of each pixel's slot.
        instance_discrimination_top_k: the same of the loss that tells instances apart.
        small_instance_weight: weight in the semantic loss of the pixels of small instances; 1 is that of all others.
        small_instance_area: an instance of fewer pixels of the training crop is small.
        merging: `pixelwise` gives each pixel to the slot with the largest logit; `maskwise` lays whole masks on top
            of each other, the best first.
        class_threshold: least probability of a detected slot's class.
        stuff_class_threshold: the same for classes of stuff; null: `class_threshold`.
        pixel_threshold: a pixel's probability of its slot must exceed it.
        thing_area_limit: least area of a thing's segment, in pixels of the network's input.
        stuff_area_limit: the same of stuff.
        overlap_threshold: in `maskwise`, the share of a mask that must be free when its turn comes.
        class_exponent: in `maskwise`, the power of the class's probability in the order of the masks.
        mask_exponent: the same of the mean probability of the mask's pixels.
        width: scales the channels of all layers, for small machines and tests; heads of attention keep their number.

    Raises:
        ValueError: no categories, an unknown name, or a value out of its range.

    Source: arXiv 2012.00759; deeplab2. Departures: those of `MaXDeepLabNetwork`, `MaXDeepLabLoss` and `match_masks`.
    """

    family = "max_deeplab"
    task: Task = "panoptic"
    needs_boxes = False

    def __init__(
        self,
        *,
        categories: list[Category] | None = None,
        mask_classes: list[str] | None = None,
        image_size: int = 641,
        backbone: Backbone = "max_deeplab_s",
        num_mask_slots: int = 128,
        stem_width: float = 1.0,
        backbone_width: float = 1.0,
        transformer_width: float = 1.0,
        memory_channels: int | None = None,
        memory_feature_channels: int | None = None,
        feed_forward_channels: int = 2048,
        num_heads: int = 8,
        semantic_channels: int = 256,
        low_level_channels: Sequence[int] = (64, 32),
        pixel_head_channels: int = 256,
        pixel_feature_channels: int = 128,
        drop_path_keep: float = 0.8,
        drop_path_schedule: DropPathSchedule = "linear",
        norm_momentum: float = 0.01,
        activation_checkpointing: bool = False,
        pq_weight: float = 3.0,
        mask_id_weight: float = 0.3,
        instance_discrimination_weight: float = 1.0,
        semantic_weight: float = 1.0,
        unmatched_weight: UnmatchedWeight = "void_share",
        contrast_pixels: int = 0,
        semantic_top_k: float = 1.0,
        mask_id_top_k: float = 1.0,
        instance_discrimination_top_k: float = 1.0,
        small_instance_weight: float = 1.0,
        small_instance_area: int = 4096,
        merging: Merging = "pixelwise",
        class_threshold: float = 0.7,
        stuff_class_threshold: float | None = None,
        pixel_threshold: float = 0.4,
        thing_area_limit: int = 100,
        stuff_area_limit: int = 1600,
        overlap_threshold: float = 0.8,
        class_exponent: float = 1.0,
        mask_exponent: float = 1.0,
        width: float = 1.0,
    ) -> None:
        self.config: dict[str, Any] = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__()
        _check_values(self.config)
        self.categories: list[Category] = list(categories or [])
        self.mask_classes: list[str] = []
        self.image_size = image_size
        if not self.categories:
            raise ValueError("MaXDeepLab needs categories, the classes that it tells apart, but got none")
        self.network = self._create_network()
        self.loss = MaXDeepLabLoss(**self._values_of(MaXDeepLabLoss))
        self.post_processing = PanopticMerging(**{**self._values_of(PanopticMerging), "categories": self.categories})
        self.image_batch = ImageBatch(
            image_size, "align_corners", _GREY, _GREY, size_rule="floor_twice", padding=_GREY[0]
        )

    def _create_network(self) -> MaXDeepLabNetwork:
        names = inspect.signature(MaXDeepLabNetwork.__init__).parameters
        shared = {name: value for name, value in self.config.items() if name in names}
        shared["image_size"] = (self.image_size, self.image_size)
        width = self.config["width"]
        if width != 1 and self.config["backbone"] in ENCODER_SIZES:
            own = ENCODER_SIZES[self.config["backbone"]].memory_channels
            shared |= {name: shared[name] * width for name in _FACTORS}
            shared |= {name: max(1, round((shared[name] or own) * width)) for name in _CHANNELS}
            shared["low_level_channels"] = [max(1, round(count * width)) for count in shared["low_level_channels"]]
        return MaXDeepLabNetwork(num_classes=len(self.categories), **shared)

    def _values_of(self, kind: type[MaXDeepLabLoss | PanopticMerging]) -> dict[str, Any]:
        return {field.name: self.config[field.name] for field in fields(kind)}

    def forward(
        self,
        images: list[Tensor],
        targets: list[PanopticTarget] | None = None,
        *,
        score_threshold: float = 0.0,
        max_detections: int = 100,  # noqa: ARG002
    ) -> dict[str, Tensor] | list[PanopticPrediction]:
        """Training: already weighted losses by name, whose sum is the objective. In eval: one map per image.

        In training, `images` are RGB [3, H, W] (uint8, or float in 0..1) of one size with sides `16 k + 1`,
        `image_size` as a rule, and their maps of segments have the same pixels: nothing is resized.

        In eval, images have any size. Segments of a score below `score_threshold` are void. `max_detections` has no
        effect: a map has at most as many segments as the model has slots.

        Raises:
            ValueError: targets that break their contract, or images of several sizes in training.
        """
        if not self.training:
            return self._predict(images, score_threshold)
        if targets is None:
            raise ValueError("in training the model needs targets, one per image")
        check_panoptic_targets(images, targets, len(self.categories))
        self._check_training_size(images)
        outputs = self.network(self.image_batch.stack(images))
        device = outputs.mask_logits.device
        isthing = torch.tensor([category.get("isthing", True) for category in self.categories], device=device)
        with torch.autocast(device.type, enabled=False):
            mask_targets = create_mask_targets(
                [_to_device(target, device) for target in targets],
                isthing,
                DECODER_STRIDE,
                self.config["small_instance_weight"],
                self.config["small_instance_area"],
            )
            return self.loss(outputs, mask_targets)

    def _predict(self, images: list[Tensor], score_threshold: float) -> list[PanopticPrediction]:
        batch, geometry = self.image_batch(images)
        mask_logits, class_logits = self.network.masks(batch)
        return [
            self.post_processing(masks.detach(), classes.detach(), lies, score_threshold)
            for masks, classes, lies in zip(mask_logits, class_logits, geometry, strict=True)
        ]

    def parameter_groups(self) -> list[ParameterGroup]:
        """`backbone` (what ImageNet pretraining knows of the encoder) and `heads`, the rest.

        Each with weight decay and, for norms and biases, without.

        Source: the two optimizers of the original's trainer.py.
        """
        pretrained = {id(parameter) for parameter in backbone_parameters(self.network.encoder)}
        groups: list[ParameterGroup] = []
        for name in ("backbone", "heads"):
            members = [p for p in self.parameters() if (id(p) in pretrained) == (name == "backbone")]
            for decay in (1.0, 0.0):
                parameters = [p for p in members if (p.ndim > 1) == bool(decay)]
                groups.append({"name": name, "params": parameters, "weight_decay_factor": decay})
        return groups

    def class_layers(self) -> dict[str, Int64[Tensor, " rows"]]:
        """The last layers of the class head, which has void last, and of the semantic head, which has it first."""
        labels, void = torch.arange(len(self.categories)), torch.tensor([-1])
        rows = {"class_head": torch.cat([labels, void]), "semantic_head": torch.cat([void, labels])}
        return {f"network.{head}.logits.{kind}": row for head, row in rows.items() for kind in ("weight", "bias")}

    def _check_training_size(self, images: Sequence[Tensor]) -> None:
        for index, image in enumerate(images):
            if image.shape != images[0].shape:
                first, other = list(images[0].shape), list(image.shape)
                raise ValueError(
                    f"in training all images must have one size, but image 0 is {first} and {index} {other}"
                )


def backbone_parameters(encoder: MaXDeepLabEncoder) -> list[nn.Parameter]:
    """The encoder without its memory, its dual-path layers, and the stages and features behind the pretrained ones."""
    later: list[nn.Module | None] = [encoder.stage5_extra, encoder.class_feature, encoder.mask_feature]
    later += [module for module in encoder.modules() if isinstance(module, DualPathLayer)]
    for stage in encoder.decoder.stages:
        later += [stage.extra, stage.fuse if stage.backbone is None else None]
    excluded = {id(encoder.memory)}
    excluded |= {id(parameter) for module in later if module is not None for parameter in module.parameters()}
    return [parameter for parameter in encoder.parameters() if id(parameter) not in excluded]


def _to_device(target: PanopticTarget, device: torch.device) -> PanopticTarget:
    moved = {name: target[name].to(device) for name in ("segmentation", "labels", "iscrowd", "ids")}
    return PanopticTarget(**moved, image_id=target["image_id"])


def _check_values(config: dict[str, Any]) -> None:
    check_label_space(config["categories"], config["mask_classes"])
    factors = (*_FACTORS, "width")
    given = {name: 1 for name in ("memory_channels", "memory_feature_channels") if config[name] is not None}
    check_numbers(config, smallest=_SMALLEST | given, weights=_WEIGHTS, factors=factors, shares=("norm_momentum",))
