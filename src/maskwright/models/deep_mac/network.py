"""Deep-MAC's network: tensors in, tensors out, without losses, sizes of images or decoding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from maskwright.models.deep_mac.centernet import CenterNetHeads, CenterNetMaps
from maskwright.models.deep_mac.config import DeepMACConfig
from maskwright.models.family import check_divisor
from maskwright.nn.backbones import create_backbone
from maskwright.nn.layers import prediction_head
from maskwright.nn.mask_heads import FullyConnectedHead, MaskHead, create_mask_head
from maskwright.nn.mask_quality import MaskQualityHead
from maskwright.ops.boxes import expand_boxes
from maskwright.ops.crop import center_offsets, coordinate_grid, crop_and_resize, gather_at_centers

Maps = tuple[Tensor, Tensor, Tensor]
"""Pixel embedding [B, P, H/4, W/4] and instance embedding [B, I, H/4, W/4] of one stack, and the image [B, 3, H, W]."""


class DeepMACNetwork(nn.Module):
    """The backbone, the embedding heads and the mask head, with a detector the heads of CenterNet; `mask_quality`.

    Raises:
        ValueError: a value does not go with another.

    Source: Deep-MAC original, `deepmac_meta_arch.py` (`_get_mask_head_input`, `MaskHeadNetwork`).
    Departures: all boxes of all images go through the head in one batch (batch norm groups them so, too);
    the box margin, the crop of the image itself and the `pixel` box frame are ours, off in the original's recipes.
    """

    def __init__(self, config: DeepMACConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = create_backbone(
            config.backbone, config.width, config.norm_momentum, config.pretrained_backbone, config.frozen_levels
        )
        channels, stacks = self.backbone.channels, len(self.backbone.strides)
        hidden = max(1, round(config.embedding_width * config.width))
        self.pixel_embedding, self.instance_embedding = (
            nn.ModuleList(prediction_head(channels, hidden, dim, config.embedding_kernel) for _ in range(stacks))
            for dim in (config.pixel_embedding_dim, config.instance_embedding_dim)
        )
        if not config.use_instance_embedding:  # kept for the originals' checkpoints, but DDP must not wait for it
            self.instance_embedding.requires_grad_(False)
        self.mask_head = self._create_mask_head()
        self.detector: nn.ModuleList | None = None
        if config.detector is not None:
            hidden = max(1, round(config.detector_width * config.width))
            self.detector = nn.ModuleList(CenterNetHeads(channels, config.num_classes, hidden) for _ in range(stacks))
        self.mask_quality: MaskQualityHead | None = None
        if config.mask_quality:
            self.mask_quality = MaskQualityHead(self._crop_channels, config.width, config.norm_momentum)

    @property
    def _crop_channels(self) -> int:
        """Channels of `_head_input`."""
        config = self.config
        channels = config.pixel_embedding_dim + 2 * config.use_coordinates + 3 * config.use_image_crop
        return channels + config.instance_embedding_dim * config.use_instance_embedding

    def _create_mask_head(self) -> MaskHead:
        config = self.config
        head = create_mask_head(
            config.mask_head,
            self._crop_channels,
            max(1, round(config.mask_head_width * config.width)),
            upsample=config.mask_upsample,
            mask_size=config.mask_size,
            norm_momentum=config.norm_momentum,
        )
        check_divisor("mask_size", config.mask_size, head.size_divisor, f"mask head {config.mask_head!r}")
        if config.predict_full_resolution_masks and isinstance(head, FullyConnectedHead):
            raise ValueError(f"predict_full_resolution_masks needs a convolutional mask_head, not {config.mask_head!r}")
        return head

    def stack_outputs(self, batch: Float[Tensor, "b 3 h w"]) -> tuple[list[Maps], list[CenterNetMaps]]:
        """What training supervises: the maps of every stack, and the detector's (none without a detector)."""
        features = self.backbone(batch)
        maps = [self._embed(stack, output, batch) for stack, output in enumerate(features)]
        if self.detector is None:
            return maps, []
        return maps, [heads(output) for heads, output in zip(self.detector, features, strict=True)]

    def maps(self, batch: Float[Tensor, "b 3 h w"]) -> Maps:
        """The maps of the last stack, the only one used at inference."""
        return self._embed(-1, self.backbone(batch)[-1], batch)

    def maps_and_detection(self, batch: Float[Tensor, "b 3 h w"]) -> tuple[Maps, CenterNetMaps]:
        """The maps of the last stack and its detector's, from one pass of the backbone.

        Raises:
            ValueError: the network has no detector.
        """
        if self.detector is None:
            raise ValueError("this network has no detector: build it with detector 'centernet'")
        features = self.backbone(batch)[-1]
        return self._embed(-1, features, batch), self.detector[-1](features)

    def _embed(self, stack: int, features: Tensor, batch: Tensor) -> Maps:
        return self.pixel_embedding[stack](features), self.instance_embedding[stack](features), batch

    def mask_logits(
        self, maps: Maps, boxes: Float[Tensor, "n 4"], image_index: Int64[Tensor, " n"]
    ) -> Float[Tensor, "n m m"]:
        """Mask logits on the grid of each box, widened by `box_margin` on every side.

        With `predict_full_resolution_masks` they are cut out of the image's: first enlarged to the network input's
        size, then sampled on a grid of `postprocess_crop_size` x `postprocess_crop_size`.

        Args:
            maps: of `maps` or of one stack of `stack_outputs`.
            boxes: xyxy, pixels of the network input.
            image_index: the image of the batch to which each box belongs.
        """
        logits = self.head_logits(maps, boxes, image_index)
        if not self.config.predict_full_resolution_masks:
            return logits
        frame_size = (maps[2].shape[-2], maps[2].shape[-1])
        enlarged = F.interpolate(logits[:, None].float(), size=frame_size, mode="bilinear", align_corners=False)
        own, size = torch.arange(boxes.shape[0], device=boxes.device), self.config.postprocess_crop_size
        return crop_and_resize(enlarged, boxes, own, frame_size, size, self.config.box_frame).squeeze(1)

    def masks_and_qualities(
        self, maps: Maps, boxes: Float[Tensor, "n 4"], image_index: Int64[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n m m"], Float[Tensor, " n"]]:
        """`mask_logits`, and the logit of each mask's IoU with the truth; the arguments are those of `mask_logits`.

        Raises:
            ValueError: the network has no head for it.
        """
        if self.mask_quality is None:
            raise ValueError("this network does not predict the quality of masks: build it with mask_quality true")
        crops = self._head_input(maps, boxes, image_index)
        logits = self.mask_head(crops).squeeze(1)
        return logits, self.mask_quality(crops, logits, boxes)

    def head_logits(
        self, maps: Maps, boxes: Float[Tensor, "n 4"], image_index: Int64[Tensor, " n"]
    ) -> Float[Tensor, "n h w"]:
        """The mask head's output, which is what training supervises; the arguments are those of `mask_logits`.

        On the grid of each box, widened by `box_margin`; with `predict_full_resolution_masks` on the whole map.
        """
        return self.mask_head(self._head_input(maps, boxes, image_index)).squeeze(1)

    def _head_input(self, maps: Maps, boxes: Tensor, image_index: Tensor) -> Float[Tensor, "n c h w"]:
        """Per box, as channels: coordinates, pixel embedding, instance embedding (tiled) and the image itself."""
        (pixel_map, instance_map, image), config = maps, self.config
        size, frame = config.mask_size, config.box_frame
        frame_size = (image.shape[-2], image.shape[-1])
        crop_boxes = expand_boxes(boxes, config.box_margin)
        if config.predict_full_resolution_masks:
            pixels = pixel_map[image_index]
            coordinates = center_offsets(boxes, frame_size, (pixels.shape[-2], pixels.shape[-1]))
        else:
            pixels = crop_and_resize(pixel_map, crop_boxes, image_index, frame_size, size, frame)
            coordinates = coordinate_grid(size, pixels.device).expand(boxes.shape[0], -1, -1, -1)
        parts = [coordinates.to(pixels.dtype)] if config.use_coordinates else []
        parts.append(pixels)
        if config.use_instance_embedding:
            vectors = gather_at_centers(instance_map, boxes, image_index, frame_size).to(pixels.dtype)
            parts.append(vectors[:, :, None, None].expand(-1, -1, *pixels.shape[2:]))
        if config.use_image_crop:
            parts.append(crop_and_resize(image, crop_boxes, image_index, frame_size, size, frame).to(pixels.dtype))
        return torch.cat(parts, dim=1)
