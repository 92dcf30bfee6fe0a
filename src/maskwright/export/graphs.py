"""Models as graphs of named tensors: what an exported file takes, what it gives, and what it computes.

Nothing of a model changes for it: each graph is a row of steps, and a step calls the model's own methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from maskwright.export.preparation import Preparation
from maskwright.models.deep_mac import DeepMAC
from maskwright.models.deep_mac.centernet import decode
from maskwright.models.deep_marc import DeepMARC
from maskwright.models.family import BoxPromptedFamily, Family
from maskwright.models.max_deeplab import MaXDeepLab
from maskwright.onnx.metadata import Metadata

Values = dict[str, Tensor]
"""Tensors by their names in the file; shapes and frames: `docs/export.md`."""

_BATCH, _BOXES = 2, 3  # of the examples; 0 and 1 would be taken for constants


@dataclass(frozen=True)
class GraphOptions:
    """How a model becomes graphs.

    Attributes:
        single: a box-prompted model as one graph, image and boxes to masks, instead of two.
        detector: a model's detector with its masks instead of masks of given boxes.
        raw_image: the graphs take one picture as it is instead of a batch of network inputs.
        max_detections: with `detector`, how many instances it gives.
    """

    single: bool = False
    detector: bool = False
    raw_image: bool = False
    max_detections: int = 100

    @property
    def takes_crops(self) -> bool:
        """Whether the graphs take boxes on inputs of other sizes than `image_size`, as second looks need it."""
        return not (self.detector or self.raw_image)


class Graph(nn.Module):
    """A row of steps as a module of positional tensors, which torch exports.

    Args:
        name: as in `onnx.metadata.Metadata.graph`.
        model: whose methods the steps call.
        steps: each takes the tensors that are there and gives more.
        inputs: names of the tensors that are given.
        outputs: names of those that are wanted.
    """

    def __init__(
        self,
        name: str,
        model: Family[Any],
        steps: Sequence[Callable[[Any, Values], Values]],
        inputs: Sequence[str],
        outputs: Sequence[str],
    ) -> None:
        super().__init__()
        self.name, self.steps, self.inputs, self.outputs = name, steps, list(inputs), list(outputs)
        self.model = model

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the inputs, each in the order of its names."""
        values = dict(zip(self.inputs, tensors, strict=True))
        for step in self.steps:
            values |= step(self.model, values)
        return tuple(values[name] for name in self.outputs)


def create_graphs(model: Family[Any], options: GraphOptions) -> list[Graph]:
    """The graphs of a model: two of a box-prompted one (`encoder`, `masks`), one if `options` say so or of others.

    Raises:
        ValueError: the model has no such graphs.
    """
    start, prepared = (["picture"], [prepare]) if options.raw_image else (["image"], [])
    if isinstance(model, MaXDeepLab):
        if options.single or options.detector:
            raise ValueError("it finds all segments by itself: it is one file always, and has no boxes")
        return [Graph("panoptic", model, [*prepared, panoptic_logits], start, ["mask_logits", "class_logits"])]
    if not isinstance(model, BoxPromptedFamily):
        raise ValueError(f"there is no export of the family {model.family}")
    masks = ["mask_probabilities", "mask_scores"]
    if model.config.mask_quality:
        masks.append("mask_quality_logits")
    if options.detector:
        if not isinstance(model, DeepMAC) or model.needs_boxes:
            raise ValueError("only Deep-MAC models with a detector are exported with it")
        sizes = [] if options.raw_image else ["resized_size"]
        steps = [*prepared, lambda net, values: detect(net, values, options.max_detections)]
        return [Graph("detector", model, steps, [*start, *sizes], ["boxes", "labels", "scores", *masks])]
    prompts = ["boxes"] if options.raw_image else ["boxes", "image_index"]
    if isinstance(model, DeepMARC) and not model.config.class_agnostic_masks:
        prompts.append("labels")
    if options.single:
        return [Graph("single", model, [*prepared, encode, masks_of_boxes], [*start, *prompts], masks)]
    maps = map_names(model)
    kept = [*maps, *(["scale"] if options.raw_image else [])]
    given = [name for name in kept if name in start]  # the network's input, if it is a map, is there already
    return [
        Graph("encoder", model, [*prepared, encode], start, [name for name in kept if name not in given]),
        Graph("masks", model, [masks_of_boxes], [*kept, *prompts], masks),
    ]


def map_names(model: BoxPromptedFamily[Any]) -> list[str]:
    """Names of the maps that masks are made of."""
    if isinstance(model, DeepMAC):
        config = model.config
        is_read = (True, config.use_instance_embedding, config.use_image_crop)
        return [name for name, read in zip(model.map_names, is_read, strict=True) if read]
    return [f"level_{name}" for name in model.map_names]


def prepare(model: Family[Any], values: Values) -> Values:
    """`picture` -> `image`, the network's input; `scale`; `resized_size`."""
    image, scale, resized_size = Preparation(model.image_batch)(values["picture"])
    return {"image": image, "scale": scale, "resized_size": resized_size}


def encode(model: BoxPromptedFamily[Any], values: Values) -> Values:
    """`image` -> its maps."""
    return _named_maps(model, model.maps(values["image"]))


def _named_maps(model: BoxPromptedFamily[Any], maps: Sequence[Tensor]) -> Values:
    names = map_names(model)
    if isinstance(model, DeepMAC):
        return {name: value for name, value in zip(model.map_names, maps, strict=True) if name in names}
    return dict(zip(names, maps, strict=True))


def _maps(model: BoxPromptedFamily[Any], values: Values) -> tuple[Tensor, ...]:
    """The maps as the network takes them; of those that it does not read, the size alone."""
    if not isinstance(model, DeepMAC):
        return tuple(values[name] for name in map_names(model))
    pixels, stride = values["pixel_embedding"], model.network.backbone.strides[-1]
    height, width = pixels.shape[-2:]
    unread = {"instance_embedding": pixels, "image": pixels.new_zeros(1, 3, stride * height, stride * width)}
    return tuple((unread | values)[name] for name in model.map_names)


def masks_of_boxes(model: BoxPromptedFamily[Any], values: Values) -> Values:
    """Maps and `boxes` -> `mask_probabilities`, `mask_scores` and, with `mask_quality`, `mask_quality_logits`."""
    boxes = values["boxes"]
    if "scale" in values:
        boxes = boxes * values["scale"].repeat(2)
    index = values.get("image_index")
    return _masks(model, values, boxes, torch.zeros_like(boxes[:, 0], dtype=torch.int64) if index is None else index)


def _masks(model: BoxPromptedFamily[Any], values: Values, boxes: Tensor, image_index: Tensor) -> Values:
    prompt: list[Any] = [_maps(model, values), boxes, image_index]
    if "labels" in values:
        likeliest = cast("DeepMARC", model).network.likeliest_class(*prompt)
        prompt.append(torch.where(values["labels"] < 0, likeliest, values["labels"]))
    qualities = None
    if model.config.mask_quality:
        logits, qualities = model.network.masks_and_qualities(*prompt)
    else:
        logits = model.network.mask_logits(*prompt)
    probabilities = model.on_boxes(logits).sigmoid()
    masks = {"mask_probabilities": probabilities, "mask_scores": model.mask_scores(probabilities, qualities)}
    return masks if qualities is None else {**masks, "mask_quality_logits": qualities}


def detect(model: DeepMAC, values: Values, max_detections: int) -> Values:
    """`image` and `resized_size` -> `boxes`, `labels`, `scores` of the highest peaks, and their masks.

    A score of 0 is no detection.
    """
    network, sizes = model.network, values["resized_size"]
    maps, detector_maps = network.maps_and_detection(values["image"])
    found = decode(detector_maps, sizes, network.backbone.strides[-1], max_detections)
    corners = sizes.flip(1)[:, None].repeat(1, 1, 2)
    boxes = cast("Tensor", found.boxes).clamp(min=0).minimum(corners)
    has_extent = (boxes[..., 2:] > boxes[..., :2]).all(dim=2)
    count = boxes.shape[1]
    index = torch.arange(boxes.shape[0])[:, None].expand(-1, count).flatten()
    masks = _masks(model, _named_maps(model, maps), boxes.flatten(0, 1), index)
    return {
        "boxes": boxes / values["scale"].repeat(2) if "scale" in values else boxes,
        "labels": cast("Tensor", found.labels),
        "scores": cast("Tensor", found.scores) * has_extent,
        **{name: value.unflatten(0, (-1, count)) for name, value in masks.items()},
    }


def panoptic_logits(model: MaXDeepLab, values: Values) -> Values:
    """`image` -> `mask_logits` and `class_logits`."""
    masks, classes = model.network.masks(values["image"])
    return {"mask_logits": masks, "class_logits": classes}


def free_axes(name: str, metadata: Metadata) -> dict[int, str]:
    """The axes of an input that may have any size, with their names."""
    if name in ("boxes", "image_index", "labels"):
        return {0: "boxes"}
    if name == "picture":
        return {0: "height", 1: "width"}
    if metadata.raw_image:
        return {}
    if metadata.second_look is None:
        return {0: "batch"}
    return {0: "batch", 2: f"{name}_height", 3: f"{name}_width"}


def example_inputs(graph: Graph) -> Values:
    """Inputs of a graph to export it with; the numbers in them have no meaning."""
    size = graph.model.image_size
    given = {
        "picture": torch.zeros(size // 2, size, 3, dtype=torch.uint8),
        "image": torch.zeros(_BATCH, 3, size, size),
        "resized_size": torch.full((_BATCH, 2), float(size)),
        "boxes": torch.tensor([[0.0, 0.0, size / 2, size / 2]]).repeat(_BOXES, 1),
        "image_index": torch.arange(_BOXES) % _BATCH,
        "labels": torch.arange(_BOXES) - 1,
        "scale": torch.ones(2),
    }
    if graph.name == "masks":
        with torch.no_grad():
            maps = encode(graph.model, {"image": torch.zeros(1, 3, size, size)})  # pyright: ignore[reportArgumentType]
        batch = _BATCH if "image_index" in graph.inputs else 1
        given |= {name: value.expand(batch, -1, -1, -1).clone() for name, value in maps.items()}
        given["image"] = given["image"][:batch]
    return {name: given[name] for name in graph.inputs}
