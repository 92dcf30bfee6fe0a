"""Deep-MARC's network: torchvision's Faster R-CNN on a pyramid of maps, and the mask head on box crops of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from jaxtyping import Float, Int64
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork

from maskwright.models.deep_marc.config import DeepMARCConfig
from maskwright.models.deep_marc.roi_heads import BoxPredictor, LevelCrop, ProposalHead, RoIHeads, Sample, crop_levels
from maskwright.models.family import Detections, check_divisor
from maskwright.nn.backbones import create_detection_backbone
from maskwright.nn.feature_maps import BackboneOptions
from maskwright.nn.mask_heads import create_mask_head
from maskwright.nn.mask_quality import MaskQualityHead

Maps = tuple[Tensor, ...]
"""One map [B, C, H / 2 ** l, W / 2 ** l] per level l of the backbone, finest first."""

_ASPECT_RATIOS = (0.5, 1.0, 2.0)
_BOX_CROP_SIZE = 7
_BOX_HEAD_CHANNELS = 256
_BOX_HEAD_HIDDEN = 1024
_EVERY_DETECTION = 1_000_000  # the caller cuts


class DeepMARCNetwork(nn.Module):
    """The backbone, the two stages of the detector, and the mask head; `mask_quality`.

    Source: official/projects/deepmac_maskrcnn, `DeepMaskRCNNModel`; departures: see `DeepMARC`.
    """

    def __init__(self, config: DeepMARCConfig) -> None:
        super().__init__()
        self.config = config
        options = BackboneOptions(
            config.width,
            config.norm_momentum,
            config.norm_epsilon,
            config.pretrained_backbone,
            config.frozen_levels,
            config.padding,
            config.trunk_norm_epsilon,
            config.drop_path_rate,
        )
        self.backbone = create_detection_backbone(config.backbone, options)
        self.finest_level = self.backbone.levels[0]
        self.proposals = _proposal_network(config, self.backbone.channels, self.backbone.levels)
        self.roi_heads = _second_stage(config, self.backbone.channels, self.finest_level)
        self.mask_head = create_mask_head(
            config.mask_head,
            self.backbone.channels,
            max(1, round(config.mask_head_width * config.width)),
            1 if config.class_agnostic_masks else config.num_classes,
            config.mask_upsample,
            config.mask_size,
            config.mask_norm_momentum,
            config.norm_epsilon,
        )
        check_divisor("mask_size", config.mask_size, self.mask_head.size_divisor, f"mask head {config.mask_head!r}")
        self.mask_quality: MaskQualityHead | None = None
        if config.mask_quality:
            self.mask_quality = MaskQualityHead(self.backbone.channels, config.width, config.mask_norm_momentum)

    def maps(self, batch: Float[Tensor, "b 3 h w"]) -> Maps:
        """The pyramid, in float32: torchvision makes the anchors in the dtype of the maps (see `ProposalHead`)."""
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

    def detect(self, maps: Maps, image_sizes: list[tuple[int, int]]) -> Detections:
        """The detections of each image.

        Args:
            maps: of `maps`, in eval mode.
            image_sizes: per image (height, width) of its part of the network input; boxes are clipped to it.
        """
        proposals, _ = self.proposals(self._image_list(maps, image_sizes), self._levels(maps))
        found, _ = self.roi_heads(maps, proposals, image_sizes)
        boxes, labels, scores = ([one[name] for one in found] for name in ("boxes", "labels", "scores"))
        return Detections(boxes, [label - 1 for label in labels], scores)

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
        return self._of_class(self.mask_head(self._crops(maps, boxes, image_index)), maps, boxes, image_index, labels)

    def masks_and_qualities(
        self,
        maps: Maps,
        boxes: Float[Tensor, "n 4"],
        image_index: Int64[Tensor, " n"],
        labels: Int64[Tensor, " n"] | None = None,
    ) -> tuple[Float[Tensor, "n m m"], Float[Tensor, " n"]]:
        """`mask_logits`, and the logit of each mask's IoU with the truth; the arguments are those of `mask_logits`.

        Raises:
            ValueError: the network has no head for it.
        """
        if self.mask_quality is None:
            raise ValueError("this network does not predict the quality of masks: build it with mask_quality true")
        crops = self._crops(maps, boxes, image_index)
        logits = self._of_class(self.mask_head(crops), maps, boxes, image_index, labels)
        return logits, self.mask_quality(crops, logits, boxes)

    def _crops(self, maps: Maps, boxes: Tensor, image_index: Tensor) -> Float[Tensor, "n c s s"]:
        return crop_levels(maps, boxes, image_index, self.config.mask_size, self.finest_level)

    def _of_class(
        self, logits: Tensor, maps: Maps, boxes: Tensor, image_index: Tensor, labels: Tensor | None
    ) -> Float[Tensor, "n m m"]:
        """Of the mask head's output [N, K, M, M] the mask of each box's class; arguments as of `mask_logits`."""
        if self.config.class_agnostic_masks:
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


def _proposal_network(config: DeepMARCConfig, channels: int, levels: Sequence[int]) -> RegionProposalNetwork:
    """The first stage; the anchors of each level have all of its sizes in all aspect ratios."""
    count = config.num_anchor_scales
    scales = [config.anchor_scale * 2 ** (scale / count) for scale in range(count)]
    sizes = tuple(tuple(scale * 2**level for scale in scales) for level in levels)
    ratios = (_ASPECT_RATIOS,) * len(levels)
    return RegionProposalNetwork(
        AnchorGenerator(sizes, ratios),  # pyright: ignore[reportArgumentType]
        ProposalHead(channels, count * len(_ASPECT_RATIOS)),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": 2 * config.num_proposals, "testing": config.num_proposals},
        post_nms_top_n={"training": config.num_proposals, "testing": config.num_proposals},
        nms_thresh=0.7,
    )


def _second_stage(config: DeepMARCConfig, channels: int, finest_level: int) -> RoIHeads:
    hidden, convolved = (max(1, round(number * config.width)) for number in (_BOX_HEAD_HIDDEN, _BOX_HEAD_CHANNELS))
    if config.box_head == "2fc":
        head: nn.Module = TwoMLPHead(channels * _BOX_CROP_SIZE**2, hidden)
    else:
        norm = partial(nn.BatchNorm2d, eps=config.norm_epsilon, momentum=config.norm_momentum)
        head = FastRCNNConvFCHead((channels, _BOX_CROP_SIZE, _BOX_CROP_SIZE), [convolved] * 4, [hidden], norm)
    return RoIHeads(
        LevelCrop(_BOX_CROP_SIZE, finest_level),
        head,
        BoxPredictor(hidden, 1 + config.num_classes),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=config.num_box_samples,
        positive_fraction=0.25,
        bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
        score_thresh=config.min_box_score,
        nms_thresh=0.5,
        detections_per_img=_EVERY_DETECTION,
    )
