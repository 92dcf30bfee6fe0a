"""MaX-DeepLab's network: a batch of images in, logits out, without losses, sizes of images or post-processing."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maskwright.models.max_deeplab.axial_attention import AxialAttention
from maskwright.models.max_deeplab.config import OUTPUT_STRIDE, MaXDeepLabConfig
from maskwright.models.max_deeplab.encoder import EncoderOutputs, MaXDeepLabEncoder
from maskwright.models.max_deeplab.heads import ClassHead, PixelHead, SemanticHead, SlotMaskHead
from maskwright.models.max_deeplab.semantic_decoder import SemanticDecoder

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

    In training the pooling of the semantic decoder spans the whole map of an input of `image_size`.

    Source: arXiv 2012.00759; deeplab2 `encoder/axial_resnet_instances.py`, `decoder/max_deeplab.py`.
    Departure: a norm that sees one value per channel (the pooled branch with one image) uses its running statistics.
    """

    def __init__(self, config: MaXDeepLabConfig) -> None:
        super().__init__()
        config = config.with_width_applied()
        self.encoder = encoder = MaXDeepLabEncoder(config)
        self.semantic_decoder: SemanticDecoder | None = None
        semantic_in = encoder.semantic_channels
        if not encoder.semantic_at_stride_4:
            self.semantic_decoder = SemanticDecoder(config, semantic_in, encoder.low_level_channels)
            semantic_in = config.semantic_channels
        self.semantic_head = SemanticHead(semantic_in, config.semantic_channels, config.num_classes)
        self.pixel_head = PixelHead(
            encoder.decoder.out_channels, config.pixel_head_channels, config.pixel_feature_channels
        )
        self.class_head = ClassHead(config.memory_feature_width, config.num_classes)
        self.mask_head = SlotMaskHead(config.memory_feature_width, config.pixel_feature_channels)
        self._initialize(config.norm_momentum)

    def _initialize(self, norm_momentum: float) -> None:
        """He's truncated normal distribution for all but the last layers of the heads and the queries.

        A trunk keeps its weights, which may be ImageNet's.
        """
        last = {self.semantic_head.logits, self.pixel_head.features, self.class_head.logits}
        queries = {layer.qkv.conv for layer in self.modules() if isinstance(layer, AxialAttention)}
        trunk = self.encoder.trunk
        kept = set() if trunk is None else set(trunk.trunk.modules())
        for layer in self.modules():
            if layer in kept:
                continue
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
        height, width = batch.shape[2:]
        if height % OUTPUT_STRIDE != 1 or width % OUTPUT_STRIDE != 1 or min(height, width) <= 1:
            raise ValueError(f"the sides of the input must be 16 k + 1 (641, 1025), but got {height} x {width}")
        return self.encoder(batch)
