"""The values of a Deep-MAC model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from maskwright.models.config import BoxPromptedConfig, setting
from maskwright.nn.backbones import BACKBONES
from maskwright.nn.image_batch import ChannelOrder, ResizeMethod
from maskwright.nn.mask_heads import MASK_HEADS
from maskwright.ops.boxes import JitterMode
from maskwright.ops.frames import BoxFrame


@dataclass(frozen=True, kw_only=True)
class DeepMACConfig(BoxPromptedConfig):
    """The values of a Deep-MAC model.

    Attributes:
        categories: the label space, in label order; null in a recipe takes the annotation file's. Without a detector
            it may be empty, for a class-agnostic model.
        mask_classes: names of the classes whose masks were used in training.
        image_size: side of the square network input, in pixels; a multiple of the backbone's `size_divisor`.
        detector: `centernet`, which learns from the boxes of all classes, or null, where boxes are always given.
        detector_width: channels of the hidden layer of the detector's heads.
        backbone: one of {backbone}. The `resnet_v1_*` are the original's, the other ResNets torchvision's.
        pretrained_backbone: start the backbone from ImageNet weights.
        frozen_levels: the first N of the four levels of a pyramid backbone's trunk are frozen, the finest first.
        mask_head: one of {mask_head}.
        mask_head_width: channels of the mask head's first layer (`num_init_channels` in the original).
        mask_size: side of the square crop that enters the mask head.
        mask_upsample: how much larger than the crop the mask head's output is.
        pixel_embedding_dim: channels of the map that is cropped.
        instance_embedding_dim: channels of the vector read at the box centre.
        embedding_width: channels of the hidden layer of the two embedding heads.
        embedding_kernel: kernel of that layer; [3, 3] in the paper's checkpoints, [1, 3] in later code of the original.
        use_coordinates: give the mask head two channels of box coordinates.
        use_instance_embedding: give the mask head the instance vector, the same in every cell.
        use_image_crop: give the mask head the normalised image, cropped like the pixel embedding.
        box_frame: how the mask's grid lies on a box: `corner` puts its first and last samples on the edges, `pixel` has
            samples at the centres of equal cells.
        box_margin: widens the crop on every side by this share of the box, so that the mask head sees context.
        box_jitter: how the edges of boxes are moved at random in training (`ops.boxes.jitter_boxes`).
        box_jitter_ratio: how far they are moved at most, as a share of half the box's side: 0.2 moves an edge by up to
            a tenth of the side, as loosely drawn boxes are. 0 for not at all.
        predict_full_resolution_masks: give the mask head the whole feature map instead of a crop, with coordinates
            relative to the box's centre, and train it on the image's whole mask. It costs
            (image_size / 4 / mask_size)^2 times as much; image_size / 4 must be a multiple of the head's size divisor.
            Predictions are cut out along the box. Does not go with jitter, margin, upsampling, image crop, the `pixel`
            frame, `mask_quality` or a fully connected head.
        postprocess_crop_size: side of the grid on which full-resolution masks are cut out.
        object_center_weight: weight of the detector's loss of its centre maps.
        box_size_weight: weight of the detector's loss of heights and widths, in cells.
        box_offset_weight: weight of the detector's loss of the centres' offsets.
        min_box_overlap: IoU that sets the radius of the Gaussian targets of the centre maps.
        cross_entropy_weight: weight of the per-pixel loss of the masks (the original: 5).
        boundary_weight: how much more than others the cells along a mask's boundary count in the per-pixel loss: 1 for
            twice as much, 0 for alike.
        dice_weight: weight of the dice loss of the masks.
        box_consistency_weight: weight of the loss that compares each box, with a mask or without, with the extent of
            its predicted mask; above 0, boxes without a mask enter the mask head in training, too.
        mask_quality: predict the IoU of each mask with the truth, by a small head beside the mask head; it is then the
            masks' score, which is otherwise computed from their probabilities. Masks stay as they are.
        mask_quality_weight: weight of the loss of that prediction, which is learnt where there is a mask.
        mask_quality_alone: learn that prediction alone: all other parts keep their weights and the statistics of their
            norms. For weights that were trained without it (`trainer.initial_weights`).
        second_look_below: at inference, boxes whose longer side is below this many pixels of the network input get a
            second look: the square around the box is encoded by itself, and the mask is the mean of both. 0: none.
        second_look_context: side of that square, in longer sides of the box.
        second_look_size: side to which it is resized, in pixels; a multiple of the backbone's `size_divisor`.
        max_masks_per_image: most instances of an image that enter the mask head in training.
        mask_chunk_size: boxes that enter the mask head at a time at inference; on a CPU at most 16 (bfloat16: 32).
        resize: how pixels are interpolated when an image is resized (`nn.image_batch.ImageBatch`).
        image_mean: what is subtracted from the channels, in 0..1, in RGB order.
        image_std: what they are then divided by.
        channel_order: the order in which the network takes the channels.
        norm_momentum: momentum of the batch norms, in torch's sense (the original: 0.9).
        width: factor on the channels of the backbone and of all hidden layers, for tests.
    """

    image_size: int = setting(512, at_least=1)
    detector: Literal["centernet"] | None = None
    detector_width: int = setting(256, at_least=1)
    backbone: str = setting("hourglass104", one_of=BACKBONES)
    pretrained_backbone: bool = setting(False, initial_only=True)
    frozen_levels: int = setting(0, at_least=0, training_only=True)
    mask_head: str = setting("hourglass52", one_of=MASK_HEADS)
    mask_head_width: int = setting(64, at_least=1)
    mask_size: int = setting(32, at_least=1)
    mask_upsample: int = setting(1, at_least=1)
    pixel_embedding_dim: int = setting(16, at_least=1)
    instance_embedding_dim: int = setting(32, at_least=1)
    embedding_width: int = setting(256, at_least=1)
    embedding_kernel: Sequence[int] = (3, 3)
    use_coordinates: bool = True
    use_instance_embedding: bool = True
    use_image_crop: bool = False
    box_frame: BoxFrame = "corner"
    box_margin: float = setting(0.0, at_least=0)
    box_jitter: JitterMode = setting("default", training_only=True)  # noqa: RUF009 (a field)
    box_jitter_ratio: float = setting(0.0, at_least=0, training_only=True)
    predict_full_resolution_masks: bool = False
    postprocess_crop_size: int = setting(256, at_least=2)
    object_center_weight: float = setting(1.0, at_least=0, training_only=True)
    box_size_weight: float = setting(0.1, at_least=0, training_only=True)
    box_offset_weight: float = setting(1.0, at_least=0, training_only=True)
    min_box_overlap: float = setting(0.7, at_least=0, at_most=1, training_only=True)
    cross_entropy_weight: float = setting(5.0, at_least=0, training_only=True)
    boundary_weight: float = setting(0.0, at_least=0, training_only=True)
    dice_weight: float = setting(0.0, at_least=0, training_only=True)
    box_consistency_weight: float = setting(0.0, at_least=0, training_only=True)
    max_masks_per_image: int = setting(100, at_least=1, training_only=True)
    mask_chunk_size: int = setting(128, at_least=1)
    resize: ResizeMethod = "antialias"
    image_mean: Sequence[float] = (0.485, 0.456, 0.406)
    image_std: Sequence[float] = (0.229, 0.224, 0.225)
    channel_order: ChannelOrder = "rgb"
    norm_momentum: float = setting(0.1, at_least=0, at_most=1, training_only=True)
    width: float = setting(1.0, above=0)

    def __post_init__(self) -> None:
        """See `BoxPromptedConfig`; values that do not go together are refused, too."""
        super().__post_init__()
        if self.detector and not self.categories:
            raise ValueError("a model with a detector needs categories, the classes that it tells apart, but got none")
        if len(self.embedding_kernel) != 2 or any(size < 1 or size % 2 != 1 for size in self.embedding_kernel):
            raise ValueError(f"embedding_kernel must be two odd numbers, but got {list(self.embedding_kernel)}")
        if not self.cross_entropy_weight and not self.dice_weight:
            raise ValueError("cross_entropy_weight and dice_weight are both 0: the mask head would learn nothing")
        if self.boundary_weight and not self.cross_entropy_weight:
            raise ValueError("boundary_weight is part of the per-pixel loss, but cross_entropy_weight is 0")
        if self.predict_full_resolution_masks:
            self._check_full_resolution()

    def _check_full_resolution(self) -> None:
        """Without a crop there is no frame, margin, size, image or jitter of it."""
        wrong = {
            "box_frame": self.box_frame != "corner",
            "box_margin": self.box_margin > 0,
            "box_jitter_ratio": self.box_jitter_ratio > 0,
            "mask_upsample": self.mask_upsample != 1,
            "use_image_crop": self.use_image_crop,
            "mask_quality": self.mask_quality,
        }
        if names := [name for name, is_wrong in wrong.items() if is_wrong]:
            raise ValueError(
                "predict_full_resolution_masks needs box_frame 'corner', box_margin 0, box_jitter_ratio 0, "
                f"mask_upsample 1, use_image_crop false and mask_quality false, but got another {names[0]}"
            )
