"""A graph to an ONNX file: torch's exporter, the storage of the weights, the metadata."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from maskwright.errors import UserError
from maskwright.export.graphs import Graph, GraphOptions, create_graphs, example_inputs, free_axes
from maskwright.files import write_whole
from maskwright.models.config import BoxPromptedConfig
from maskwright.models.family import BoxPromptedFamily, Family
from maskwright.models.hub import model_hash
from maskwright.nn.inference import fold_batch_norms
from maskwright.onnx.metadata import KEY, Metadata, encoder_path

OPSET = 20
"""The version of the standard operators that the files are made of."""

WEIGHT_PRECISIONS = ("float32", "float16", "int8")

MERGING = (
    "merging",
    "class_threshold",
    "stuff_class_threshold",
    "pixel_threshold",
    "thing_area_limit",
    "stuff_area_limit",
    "overlap_threshold",
    "class_exponent",
    "mask_exponent",
)
"""The values of a MaX-DeepLab model that its merging reads."""

_LARGEST_FILE = 2**31
_SMALLEST_REDUCED = 1024  # elements: smaller tensors stay float32


@dataclass(frozen=True)
class ExportOptions:
    """What a model is exported as.

    graphs: which graphs.
    precision: in which the weights are stored, one of `WEIGHT_PRECISIONS`. They become float32 again when the file is
        loaded, so that the file is smaller and nothing else changes.

    Raises:
        ValueError: the precision is unknown.
    """

    graphs: GraphOptions = field(default_factory=GraphOptions)
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.precision not in WEIGHT_PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(WEIGHT_PRECISIONS)}, but got {self.precision!r}")


def export_model(model: Family[Any], options: ExportOptions) -> dict[str, Any]:
    """The `onnx.ModelProto` of each graph of a model, by the graph's name; its weights, too, are folded in place.

    Raises:
        UserError: the libraries of the extra `export` are not installed, or the model has no such graphs.
    """
    identity = hashlib.sha256(f"{model_hash(model)} {options}".encode()).hexdigest()[:16]
    folded = fold_batch_norms(model, in_place=True)
    return {
        graph.name: export_graph(graph, describe(model, graph.name, identity, options))
        for graph in create_graphs(folded, options.graphs)
    }


def describe(model: Family[Any], graph: str, identity: str, options: ExportOptions) -> Metadata:
    """The metadata of a graph; `identity` is its `id`."""
    batch = model.image_batch
    box_frame = calibration = None
    if isinstance(model, BoxPromptedFamily):
        box_frame, calibration = model.box_frame, model.mask_calibration
    return Metadata(
        id=identity,
        graph=graph,
        family=model.family,
        raw_image=options.graphs.raw_image,
        image_size=model.image_size,
        resize=batch.resize,
        size_rule=batch.size_rule,
        channel_order=batch.channel_order,
        mean=batch.mean.flatten().tolist(),
        std=batch.std.flatten().tolist(),
        padding=batch.padding.flatten().tolist(),
        precision=options.precision,
        categories=[dict(category) for category in model.categories],
        mask_classes=model.mask_classes,
        box_frame=box_frame,
        mask_calibration=calibration.stored_values() if calibration else None,
        second_look=second_look(model, options.graphs),
        merging={} if box_frame else {name: getattr(model.config, name) for name in MERGING},
    )


def second_look(model: Family[Any], options: GraphOptions) -> dict[str, Any] | None:
    """`Metadata.second_look` of a model in its exported form."""
    config = model.config
    if not isinstance(config, BoxPromptedConfig) or not config.second_look_below or not options.takes_crops:
        return None
    return {
        "below": config.second_look_below,
        "context": config.second_look_context,
        "size": config.second_look_size,
    }


def export_graph(graph: Graph, metadata: Metadata) -> Any:
    """The `onnx.ModelProto` of a graph.

    Raises:
        UserError: the libraries of the extra `export` are not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install 'maskwright[export]'") from error
    example = example_inputs(graph)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own
        program = torch.onnx.export(
            graph.eval(),
            tuple(example.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=graph.inputs,
            output_names=graph.outputs,
            dynamic_shapes={"tensors": tuple(free_axes(name, metadata) for name in example)},
            custom_translation_table={torch.ops.aten.sort.stable: _sort_stable},
            verbose=False,
        )
    model = cast("torch.onnx.ONNXProgram", program).model_proto
    reduce_weights(model, metadata.precision)
    onnx.helper.set_model_props(model, {KEY: metadata.to_json()})
    return model


def _sort_stable(values: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:  # noqa: ARG001
    """ONNX's TopK takes equal values in their order, which torch's exporter does not rely on."""
    from onnxscript import opset20

    op: Any = opset20
    length = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
    return op.TopK(values, length, axis=dim, largest=int(descending), sorted=1)


def reduce_weights(model: Any, precision: str) -> None:
    """Store the large float32 tensors of an `onnx.ModelProto` in another precision, each with its way back.

    `int8`: in steps of 1/127 of the largest magnitude in each row of the first dimension.
    """
    from onnx import TensorProto, helper, numpy_helper

    if precision == "float32":
        return
    graph, restored = model.graph, []
    large = [
        t for t in graph.initializer if t.data_type == TensorProto.FLOAT and math.prod(t.dims) >= _SMALLEST_REDUCED
    ]
    for tensor in large:
        name, values = tensor.name, numpy_helper.to_array(tensor)
        stored, whole = f"{name}.{precision}", f"{name}.whole"
        if precision == "float16":
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), stored))
            restored.append(helper.make_node("Cast", [stored], [name], to=TensorProto.FLOAT))
            continue
        steps = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True).clip(1e-12) / 127
        tensor.CopyFrom(numpy_helper.from_array(np.round(values / steps).astype(np.int8), stored))
        graph.initializer.append(numpy_helper.from_array(steps.astype(np.float32), f"{name}.step"))
        restored.append(helper.make_node("Cast", [stored], [whole], to=TensorProto.FLOAT))
        restored.append(helper.make_node("Mul", [whole, f"{name}.step"], [name]))
    nodes = [*restored, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def save_models(models: Mapping[str, Any], path: Path) -> list[Path]:
    """Write models at `path`, the encoder of a pair beside it (`FILE.encoder.onnx`), each whole or not at all.

    Raises:
        UserError: a file cannot be written, or would be larger than 2 GB.
    """
    import onnx

    paths = {name: encoder_path(path) if name == "encoder" else path for name in models}
    for name, model in models.items():
        if model.ByteSize() >= _LARGEST_FILE:
            raise UserError(f"{paths[name]} would have more than 2 GB, which no ONNX file can; try --precision float16")
        write_whole(paths[name], partial(onnx.save, model))
    return list(paths.values())
