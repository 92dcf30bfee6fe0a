"""The demo page and the JSON routes behind it. It keeps pictures and their features only; masks live in the page."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from maskwright import __version__
from maskwright.apps.demo_page.limits import Limits
from maskwright.apps.demo_page.models import public_name
from maskwright.apps.demo_page.pictures import SentPictures, lossless
from maskwright.apps.demo_page.work_queue import WorkQueue
from maskwright.apps.named_models import NamedModel
from maskwright.apps.page.encoded_pictures import EncodedPictures
from maskwright.apps.page.local_server import LOOPBACK, create_page, json_response, read_json, require_type
from maskwright.apps.page.shown_masks import region_json
from maskwright.errors import UserError

_PAGE = Path(__file__).parent / "static" / "demo.html"
_BYTES_PER_BOX = 200  # of a request
_SECONDS_TO_SEND = 120
_MAX_OBJECTS = 100

_Read = TypeVar("_Read")

Found = dict[str, Any]
"""What a page shows of an object: `box` (xyxy), `quality`, `category` (or None) and `mask` (None where it is empty)."""


def create_demo(models: Mapping[str, NamedModel], limits: Limits, host: str = LOOPBACK) -> Starlette:
    """The page and its routes, for requests under `host` or a number."""
    routes = _Routes(models, limits)
    return create_page(
        _PAGE,
        [
            Route("/api/state", routes.state),
            Route("/api/pictures", routes.send, methods=["POST"]),
            Route("/api/pictures/{key}", routes.picture),
            Route("/api/pictures/{key}/original", routes.original),
            Route("/api/boxes", routes.boxes, methods=["POST"]),
            Route("/api/find/{tab}", routes.find, methods=["POST"]),
        ],
        host,
    )


class _Routes:
    """What the page asks; all work on pictures waits in one queue."""

    def __init__(self, models: Mapping[str, NamedModel], limits: Limits) -> None:
        self._models = models
        self._limits = limits
        self._queue = WorkQueue(limits.waiting)
        self._pictures = SentPictures(limits.pixels)
        self._encoded = {tab: EncodedPictures(model.predictor) for tab, model in models.items() if tab == "boxes"}

    async def state(self, _: Request) -> Response:
        """The tabs with their models, and the limits that a page can tell before it asks."""
        models = {
            tab: {"name": public_name(model.name), "weights": model.weights} for tab, model in self._models.items()
        }
        return json_response({"version": __version__, "models": models, "limits": self._limits.told})

    async def send(self, request: Request) -> Response:
        """Take a picture, the body of the request; its key and (height, width)."""
        require_type(request, "application/octet-stream")
        with self._queue.place():
            file = await self._receive(request)
            try:
                return json_response(await self._queue.run(self._add, file))
            except BaseException:
                file.close()
                raise

    async def picture(self, request: Request) -> Response:
        """A picture as the page shows it."""
        return Response(self._pictures[request.path_params["key"]].shown, media_type="image/jpeg")

    async def original(self, request: Request) -> Response:
        """All pixels of a picture, upright."""
        key = request.path_params["key"]
        with self._queue.place():
            content = await self._queue.run(lambda: lossless(self._pictures.pixels(key)))
        return Response(content, media_type="image/png")

    async def boxes(self, request: Request) -> Response:
        """The masks of boxes, in their order."""
        async with self._asked(request, "boxes") as (body, _):
            boxes, threshold = body.get("boxes"), _threshold(body)
            if not isinstance(boxes, list) or len(boxes) > self._limits.boxes:
                raise UserError(f"expected a list of at most {self._limits.boxes} boxes")
            return json_response(await self._queue.run(self._masks, body["picture"], boxes, threshold))

    async def find(self, request: Request) -> Response:
        """What a model finds by itself, of a score of the threshold or more."""
        async with self._asked(request, request.path_params["tab"]) as (body, model):
            return json_response(await self._queue.run(self._find, model, body["picture"], _threshold(body)))

    @asynccontextmanager
    async def _asked(self, request: Request, tab: str) -> AsyncIterator[tuple[dict[str, Any], NamedModel]]:
        """The JSON object of a request about a picture, and the tab's model, while the request has its place."""
        if tab not in self._models:
            raise HTTPException(404, "no model was given for this")
        with self._queue.place():
            body = await _in_time(read_json(request, self._limits.boxes * _BYTES_PER_BOX))
            if not isinstance(body.get("picture"), str):
                raise HTTPException(404, "expected the key of a picture")
            yield body, self._models[tab]

    async def _receive(self, request: Request) -> IO[bytes]:
        """The body of a request as a file without a name."""
        file = tempfile.TemporaryFile(prefix="maskwright")  # noqa: SIM115 (it lives as long as the picture)
        try:
            await _in_time(_copy(request, file, self._limits.upload_bytes))
        except BaseException:
            file.close()
            raise
        return file

    def _add(self, file: IO[bytes]) -> dict[str, Any]:
        key, pixels = self._pictures.add(file)
        for encoded in self._encoded.values():  # now, so that the first mask is there at once
            encoded.masks_from_boxes(key, lambda: pixels, [])
        return {"picture": key, "size": self._pictures[key].size}

    def _masks(self, key: str, boxes: list[Any], threshold: float) -> list[Found]:
        found = self._encoded["boxes"].masks_from_boxes(key, lambda: self._pictures.pixels(key), boxes)
        return _instances(found, threshold)

    def _find(self, model: NamedModel, key: str, threshold: float) -> list[Found]:
        pixels = self._pictures.pixels(key)
        found = model.predictor.predict(pixels, score_threshold=threshold, max_detections=_MAX_OBJECTS)
        return _segments(found) if model.predictor.task == "panoptic" else _instances(found, 0.5)


async def _copy(request: Request, file: IO[bytes], most: int) -> None:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise HTTPException(413, f"this file is larger than {most / 1e6:g} MB")
        file.write(chunk)


async def _in_time(reading: Awaitable[_Read]) -> _Read:
    """What is read of a request, which must come within some time: it has a place that others wait for."""
    try:
        return await asyncio.wait_for(reading, _SECONDS_TO_SEND)
    except TimeoutError as error:
        raise HTTPException(408, f"the request did not come within {_SECONDS_TO_SEND} seconds") from error


def _threshold(body: dict[str, Any]) -> float:
    value = body.get("threshold", 0.5)
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise UserError("expected a threshold in 0..1")
    return float(value)


def _instances(found: Any, threshold: float) -> list[Found]:
    """The instances, their pixels being those of a probability over the threshold."""
    shown = []
    scores = (found.scores * found.mask_scores).tolist()
    for row, label in enumerate(found.labels.tolist()):
        region = found.region(row, threshold)
        known = 0 <= label < len(found.categories)
        shown.append(
            {
                "box": [round(value, 2) for value in found.boxes[row].tolist()],
                "quality": round(scores[row], 5),
                "category": found.categories[label]["name"] if known else None,
                "mask": region_json(region) if region[0].any() else None,
            }
        )
    return shown


def _segments(found: Any) -> list[Found]:
    shown, ids = [], np.asarray(found.segmentation)
    for info in found.segments_info:
        mask = region_json((ids == info["id"], (0, 0)))  # one plane at a time
        x, y = mask["x"], mask["y"]
        shown.append(
            {
                "box": [x, y, x + mask["width"], y + mask["height"]],
                "quality": round(info["score"], 5),
                "category": found.categories[info["label"]]["name"],
                "mask": mask,
            }
        )
    return shown
