"""What Deep-MARC adds to torchvision's Faster R-CNN: box crops of a pyramid, samples of training, dtypes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torchvision.models.detection import roi_heads
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import roi_align

from maskwright.models.family import image_indices
from maskwright.nn.inference import without_autocast
from maskwright.ops.crop import readable_regions

Sample = tuple[Tensor, Tensor]
"""Boxes [P, 4] of one image that were sampled on its objects, and the row [P] of the targets that each lies on."""

_CANONICAL_SIZE, _CANONICAL_LEVEL = 224, 4


def crop_levels(
    maps: Sequence[Float[Tensor, "b c _ _"]],
    boxes: Float[Tensor, "n 4"],
    image_index: Int64[Tensor, " n"],
    output_size: int,
    finest_level: int,
) -> Float[Tensor, "n c {output_size} {output_size}"]:
    """RoIAlign of each box on the pyramid's level that fits its size: 224 pixels belong to level 4, 112 to level 3.

    Args:
        maps: of the levels `finest_level`, `finest_level + 1`, ...; level l has the stride `2 ** l`.
        boxes: xyxy, pixels of the network input. N may be 0.
        image_index: the image of the batch to which each box belongs.
        output_size: side of the crops.
        finest_level: the level of `maps[0]`.

    One sample per cell of a crop, at its centre. Pixel y of the input lies at `y / stride` of a map, where the centres
    of its cells' receptive fields are; up to one cell beyond the border a map has the border's values.

    Source: arXiv 1612.03144, equation 1; official/vision/ops/spatial_transform_ops.py, `multilevel_crop_and_resize`.
    Departure: 0 further than a cell beyond the border, instead of an extrapolation.
    """
    size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
    level = torch.floor(_CANONICAL_LEVEL + torch.log2(size / _CANONICAL_SIZE) + 1e-6)
    position = (level - finest_level).clamp(0, len(maps) - 1)  # of a box without extent: minus infinity, then 0
    crops = maps[0].new_zeros(boxes.shape[0], maps[0].shape[1], output_size, output_size)
    for index, level_map in enumerate(maps):
        rows = (position == index).nonzero().flatten()
        crops[rows] = _crop(level_map, boxes[rows], image_index[rows], output_size, 2 ** (finest_level + index))
    return crops


def _crop(level_map: Tensor, boxes: Tensor, image_index: Tensor, output_size: int, stride: int) -> Tensor:
    source = level_map.float() if level_map.dtype in (torch.float16, torch.bfloat16) else level_map
    # RoIAlign's aligned form takes half a cell off; unlike the other it does not enlarge boxes to one cell.
    regions = torch.cat([image_index[:, None].to(source.dtype), boxes.to(source.dtype) / stride + 0.5], dim=1)
    return roi_align(source, readable_regions(regions), output_size, sampling_ratio=1, aligned=True).to(level_map.dtype)


class LevelCrop(nn.Module):
    """`crop_levels` in the form in which torchvision's `RoIHeads` calls its `box_roi_pool`."""

    def __init__(self, output_size: int, finest_level: int) -> None:
        super().__init__()
        self.output_size = output_size
        self.finest_level = finest_level

    def forward(self, maps: Sequence[Tensor], boxes: list[Tensor], image_sizes: Any = None) -> Tensor:  # noqa: ARG002
        """Crops [N, C, S, S] of all boxes [n, 4] of all images, in the order of the images."""
        return crop_levels(maps, torch.cat(boxes), image_indices(boxes), self.output_size, self.finest_level)


class ProposalHead(RPNHead):
    """torchvision's, with float32 results under autocast.

    torchvision computes the boxes in the results' dtype, and in bfloat16 a coordinate of 1000 pixels is off by up to
    four.
    """

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """See `RPNHead`."""
        logits, deltas = super().forward(x)
        return [level.float() for level in logits], [level.float() for level in deltas]


class BoxPredictor(FastRCNNPredictor):
    """torchvision's, in float32 under autocast, too (see `ProposalHead`)."""

    full_precision = True

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `FastRCNNPredictor`."""
        with without_autocast(x.device):
            return super().forward(x.to(self.cls_score.weight.dtype))


class RoIHeads(roi_heads.RoIHeads):
    """torchvision's second stage, which in training also returns the boxes it sampled: masks may be learnt on them.

    It relies on one undocumented method of torchvision, `select_training_samples`
    (`tests/contract/test_torchvision.py` holds it in place), and on the loss function beside it.
    """

    def losses(
        self, maps: Sequence[Tensor], proposals: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], list[Sample]]:
        """`box_class` and `box_regression`, and per image the sampled boxes that lie on an object.

        Args:
            maps: of the pyramid, finest first.
            proposals: per image [P, 4], xyxy, pixels of the network input.
            targets: per image `boxes` in the same frame and `labels` from 1, 0 being the background. The boxes
                are candidates of the sampling, too, so that they are among the samples (unless there are too many).
        """
        boxes, rows, labels, deltas = self.select_training_samples(proposals, targets)
        logits, predicted = self.box_predictor(self.box_head(self.box_roi_pool(maps, boxes, None)))
        box_class, box_regression = roi_heads.fastrcnn_loss(logits, predicted, labels, deltas)
        samples = [(b[lab > 0], r[lab > 0]) for b, r, lab in zip(boxes, rows, labels, strict=True)]
        return {"box_class": box_class, "box_regression": box_regression}, samples
