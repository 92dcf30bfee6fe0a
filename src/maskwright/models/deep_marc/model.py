"""Deep-MARC: Mask R-CNN with a deep mask head, trained on ground-truth boxes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from maskwright.models.deep_marc.config import DeepMARCConfig
from maskwright.models.deep_marc.network import DeepMARCNetwork, Maps
from maskwright.models.deep_marc.roi_heads import Sample
from maskwright.models.family import BoxPromptedFamily, Detections, check_prompt_labels, image_indices
from maskwright.nn.hourglass import Hourglass
from maskwright.nn.image_batch import ImageBatch
from maskwright.ops.crop import crop_masks
from maskwright.ops.frames import BoxFrame
from maskwright.ops.losses import mask_cross_entropy, mask_iou, mask_quality_loss
from maskwright.structures import Target


class DeepMARC(BoxPromptedFamily[DeepMARCConfig]):
    """Mask R-CNN with a mask head that may be deep and learns on ground-truth boxes, so that it masks unseen classes.

    It finds boxes by itself (of all classes that have boxes in training) and takes given ones. In training, all boxes
    that are no crowd train the detector; those of them with `has_mask` (and proposals on them) enter the mask head.

    Args:
        config: a `DeepMARCConfig`; or its values, by keyword.

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
    config_class = DeepMARCConfig
    compilable = ("maps", "mask_logits", "masks_and_qualities")
    network: DeepMARCNetwork

    def __init__(self, config: DeepMARCConfig | None = None, **values: Any) -> None:
        super().__init__(config, **values)
        config = self.config
        self.mask_chunk_size = config.mask_chunk_size
        self.image_batch = ImageBatch(
            config.image_size,
            config.resize,
            config.image_mean,
            config.image_std,
            config.channel_order,
            padding=config.image_mean if config.image_padding == "mean" else 0.0,
        )
        self.network = DeepMARCNetwork(config)
        self.check_input_sizes()
        self.freeze()

    @property
    def box_frame(self) -> BoxFrame:
        """See `BoxPromptedFamily`."""
        return "pixel"

    @property
    def map_names(self) -> Sequence[str]:
        """See `BoxPromptedFamily`."""
        return [str(level) for level in self.network.backbone.levels]

    def training_losses(self, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        """The losses of the detector's two stages, of the masks and of their predicted quality."""
        maps = self.network.maps(self.image_batch.stack(images))
        device = maps[0].device
        objects = [(~target["iscrowd"]).nonzero().flatten().to(device) for target in targets]
        boxes = [target["boxes"].to(device)[rows] for target, rows in zip(targets, objects, strict=True)]
        labels = [target["labels"].to(device)[rows] for target, rows in zip(targets, objects, strict=True)]
        if self.config.mask_quality_alone:
            alone = self._mask_losses(maps, list(zip(boxes, objects, strict=True)), targets)
            return {"mask_quality": alone["mask_quality"]}
        losses, samples = self.network.detector_losses(maps, boxes, labels)
        if self.config.mask_boxes == "ground_truth":
            mask_boxes = list(zip(boxes, objects, strict=True))
        else:
            mask_boxes = [(box, objects[i][rows]) for i, (box, rows) in enumerate(samples)]
        return losses | self._mask_losses(maps, mask_boxes, targets)

    def _mask_losses(self, maps: Maps, boxes: Sequence[Sample], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Weighted losses of the masks on those of the boxes whose object has a mask that may be learnt."""
        kept = [self._with_mask(sample, target) for sample, target in zip(boxes, targets, strict=True)]
        size = self.config.mask_size * self.config.mask_upsample
        crops = [
            crop_masks(cast("Tensor", target["masks"]).to(box.device), box, size, "pixel", rows)
            for (box, rows), target in zip(kept, targets, strict=True)
        ]
        truth = torch.cat(crops)
        labels = torch.cat([t["labels"].to(rows.device)[rows] for (_, rows), t in zip(kept, targets, strict=True)])
        all_boxes = [box for box, _ in kept]
        prompt = (maps, torch.cat(all_boxes), image_indices(all_boxes), labels)
        qualities = None
        if self.config.mask_quality:
            logits, qualities = self.network.masks_and_qualities(*prompt)
        else:
            logits = self.network.mask_logits(*prompt)
        losses = {"mask_cross_entropy": self.config.mask_weight * mask_loss(logits.float(), truth)}
        if qualities is not None:
            losses["mask_quality"] = self.config.mask_quality_weight * quality_loss(qualities, logits, truth)
        return losses

    def _with_mask(self, sample: Sample, target: Target) -> Sample:
        """The boxes whose mask may be learnt; where there are too many, a random choice of them."""
        boxes, rows = sample
        limit = self.config.max_masks_per_image
        kept = target["has_mask"].to(rows.device)[rows].nonzero().flatten()
        if len(kept) > limit:
            kept = kept[torch.randperm(len(kept), device=kept.device)[:limit]]
        return boxes[kept], rows[kept]

    def detect(
        self,
        batch: Float[Tensor, "b 3 h w"],
        image_sizes: list[tuple[int, int]],
        max_detections: int,  # noqa: ARG002
    ) -> tuple[Maps, Detections]:
        """See `BoxPromptedFamily`."""
        maps = self.network.maps(batch)
        return maps, self.network.detect(maps, image_sizes)

    def prompted_classes(self, boxes: list[Tensor], labels: list[Tensor] | None) -> Int64[Tensor, " n"] | None:
        """See `BoxPromptedFamily`."""
        if labels is not None:
            check_prompt_labels(labels, boxes, len(self.categories))
        return torch.cat(labels) if labels and not self.config.class_agnostic_masks else None

    def mask_logits(
        self,
        maps: tuple[Tensor, ...],
        boxes: Float[Tensor, "n 4"],
        image_index: Int64[Tensor, " n"],
        labels: Int64[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n m m"]:
        """See `BoxPromptedFamily`; where a label is -1, the mask is that of the most likely class."""
        labels = self._known_labels(maps, boxes, image_index, labels)
        return self.network.mask_logits(maps, boxes, image_index, labels)

    def masks_and_qualities(
        self,
        maps: tuple[Tensor, ...],
        boxes: Float[Tensor, "n 4"],
        image_index: Int64[Tensor, " n"],
        labels: Int64[Tensor, " n"] | None = None,
    ) -> tuple[Float[Tensor, "n m m"], Float[Tensor, " n"]]:
        """See `BoxPromptedFamily`; where a label is -1, the mask is that of the most likely class."""
        labels = self._known_labels(maps, boxes, image_index, labels)
        return self.network.masks_and_qualities(maps, boxes, image_index, labels)

    def _known_labels(self, maps: Maps, boxes: Tensor, image_index: Tensor, labels: Tensor | None) -> Tensor | None:
        if labels is None or not (labels < 0).any():
            return labels
        return torch.where(labels < 0, self.network.likeliest_class(maps, boxes, image_index), labels)

    def backbone_parameters(self) -> Iterable[nn.Parameter]:
        """The backbone without its pyramid, which a SpineNet does not have."""
        return getattr(self.network.backbone, "trunk", self.network.backbone).parameters()

    def undecayed_parameters(self) -> Iterable[nn.Parameter]:
        """The parameters of the hourglass in the mask head."""
        hourglasses = [part for part in self.network.mask_head.children() if isinstance(part, Hourglass)]
        return [parameter for part in hourglasses for parameter in part.parameters()]

    def class_layers(self) -> dict[str, Int64[Tensor, " rows"]]:
        """The box head's two outputs, and with one mask per class the last layer of the mask head."""
        labels = torch.arange(len(self.categories))
        with_background = torch.cat([torch.tensor([-1]), labels])
        rows = {"cls_score": with_background, "bbox_pred": with_background.repeat_interleave(4)}
        kinds = ("weight", "bias")
        layers = {f"network.roi_heads.box_predictor.{k}.{kind}": row for k, row in rows.items() for kind in kinds}
        if not self.config.class_agnostic_masks:
            for name, values in list(self.network.mask_head.named_parameters())[-2:]:
                layers[f"network.mask_head.{name}"] = labels.repeat_interleave(len(values) // len(labels))
        return layers


def mask_loss(logits: Float[Tensor, "n m m"], targets: Float[Tensor, "n m m"]) -> Float[Tensor, ""]:
    """Cross-entropy per cell, the mean over all cells of all boxes; 0 without a box. Targets in [0, 1] may be soft.

    Source: official/vision/losses/maskrcnn_losses.py, `MaskrcnnLoss`, which divides by 0.01 cells more.
    """
    return mask_cross_entropy(logits, targets).sum() / max(1, len(logits))


def quality_loss(
    qualities: Float[Tensor, " n"], logits: Float[Tensor, "n m m"], targets: Float[Tensor, "n m m"]
) -> Float[Tensor, ""]:
    """Loss of the predicted IoU of masks with their targets, the mean over all boxes; 0 without a box."""
    return mask_quality_loss(qualities, mask_iou(logits > 0, targets > 0.5)).sum() / max(1, len(logits))
