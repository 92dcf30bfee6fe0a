"""The values of a MaX-DeepLab model, and its sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from maskwright.models.config import FamilyConfig, setting

OUTPUT_STRIDE = 16
"""Pixels of the network input per cell of the encoder's last map."""


@dataclass(frozen=True, kw_only=True)
class EncoderSize:
    """One size of the encoder.

    wide: basic blocks (Wide-ResNet) instead of bottlenecks.
    blocks: residual blocks by number of the stage; the first has stride 2 in S and L alike.
    channels: of the stages' outputs; behind a trunk, of what stages 2, 3 and 4 would give.
    attention_share: channels within an axial block, as a share of its output's.
    transformer_stride: blocks whose output has this stride or more are followed by a dual-path layer.
    transformer_widths: of the dual-path layers, by number of the stage; the last one's are the decoder's, too.
    drop_path_stride: blocks whose input has this stride or more drop their branch in training.
    memory_channels: of the memory.
    backbone_stacks: hourglasses of the decoder that ImageNet pretraining knows. Without any, extra blocks of the last
        stage follow the backbone.
    extra_stacks: hourglasses of the decoder that it does not know.
    extra_blocks: blocks per stage of those.
    stem_channels: of the first layer.
    decoder_channels: of a decoder stage, per pixel of its stride.
    trunk: name of the network of `nn.backbones.TRUNKS` that replaces the stem and the stages up to stride 16.
    """

    wide: bool
    blocks: dict[int, int]
    channels: dict[int, int]
    attention_share: float
    transformer_stride: int
    transformer_widths: dict[int, int]
    drop_path_stride: int
    memory_channels: int
    backbone_stacks: int
    extra_stacks: int
    extra_blocks: int
    stem_channels: int = 64
    decoder_channels: int = 64
    trunk: str | None = None


ENCODER_SIZES = {
    "max_deeplab_s": EncoderSize(
        wide=False,
        blocks={2: 3, 3: 4, 4: 6, 5: 3},
        channels={2: 256, 3: 512, 4: 1024, 5: 2048},
        attention_share=0.5,
        transformer_stride=32,
        transformer_widths={5: 128},
        drop_path_stride=16,
        memory_channels=256,
        backbone_stacks=0,
        extra_stacks=0,
        extra_blocks=1,
    ),
    "max_deeplab_l": EncoderSize(
        wide=True,
        blocks={1: 3, 2: 3, 3: 6, 4: 3, 5: 3},
        channels={1: 128, 2: 256, 3: 512, 4: 1024, 5: 2048},
        attention_share=1.0,
        transformer_stride=16,
        transformer_widths={4: 128, 5: 256},
        drop_path_stride=4,
        memory_channels=512,
        backbone_stacks=1,
        extra_stacks=1,
        extra_blocks=3,
    ),
    # for laptops
    "efficientnet_lite0": EncoderSize(
        wide=False,
        blocks={5: 2},
        channels={2: 128, 3: 256, 4: 256, 5: 256},
        attention_share=0.5,
        transformer_stride=32,
        transformer_widths={5: 64},
        drop_path_stride=16,
        memory_channels=128,
        backbone_stacks=0,
        extra_stacks=0,
        extra_blocks=1,
        decoder_channels=32,
        trunk="efficientnet_lite0",
    ),
}


@dataclass(frozen=True, kw_only=True)
class MaXDeepLabConfig(FamilyConfig):
    """The values of a MaX-DeepLab model.

    Attributes:
        categories: the label space, in label order; things and stuff in any order, or only one of them. A category
            without `isthing` is a thing. Null in a recipe takes the annotation file's.
        mask_classes: without effect: all masks are learnt.
        image_size: side of the square network input, in pixels; `16 k + 1`.
        backbone: the size, one of {backbone}: the published ones, and one for laptops whose pixel path begins with that
            network.
        pretrained_backbone: start that network from ImageNet weights; the published sizes have none.
        frozen_levels: the first N of the four levels of that network are frozen, the finest first.
        num_mask_slots: most masks that can be found in an image.
        stem_width: factor on the channels of the first layers.
        backbone_width: factor on the channels of the stages and of the decoder.
        transformer_width: factor on the channels within the layers that join memory and pixels.
        memory_channels: channels of the memory; null: the backbone's own (256 in S, 512 in L).
        memory_feature_channels: channels that the class head and the mask head read; null: likewise.
        feed_forward_channels: hidden channels of the memory's feed-forward networks.
        num_heads: heads of all attentions.
        semantic_channels: channels of the semantic decoder and head.
        low_level_channels: channels to which the semantic decoder reduces the maps at strides 8 and 4.
        pixel_head_channels: hidden channels of the head of the pixel features.
        pixel_feature_channels: channels of the pixel features, with which the masks are made.
        drop_path_keep: share of the branches that drop path keeps in the last stage.
        drop_path_schedule: `linear` falls from 1 to that share, stage by stage; `constant` is that share everywhere.
        norm_momentum: momentum of the batch norms, in torch's sense (the original: 0.01).
        activation_checkpointing: recompute each block in the backward pass instead of keeping its activations: less
            memory, more time.
        pq_weight: weight of the PQ-style loss, which is `mask_class` and `mask_dice` together.
        mask_id_weight: weight of the cross entropy of each pixel's slot.
        instance_discrimination_weight: weight of the loss that tells the pixel features of instances apart.
        semantic_weight: weight of the auxiliary semantic segmentation.
        unmatched_weight: weight in `mask_class` of a slot without a mask: `void_share` is the share of its probability
            that lies on void, as in the original's code, `labelled_share` that on labelled pixels, as in the paper.
        contrast_pixels: 0 compares pixels with the mean feature of each mask; above 0 this many pixels are drawn, small
            masks more often, and compared with each other.
        semantic_top_k: share of the pixels, those with the largest loss, that count in the semantic loss.
        mask_id_top_k: the same for the cross entropy of each pixel's slot.
        instance_discrimination_top_k: the same for the loss that tells instances apart.
        small_instance_weight: weight in the semantic loss of the pixels of small instances; all others have 1.
        small_instance_area: an instance of fewer pixels of the training crop is small.
        merging: `pixelwise` gives each pixel to the slot with the largest logit; `maskwise` lays whole masks on top
            of each other, the best first.
        class_threshold: least probability of a detected slot's class.
        stuff_class_threshold: the same for classes of stuff; null: `class_threshold`.
        pixel_threshold: a pixel belongs to a segment if its probability of the slot is above this.
        thing_area_limit: least area of a thing's segment, in pixels of the network's input.
        stuff_area_limit: the same for stuff.
        overlap_threshold: in `maskwise`, share of a mask that must be free when its turn comes.
        class_exponent: in `maskwise`, masks are ordered by the class's probability to this power, times the next.
        mask_exponent: in `maskwise`, the mean probability of the mask's pixels is taken to this power.
        width: factor on the channels of all layers, for small machines and tests; the number of heads stays.
    """

    image_size: int = setting(641, at_least=1)
    backbone: str = setting("max_deeplab_s", one_of=ENCODER_SIZES)
    pretrained_backbone: bool = setting(False, initial_only=True)
    frozen_levels: int = setting(0, at_least=0, at_most=4, training_only=True)
    num_mask_slots: int = setting(128, at_least=1)
    stem_width: float = setting(1.0, above=0)
    backbone_width: float = setting(1.0, above=0)
    transformer_width: float = setting(1.0, above=0)
    memory_channels: int | None = setting(None, at_least=1)
    memory_feature_channels: int | None = setting(None, at_least=1)
    feed_forward_channels: int = setting(2048, at_least=1)
    num_heads: int = setting(8, at_least=1)
    semantic_channels: int = setting(256, at_least=1)
    low_level_channels: Sequence[int] = (64, 32)
    pixel_head_channels: int = setting(256, at_least=1)
    pixel_feature_channels: int = setting(128, at_least=1)
    drop_path_keep: float = setting(0.8, above=0, at_most=1, training_only=True)
    drop_path_schedule: Literal["constant", "linear"] = setting("linear", training_only=True)
    norm_momentum: float = setting(0.01, at_least=0, at_most=1, training_only=True)
    activation_checkpointing: bool = setting(False, training_only=True)
    pq_weight: float = setting(3.0, at_least=0, training_only=True)
    mask_id_weight: float = setting(0.3, at_least=0, training_only=True)
    instance_discrimination_weight: float = setting(1.0, at_least=0, training_only=True)
    semantic_weight: float = setting(1.0, at_least=0, training_only=True)
    unmatched_weight: Literal["void_share", "labelled_share"] = setting("void_share", training_only=True)
    contrast_pixels: int = setting(0, at_least=0, training_only=True)
    semantic_top_k: float = setting(1.0, above=0, at_most=1, training_only=True)
    mask_id_top_k: float = setting(1.0, above=0, at_most=1, training_only=True)
    instance_discrimination_top_k: float = setting(1.0, above=0, at_most=1, training_only=True)
    small_instance_weight: float = setting(1.0, at_least=0, training_only=True)
    small_instance_area: int = setting(4096, at_least=0, training_only=True)
    merging: Literal["pixelwise", "maskwise"] = "pixelwise"
    class_threshold: float = setting(0.7, at_least=0, at_most=1)
    stuff_class_threshold: float | None = setting(None, at_least=0, at_most=1)
    pixel_threshold: float = setting(0.4, at_least=0, at_most=1)
    thing_area_limit: int = setting(100, at_least=0)
    stuff_area_limit: int = setting(1600, at_least=0)
    overlap_threshold: float = setting(0.8, at_least=0, at_most=1)
    class_exponent: float = setting(1.0, at_least=0)
    mask_exponent: float = setting(1.0, at_least=0)
    width: float = setting(1.0, above=0)

    def __post_init__(self) -> None:
        """See `FamilyConfig`; a model without categories, and what its backbone does not have, are refused, too."""
        super().__post_init__()
        for name in ("pretrained_backbone", "frozen_levels"):
            if getattr(self, name) and self.size.trunk is None:
                known = ", ".join(key for key, size in ENCODER_SIZES.items() if size.trunk)
                raise ValueError(f"{name} is for the backbones {known}; {self.backbone} has no use for it")
        if not self.categories:
            raise ValueError("MaXDeepLab needs categories, the classes that it tells apart, but got none")
        if self.image_size <= 1 or self.image_size % OUTPUT_STRIDE != 1:
            raise ValueError(f"image_size must be 16 k + 1 (641, 1025), but got {self.image_size}")
        if len(self.low_level_channels) != 2 or any(count < 1 for count in self.low_level_channels):
            raise ValueError(f"low_level_channels must be two numbers above 0, but got {list(self.low_level_channels)}")

    @property
    def size(self) -> EncoderSize:
        """The size of the encoder."""
        return ENCODER_SIZES[self.backbone]

    @property
    def memory_width(self) -> int:
        """Channels of the memory."""
        return self.memory_channels or self.size.memory_channels

    @property
    def memory_feature_width(self) -> int:
        """Channels of what the class head and the mask head read."""
        return self.memory_feature_channels or self.size.memory_channels

    def transformer_channels(self, stage: int) -> int:
        """`DualPathLayer.width` in a stage; the decoder's is that of stage 5."""
        return round(self.size.transformer_widths.get(stage, 0) * self.transformer_width)

    @property
    def isthing(self) -> list[bool]:
        """Whether each category is one of things."""
        return [category.get("isthing", True) for category in self.categories or []]

    def with_width_applied(self) -> MaXDeepLabConfig:
        """The same network with `width` 1 and all channels that it scales written out."""
        if self.width == 1:
            return self

        def scaled(channels: int) -> int:
            return max(1, round(channels * self.width))

        return replace(
            self,
            stem_width=self.stem_width * self.width,
            backbone_width=self.backbone_width * self.width,
            transformer_width=self.transformer_width * self.width,
            memory_channels=scaled(self.memory_width),
            memory_feature_channels=scaled(self.memory_feature_width),
            feed_forward_channels=scaled(self.feed_forward_channels),
            semantic_channels=scaled(self.semantic_channels),
            low_level_channels=[scaled(channels) for channels in self.low_level_channels],
            pixel_head_channels=scaled(self.pixel_head_channels),
            pixel_feature_channels=scaled(self.pixel_feature_channels),
            width=1.0,
        )
