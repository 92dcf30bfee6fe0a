"""An exported model that is written by hand, in no time: tests of commands whose processes start often use it.

It needs no torch, which takes seconds to import, and its masks depend on the picture and on the box, so that none can
be taken for another.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from maskwright.onnx.metadata import KEY, Metadata

_NODES = [
    helper.make_node("RoiAlign", ["image", "boxes", "image_index"], ["crops"], output_height=8, output_width=8),
    helper.make_node("ReduceMean", ["crops"], ["logits"], axes=[1], keepdims=0),
    helper.make_node("Sigmoid", ["logits"], ["mask_probabilities"]),
    helper.make_node("ReduceMean", ["mask_probabilities"], ["mask_scores"], axes=[1, 2], keepdims=0),
]
_INPUTS = [
    helper.make_tensor_value_info("image", TensorProto.FLOAT, ["images", 3, 32, 32]),
    helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["boxes", 4]),
    helper.make_tensor_value_info("image_index", TensorProto.INT64, ["boxes"]),
]
_OUTPUTS = [
    helper.make_tensor_value_info("mask_probabilities", TensorProto.FLOAT, ["boxes", 8, 8]),
    helper.make_tensor_value_info("mask_scores", TensorProto.FLOAT, ["boxes"]),
]
_TOLD = Metadata(
    id="0",
    graph="single",
    family="deep_mac",
    raw_image=False,
    image_size=32,
    resize="antialias",
    size_rule="round",
    channel_order="rgb",
    mean=[0.5, 0.5, 0.5],
    std=[0.1, 0.1, 0.1],
    padding=[0.5, 0.5, 0.5],
    precision="float32",
    categories=[],
    mask_classes=[],
    box_frame="pixel",
)


def save_exported(file: Path) -> None:
    """Write the model: a mask is where the picture is light inside the box."""
    graph = helper.make_graph(_NODES, "light", _INPUTS, _OUTPUTS)
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 16)])
    helper.set_model_props(model, {KEY: _TOLD.to_json()})
    onnx.checker.check_model(model)
    onnx.save(model, file)
