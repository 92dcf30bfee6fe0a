"""The types that cross module boundaries: targets, predictions, categories and the model protocols.

Boxes are xyxy, float32, in absolute pixels of the frame that the docstring names; pixel `i` covers
`[i, i + 1)`. Masks are bool outside of a model, labels are contiguous from 0.

The names are imported on first use, so that those of `plain` are there without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskwright.structures.encoding import EncodedMasks
    from maskwright.structures.models import (
        BoxPrompted,
        ImageFeatures,
        ImageGeometry,
        ParameterGroup,
        SegmentationModel,
    )
    from maskwright.structures.plain import Category, Task
    from maskwright.structures.predictions import InstancePrediction, PanopticPrediction, SegmentInfo
    from maskwright.structures.targets import (
        PanopticTarget,
        Target,
        check_panoptic_targets,
        check_targets,
        encoded_masks,
        select_rows,
    )

_HOMES = {
    "encoding": ("EncodedMasks",),
    "models": ("BoxPrompted", "ImageFeatures", "ImageGeometry", "ParameterGroup", "SegmentationModel"),
    "plain": ("Category", "Task"),
    "predictions": ("InstancePrediction", "PanopticPrediction", "SegmentInfo"),
    "targets": (
        "PanopticTarget",
        "Target",
        "check_panoptic_targets",
        "check_targets",
        "encoded_masks",
        "select_rows",
    ),
}

__all__ = [
    "BoxPrompted",
    "Category",
    "EncodedMasks",
    "ImageFeatures",
    "ImageGeometry",
    "InstancePrediction",
    "PanopticPrediction",
    "PanopticTarget",
    "ParameterGroup",
    "SegmentInfo",
    "SegmentationModel",
    "Target",
    "Task",
    "check_panoptic_targets",
    "check_targets",
    "encoded_masks",
    "select_rows",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
