"""A MaX-DeepLab that is small enough for tests, and targets for it."""

from __future__ import annotations

from typing import Any

import torch

from maskwright.models.max_deeplab import MaXDeepLab, MaXDeepLabConfig
from maskwright.structures import Category, PanopticTarget

SIZE = 65
CATEGORIES: list[Category] = [
    {"id": 7, "name": "sky", "isthing": False},
    {"id": 3, "name": "cat", "isthing": True},
    {"id": 9, "name": "grass", "isthing": False},
]
SMALL: dict[str, Any] = {
    "image_size": SIZE,
    "num_mask_slots": 6,
    "stem_width": 0.125,
    "backbone_width": 0.03125,
    "transformer_width": 0.125,
    "memory_channels": 16,
    "memory_feature_channels": 16,
    "feed_forward_channels": 16,
    "num_heads": 2,
    "semantic_channels": 8,
    "low_level_channels": [4, 4],
    "pixel_head_channels": 8,
    "pixel_feature_channels": 8,
}

# A softmax does not see an offset of all its logits, nor a norm one of its input behind a 1 x 1 convolution: the
# gradients of these are zero but for rounding.
WITHOUT_GRADIENT = (
    "similarity_norm.bias",
    "similarity_norms.0.bias",
    "similarity_norms.1.bias",
    "similarity_norms.2.bias",
    "project.1.bias",
)


def small_model(**changes: Any) -> MaXDeepLab:
    """The model, with the same weights at every call."""
    torch.manual_seed(0)
    return MaXDeepLab(**{"categories": CATEGORIES, **SMALL, **changes})


def config_of(num_classes: int = 3, **values: Any) -> MaXDeepLabConfig:
    """The published config, with other values and as many categories."""
    categories: list[Category] = [{"id": label + 1, "name": str(label)} for label in range(num_classes)]
    return MaXDeepLabConfig(**{"categories": categories, **values})


def target(segmentation: torch.Tensor, labels: list[int], crowds: list[int] | None = None) -> PanopticTarget:
    """The target of a map whose values are rows of `labels`; `crowds` are the rows of crowds."""
    iscrowd = torch.zeros(len(labels), dtype=torch.bool)
    iscrowd[crowds or []] = True
    return {
        "segmentation": segmentation.int(),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "iscrowd": iscrowd,
        "ids": torch.arange(len(labels)) + 100,
        "image_id": 1,
    }


def scene() -> PanopticTarget:
    """Sky above grass, two cats before it, a crowd of cats on the right, void at the bottom."""
    segmentation = torch.zeros(SIZE, SIZE)
    segmentation[32:] = 1
    segmentation[20:44, 4:20] = 2
    segmentation[24:40, 28:40] = 3
    segmentation[28:36, 50:] = 4
    segmentation[60:] = -1
    return target(segmentation, [0, 2, 1, 1, 1], crowds=[4])
