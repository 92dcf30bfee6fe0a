"""The types that cross module boundaries: targets, predictions, categories and the model protocols.

Boxes are xyxy, float32, in absolute pixels of the frame that the docstring names; pixel `i` covers
`[i, i + 1)`. Masks are bool outside of a model, labels are contiguous from 0.
"""

from maskwright.structures.encoded_masks import EncodedMasks
from maskwright.structures.models import (
    BoxPrompted,
    ImageFeatures,
    ImageGeometry,
    ParameterGroup,
    SegmentationModel,
    Task,
)
from maskwright.structures.predictions import InstancePrediction, PanopticPrediction, SegmentInfo
from maskwright.structures.targets import (
    Category,
    PanopticTarget,
    Target,
    check_panoptic_targets,
    check_targets,
    encoded_masks,
    select_rows,
)

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
