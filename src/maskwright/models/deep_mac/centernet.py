"""CenterNet's detector: objects as points. Its heads, its losses and its decoding, each on its own.

`DeepMAC` composes them; nothing here knows of masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from maskwright.models.deep_mac.config import DeepMACConfig
from maskwright.models.family import Detections
from maskwright.nn.layers import FullPrecisionConv2d, prediction_head
from maskwright.ops.heatmap import (
    center_cells,
    center_heatmap,
    decode_boxes,
    keep_peaks,
    size_and_offset_targets,
    top_k_cells,
)
from maskwright.ops.losses import gathered_l1, penalty_reduced_focal

ImageSizes = Sequence[tuple[int, int]] | Float[Tensor, "b 2"]
"""Per image (height, width) of what is image in the input."""

CENTER_BIAS = -2.19
"""The first bias of the centre maps: a probability of 0.1 everywhere, so that the focal loss starts small."""


class CenterNetMaps(NamedTuple):
    """The outputs of the heads for a batch, one value per cell of the map.

    center: logits [B, C, Hf, Wf] of an object of each class being centred in the cell.
    size: [B, 2, Hf, Wf], height and width of that object, in cells.
    offset: [B, 2, Hf, Wf], y and x from the cell's index to the object's centre.
    """

    center: Tensor
    size: Tensor
    offset: Tensor


class CenterNetHeads(nn.Module):
    """The three heads on one feature map: tensors in, tensors out.

    Their outputs are float32 under autocast, too: bfloat16 rounds the position of an edge to 1/256 of the box.

    Args:
        in_channels: of the feature map.
        num_classes: C, planes of the centre map.
        hidden: channels of the hidden layer of each head.

    Source: `object_center`, `box/scale` and `box/offset` of the originals' center_net_meta_arch.py.
    """

    def __init__(self, in_channels: int, num_classes: int, hidden: int) -> None:
        super().__init__()
        self.center = prediction_head(in_channels, hidden, num_classes, output=FullPrecisionConv2d)
        nn.init.constant_(self.center.get_parameter("2.bias"), CENTER_BIAS)
        self.size = prediction_head(in_channels, hidden, 2, output=FullPrecisionConv2d)
        self.offset = prediction_head(in_channels, hidden, 2, output=FullPrecisionConv2d)

    def forward(self, features: Float[Tensor, "b d h w"]) -> CenterNetMaps:
        """The maps of one stack."""
        return CenterNetMaps(self.center(features), self.size(features), self.offset(features))


@dataclass(frozen=True)
class CenterNetLoss:
    """The weighted losses of the maps of all stacks against boxes.

    Source: CenterNetMetaArch.loss of the originals; arXiv 1904.07850, section 3.
    """

    config: DeepMACConfig

    def __call__(
        self,
        stacks: Sequence[CenterNetMaps],
        boxes: Sequence[Float[Tensor, "_ 4"]],
        labels: Sequence[Int64[Tensor, " _"]],
        image_sizes: Sequence[tuple[int, int]],
        stride: int,
    ) -> dict[str, Tensor]:
        """`object_center`, `box_size` and `box_offset`, averaged over the stacks and divided by the number of boxes.

        Args:
            stacks: the maps of each stack of the backbone.
            boxes: per image, xyxy, pixels of the network input; all of them are to be found.
            labels: per image, the classes of the boxes.
            image_sizes: per image (height, width) of what is image in the input; cells of padding count for nothing.
            stride: pixels per cell.

        The number of boxes is that of this batch in this process, at least 1. The originals' is that of one replica:
        with one image per replica (their 1024 models) images have equal weight there, and boxes here.
        """
        device, (_, num_classes, height, width) = stacks[0].center.device, stacks[0].center.shape
        map_size = (height, width)
        in_cells = [(b / stride).to(device) for b in boxes]
        overlap = self.config.min_box_overlap
        heatmaps = [
            center_heatmap(b, label.to(device), num_classes, map_size, overlap)
            for b, label in zip(in_cells, labels, strict=True)
        ]
        heatmap, valid = torch.stack(heatmaps), valid_cells(image_sizes, map_size, stride).to(device)
        all_boxes = torch.cat(in_cells)
        image_index = torch.repeat_interleave(torch.tensor([len(b) for b in boxes])).to(device)
        cells = center_cells(all_boxes, map_size)
        sizes, offsets = size_and_offset_targets(all_boxes, cells)
        parts = [
            (
                penalty_reduced_focal(maps.center.float(), heatmap, valid),
                gathered_l1(maps.size.float(), sizes, image_index, cells),
                gathered_l1(maps.offset.float(), offsets, image_index, cells),
            )
            for maps in stacks
        ]
        center, size, offset = (torch.stack(part).mean() / max(1, len(all_boxes)) for part in zip(*parts, strict=True))
        return {
            "object_center": self.config.object_center_weight * center,
            "box_size": self.config.box_size_weight * size,
            "box_offset": self.config.box_offset_weight * offset,
        }


def valid_cells(
    image_sizes: ImageSizes, map_size: tuple[int, int], stride: int
) -> Bool[Tensor, "b {map_size[0]} {map_size[1]}"]:
    """The cells that show at least some of the image, which lies at the top left of its input.

    Source: get_valid_anchor_weights_in_flattened_image of the originals.
    """
    heights, widths = torch.as_tensor(image_sizes).reshape(-1, 2, 1, 1).unbind(dim=1)
    rows = torch.arange(map_size[0])[:, None] * stride < heights
    columns = torch.arange(map_size[1]) * stride < widths
    return rows & columns


def decode(maps: CenterNetMaps, image_sizes: ImageSizes, stride: int, max_detections: int) -> Detections:
    """Boxes from maps: the peaks of the centre maps, the highest of all classes, each with its size and offset.

    Args:
        maps: of the last stack.
        image_sizes: per image (height, width) of what is image in the input.
        stride: pixels per cell.
        max_detections: K, at most; fewer where the maps have fewer values.

    Returns:
        `boxes` [B, K, 4], clipped to the network input, of which some may have no extent; `labels` [B, K]; `scores`
        [B, K], where 0 is no peak.

    Cells whose *index* exceeds the image's size in *pixels* are no peaks. This is the originals' comparison, kept
    for the same results: it leaves out padding only of images smaller than the map.

    Source: CenterNetMetaArch.postprocess of the originals; there is no suppression of overlapping boxes.
    """
    size = (maps.center.shape[2], maps.center.shape[3])
    inside = valid_cells(image_sizes, size, stride=1).to(maps.center.device)
    probabilities = maps.center.float().sigmoid().nan_to_num(0) * inside[:, None]
    scores, labels, cells = top_k_cells(keep_peaks(probabilities), max_detections)
    return Detections(decode_boxes(cells, maps.size.float(), maps.offset.float()) * stride, labels, scores)
