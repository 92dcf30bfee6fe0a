"""Pictures of a validation for TensorBoard: what the model finds in the first images, beside the truth."""

# ruff: noqa: ARG002  (Lightning gives its hooks more than each of them needs)

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor

from maskwright.drawing.overlays import OverlayStyle, draw_overlay, draw_panoptic_overlay
from maskwright.ops.crop import crop_masks
from maskwright.structures import (
    EncodedMasks,
    InstancePrediction,
    PanopticPrediction,
    PanopticTarget,
    SegmentInfo,
    Target,
    encoded_masks,
    select_rows,
)
from maskwright.structures.pictured import as_picture

_PICTURES = 4
_LONGEST_SIDE = 512  # of an image in TensorBoard, whose files hold every picture of every validation
_MASK_SIZE = 112  # of true masks, whose boxes have a grid of this size


class ValidationPictures(Callback):
    """Shows the first validation images at each validation: the prediction on the left, the truth on the right.

    The same object has the same colour in both; in panoptic maps, the same class. Images are those of the first
    process; masks are of the annotated boxes.
    """

    def __init__(self) -> None:
        self._shown = 0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the first image."""
        self._shown = 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: tuple[list[Tensor], list[Any]],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the images of this batch, if there are not enough yet; the averaged weights are in place."""
        logger = trainer.logger
        if trainer.sanity_checking or not trainer.is_global_zero or not isinstance(logger, TensorBoardLogger):
            return
        for image, target, prediction in zip(*batch, outputs["predictions"], strict=True):
            if self._shown == _PICTURES:
                return
            picture = draw_beside_truth(image, prediction, target)
            tag = f"validation/{self._shown}"
            logger.experiment.add_image(tag, np.asarray(picture), trainer.global_step, dataformats="HWC")
            self._shown += 1


def draw_beside_truth(
    image: Tensor,
    prediction: InstancePrediction | PanopticPrediction,
    target: Target | PanopticTarget,
) -> Image.Image:
    """The prediction of an image, uint8 RGB, and beside it the truth."""
    shown = as_picture(image)
    if isinstance(prediction, PanopticPrediction):
        truth = _true_map(cast(PanopticTarget, target), prediction)
        style = OverlayStyle(color_by="class")
        sides = [draw_panoptic_overlay(shown, each.cpu(), style) for each in (prediction, truth)]
    else:
        truth = _true_instances(cast(Target, target), prediction)
        sides = [draw_overlay(shown, each.cpu()) for each in (prediction, truth)]
    for side in sides:
        side.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    left, right = sides
    picture = Image.new("RGB", (left.width + right.width, left.height))
    picture.paste(left, (0, 0))
    picture.paste(right, (left.width, 0))
    return picture


def _true_instances(target: Target, prediction: InstancePrediction) -> InstancePrediction:
    """The target's instances; of one without a mask the box alone."""
    target = select_rows(target, ~target["iscrowd"])
    ones = torch.ones(len(target["boxes"]))
    return InstancePrediction(
        boxes=target["boxes"],
        labels=target["labels"],
        scores=ones,
        mask_scores=ones,
        mask_probabilities=_on_boxes(encoded_masks(target), target["boxes"]),
        image_size=prediction.image_size,
        frame="pixel",
        categories=prediction.categories,
    )


def _on_boxes(masks: EncodedMasks, boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n m m"]:
    """`crop_masks`, one instance at a time, of the pixels around its box: no plane of a large image is made."""
    grids = torch.zeros(len(boxes), _MASK_SIZE, _MASK_SIZE)
    for row, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        left, top = math.floor(x1) - 1, math.floor(y1) - 1
        region = masks[torch.tensor([row])].crop(left, top, math.ceil(x2) + 1, math.ceil(y2) + 1)
        grids[row] = crop_masks(region, boxes[row : row + 1] - torch.tensor([left, top] * 2), _MASK_SIZE, "pixel")[0]
    return grids


def _true_map(target: PanopticTarget, prediction: PanopticPrediction) -> PanopticPrediction:
    """The target's segments; void has no colour."""
    segmentation, categories = target["segmentation"] + 1, prediction.categories
    infos = []
    for row, label in enumerate(target["labels"].tolist()):
        category, area = categories[label], int((segmentation == row + 1).sum())
        isthing = category.get("isthing", True)
        infos.append(
            SegmentInfo(id=row + 1, label=label, category_id=category["id"], isthing=isthing, score=1.0, area=area)
        )
    return PanopticPrediction(segmentation, infos, prediction.image_size, categories)
