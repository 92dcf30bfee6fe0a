"""The page of a review and the JSON routes behind it; this process is the only one that writes decisions."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maskwright.apps.review_page.completed import Box, CompletedMask
from maskwright.apps.review_page.decisions import VERDICTS, Decision, RedrawnMask, Review
from maskwright.apps.review_page.estimate import estimate
from maskwright.apps.review_page.redraw import Redrawer, picture_of
from maskwright.apps.review_page.shown_masks import jpeg, mask_json
from maskwright.errors import UserError
from maskwright.predictor import check_boxes

LOOPBACK = "127.0.0.1"
_STATIC = Path(__file__).parent / "static"
_LARGEST_BODY = 10_000  # bytes of a request: a decision and a box
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def listen(port: int, host: str = LOOPBACK) -> socket.socket:
    """A socket at an address, by default the loopback device's; port 0 takes any that is free.

    Raises:
        UserError: the port is in use, or there is no such port or address.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--port {port} cannot be used at {host} ({reason}); give another one, or 0 for any") from error
    return listening


def serve(app: Starlette, listening: socket.socket) -> None:
    """Answer until Ctrl-C or SIGTERM, which end the command as they do elsewhere."""
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2, lifespan="off")
    uvicorn.Server(config).run(sockets=[listening])


def create_app(review: Review, redrawer: Redrawer) -> Starlette:
    """The page and its routes.

    Requests of other hosts' names are refused, so that no page elsewhere can read or decide anything.
    """
    routes = _Routes(review, redrawer)
    return Starlette(
        routes=[
            Route("/", _page),
            Mount("/static", StaticFiles(directory=_STATIC)),
            Route("/api/state", routes.state),
            Route("/api/next", routes.next),
            Route("/api/masks/{position:int}", routes.mask),
            Route("/api/pictures/{image:int}", routes.picture),
            Route("/api/redraw", routes.redraw, methods=["POST"]),
            Route("/api/decisions", routes.decide, methods=["POST"]),
        ],
        middleware=[
            Middleware(_AddHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=[LOOPBACK, "localhost"], www_redirect=False),
        ],
        exception_handlers={UserError: _refused, HTTPException: _refused},
    )


class _AddHeaders:
    """Adds the headers that keep the page to itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers)


async def _page(_: Request) -> Response:
    return FileResponse(_STATIC / "review.html")


async def _refused(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return _json({"error": error.detail}, error.status_code)
    return _json({"error": str(error)}, 422)


class _Routes:
    """What the page asks. Decisions are noted in the event loop, one after the other; slow work runs beside it."""

    def __init__(self, review: Review, redrawer: Redrawer) -> None:
        self._review = review
        self._completed = review.completed
        self._redrawer = redrawer

    async def state(self, request: Request) -> Response:
        """Classes, counts and the estimate (of one class)."""
        category = self._category(request)
        counts = self._review.counts(category)
        masks = self._review.masks(category)
        bins, rest = estimate((mask.quality, self._review.verdict(mask)) for mask in masks)
        return _json(
            {
                "file": self._completed.path.name,
                "categories": self._completed.categories,
                "masks": len(masks),
                "counts": {verdict: counts[verdict] for verdict in VERDICTS},
                "bins": [{**vars(row), "share": row.share, "interval": row.interval} for row in bins],
                "rest": vars(rest),
            }
        )

    async def next(self, request: Request) -> Response:
        """The worst mask that nobody has looked at, or the one after that at position `after`; or null."""
        after = _number(request.query_params.get("after"))
        mask = self._review.next(self._category(request), after)
        return _json(None if mask is None else await run_in_threadpool(self._shown, mask))

    async def mask(self, request: Request) -> Response:
        """The mask at a position."""
        return _json(await run_in_threadpool(self._shown, self._mask(request.path_params["position"])))

    async def picture(self, request: Request) -> Response:
        """A picture in the frame of its annotations."""
        image = request.path_params["image"]
        if image >= len(self._completed.image_names):
            raise HTTPException(404, "there is no such picture")
        content = await run_in_threadpool(lambda: jpeg(picture_of(self._completed, image)))
        return Response(content, media_type="image/jpeg")

    async def redraw(self, request: Request) -> Response:
        """The mask of a box that was drawn; nothing is decided."""
        body = await _body(request)
        mask = self._mask(body.get("position"))
        redrawn = await run_in_threadpool(self._redrawer.redraw, mask.image, _box(body))
        return _json(await run_in_threadpool(self._redrawn, redrawn, mask.image))

    async def decide(self, request: Request) -> Response:
        """Note a decision: a verdict (with the box, where the mask was redrawn), or null to take the last one back."""
        body = await _body(request)
        mask, verdict = self._mask(body.get("position")), body.get("verdict")
        if verdict is not None and verdict not in VERDICTS:
            raise UserError(f"expected a verdict out of {', '.join(VERDICTS)}, or null")
        redrawn = None
        if verdict == "redrawn":
            redrawn = await run_in_threadpool(self._redrawer.redraw, mask.image, _box(body))
        self._review.decide(mask.position, None if verdict is None else Decision(verdict, redrawn))
        return _json({"position": mask.position, "verdict": verdict})

    def _category(self, request: Request) -> str | None:
        """The class that is asked for by its number in the list of classes, or None."""
        number = _number(request.query_params.get("category"))
        if number is not None and number >= len(self._completed.categories):
            raise HTTPException(404, "there is no such class")
        return None if number is None else self._completed.categories[number]

    def _mask(self, position: Any) -> CompletedMask:
        mask = self._completed.by_position.get(position) if type(position) is int else None
        if mask is None:
            raise HTTPException(404, "there is no completed mask at this position")
        return mask

    def _shown(self, mask: CompletedMask) -> dict[str, Any]:
        decision = self._review.decisions.get(mask.position)
        redrawn = None if decision is None else decision.redrawn
        return {
            "position": mask.position,
            "id": mask.id,
            "image": mask.image,
            "picture": self._completed.image_names[mask.image],
            "size": self._completed.image_sizes[mask.image],
            "category": mask.category,
            "quality": mask.quality,
            "box": mask.box,
            "verdict": self._review.verdict(mask),
            "mask": mask_json(self._completed.encoded(mask.segmentation, mask.image)),
            "redrawn": None if redrawn is None else self._redrawn(redrawn, mask.image),
        }

    def _redrawn(self, mask: RedrawnMask, image: int) -> dict[str, Any]:
        x, y, width, height = mask.prompt_box
        return {
            "box": [x, y, x + width, y + height],
            "quality": mask.quality,
            "mask": mask_json(self._completed.encoded(mask.segmentation, image)),
        }


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object that a request brings; browsers let only our own page send one."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "expected application/json")
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > _LARGEST_BODY:
            raise HTTPException(413, "the request is too long")
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "expected JSON") from error
    if not isinstance(body, dict):
        raise HTTPException(400, "expected a JSON object")
    return body


def _box(body: dict[str, Any]) -> Box:
    x1, y1, x2, y2 = check_boxes([body.get("box")])[0].tolist()
    return x1, y1, x2, y2


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 20 else None


def _json(content: Any, status: int = 200) -> Response:
    """JSON in ASCII: names may hold halves of characters, which UTF-8 cannot express."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return Response(text, status, media_type="application/json")
