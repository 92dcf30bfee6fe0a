"""Deep-MAC: a deep, class-agnostic mask head on box crops of a CenterNet-style feature map."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from maskwright.models.deep_mac.centernet import CenterNetLoss, decode
from maskwright.models.deep_mac.config import DeepMACConfig
from maskwright.models.deep_mac.losses import MaskLoss, choose_instances
from maskwright.models.deep_mac.network import DeepMACNetwork, Maps
from maskwright.models.family import BoxPromptedFamily, Detections
from maskwright.nn.image_batch import ImageBatch
from maskwright.nn.inference import without_autocast
from maskwright.ops.frames import BoxFrame, margin_crop_matrix
from maskwright.structures import Target


class DeepMAC(BoxPromptedFamily[DeepMACConfig]):
    """Masks for boxes of any class, trained with masks of only some classes.

    With its detector it finds the boxes, too. Without one (`detector: null`) it trains and predicts from given
    boxes alone, as in the paper's section "without a detector". In training, only boxes with `has_mask` that are no
    crowd enter the mask head; all that are no crowd train the detector.

    Args:
        config: a `DeepMACConfig`; or its values, by keyword.

    Raises:
        ValueError: an unknown name, a meaningless value, a detector without categories, an indivisible `image_size`.

    Source: arXiv 2104.00613; Object Detection API `deepmac_meta_arch.py`. Departures in `postprocess`: boxes are
    clipped to the image before their masks are made rather than after, and boxes without any extent inside it are
    left out.
    """

    family = "deep_mac"
    config_class = DeepMACConfig
    compilable = ("maps", "maps_and_detection", "mask_logits", "masks_and_qualities")
    network: DeepMACNetwork

    def __init__(self, config: DeepMACConfig | None = None, **values: Any) -> None:
        super().__init__(config, **values)
        config = self.config
        self.mask_chunk_size = config.mask_chunk_size
        self.image_batch = ImageBatch(
            config.image_size, config.resize, config.image_mean, config.image_std, config.channel_order
        )
        self.mask_loss = MaskLoss(config)
        self.centernet_loss = CenterNetLoss(config)
        self.network = DeepMACNetwork(config)
        self.check_input_sizes()
        self.freeze()

    @property
    def needs_boxes(self) -> bool:
        """Whether the model has no detector."""
        return self.config.detector is None

    @property
    def learns_from_boxes(self) -> bool:
        """Whether it has a detector, or a loss that compares boxes with masks, and learns more than `mask_quality`."""
        by_extent = self.config.box_consistency_weight > 0 and not self.config.mask_quality_alone
        return super().learns_from_boxes or by_extent

    @property
    def box_frame(self) -> BoxFrame:
        """See `BoxPromptedFamily`."""
        return self.config.box_frame

    @property
    def map_names(self) -> Sequence[str]:
        """See `BoxPromptedFamily`."""
        return ("pixel_embedding", "instance_embedding", "image")

    def training_losses(self, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        """The losses of the mask head, of the quality of its masks and, with a detector, of its boxes."""
        batch = self.image_batch.stack(images)
        if self.config.mask_quality_alone:
            return {"mask_quality": self.mask_losses([self.network.maps(batch)], targets)["mask_quality"]}
        stacks, detector_stacks = self.network.stack_outputs(batch)
        losses = self.mask_losses(stacks, targets)
        if self.needs_boxes:
            return losses
        objects = [~target["iscrowd"] for target in targets]
        boxes = [target["boxes"][rows] for target, rows in zip(targets, objects, strict=True)]
        labels = [target["labels"][rows] for target, rows in zip(targets, objects, strict=True)]
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        stride = self.network.backbone.strides[-1]
        return self.centernet_loss(detector_stacks, boxes, labels, sizes, stride) | losses

    def mask_losses(self, stacks: Sequence[Maps], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Losses of the mask head on ground-truth boxes, averaged over the stacks, then per image.

        `mask_quality` is learnt of the last stack, the only one used at inference.

        Source: `_compute_masks_loss`; departures: see `DeepMACNetwork`.
        """
        size = (stacks[0][2].shape[-2], stacks[0][2].shape[-1])
        instances = choose_instances(targets, self.config, size, stacks[0][0].device)
        prompt = (instances.boxes, instances.image_index)
        if not self.config.mask_quality:
            logits = [self.network.head_logits(m, *prompt).float() for m in stacks]
            return self.mask_loss(logits, instances, len(targets), size)
        logits = [self.network.head_logits(m, *prompt).float() for m in stacks[:-1]]
        last, qualities = self.network.masks_and_qualities(stacks[-1], *prompt)
        losses = self.mask_loss([*logits, last.float()], instances, len(targets), size)
        return losses | {"mask_quality": self.mask_loss.quality(qualities, last, instances, len(targets))}

    def detect(
        self, batch: Float[Tensor, "b 3 h w"], image_sizes: list[tuple[int, int]], max_detections: int
    ) -> tuple[Maps, Detections]:
        """See `BoxPromptedFamily`."""
        maps, detector_maps = self.network.maps_and_detection(batch)
        found = decode(detector_maps, image_sizes, self.network.backbone.strides[-1], max_detections)
        peaks = [scores > 0 for scores in found.scores]
        return maps, Detections(*([row[peak] for row, peak in zip(rows, peaks, strict=True)] for rows in found))

    def mask_logits(
        self,
        maps: tuple[Tensor, ...],
        boxes: Float[Tensor, "n 4"],
        image_index: Int64[Tensor, " n"],
        labels: Int64[Tensor, " n"] | None = None,  # noqa: ARG002
    ) -> Float[Tensor, "n m m"]:
        """See `BoxPromptedFamily`; masks are class-agnostic."""
        pixel_embedding, instance_embedding, image = maps
        return self.network.mask_logits((pixel_embedding, instance_embedding, image), boxes, image_index)

    def masks_and_qualities(
        self,
        maps: tuple[Tensor, ...],
        boxes: Float[Tensor, "n 4"],
        image_index: Int64[Tensor, " n"],
        labels: Int64[Tensor, " n"] | None = None,  # noqa: ARG002
    ) -> tuple[Float[Tensor, "n m m"], Float[Tensor, " n"]]:
        """See `BoxPromptedFamily`."""
        pixel_embedding, instance_embedding, image = maps
        return self.network.masks_and_qualities((pixel_embedding, instance_embedding, image), boxes, image_index)

    def chunk_size(self, maps: tuple[Tensor, ...]) -> int:
        """See `BoxPromptedFamily`."""
        if maps[0].device.type == "cpu":
            # Measured: activations of 64 bytes per cell fit the cache, and memory that is freed is used again.
            return min(self.mask_chunk_size, 64 // maps[0].element_size())
        return self.mask_chunk_size

    def on_boxes(self, logits: Float[Tensor, "n m m"]) -> Float[Tensor, "n m m"]:
        """Logits on the widened boxes -> logits on the boxes themselves, on a grid of the same size."""
        if not self.config.box_margin:
            return logits
        matrix = margin_crop_matrix(logits.shape[-1], self.config.box_margin, self.config.box_frame).to(logits)
        with without_autocast(logits.device):  # it would bring the masks down to 8 bits
            return matrix @ logits @ matrix.T

    def backbone_parameters(self) -> Iterable[nn.Parameter]:
        """The backbone's trunk, without the pyramid."""
        return self.network.backbone.trunk_parameters()

    def class_layers(self) -> dict[str, Int64[Tensor, " rows"]]:
        """The last layers of the detector's centre maps, which have a row per class."""
        labels = torch.arange(len(self.categories))
        stacks = range(len(self.network.detector or ()))
        return {f"network.detector.{i}.center.2.{kind}": labels for i in stacks for kind in ("weight", "bias")}
