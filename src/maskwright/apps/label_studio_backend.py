"""`maskwright label-studio`: a backend that answers Label Studio's boxes with masks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any
from uuid import uuid4

from maskwright.apps.label_studio import BrushTags, model_version
from maskwright.apps.page.encoded_pictures import EncodedPictures
from maskwright.apps.page.extra import require_page_libraries
from maskwright.data.picture_folder import PictureFolder
from maskwright.errors import UserError
from maskwright.models.hub import from_pretrained, model_hash
from maskwright.ops.run_lengths import runs_of_code
from maskwright.predictor import Predictor
from maskwright.prompts import DEFAULT_MODEL
from maskwright.structures import EncodedMasks, InstancePrediction


def serve_label_studio(
    *,
    model: str = DEFAULT_MODEL,
    images: str | Path,
    host: str = "127.0.0.1",
    port: int = 9090,
    device: str = "auto",
    precision: str = "auto",
) -> None:
    """Answer Label Studio until Ctrl-C.

    A box that a person draws with a smart tool becomes a brush stroke. A model with a detector also answers whole
    pictures.

    Args:
        model: a bundled model (see `maskwright models`), a weights folder or a Hub repository.
        images: folder with the pictures of Label Studio's tasks, which are found by the end of their address: the root
            of its local storage, or the folder `media/upload` of its data.
        host: address to listen at; 0.0.0.0 for a Label Studio on another machine or in a container.
        port: to listen at; 0 takes any that is free.
        device: cpu, cuda, or auto for a GPU where there is one.
        precision: float32, bfloat16, or auto for bfloat16 where the processor or GPU computes it fast.

    Raises:
        UserError: there is no such model, device or folder, the model finds whole panoptic maps, the port cannot be
            used, or a library is missing.
    """
    require_page_libraries()
    from maskwright.apps.page.local_server import listen, serve

    with listen(port, host) as listening:
        app = label_studio_app(LabelStudioBackend.load(model, images, device, precision))
        print(f"Label Studio can connect to http://{host}:{listening.getsockname()[1]} (Ctrl-C ends)", flush=True)
        serve(app, listening)


OPTIONS = serve_label_studio


def run(**given: Any) -> int:
    """Answer until Ctrl-C."""
    serve_label_studio(**given)
    return 0


class LabelStudioBackend:
    """A model that answers the requests of Label Studio; several threads may ask it.

    Args:
        predictor: of a model of single instances.
        version: what Label Studio calls the model.
        images: folder of the pictures.

    Raises:
        UserError: the model finds panoptic maps, or there is no such folder.
    """

    def __init__(self, predictor: Predictor, version: str, images: str | Path) -> None:
        if predictor.task != "instance":
            raise UserError(f"{version}: expected a model of single objects, but it finds panoptic maps")
        PictureFolder(images)
        self.version = version
        self._predictor = predictor
        self._images = images
        self._pictures = EncodedPictures(predictor)
        self._lock = Lock()

    @classmethod
    def load(cls, name: str, images: str | Path, device: str, precision: str) -> LabelStudioBackend:
        """The same with a bundled model, a weights folder or a Hub repository.

        Raises:
            UserError: there is no such model, device or precision, or as above.
        """
        model = from_pretrained(name)
        version = model_version(name, model_hash(model))
        return cls(Predictor(model, device, precision, in_place=True), version, images)

    def predict(self, request: Any) -> dict[str, Any]:
        """The answer to `/predict`, whose content is `request`: of each task a prediction.

        It has the masks of the boxes that were drawn. Without boxes, it has all that a model with a detector finds of
        the labels of the configuration, and nothing of another model.

        Raises:
            UserError: the request lacks what is needed, a picture is missing, or a box is none.
        """
        try:
            tags = BrushTags.read(request["label_config"])
            addresses = [str(task["data"][tags.key]) for task in request["tasks"]]
            context = (request.get("params") or {}).get("context") or {}
            regions = [region for region in context.get("result", ()) if region["type"] == "rectanglelabels"]
            boxes = [_DrawnBox.read(region["value"], tags) for region in regions]
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            told = f"{type(error).__name__}: {error}"
            raise UserError(f"expected what Label Studio sends to /predict, but got something else ({told})") from error
        results = [self._prediction(address, boxes, tags) for address in addresses]
        return {"results": results, "model_version": self.version}

    def _prediction(self, address: str, boxes: Sequence[_DrawnBox], tags: BrushTags) -> dict[str, Any]:
        with self._lock:
            if boxes:
                strokes = self._of_boxes(address, boxes, tags)
            else:
                strokes = [] if self._predictor.needs_boxes else self._of_detections(address, tags)
        score = min((stroke["score"] for stroke in strokes), default=0.0)
        return {"result": strokes, "score": score, "model_version": self.version}

    def _of_boxes(self, address: str, boxes: Sequence[_DrawnBox], tags: BrushTags) -> list[dict[str, Any]]:
        features = self._pictures.features(address, lambda: self._path(address))
        height, width = features.geometry[0].original_size
        corners = [box.corners(height, width) for box in boxes]
        names = [category["name"] for category in self._predictor.model.categories]
        labels = [names.index(box.label) if box.label in names else -1 for box in boxes]
        found = self._predictor.masks_from_boxes(features, corners, labels)
        return _strokes(found, [box.label for box in boxes], tags)

    def _of_detections(self, address: str, tags: BrushTags) -> list[dict[str, Any]]:
        found = self._predictor.predict(self._path(address))
        names = [category["name"] for category in found.categories]
        return _strokes(found, [names[label] for label in found.labels.tolist()], tags)

    def _path(self, address: str) -> Path:
        """The picture that an address means; the folder is looked through anew, since people upload more.

        Raises:
            UserError: there is none.
        """
        pictures = PictureFolder(self._images)
        pictures.match([address])
        path = pictures.path(address)
        if not os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises: name too long)
            raise UserError(f"no picture in {self._images} has a path that ends like {address}")
        return path


@dataclass(frozen=True)
class _DrawnBox:
    """A box that a person drew: xyxy in hundredths of the picture, and its label."""

    box: tuple[float, float, float, float]
    label: str

    @classmethod
    def read(cls, value: dict[str, Any], tags: BrushTags) -> _DrawnBox:
        """The box of a region of `RectangleLabels`.

        Raises:
            UserError: it is turned, or strokes cannot have its label.
        """
        x, y, width, height = (float(value[key]) for key in ("x", "y", "width", "height"))
        (label,) = value["rectanglelabels"]
        if value.get("rotation"):
            raise UserError("the box is turned; expected an upright one")
        if label not in tags.labels:
            raise UserError(f"<BrushLabels> {tags.brush!r} lacks the label {label!r}, which the box has")
        return cls((x, y, x + width, y + height), label)

    def corners(self, height: int, width: int) -> list[float]:
        """The box in pixels of a picture."""
        return [value * size / 100 for value, size in zip(self.box, (width, height) * 2, strict=True)]


def _strokes(found: InstancePrediction, names: Sequence[str], tags: BrushTags) -> list[dict[str, Any]]:
    """The masks with pixels of the labels that the configuration has."""
    strokes = []
    for entry, name in zip(found.to_coco(0), names, strict=True):
        mask = EncodedMasks([runs_of_code(entry["segmentation"])], found.image_size)
        if name in tags.labels and mask.areas()[0]:
            strokes.append(tags.stroke(mask, name, entry["score"], uuid4().hex[:10]))
    return strokes


def label_studio_app(backend: LabelStudioBackend) -> Any:
    """The routes that Label Studio asks, as a Starlette application."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "UP", "model_class": "maskwright"})

    async def setup(_: Request) -> Response:
        return JSONResponse({"model_version": backend.version})

    async def predict(request: Request) -> Response:
        try:
            content = await request.json()
        except (ValueError, RecursionError) as error:
            raise UserError(f"expected JSON: {error}") from error
        return JSONResponse(await run_in_threadpool(backend.predict, content))

    async def refused(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, 400)

    routes = [
        Route("/", health),
        Route("/health", health),
        Route("/setup", setup, methods=["POST"]),
        Route("/predict", predict, methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers={UserError: refused})
