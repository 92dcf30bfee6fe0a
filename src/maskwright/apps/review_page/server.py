"""The page of a review and the JSON routes behind it; this process is the only one that writes decisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from maskwright.apps.page.local_server import create_page, json_response, read_json
from maskwright.apps.page.shown_masks import jpeg, mask_json
from maskwright.apps.review_page.completed import Box, CompletedMask
from maskwright.apps.review_page.decisions import VERDICTS, Decision, RedrawnMask, Review
from maskwright.apps.review_page.estimate import estimate
from maskwright.apps.review_page.redraw import Redrawer, picture_of
from maskwright.errors import UserError
from maskwright.predictor import check_boxes

_PAGE = Path(__file__).parent / "static" / "review.html"


def create_review(review: Review, redrawer: Redrawer) -> Starlette:
    """The page and its routes."""
    routes = _Routes(review, redrawer)
    return create_page(
        _PAGE,
        [
            Route("/api/state", routes.state),
            Route("/api/next", routes.next),
            Route("/api/masks/{position:int}", routes.mask),
            Route("/api/pictures/{image:int}", routes.picture),
            Route("/api/redraw", routes.redraw, methods=["POST"]),
            Route("/api/decisions", routes.decide, methods=["POST"]),
        ],
    )


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
        return json_response(
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
        return json_response(None if mask is None else await run_in_threadpool(self._shown, mask))

    async def mask(self, request: Request) -> Response:
        """The mask at a position."""
        return json_response(await run_in_threadpool(self._shown, self._mask(request.path_params["position"])))

    async def picture(self, request: Request) -> Response:
        """A picture in the frame of its annotations."""
        image = request.path_params["image"]
        if image >= len(self._completed.image_names):
            raise HTTPException(404, "there is no such picture")
        content = await run_in_threadpool(lambda: jpeg(picture_of(self._completed, image)))
        return Response(content, media_type="image/jpeg")

    async def redraw(self, request: Request) -> Response:
        """The mask of a box that was drawn; nothing is decided."""
        body = await read_json(request)
        mask = self._mask(body.get("position"))
        redrawn = await run_in_threadpool(self._redrawer.redraw, mask.image, _box(body))
        return json_response(await run_in_threadpool(self._redrawn, redrawn, mask.image))

    async def decide(self, request: Request) -> Response:
        """Note a decision: a verdict (with the box, where the mask was redrawn), or null to take the last one back."""
        body = await read_json(request)
        mask, verdict = self._mask(body.get("position")), body.get("verdict")
        if verdict is not None and verdict not in VERDICTS:
            raise UserError(f"expected a verdict out of {', '.join(VERDICTS)}, or null")
        redrawn = None
        if verdict == "redrawn":
            redrawn = await run_in_threadpool(self._redrawer.redraw, mask.image, _box(body))
        self._review.decide(mask.position, None if verdict is None else Decision(verdict, redrawn))
        return json_response({"position": mask.position, "verdict": verdict})

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
            "mask": self._mask_json(mask.segmentation, mask.image),
            "redrawn": None if redrawn is None else self._redrawn(redrawn, mask.image),
        }

    def _redrawn(self, mask: RedrawnMask, image: int) -> dict[str, Any]:
        x, y, width, height = mask.prompt_box
        return {
            "box": [x, y, x + width, y + height],
            "quality": mask.quality,
            "mask": self._mask_json(mask.segmentation, image),
        }

    def _mask_json(self, segmentation: Any, image: int) -> dict[str, Any]:
        masks = self._completed.encoded(segmentation, image)
        return mask_json(masks.runs[0], masks.image_size[0])


def _box(body: dict[str, Any]) -> Box:
    x1, y1, x2, y2 = check_boxes([body.get("box")])[0].tolist()
    return x1, y1, x2, y2


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 20 else None
