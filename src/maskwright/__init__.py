"""Masks that nobody has drawn yet: box to mask for any class, partially supervised instances, panoptic maps.

The public names are imported on first use, so that `import maskwright` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskwright.apps.evaluate import evaluate
    from maskwright.data.images import read_image
    from maskwright.errors import UserError
    from maskwright.models.deep_mac import DeepMAC
    from maskwright.models.deep_marc import DeepMARC
    from maskwright.models.hub import from_pretrained, push_to_hub, save_pretrained
    from maskwright.models.max_deeplab import MaXDeepLab
    from maskwright.predictor import Predictor, load
    from maskwright.structures import (
        Category,
        ImageFeatures,
        InstancePrediction,
        PanopticPrediction,
        PanopticTarget,
        Target,
    )
    from maskwright.training.run import train

_HOMES = {
    "Category": "maskwright.structures",
    "DeepMAC": "maskwright.models.deep_mac",
    "DeepMARC": "maskwright.models.deep_marc",
    "ImageFeatures": "maskwright.structures",
    "InstancePrediction": "maskwright.structures",
    "MaXDeepLab": "maskwright.models.max_deeplab",
    "PanopticPrediction": "maskwright.structures",
    "PanopticTarget": "maskwright.structures",
    "Predictor": "maskwright.predictor",
    "Target": "maskwright.structures",
    "UserError": "maskwright.errors",
    "evaluate": "maskwright.apps.evaluate",
    "from_pretrained": "maskwright.models.hub",
    "load": "maskwright.predictor",
    "push_to_hub": "maskwright.models.hub",
    "read_image": "maskwright.data.images",
    "save_pretrained": "maskwright.models.hub",
    "train": "maskwright.training.run",
}

__all__ = [
    "Category",
    "DeepMAC",
    "DeepMARC",
    "ImageFeatures",
    "InstancePrediction",
    "MaXDeepLab",
    "PanopticPrediction",
    "PanopticTarget",
    "Predictor",
    "Target",
    "UserError",
    "evaluate",
    "from_pretrained",
    "load",
    "push_to_hub",
    "read_image",
    "save_pretrained",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("maskwright")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'maskwright' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
