"""Image -> instances, for people: paths, PIL images, arrays or tensors in; checked boxes; any device."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import replace
from itertools import zip_longest
from numbers import Integral
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor, nn

from maskwright.data.images import read_image
from maskwright.errors import UserError
from maskwright.models.exported import load_exported
from maskwright.models.family import Family
from maskwright.models.hub import EXPORTED, from_pretrained
from maskwright.nn.inference import fold_batch_norms, keep_freed_memory, speed_up_convolutions, store_weights
from maskwright.prompts import (
    DEFAULT_MODEL,
    MAX_DETECTIONS,
    check_score_threshold,
    clip_to_picture,
    read_boxes,
    without_problems,
)
from maskwright.structures import BoxPrompted, Category, ImageFeatures, InstancePrediction, PanopticPrediction, Task

PRECISIONS = ("auto", "float32", "bfloat16")

ImageSource = str | Path | Image.Image | np.ndarray | Tensor
ImageSources = list[Any] | tuple[Any, ...] | Iterator[Any]  # of each an `ImageSource`; generators are iterators
BoxSource = Sequence[Any] | np.ndarray | Tensor  # rows of four numbers; `check_boxes` says which row is none
LabelSource = Sequence[Any] | np.ndarray | Tensor  # whole numbers; `check_labels` says which is none


def load(
    name_or_path: str | Path = DEFAULT_MODEL,
    device: str | None = None,
    precision: str = "float32",
    compile: bool = False,
) -> Predictor:
    """A predictor of a bundled model, a weights folder, a Hub repository (`owner/name`), or an exported file (`.onnx`).

    `device`, `precision` and `compile`: see `Predictor`. An exported file computes in float32.

    Raises:
        UserError: there is no such model, its files are damaged, the device is not there, or the precision is unknown.
    """
    if Path(name_or_path).suffix == EXPORTED:
        if precision not in ("auto", "float32") or compile:
            raise UserError(f"{name_or_path} is an exported model: it computes in float32, and cannot be compiled")
        return Predictor(load_exported(name_or_path, device), "cpu", in_place=True)
    return Predictor(from_pretrained(name_or_path), device, precision, compile, in_place=True)


class Predictor:
    """A model as inference runs it, on a device, and the way from pictures and boxes to predictions.

    `model` is a copy with folded batch norms (`nn.inference.fold_batch_norms`), in channels-last order: it can be
    neither trained nor saved. Who calls it directly does so within `inference()`.

    Args:
        model: of any family; it stays as it is, unless `in_place` is true.
        device: `cpu`, `cuda`, `cuda:1`, ...; None or `auto` takes a GPU where there is one.
        precision: of convolutions and matrix products: `float32`, `bfloat16`, or `auto` for bfloat16 where the device
            computes it fast (`resolve_precision`). With bfloat16 (by autocast) the last layers of detectors, and what
            predictions hold, are float32 still. The attribute `precision` is the resolved one.
        compile: compile the network (`torch.compile`) in the first predictions, which takes minutes and, on a CPU, a
            C++ compiler; the results are the same, rounding aside.
        in_place: rebuild `model` itself, which spares the memory of a copy; it can then serve nothing else.

    Raises:
        UserError: the device is unknown or not there, the precision is unknown, or the model cannot be compiled.
    """

    def __init__(
        self,
        model: nn.Module,
        device: str | None = None,
        precision: str = "float32",
        compile: bool = False,
        *,
        in_place: bool = False,
    ) -> None:
        self.device = choose_device(device)
        self.precision = resolve_precision(precision, self.device)
        folded = fold_batch_norms(model, in_place=in_place)
        if self.device.type == "cpu":
            speed_up_convolutions(folded)
            keep_freed_memory()
        folded = folded.to(self.device).to(memory_format=torch.channels_last)
        self.model = cast(Family[Any], folded)  # or any other `SegmentationModel`
        if self.precision == "bfloat16":
            store_weights(self.model, torch.bfloat16)
        if compile:
            compile_network(self.model)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """The context in which `model` runs: no gradients, and arithmetic of the predictor's precision."""
        reduced = self.precision == "bfloat16"
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=reduced):
            yield

    @property
    def task(self) -> Task:
        """What the model finds: single instances, or all segments of an image."""
        return self.model.task

    @property
    def categories(self) -> Sequence[Category]:
        """The model's label space, in label order."""
        return self.model.categories

    @property
    def takes_boxes(self) -> bool:
        """Whether the model answers boxes."""
        return isinstance(self.model, BoxPrompted)

    @property
    def needs_boxes(self) -> bool:
        """Whether the model has no detector, so that `predict` must be given boxes."""
        return self.model.needs_boxes

    @overload
    def predict(
        self,
        image: ImageSource,
        boxes: BoxSource,
        labels: LabelSource | None = None,
        score_threshold: float = 0.3,
        max_detections: int = MAX_DETECTIONS,
    ) -> InstancePrediction: ...

    @overload
    def predict(
        self, image: ImageSource, *, score_threshold: float = 0.3, max_detections: int = MAX_DETECTIONS
    ) -> Any: ...

    @overload
    def predict(
        self,
        image: ImageSources,
        boxes: Iterable[BoxSource] | None = None,
        labels: Iterable[LabelSource] | None = None,
        score_threshold: float = 0.3,
        max_detections: int = MAX_DETECTIONS,
    ) -> list[Any]: ...

    def predict(
        self,
        image: ImageSource | ImageSources,
        boxes: Any = None,
        labels: Any = None,
        score_threshold: float = 0.3,
        max_detections: int = MAX_DETECTIONS,
    ) -> InstancePrediction | PanopticPrediction | list[Any]:
        """What is in an image: an instance per given box, in their order, or all that the model finds by itself.

        Args:
            image: anything `read_image` takes; a file's EXIF orientation is applied first. Or several images, in a
                list, a tuple or a generator, which are read one after the other.
            boxes: [N, 4] xyxy, pixels of the (upright) image; N may be 0. What exceeds the image is cut off. Of several
                images the boxes of each, likewise `labels`.
            labels: with boxes, their classes as positions in `model.categories`, or -1 for none; without them labels
                are -1. A model with one mask per class gives that of the label.
            score_threshold: without boxes, the smallest score of a detection or segment, in 0..1. Given boxes are all
                answered.
            max_detections: without boxes, the number of detections at most, those of the highest scores.

        Returns:
            A prediction on the CPU, in pixels of the (upright) image, which it holds: of a panoptic model a
            `PanopticPrediction`, else an `InstancePrediction`. Of several images a list of them.

        Raises:
            UserError: an unreadable image; a box that is no box or lies outside of the image; labels that do not fit
                the boxes or the categories; no boxes for a model without a detector; a wrong score threshold; not as
                many boxes or labels as images.
        """
        check_score_threshold(score_threshold)
        if not isinstance(image, list | tuple | Iterator):
            return self._predict_one(image, boxes, labels, score_threshold, max_detections)
        predictions = []
        for position, (each, its_boxes, its_labels) in enumerate(_rows_of_images(image, boxes, labels)):
            try:
                predictions.append(self._predict_one(each, its_boxes, its_labels, score_threshold, max_detections))
            except UserError as error:
                raise UserError(f"image {position}: {error}") from error
        return predictions

    def _predict_one(
        self,
        image: ImageSource,
        boxes: BoxSource | None,
        labels: LabelSource | None,
        score_threshold: float,
        max_detections: int,
    ) -> InstancePrediction | PanopticPrediction:
        if boxes is not None:
            # What is wrong is told before the network's work, not after it.
            pixels = read_image(image)
            checked = boxes_inside(check_boxes(boxes), _size(pixels))
            classes = self._labels(labels, len(checked))
            return self.masks_from_boxes(self.encode(pixels), checked, classes)
        if self.needs_boxes:
            raise UserError("this model has no detector: it needs boxes [[x1, y1, x2, y2], ...] beside the image")
        pixels = read_image(image)
        with self.inference():
            (found,) = self.model(
                [pixels.to(self.device)], score_threshold=score_threshold, max_detections=max_detections
            )
        return replace(found.cpu(), image=pixels.cpu())

    def encode(self, image: ImageSource) -> ImageFeatures:
        """The features of one image, to be prompted with boxes any number of times.

        Raises:
            UserError: an unreadable image, or a model that takes no boxes.
        """
        pixels = read_image(image)
        with self.inference():
            return self._box_prompted().encode([pixels.to(self.device)])

    def masks_from_boxes(
        self, features: ImageFeatures, boxes: BoxSource, labels: LabelSource | None = None
    ) -> InstancePrediction:
        """Masks of boxes on an image that `encode` has seen; arguments, result and errors as in `predict`."""
        (geometry,) = features.geometry
        checked = boxes_inside(check_boxes(boxes), geometry.original_size)
        classes = self._labels(labels, len(checked))
        with self.inference():
            (masks,) = self._box_prompted().masks_from_boxes(features, [checked.to(self.device)], [classes])
        return replace(masks.cpu(), labels=classes, image=features.images[0].cpu())

    def _labels(self, labels: LabelSource | None, count: int) -> Int64[Tensor, " n"]:
        if labels is None:
            return torch.full((count,), -1)
        return check_labels(labels, count, len(self.model.categories))

    def _box_prompted(self) -> BoxPrompted:
        if not isinstance(self.model, BoxPrompted):
            raise UserError(f"{type(self.model).__name__} takes no boxes: it finds the instances itself")
        return self.model


def compile_network(model: nn.Module) -> None:
    """Let `torch.compile` compile the model's `compilable` methods of its network when they are first called.

    Raises:
        UserError: the model has no network apart from its pre- and post-processing, or nothing can be compiled here.
    """
    if not isinstance(model, Family):
        raise UserError(f"{type(model).__name__} has no network that could be compiled")
    network = model.get_submodule("network")
    _try_to_compile(next(network.parameters()).device)
    for name in model.compilable:
        setattr(network, name, torch.compile(getattr(network, name)))


def _try_to_compile(device: torch.device) -> None:
    """Compile the least function there is: what is missing is told now, not in the first prediction."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(1, device=device))
    except RuntimeError as error:
        raise UserError(
            f"nothing can be compiled here ({str(error).splitlines()[0]}): torch.compile needs a working C++ compiler "
            "(g++, or the one that the environment variable CXX names), on a GPU Triton, too; install it, or leave out "
            "--compile"
        ) from error


def choose_device(device: str | None) -> torch.device:
    """The torch device of a name; None or `auto` is the GPU where there is one, else the CPU.

    Raises:
        UserError: the name is unknown, or the device is not there.
    """
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).cpu()  # the device `meta` has no values to give back
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].partition("Expected one of")[0] or "there is no such kind"
        raise UserError(f"device {device!r} cannot be used here ({reason}); expected cpu, cuda or auto") from error
    return chosen


def resolve_precision(precision: str, device: torch.device) -> str:
    """`float32` or `bfloat16`: what `precision`, one of `PRECISIONS`, means on a device.

    `auto` is bfloat16 on a GPU that has it, and on a processor with AMX or AVX512-BF16 that torch is allowed to use
    (the environment variable ATEN_CPU_CAPABILITY can forbid it). Elsewhere bfloat16 would be slower than float32.

    Raises:
        UserError: the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, but got {precision!r}")
    if precision != "auto":
        return precision
    return "bfloat16" if _has_fast_bfloat16(device) else "float32"


def _has_fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    allowed = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return device.type == "cpu" and allowed and bool(found.get("amx_bf16") or found.get("avx512_bf16"))


def check_boxes(boxes: BoxSource) -> Float[Tensor, "n 4"]:
    """Boxes as float32 [N, 4], xyxy.

    Raises:
        UserError: the position of the first box that is not four finite numbers with x1 < x2 and y1 < y2.
    """
    checked, problems = read_boxes(boxes.detach().float().numpy(force=True) if isinstance(boxes, Tensor) else boxes)
    return torch.from_numpy(without_problems(checked, problems))


def check_labels(labels: LabelSource, count: int, num_classes: int) -> Int64[Tensor, " n"]:
    """Labels of `count` boxes, in 0..`num_classes` - 1 (0 classes: any) or -1.

    Raises:
        UserError: there is not one per box, or the position of the first that is none.
    """
    values = labels.tolist() if isinstance(labels, np.ndarray | Tensor) else list(labels)
    if not isinstance(values, list) or len(values) != count:
        raise UserError(f"expected one label per box ({count}), but got {_short(values)}")
    for index, value in enumerate(values):
        is_whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not is_whole or value not in range(-1, num_classes or sys.maxsize):
            known = f"0..{num_classes - 1}, a position in the model's categories" if num_classes else "0 or more"
            raise UserError(f"label {index}: expected {known}, or -1 for no class, but got {_short(value)}")
    return torch.tensor(values, dtype=torch.int64)


def boxes_inside(boxes: Float[Tensor, "n 4"], image_size: tuple[int, int]) -> Float[Tensor, "n 4"]:
    """The parts of the boxes that lie on an image of `image_size` = (height, width) pixels.

    Raises:
        UserError: the position of the first box that lies wholly outside.
    """
    return torch.from_numpy(without_problems(*clip_to_picture(boxes.numpy(), image_size)))


def _short(value: Any) -> str:
    return repr(value)[:80]


def _size(pixels: Tensor) -> tuple[int, int]:
    return pixels.shape[1], pixels.shape[2]


def _rows_of_images(*columns: Iterable[Any] | None) -> Iterator[list[Any]]:
    """What belongs to each image, out of an iterable of each kind; None stands for None at every image.

    Raises:
        UserError: one has more entries than another.
    """
    given = [column for column in columns if column is not None]
    counts = {len(column) for column in given if isinstance(column, Sized)}
    missing = object()
    for row in zip_longest(*given, fillvalue=missing):
        if len(counts) > 1 or any(value is missing for value in row):
            raise UserError("expected the boxes, and the labels if there are any, of each image, one entry per image")
        values = iter(row)
        yield [None if column is None else next(values) for column in columns]
