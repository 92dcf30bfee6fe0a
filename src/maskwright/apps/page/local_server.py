"""What the pages of this package share: a socket, a server, routes that no other page can use, JSON in and out."""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maskwright.errors import UserError

LOOPBACK = "127.0.0.1"
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
    """A socket on an address of this machine; port 0 takes any that is free.

    Raises:
        UserError: the port is in use, there is no such port, or the host is none of this machine's.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        where = f"--port {port}" if host == LOOPBACK else f"--host {host} with --port {port}"
        raise UserError(f"{where} cannot be used ({reason}); give another one (port 0: any)") from error


def serve(app: Starlette, listening: socket.socket) -> None:
    """Answer until Ctrl-C or SIGTERM, which end the command as they do elsewhere."""
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2, lifespan="off")
    uvicorn.Server(config).run(sockets=[listening])


def create_page(page: Path, routes: Sequence[BaseRoute], host: str = LOOPBACK) -> Starlette:
    """An HTML file with what lies beside it and beside this module, and its routes.

    Requests of other hosts' names are refused, so that no page elsewhere can read or do anything.
    """

    async def show(_: Request) -> Response:
        return FileResponse(page)

    files = StaticFiles(directory=page.parent, packages=[("maskwright.apps.page", "static")])
    return Starlette(
        routes=[Route("/", show), Mount("/static", files), *routes],
        middleware=[Middleware(_KeepToItself, host=host)],
        exception_handlers=dict.fromkeys((UserError, HTTPException, ClientDisconnect), _refused),
    )


class _KeepToItself:
    """Adds the headers that keep the page to itself, and refuses requests under names that are not this machine's.

    A page elsewhere can make its own name point here, but no number: numbers, `localhost` and the name that was given
    as the host are ours.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._names = {"localhost", host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        app = self._app if self._is_ours(Headers(scope=scope).get("host", "")) else _other_host
        await app(scope, receive, send_with_headers)

    def _is_ours(self, header: str) -> bool:
        name = header.rpartition(":")[0] if header.rpartition(":")[2].isdecimal() else header
        try:
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return name.lower() in self._names
        return True


async def _other_host(scope: Scope, receive: Receive, send: Send) -> None:
    told = "this page has another address: use the one that the command printed"
    await json_response({"error": told}, 400)(scope, receive, send)


async def _refused(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return json_response({"error": error.detail}, error.status_code)
    return json_response({"error": str(error)}, 422)


def require_type(request: Request, expected: str) -> None:
    """Refuse what browsers let other pages send, too: forms and plain texts.

    Raises:
        HTTPException: so.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != expected:
        raise HTTPException(415, f"expected {expected}")


async def read_json(request: Request, largest: int = _LARGEST_BODY) -> dict[str, Any]:
    """The JSON object of at most `largest` bytes that a request of our own page brings.

    Raises:
        HTTPException: it is none.
    """
    require_type(request, "application/json")
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > largest:
            raise HTTPException(413, "the request is too long")
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "expected JSON") from error
    if not isinstance(body, dict):
        raise HTTPException(400, "expected a JSON object")
    return body


def json_response(content: Any, status: int = 200) -> Response:
    """JSON in ASCII: names may hold halves of characters, which UTF-8 cannot express."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return Response(text, status, media_type="application/json")
