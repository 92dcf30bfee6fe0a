"""Exported models without torch: `Predictor` needs numpy, Pillow and onnxruntime alone.

The names are those of `maskwright`, with arrays in place of tensors.
"""

from maskwright.onnx.predictions import InstancePrediction, PanopticPrediction
from maskwright.onnx.predictor import ImageFeatures, Predictor

__all__ = ["ImageFeatures", "InstancePrediction", "PanopticPrediction", "Predictor"]
