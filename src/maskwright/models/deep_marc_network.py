"""Deep-MARC's network: torchvision's Faster R-CNN on a pyramid of maps, and the mask head on box crops of them."""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

from jaxtyping import Float, Int64
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork

from maskwright.models.roi_heads import BoxPredictor, LevelCrop, ProposalHead, RoIHeads, Sample, crop_levels
from maskwright.nn.backbones import create_detection_backbone
from maskwright.nn.feature_maps import BackboneOptions, Padding
from maskwright.nn.mask_heads import create_mask_head

Maps = tuple[Tensor, ...]
"""One map [B, C, H / 2 ** l, W / 2 ** l] per level l of the backbone, finest first."""

BoxHead = Literal["4conv1fc", "2fc"]

_ASPECT_RATIOS = (0.5, 1.0, 2.0)
_BOX_CROP_SIZE = 7
_BOX_HEAD_CHANNELS = 256
_BOX_HEAD_HIDDEN = 1024
_EVERY_DETECTION = 1_000_000  # the caller cuts


class DeepMARCNetwork(nn.Module):
    """The backbone, the two stages of the detector, and the mask head; the arguments are those of `DeepMARC`.

    Source: official/projects/deepmac_maskrcnn, `DeepMaskRCNNModel`; departures: see `DeepMARC`.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: str,
        pretrained_backbone: bool,
        padding: Padding,
        frozen_levels: int,
        drop_path_rate: float,
        anchor_scale: float,
        num_anchor_scales: int,
        box_head: BoxHead,
        num_proposals: int,
        num_box_samples: int,
        min_box_score: float,
        mask_head: str,
        mask_head_width: int,
        mask_size: int,
        mask_upsample: int,
        class_agnostic_masks: bool,
        norm_momentum: float,
        norm_epsilon: float,
        trunk_norm_epsilon: float | None,
        mask_norm_momentum: float,
        width: float,
    ) -> None:
        super().__init__()
        options = BackboneOptions(
            width,
            norm_momentum,
            norm_epsilon,
            pretrained_backbone,
            frozen_levels,
            padding,
            trunk_norm_epsilon,
            drop_path_rate,
        )
        self.backbone = create_detection_backbone(backbone, options)
        self.class_agnostic_masks = class_agnostic_masks
        self.mask_size = mask_size
        channels, levels = self.backbone.channels, self.backbone.levels
        self.finest_level = levels[0]
        scales = [anchor_scale * 2 ** (scale / num_anchor_scales) for scale in range(num_anchor_scales)]
        sizes = tuple(tuple(scale * 2**level for scale in scales) for level in levels)
        self.proposals = _proposal_network(channels, sizes, num_proposals)
        norm = partial(nn.BatchNorm2d, eps=norm_epsilon, momentum=norm_momentum)
        head, hidden = _create_box_head(box_head, channels, width, norm)
        predictor = BoxPredictor(hidden, 1 + num_classes)
        crop = LevelCrop(_BOX_CROP_SIZE, self.finest_level)
        self.roi_heads = _second_stage(crop, head, predictor, num_box_samples, min_box_score)
        head_width, num_masks = max(1, round(mask_head_width * width)), 1 if class_agnostic_masks else num_classes
        self.mask_head = create_mask_head(
            mask_head, channels, head_width, num_masks, mask_upsample, mask_size, mask_norm_momentum, norm_epsilon
        )
        divisor = self.mask_head.size_divisor
        if mask_size % divisor:
            raise ValueError(
                f"mask_size must be a multiple of {divisor} for mask head {mask_head!r}, but got {mask_size}"
            )

    def maps(self, batch: Float[Tensor, "b 3 h w"]) -> Maps:
        """The pyramid, in float32: torchvision makes the anchors in its number format (see `ProposalHead`)."""
        return tuple(level.float() for level in self.backbone(batch))

    def detector_losses(
        self, maps: Maps, boxes: list[Tensor], labels: list[Tensor]
    ) -> tuple[dict[str, Tensor], list[Sample]]:
        """The four losses of both stages, and per image the sampled boxes that lie on an object.

        Args:
            maps: of `maps`.
            boxes: per image [N, 4] of all objects, xyxy, pixels of the network input; N may be 0.
            labels: per image [N], from 0.
        """
        targets = [{"boxes": b, "labels": label + 1} for b, label in zip(boxes, labels, strict=True)]
        proposals, first = self.proposals(self._image_list(maps), self._levels(maps), targets)
        second, samples = self.roi_heads.losses(maps, proposals, targets)
        names = {"proposal_class": "loss_objectness", "proposal_regression": "loss_rpn_box_reg"}
        return {name: first[theirs] for name, theirs in names.items()} | second, samples

    def detect(self, maps: Maps, image_sizes: list[tuple[int, int]]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Per image boxes [N, 4] (xyxy, pixels of the network input), labels [N] from 0, and scores [N], falling.

        Args:
            maps: of `maps`, in eval mode.
            image_sizes: per image (height, width) of its part of the network input; boxes are cut off there.
        """
        proposals, _ = self.proposals(self._image_list(maps, image_sizes), self._levels(maps))
        found, _ = self.roi_heads(maps, proposals, image_sizes)
        boxes, labels, scores = ([one[name] for one in found] for name in ("boxes", "labels", "scores"))
        return boxes, [label - 1 for label in labels], scores

    def mask_logits(
        self,
        maps: Maps,
        boxes: Float[Tensor, "n 4"],
        image_index: Int64[Tensor, " n"],
        labels: Int64[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n m m"]:
        """Mask logits on the grid of each box (`pixel` frame).

        Args:
            maps: of `maps`.
            boxes: xyxy, pixels of the network input.
            image_index: the image of the batch to which each box belongs.
            labels: the class whose mask is wanted, from 0. Left out, a network with one mask per class takes
                the class that its box head finds most likely; one with class-agnostic masks needs none.
        """
        logits = self.mask_head(crop_levels(maps, boxes, image_index, self.mask_size, self.finest_level))
        if self.class_agnostic_masks:
            return logits.squeeze(1)
        if labels is None:
            labels = self.likeliest_class(maps, boxes, image_index)
        chosen = labels[:, None, None, None].expand(-1, -1, logits.shape[-2], logits.shape[-1])
        return logits.gather(1, chosen).squeeze(1)

    def likeliest_class(self, maps: Maps, boxes: Tensor, image_index: Tensor) -> Int64[Tensor, " n"]:
        """The class, from 0, that the box head finds most likely for each box; arguments as of `mask_logits`."""
        crops = crop_levels(maps, boxes, image_index, _BOX_CROP_SIZE, self.finest_level)
        logits, _ = self.roi_heads.box_predictor(self.roi_heads.box_head(crops))
        return logits[:, 1:].argmax(dim=1)

    def _image_list(self, maps: Maps, image_sizes: list[tuple[int, int]] | None = None) -> ImageList:
        """What torchvision asks of the images: the size of the network input, and how much of it each fills."""
        (count, _, height, width), stride = maps[0].shape, 2**self.finest_level
        size = (height * stride, width * stride)
        return ImageList(maps[0].new_empty(count, 0, *size), image_sizes or [size] * count)

    def _levels(self, maps: Maps) -> dict[str, Tensor]:
        return {str(self.finest_level + index): level for index, level in enumerate(maps)}


def _proposal_network(
    channels: int, anchor_sizes: tuple[tuple[float, ...], ...], num_proposals: int
) -> RegionProposalNetwork:
    """The first stage; the anchors of each level have all of its sizes in all aspect ratios."""
    ratios = (_ASPECT_RATIOS,) * len(anchor_sizes)
    return RegionProposalNetwork(
        AnchorGenerator(anchor_sizes, ratios),  # pyright: ignore[reportArgumentType]
        ProposalHead(channels, len(anchor_sizes[0]) * len(_ASPECT_RATIOS)),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": 2 * num_proposals, "testing": num_proposals},
        post_nms_top_n={"training": num_proposals, "testing": num_proposals},
        nms_thresh=0.7,
    )


def _second_stage(
    crop: LevelCrop, head: nn.Module, predictor: BoxPredictor, num_box_samples: int, min_box_score: float
) -> RoIHeads:
    return RoIHeads(
        crop,
        head,
        predictor,
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=num_box_samples,
        positive_fraction=0.25,
        bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
        score_thresh=min_box_score,
        nms_thresh=0.5,
        detections_per_img=_EVERY_DETECTION,
    )


def _create_box_head(
    name: BoxHead, channels: int, width: float, norm: partial[nn.BatchNorm2d]
) -> tuple[nn.Module, int]:
    """The box head `name` and the length of its output vectors."""
    if name not in get_args(BoxHead):
        raise ValueError(f"box_head must be one of {', '.join(get_args(BoxHead))}, but got {name!r}")
    hidden, convolved = (max(1, round(number * width)) for number in (_BOX_HEAD_HIDDEN, _BOX_HEAD_CHANNELS))
    size = (channels, _BOX_CROP_SIZE, _BOX_CROP_SIZE)
    if name == "2fc":
        return TwoMLPHead(channels * _BOX_CROP_SIZE**2, hidden), hidden
    return FastRCNNConvFCHead(size, [convolved] * 4, [hidden], norm), hidden
