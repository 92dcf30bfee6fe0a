"""MaX-DeepLab: end-to-end panoptic segmentation with a mask transformer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from maskwright.models.family import Family
from maskwright.models.max_deeplab.config import MaXDeepLabConfig
from maskwright.models.max_deeplab.decoder import DECODER_STRIDE
from maskwright.models.max_deeplab.dual_path import DualPathLayer
from maskwright.models.max_deeplab.encoder import MaXDeepLabEncoder
from maskwright.models.max_deeplab.losses import MaXDeepLabLoss
from maskwright.models.max_deeplab.mask_targets import create_mask_targets
from maskwright.models.max_deeplab.network import MaXDeepLabNetwork
from maskwright.models.max_deeplab.post_processing import PanopticMerging
from maskwright.nn.image_batch import ImageBatch
from maskwright.structures import PanopticPrediction, PanopticTarget

_GREY = [0.5, 0.5, 0.5]


class MaXDeepLab(Family[MaXDeepLabConfig]):
    """A panoptic map of an image, without boxes: each slot of a memory becomes a mask with a class, or void.

    Training images have sides `16 k + 1`. Its `mask_classes` are empty, since all masks are learnt.

    Args:
        config: a `MaXDeepLabConfig`; or its values, by keyword.

    Raises:
        ValueError: no categories, an unknown name, or a value out of its range.

    Source: arXiv 2012.00759; deeplab2. Departures: those of `MaXDeepLabNetwork`, `MaXDeepLabLoss` and `match_masks`.
    """

    family = "max_deeplab"
    task = "panoptic"
    config_class = MaXDeepLabConfig
    compilable = ("masks",)

    def __init__(self, config: MaXDeepLabConfig | None = None, **values: Any) -> None:
        super().__init__(config, **values)
        self.mask_classes = []
        self.network = MaXDeepLabNetwork(self.config)
        self.loss = MaXDeepLabLoss(self.config)
        self.post_processing = PanopticMerging(self.config)
        self.image_batch = ImageBatch(
            self.image_size, "align_corners", _GREY, _GREY, size_rule="floor_twice", padding=_GREY[0]
        )

    def training_losses(self, images: list[Tensor], targets: list[PanopticTarget]) -> dict[str, Tensor]:
        """See `MaXDeepLabLoss`."""
        outputs = self.network(self.image_batch.stack(images))
        device = outputs.mask_logits.device
        with torch.autocast(device.type, enabled=False):
            mask_targets = create_mask_targets(
                [_to_device(target, device) for target in targets],
                torch.tensor(self.config.isthing, device=device),
                DECODER_STRIDE,
                self.config.small_instance_weight,
                self.config.small_instance_area,
            )
            return self.loss(outputs, mask_targets)

    def predict(
        self,
        images: list[Tensor],
        score_threshold: float,
        max_detections: int,  # noqa: ARG002
    ) -> list[PanopticPrediction]:
        """One map per image; `max_detections` has no effect, since a model has only so many slots."""
        batch, geometry = self.image_batch(images)
        mask_logits, class_logits = self.network.masks(batch)
        return [
            self.post_processing(masks.detach(), classes.detach(), each, score_threshold)
            for masks, classes, each in zip(mask_logits, class_logits, geometry, strict=True)
        ]

    def backbone_parameters(self) -> Iterable[nn.Parameter]:
        """What ImageNet weights exist for in the encoder.

        Source: the two optimizers of the original's trainer.py.
        """
        return backbone_parameters(self.network.encoder)

    def class_layers(self) -> dict[str, Int64[Tensor, " rows"]]:
        """The last layers of the class head, which has void last, and of the semantic head, which has it first."""
        labels, void = torch.arange(len(self.categories)), torch.tensor([-1])
        rows = {"class_head": torch.cat([labels, void]), "semantic_head": torch.cat([void, labels])}
        return {f"network.{head}.logits.{kind}": row for head, row in rows.items() for kind in ("weight", "bias")}


def backbone_parameters(encoder: MaXDeepLabEncoder) -> list[nn.Parameter]:
    """The encoder's trunk; or, without one, all but its memory, its dual-path layers, and the stages and features
    behind the pretrained ones.
    """
    if encoder.trunk is not None:
        return list(encoder.trunk.trunk.parameters())
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
