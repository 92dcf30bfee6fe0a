"""Deep-MAC's network: tensors in, tensors out, without losses, sizes of images or decoding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from maskwright.models.centernet import CenterNetHeads, CenterNetMaps
from maskwright.nn.backbones import create_backbone
from maskwright.nn.layers import prediction_head
from maskwright.nn.mask_heads import FullyConnectedHead, create_mask_head
from maskwright.ops.boxes import expand_boxes
from maskwright.ops.crop import center_offsets, coordinate_grid, crop_and_resize, gather_at_centers
from maskwright.ops.frames import BoxFrame, check_frame

Maps = tuple[Tensor, Tensor, Tensor]
"""Pixel embedding [B, P, H/4, W/4] and instance embedding [B, I, H/4, W/4] of one stack, and the image [B, 3, H, W]."""


class DeepMACNetwork(nn.Module):
    """The backbone, the embedding heads, the mask head and, with `num_classes`, the heads of CenterNet.

    The arguments are those of `DeepMAC`, and `num_classes`: of the detector; null for a network without one.

    Raises:
        ValueError: a value has no meaning, or does not go with another.

    Source: Deep-MAC original, `deepmac_meta_arch.py` (`_get_mask_head_input`, `MaskHeadNetwork`).
    Departures: all boxes of all images go through the head in one batch (batch norm groups them so, too);
    the box margin, the crop of the image itself and the `pixel` box frame are ours, off in the original's recipes.
    """

    def __init__(
        self,
        *,
        num_classes: int | None,
        detector_width: int,
        backbone: str,
        pretrained_backbone: bool,
        frozen_levels: int,
        mask_head: str,
        mask_head_width: int,
        mask_size: int,
        mask_upsample: int,
        pixel_embedding_dim: int,
        instance_embedding_dim: int,
        embedding_width: int,
        embedding_kernel: Sequence[int],
        use_coordinates: bool,
        use_instance_embedding: bool,
        use_image_crop: bool,
        box_frame: BoxFrame,
        box_margin: float,
        predict_full_resolution_masks: bool,
        postprocess_crop_size: int,
        norm_momentum: float,
        width: float,
    ) -> None:
        super().__init__()
        _check_values(embedding_kernel, box_frame)
        self.backbone = create_backbone(backbone, width, norm_momentum, pretrained_backbone, frozen_levels)
        channels, stacks = self.backbone.channels, len(self.backbone.strides)
        hidden = max(1, round(embedding_width * width))
        self.pixel_embedding, self.instance_embedding = (
            nn.ModuleList(prediction_head(channels, hidden, dim, embedding_kernel) for _ in range(stacks))
            for dim in (pixel_embedding_dim, instance_embedding_dim)
        )
        in_channels = pixel_embedding_dim + 2 * use_coordinates + instance_embedding_dim * use_instance_embedding
        in_channels += 3 * use_image_crop
        if not use_instance_embedding:  # kept for the originals' checkpoints; DDP must not wait for its gradients
            self.instance_embedding.requires_grad_(False)
        head_width = max(1, round(mask_head_width * width))
        self.mask_head = create_mask_head(
            mask_head, in_channels, head_width, 1, mask_upsample, mask_size, norm_momentum=norm_momentum
        )
        if mask_size % (divisor := self.mask_head.size_divisor):
            raise ValueError(f"mask_size must be a multiple of {divisor} for {mask_head!r}, but got {mask_size}")
        self.detector: nn.ModuleList | None = None
        if num_classes is not None:
            hidden = max(1, round(detector_width * width))
            self.detector = nn.ModuleList(CenterNetHeads(channels, num_classes, hidden) for _ in range(stacks))
        self.mask_size = mask_size
        self.mask_upsample = mask_upsample
        self.use_coordinates = use_coordinates
        self.use_instance_embedding = use_instance_embedding
        self.use_image_crop = use_image_crop
        self.box_frame: BoxFrame = box_frame
        self.box_margin = box_margin
        self.predict_full_resolution_masks = predict_full_resolution_masks
        self.postprocess_crop_size = postprocess_crop_size
        if predict_full_resolution_masks:
            self._check_full_resolution()

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
            raise ValueError("this network has no detector: build it with num_classes")
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
        if not self.predict_full_resolution_masks:
            return logits
        frame_size = (maps[2].shape[-2], maps[2].shape[-1])
        enlarged = F.interpolate(logits[:, None].float(), size=frame_size, mode="bilinear", align_corners=False)
        own = torch.arange(boxes.shape[0], device=boxes.device)
        return crop_and_resize(enlarged, boxes, own, frame_size, self.postprocess_crop_size, self.box_frame).squeeze(1)

    def head_logits(
        self, maps: Maps, boxes: Float[Tensor, "n 4"], image_index: Int64[Tensor, " n"]
    ) -> Float[Tensor, "n h w"]:
        """What the mask head says, which is what training supervises; the arguments are those of `mask_logits`.

        On the grid of each box, widened by `box_margin`; with `predict_full_resolution_masks` on the whole map.
        """
        return self.mask_head(self._head_input(maps, boxes, image_index)).squeeze(1)

    def _head_input(self, maps: Maps, boxes: Tensor, image_index: Tensor) -> Float[Tensor, "n c h w"]:
        """Per box, as channels: coordinates, pixel embedding, instance embedding (tiled) and the image itself."""
        pixel_map, instance_map, image = maps
        frame_size = (image.shape[-2], image.shape[-1])
        crop_boxes = expand_boxes(boxes, self.box_margin)
        if self.predict_full_resolution_masks:
            pixels = pixel_map[image_index]
            coordinates = center_offsets(boxes, frame_size, (pixels.shape[-2], pixels.shape[-1]))
        else:
            pixels = crop_and_resize(pixel_map, crop_boxes, image_index, frame_size, self.mask_size, self.box_frame)
            coordinates = coordinate_grid(self.mask_size, pixels.device).expand(boxes.shape[0], -1, -1, -1)
        parts = [coordinates.to(pixels.dtype)] if self.use_coordinates else []
        parts.append(pixels)
        if self.use_instance_embedding:
            vectors = gather_at_centers(instance_map, boxes, image_index, frame_size).to(pixels.dtype)
            parts.append(vectors[:, :, None, None].expand(-1, -1, *pixels.shape[2:]))
        if self.use_image_crop:
            crop = crop_and_resize(image, crop_boxes, image_index, frame_size, self.mask_size, self.box_frame)
            parts.append(crop.to(pixels.dtype))
        return torch.cat(parts, dim=1)

    def _check_full_resolution(self) -> None:
        """There is no crop whose frame, margin, size or image could be chosen, and heads of one size do not fit."""
        chosen = {
            "box_frame": self.box_frame != "corner",
            "box_margin": self.box_margin > 0,
            "mask_upsample": self.mask_upsample != 1,
            "use_image_crop": self.use_image_crop,
            "mask_head": isinstance(self.mask_head, FullyConnectedHead),
        }
        wrong = [name for name, other in chosen.items() if other]
        if wrong:
            raise ValueError(
                "predict_full_resolution_masks needs box_frame 'corner', box_margin 0, mask_upsample 1, use_image_crop "
                f"false and a convolutional mask_head, but got another {wrong[0]}"
            )


def _check_values(embedding_kernel: Sequence[int], box_frame: str) -> None:
    check_frame(box_frame)
    if len(embedding_kernel) != 2 or any(size < 1 or size % 2 != 1 for size in embedding_kernel):
        raise ValueError(f"embedding_kernel must be two odd numbers, but got {list(embedding_kernel)}")
