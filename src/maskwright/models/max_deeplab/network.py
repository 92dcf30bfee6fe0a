"""MaX-DeepLab's network: a batch of images in, logits out, without losses, sizes of images or post-processing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maskwright.models.max_deeplab.axial_attention import AxialAttention
from maskwright.models.max_deeplab.blocks import NORM_MOMENTUM
from maskwright.models.max_deeplab.encoder import EncoderOutputs, MaXDeepLabEncoder
from maskwright.models.max_deeplab.heads import ClassHead, MaskHead, PixelHead, SemanticHead
from maskwright.models.max_deeplab.semantic_decoder import SemanticDecoder
from maskwright.models.max_deeplab.stages import OUTPUT_STRIDE, DropPathSchedule

Backbone = Literal["max_deeplab_s", "max_deeplab_l"]

_TRUNCATION = 0.87962566103423978  # standard deviation of a normal distribution cut at two of its own
_LAST_LAYER_STD = 0.01


class MaXDeepLabOutputs(NamedTuple):
    """What the losses and the post-processing read; h and w at stride 4.

    mask_logits: [b, slots, h, w].
    class_logits: [b, slots, num_classes + 1], in label order, void last.
    pixel_feature: [b, d, h, w], each pixel's of length 1.
    semantic_logits: [b, num_classes + 1, h, w], void first.
    """

    mask_logits: Tensor
    class_logits: Tensor
    pixel_feature: Tensor
    semantic_logits: Tensor


class MaXDeepLabNetwork(nn.Module):
    """The encoder with its stacked decoder, and the heads.

    Args:
        num_classes: labels, without void.
        backbone: the published size.
        image_size: height and width of the network's input in training, each `16 k + 1`: the pooling of the semantic
            decoder spans it.
        num_mask_slots: rows of the memory, of which each may become one mask.
        stem_width: multiplies the stem's channels.
        backbone_width: multiplies the channels of the stages and of the decoder.
        transformer_width: multiplies the channels within the dual-path layers.
        memory_channels: of the memory; null: the backbone's own (256 in S, 512 in L).
        memory_feature_channels: of what the class head and the mask head read; null: likewise.
        feed_forward_channels: hidden channels of the memory's feed-forward networks.
        num_heads: of all attentions.
        semantic_channels: of the semantic decoder and head.
        low_level_channels: to which the semantic decoder reduces the maps at strides 8 and 4.
        pixel_head_channels: hidden channels of the pixel head.
        pixel_feature_channels: of the pixel features and of the slots' kernels.
        drop_path_keep: share of the branches that drop path keeps in the last stage.
        drop_path_schedule: `linear`: falls from 1 to that share, stage by stage.
        norm_momentum: of the batch norms, in torch's sense (the original: 0.01).
        activation_checkpointing: recompute each block in the backward pass instead of keeping its activations.

    Raises:
        ValueError: an unknown name, or a size that does not fit.

    Source: arXiv 2012.00759; deeplab2 `encoder/axial_resnet_instances.py`, `decoder/max_deeplab.py`.
    Departure: a norm that sees one value per channel (the pooled branch with one image) uses its running statistics.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: Backbone = "max_deeplab_s",
        image_size: Sequence[int] = (641, 641),
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
        norm_momentum: float = NORM_MOMENTUM,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 1 or num_mask_slots < 1:
            raise ValueError(f"num_classes and num_mask_slots must be 1 or more, got {num_classes}, {num_mask_slots}")
        height, width = image_size
        _check_size(height, width)
        self.encoder = MaXDeepLabEncoder(
            backbone=backbone,
            num_mask_slots=num_mask_slots,
            stem_width=stem_width,
            backbone_width=backbone_width,
            transformer_width=transformer_width,
            memory_channels=memory_channels,
            memory_feature_channels=memory_feature_channels,
            feed_forward_channels=feed_forward_channels,
            num_heads=num_heads,
            drop_path_keep=drop_path_keep,
            drop_path_schedule=drop_path_schedule,
            activation_checkpointing=activation_checkpointing,
        )
        encoder = self.encoder
        self.semantic_decoder: SemanticDecoder | None = None
        semantic_in = encoder.semantic_channels
        if not encoder.semantic_at_stride_4:
            pool_size = (height // OUTPUT_STRIDE + 1, width // OUTPUT_STRIDE + 1)
            self.semantic_decoder = SemanticDecoder(
                semantic_in, encoder.low_level_channels, semantic_channels, low_level_channels, pool_size
            )
            semantic_in = semantic_channels
        self.semantic_head = SemanticHead(semantic_in, semantic_channels, num_classes)
        self.pixel_head = PixelHead(encoder.decoder.out_channels, pixel_head_channels, pixel_feature_channels)
        self.class_head = ClassHead(encoder.memory_feature_channels, num_classes)
        self.mask_head = MaskHead(encoder.memory_feature_channels, pixel_feature_channels)
        self._initialize(norm_momentum)

    def _initialize(self, norm_momentum: float) -> None:
        """He's normal distribution, cut at two standard deviations; what differs from it sets itself."""
        last = {self.semantic_head.logits, self.pixel_head.features, self.class_head.logits}
        queries = {layer.qkv.conv for layer in self.modules() if isinstance(layer, AxialAttention)}
        for layer in self.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.momentum = norm_momentum
            if isinstance(layer, nn.Conv2d | nn.Linear):
                fan_in = layer.weight[0].numel()
                std = math.sqrt(2 / fan_in) / _TRUNCATION
                if layer in last:
                    std = _LAST_LAYER_STD
                elif layer in queries:
                    std = fan_in**-0.5
                nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, batch: Float[Tensor, "b 3 h w"]) -> MaXDeepLabOutputs:
        """All outputs of images normalised to `x / 127.5 - 1`.

        Raises:
            ValueError: a side that is not `16 k + 1`.
        """
        features = self._encode(batch)
        semantic = F.relu(features.semantic)
        if self.semantic_decoder is not None:
            low_level = {stride: F.relu(feature) for stride, feature in features.low_level.items()}
            semantic = self.semantic_decoder(semantic, low_level)
        pixel_feature = self.pixel_head(features.panoptic)
        return MaXDeepLabOutputs(
            mask_logits=self.mask_head(features.mask_feature, pixel_feature),
            class_logits=self.class_head(features.class_feature),
            pixel_feature=pixel_feature,
            semantic_logits=self.semantic_head(semantic),
        )

    def masks(self, batch: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b slots i j"], Float[Tensor, "b slots k"]]:
        """Mask logits and class logits alone: all that inference needs, without the auxiliary semantic branch.

        Raises:
            ValueError: a side that is not `16 k + 1`.
        """
        features = self._encode(batch)
        pixel_feature = self.pixel_head(features.panoptic)
        return self.mask_head(features.mask_feature, pixel_feature), self.class_head(features.class_feature)

    def _encode(self, batch: Tensor) -> EncoderOutputs:
        _check_size(batch.shape[2], batch.shape[3])
        return self.encoder(batch)


def _check_size(height: int, width: int) -> None:
    if height % OUTPUT_STRIDE != 1 or width % OUTPUT_STRIDE != 1 or min(height, width) <= 1:
        raise ValueError(f"the sides of the input must be 16 k + 1 (641, 1025), but got {height} x {width}")
