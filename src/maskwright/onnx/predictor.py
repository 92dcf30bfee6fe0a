"""Pictures and boxes -> predictions of an exported model, with onnxruntime."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from maskwright.errors import UserError
from maskwright.onnx.merging import merge_masks
from maskwright.onnx.metadata import KEY, Metadata, encoder_path
from maskwright.onnx.predictions import InstancePrediction, PanopticPrediction
from maskwright.onnx.preparation import Size, network_input, resized_size
from maskwright.onnx.second_look import mean_of_looks, small_rows, square_around
from maskwright.pictures import read_picture
from maskwright.prompts import MAX_DETECTIONS, boxes_on_picture, check_score_threshold, clip_to_picture

_BOXES_AT_ONCE = 16  # as many as the activations of a mask head fit a processor's cache
_MASKS = ("mask_probabilities", "mask_scores")


@dataclass(frozen=True)
class ImageFeatures:
    """What `Predictor.encode` keeps of one picture.

    maps: what the file of the masks takes beside the boxes, by name.
    picture: uint8 RGB [H, W, 3], for second looks.
    """

    maps: Mapping[str, np.ndarray]
    picture: np.ndarray

    @property
    def image_size(self) -> Size:
        """(height, width) of the picture."""
        return self.picture.shape[0], self.picture.shape[1]


class Predictor:
    """An exported model, and the way from a picture and boxes to a prediction, as `maskwright.Predictor`.

    Args:
        path: a file that `maskwright export` made; of a pair, the encoder lies beside it.
        device: `cpu`, `cuda`, `cuda:1`, ...; None or `auto` takes a GPU where onnxruntime can use one.

    Attributes:
        files: that it was read from.
        metadata: what they say of themselves.
        precision: in which they are computed.
        device: on which, `cpu` or `cuda`.

    Raises:
        UserError: a file is missing, damaged, no export of maskwright or not of one pair; the device cannot be used;
            or onnxruntime is not installed.
    """

    def __init__(self, path: str | Path, device: str | None = None) -> None:
        self.path = Path(path)
        self.precision = "float32"
        self.files = [self.path]
        self._session, self.metadata = _open(self.path, device)
        self.device = "cuda" if "CUDAExecutionProvider" in self._session.get_providers() else "cpu"
        self._inputs = {each.name for each in self._session.get_inputs()}
        self._encoder: Any = None
        if self.metadata.graph == "encoder":
            raise UserError(f"{path} is the encoder of a pair; give the file beside it that makes masks")
        if self.metadata.graph == "masks":
            self.files.append(encoder_path(self.path))
            self._encoder, other = _open(self.files[1], device)
            if (other.graph, other.id) != ("encoder", self.metadata.id):
                raise UserError(f"{self.files[1]} is not the encoder of {path}: export the two together again")

    @property
    def task(self) -> str:
        """What the model finds: `instance` or `panoptic`."""
        return self.metadata.task

    @cached_property
    def digest(self) -> str:
        """A hash of the files, which decide what is predicted."""
        return hashlib.sha256(b"".join(file.read_bytes() for file in self.files)).hexdigest()

    @property
    def takes_boxes(self) -> bool:
        """Whether the file answers boxes."""
        return self.needs_boxes

    @property
    def needs_boxes(self) -> bool:
        """Whether the file takes boxes, so that `predict` must be given some; other files take none."""
        return self.metadata.graph in ("masks", "single")

    @property
    def categories(self) -> list[dict[str, Any]]:
        """The label space, in label order."""
        return self.metadata.categories

    def predict(
        self,
        image: str | Path | Image.Image | np.ndarray,
        boxes: Any = None,
        labels: Any = None,
        score_threshold: float = 0.3,
        max_detections: int = MAX_DETECTIONS,
    ) -> InstancePrediction | PanopticPrediction:
        """What is in an image: an instance per given box, in their order, or all that the model finds by itself.

        Args:
            image: anything that `maskwright.pictures.read_picture` reads; it is taken upright.
            boxes: [N, 4] xyxy, pixels of the (upright) image; N may be 0. What exceeds the image is cut off.
            labels: with boxes, their classes as positions in `categories`, or -1 for none; without them they are -1.
            score_threshold: without boxes, the smallest score of a detection or segment, in 0..1.
            max_detections: without boxes, the number of detections at most, those of the highest scores; the file has
                a limit of its own.

        Raises:
            UserError: an unreadable image; a box that is no box or lies outside of the image; labels that do not fit
                the boxes or the categories; no boxes for a file that takes them, or boxes for one that does not; a
                wrong score threshold.
        """
        check_score_threshold(score_threshold)
        if boxes is not None:
            return self.masks_from_boxes(self.encode(image), boxes, labels)
        if self.needs_boxes:
            raise UserError(f"{self.path} has no detector: it needs boxes [[x1, y1, x2, y2], ...] beside the image")
        picture = read_picture(image)
        found = self._run(self._session, self._network_input(picture))
        size = (picture.shape[0], picture.shape[1])
        if self.task == "panoptic":
            logits = found["mask_logits"][0], found["class_logits"][0]
            return merge_masks(*logits, size, self.metadata, score_threshold)
        return self._detections(found, size, score_threshold, max_detections)

    def _detections(
        self, found: Mapping[str, np.ndarray], size: Size, score_threshold: float, max_detections: int
    ) -> InstancePrediction:
        scores = found["scores"][0]
        kept = np.flatnonzero((scores >= score_threshold) & (scores > 0))[:max_detections]
        boxes = found["boxes"][0][kept]
        if not self.metadata.raw_image:
            boxes = boxes / _scale(size, self.metadata)
        rows = {name: found[name][0][kept] for name in ("labels", "scores", *_MASKS)}
        return self._prediction(clip_to_picture(boxes, size)[0], size, rows)

    def encode(self, image: str | Path | Image.Image | np.ndarray) -> ImageFeatures:
        """The features of one image, to be prompted with boxes any number of times.

        Of a file with image and boxes in one (`--single`) they are the image alone: each prompt does all of the work.

        Raises:
            UserError: an unreadable image, or a file that takes no boxes.
        """
        if not self.needs_boxes:
            raise UserError(f"{self.path} takes no boxes: it finds the instances or segments itself")
        picture = read_picture(image)
        return ImageFeatures(self._maps(self._network_input(picture)), picture)

    def masks_from_boxes(self, features: ImageFeatures, boxes: Any, labels: Any = None) -> InstancePrediction:
        """Masks of boxes on an image that `encode` has seen; arguments, result and errors as in `predict`."""
        size = features.image_size
        checked = boxes_on_picture(boxes, size)
        classes = self._labels(labels, len(checked))
        in_input = checked if self.metadata.raw_image else checked * _scale(size, self.metadata)
        seen = self._look(features.maps, in_input, np.zeros(len(checked), dtype=np.int64), classes)
        for rows in small_rows(in_input, self.metadata, _BOXES_AT_ONCE):
            again = self._look_again(features.picture, checked[rows], classes[rows])
            first = {name: values[rows] for name, values in seen.items()}
            for name, values in mean_of_looks(first, again, self.metadata).items():
                seen[name][rows] = values
        masks = {name: seen[name] for name in _MASKS}
        return self._prediction(
            checked, size, {"labels": classes, "scores": np.ones(len(checked), np.float32), **masks}
        )

    def _look(
        self, maps: Mapping[str, np.ndarray], boxes: np.ndarray, image_index: np.ndarray, labels: np.ndarray
    ) -> dict[str, np.ndarray]:
        """What the file of the masks says of boxes, in the pixels that it takes; `maps` as in `ImageFeatures`."""
        prompt = {"boxes": boxes, "image_index": image_index, "labels": labels}
        at_once = _BOXES_AT_ONCE if self._encoder is not None else max(1, len(boxes))
        parts = []
        for first in range(0, max(1, len(boxes)), at_once):
            chunk = {name: values[first : first + at_once] for name, values in prompt.items()}
            parts.append(self._run(self._session, {**maps, **chunk}))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _look_again(self, picture: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """`_look` at boxes, in the picture's pixels, on enlarged crops around them."""
        values = cast("dict[str, Any]", self.metadata.second_look)
        metadata = replace(self.metadata, image_size=values["size"])
        crops, inside = zip(*(square_around(picture, box, values["context"]) for box in boxes), strict=True)
        in_input = [box * _scale(crop.shape[:2], metadata) for crop, box in zip(crops, inside, strict=True)]
        maps = self._maps({"image": np.concatenate([network_input(crop, metadata) for crop in crops])})
        return self._look(maps, np.stack(in_input), np.arange(len(boxes)), labels)

    def _network_input(self, picture: np.ndarray) -> dict[str, np.ndarray]:
        if self.metadata.raw_image:
            return {"picture": picture}
        size = np.array([resized_size(picture.shape[:2], self.metadata)], dtype=np.float32)
        return {"image": network_input(picture, self.metadata), "resized_size": size}

    def _maps(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`ImageFeatures.maps` of what the encoder or the only file takes."""
        maps = values if self._encoder is None else {**values, **self._run(self._encoder, values)}
        return {name: value for name, value in maps.items() if name in self._inputs}

    def _run(self, session: Any, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of a file by name; `values` may hold more than it takes."""
        inputs = {each.name: values[each.name] for each in session.get_inputs()}
        return dict(zip((each.name for each in session.get_outputs()), session.run(None, inputs), strict=True))

    def _labels(self, labels: Any, count: int) -> np.ndarray:
        if labels is None:
            return np.full(count, -1, dtype=np.int64)
        values, known = np.asarray(labels), len(self.categories)
        if values.shape != (count,):
            raise UserError(f"expected one label per box ({count}), but got {str(labels)[:80]}")
        if count and (values.dtype.kind not in "iu" or values.min() < -1 or (known and values.max() >= known)):
            told = f"0..{known - 1}, positions in the model's categories" if known else "0 or more"
            raise UserError(f"labels: expected {told}, or -1 for no class, but got {str(labels)[:80]}")
        return values.astype(np.int64)

    def _prediction(self, boxes: np.ndarray, size: Size, rows: Mapping[str, np.ndarray]) -> InstancePrediction:
        frame = str(self.metadata.box_frame)
        return InstancePrediction(boxes=boxes, image_size=size, frame=frame, categories=self.categories, **rows)


def _scale(size: tuple[int, ...], metadata: Metadata) -> np.ndarray:
    """Factors of the corners of boxes from pixels of a picture to those of the network's input."""
    height, width = resized_size(size, metadata)
    return np.array([width / size[1], height / size[0]] * 2, dtype=np.float32)


def _open(path: Path, device: str | None) -> tuple[Any, Metadata]:
    """An onnxruntime session of a file, and what the file says of itself."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise UserError("onnxruntime is not installed: pip install 'maskwright[onnx]'") from error
    onnxruntime.disable_telemetry_events()
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a model that `maskwright export` made")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = _threads()
    providers = _providers(device, onnxruntime.get_available_providers())
    try:
        session = onnxruntime.InferenceSession(path, options, providers)
        text = session.get_modelmeta().custom_metadata_map.get(KEY)
    except Exception as error:  # onnxruntime has no class of its own for them
        raise UserError(f"{path}: not a whole ONNX file that onnxruntime can run ({str(error)[:200]})") from error
    if text is None:
        raise UserError(f"{path}: an ONNX file, but not one that `maskwright export` made")
    try:
        return session, Metadata.from_json(text)
    except ValueError as error:
        raise UserError(f"{path}: its metadata cannot be used: {error}") from error


def _providers(device: str | None, available: Sequence[str]) -> list[Any]:
    kind, _, number = (device or "auto").partition(":")
    has_cuda = "CUDAExecutionProvider" in available
    if kind not in ("auto", "cpu", "cuda") or not (number or "0").isdigit():
        raise UserError(f"device {device!r} is unknown; expected cpu, cuda or auto")
    if kind == "cuda" and not has_cuda:
        raise UserError("this onnxruntime cannot use a GPU: install onnxruntime-gpu, or take the device cpu")
    if kind == "cpu" or not has_cuda:
        return ["CPUExecutionProvider"]
    return [("CUDAExecutionProvider", {"device_id": int(number or 0)}), "CPUExecutionProvider"]


def _threads() -> int:
    """As many as the environment variable OMP_NUM_THREADS says, as of torch; 0 for one per core."""
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(text) if text.isdigit() else 0
