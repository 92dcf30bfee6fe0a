"""Box crops of a pyramid, against the original's."""

from __future__ import annotations

import numpy as np
import torch
from cases_deep_mac_networks import INFERENCE
from cases_deep_mac_ops import assert_near, channels_first
from parity_data import ParityData
from torch import Tensor

from maskwright.models.deep_marc.roi_heads import crop_levels


def flat_boxes(boxes: np.ndarray) -> tuple[Tensor, Tensor]:
    """[B, N, 4] yxyx -> [B * N, 4] xyxy, and the image of each."""
    corners = torch.from_numpy(boxes[..., [1, 0, 3, 2]]).reshape(-1, 4)
    return corners, torch.arange(len(boxes)).repeat_interleave(boxes.shape[1])


def check_crops(data: ParityData, file: str) -> None:
    """Crops of the boxes whose samples all lie on the image; further out ours is 0, and the original's extrapolates."""
    config, arrays = data.files[file]["config"], data.arrays(file)
    levels = range(config["min_level"], config["max_level"] + 1)
    maps = [channels_first(arrays[f"feat_{level}"]) for level in levels]
    boxes, image_index = flat_boxes(arrays["boxes"])
    height, width = config["image_size"]
    # The last cell of the coarsest map lies a whole stride before the image's end: beyond it, the border goes on.
    inside = (
        (boxes >= 0).all(1)
        & (boxes[:, 2:] <= torch.tensor([width, height])).all(1)
        & (boxes[:, 2:] >= boxes[:, :2]).all(1)
    )
    assert inside.sum() >= len(boxes) // 2
    for name, size in (("crop7_off0.5", 7), ("crop14_off0.5", 14)):
        crops = crop_levels(maps, boxes, image_index, size, levels[0])
        expected = channels_first(arrays[name].reshape(-1, *arrays[name].shape[2:]))
        assert_near(crops[inside], expected[inside], name, INFERENCE)
