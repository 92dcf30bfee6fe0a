"""The values of a Deep-MARC model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from maskwright.models.config import BoxPromptedConfig, setting
from maskwright.nn.backbones import DETECTION_BACKBONES
from maskwright.nn.feature_maps import Padding
from maskwright.nn.image_batch import ChannelOrder, ResizeMethod
from maskwright.nn.mask_heads import MASK_HEADS

BoxHeadName = Literal["4conv1fc", "2fc"]


@dataclass(frozen=True, kw_only=True)
class DeepMARCConfig(BoxPromptedConfig):
    """The values of a Deep-MARC model.

    Attributes:
        categories: the label space, in label order; null in a recipe takes the annotation file's.
        mask_classes: names of the classes whose masks were used in training.
        image_size: side of the square network input, in pixels; a multiple of the backbone's `size_divisor`.
        backbone: one of {backbone}.
        pretrained_backbone: start the backbone from ImageNet weights.
        padding: of a ResNet's layers with stride 2: `symmetric`, which torchvision's weights need, or `same`, which
            weights of the original need.
        frozen_levels: the first N of the four levels of a pyramid backbone's trunk are frozen, the finest first.
        drop_path_rate: probability that a residual block of a SpineNet's last node is left out in training; it grows
            from node to node.
        anchor_scale: side of a level's smallest square anchor, in cells (the originals: 8 for ResNets, 3 or 4 for
            SpineNets); each size comes with the aspect ratios 0.5, 1 and 2.
        num_anchor_scales: sizes of anchors per level, equal factors apart; the next would be the next level's first.
        box_head: `4conv1fc`, the original's, or `2fc`, which is faster.
        num_proposals: boxes per image that the first stage hands to the second.
        num_box_samples: proposals per image that train the second stage, at most a quarter of them on objects.
        min_box_score: candidates of this score or less are not detected, whatever the threshold of a call (the
            original: 0.05); they need no non-maximum suppression.
        mask_head: one of {mask_head}.
        mask_head_width: channels of the mask head's first layer (`num_filters` in the original): 64 for the
            hourglasses, 256 for `fcn`.
        mask_size: side of the square crop that enters the mask head.
        mask_upsample: how much larger than the crop the mask head's output is.
        class_agnostic_masks: one mask per box, shared by all classes; otherwise one mask per class.
        mask_boxes: on which boxes the masks are learnt: `ground_truth`, with which they generalise to unseen
            classes, or `proposals`, the sampled boxes that lie on an object, which include the ground truth.
        mask_weight: weight of the masks' loss; those of the boxes have weight 1.
        mask_quality: predict the IoU of each mask with the truth, by a small head beside the mask head; it is then the
            masks' score, which is otherwise computed from their probabilities. Masks stay as they are.
        mask_quality_weight: weight of the loss of that prediction, which is learnt where there is a mask.
        mask_quality_alone: learn that prediction alone: all other parts keep their weights and the statistics of their
            norms. For weights that were trained without it (`trainer.initial_weights`).
        second_look_below: at inference, boxes whose longer side is below this many pixels of the network input get a
            second look: the square around the box is encoded by itself, and the mask is the mean of both. 0: none.
        second_look_context: side of that square, in longer sides of the box.
        second_look_size: side to which it is resized, in pixels; a multiple of the backbone's `size_divisor`.
        max_masks_per_image: most boxes of an image that enter the mask head in training.
        mask_chunk_size: boxes that enter the mask head at a time at inference.
        resize: how pixels are interpolated when an image is resized (`nn.image_batch.ImageBatch`).
        image_mean: what is subtracted from the channels, in 0..1, in RGB order.
        image_std: what they are then divided by.
        channel_order: the order in which the network takes the channels.
        image_padding: the colour beside an image that is not square: `black`, as in training, or `mean`, as in the
            original.
        norm_momentum: momentum of the batch norms outside of the mask head, in torch's sense.
        norm_epsilon: epsilon of the batch norms; the hourglasses have their own, 1e-5.
        trunk_norm_epsilon: epsilon of the batch norms in a ResNet's trunk; null: `norm_epsilon`. ImageNet weights of
            torchvision need 1e-5.
        mask_norm_momentum: momentum of the mask head's batch norms, in torch's sense.
        width: factor on the channels of the backbone and of all hidden layers, for tests.
    """

    image_size: int = setting(1024, at_least=1)
    backbone: str = setting("resnet50_fpn", one_of=DETECTION_BACKBONES)
    pretrained_backbone: bool = setting(False, initial_only=True)
    padding: Padding = "symmetric"
    frozen_levels: int = setting(0, at_least=0, training_only=True)
    drop_path_rate: float = setting(0.0, at_least=0, at_most=1, training_only=True)
    anchor_scale: float = setting(8.0, above=0)
    num_anchor_scales: int = setting(1, at_least=1)
    box_head: BoxHeadName = "4conv1fc"
    num_proposals: int = setting(1000, at_least=1)
    num_box_samples: int = setting(512, at_least=1, training_only=True)
    min_box_score: float = setting(0.05, at_least=0, at_most=1)
    mask_head: str = setting("hourglass52", one_of=MASK_HEADS)
    mask_head_width: int = setting(64, at_least=1)
    mask_size: int = setting(32, at_least=1)
    mask_upsample: int = setting(2, at_least=1)
    class_agnostic_masks: bool = True
    mask_boxes: Literal["ground_truth", "proposals"] = setting("ground_truth", training_only=True)
    mask_weight: float = setting(1.0, at_least=0, training_only=True)
    max_masks_per_image: int = setting(128, at_least=1, training_only=True)
    mask_chunk_size: int = setting(128, at_least=1)
    resize: ResizeMethod = "antialias"
    image_mean: Sequence[float] = (0.485, 0.456, 0.406)
    image_std: Sequence[float] = (0.229, 0.224, 0.225)
    channel_order: ChannelOrder = "rgb"
    image_padding: Literal["black", "mean"] = "black"
    norm_momentum: float = setting(0.1, at_least=0, at_most=1, training_only=True)
    norm_epsilon: float = setting(1e-5, above=0)
    trunk_norm_epsilon: float | None = setting(None, above=0)
    mask_norm_momentum: float = setting(0.1, at_least=0, at_most=1, training_only=True)
    width: float = setting(1.0, above=0)

    def __post_init__(self) -> None:
        """See `BoxPromptedConfig`; a model without categories is refused, too."""
        super().__post_init__()
        if not self.categories:
            raise ValueError("Deep-MARC needs categories, the classes that its detector tells apart, but got none")
