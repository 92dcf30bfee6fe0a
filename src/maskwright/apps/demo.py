"""`maskwright demo`: a page on which people draw boxes on their pictures and see the masks at once."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskwright.apps.demo_page.limits import Limits
from maskwright.apps.demo_page.models import load_models, models_of_tabs
from maskwright.apps.page.extra import require_page_libraries
from maskwright.errors import UserError
from maskwright.prompts import DEFAULT_MODEL

_OF_A_SERVER = ("device", "port", "host", "max_waiting")


@dataclass(frozen=True)
class DemoOptions:
    """What `maskwright demo` is asked for.

    Attributes:
        model: one or several with commas, each a bundled model (see `maskwright models`), a weights folder, a Hub
            repository or a FILE.onnx: one that takes boxes, one that finds objects, one for panoptic maps. Each has a
            tab.
        device: cpu, cuda, or auto for a GPU where there is one.
        port: of the page; 0 takes any that is free.
        host: address to answer on; the default lets only this machine in, 0.0.0.0 everyone who can reach it.
        max_megabytes: of a picture's file.
        max_megapixels: of a picture.
        max_boxes: of one request.
        max_waiting: requests that may be under way at once; more are asked to come again.
        static: a new folder: write the page there, for any web server, instead of showing it. The browser then runs
            the model, one that takes boxes, and pictures never leave it. It has no use for --device, --port, --host
            and --max-waiting.
        onnxruntime: with --static, the npm package onnxruntime-web, a folder or the .tgz of `npm pack onnxruntime-web`.
    """

    model: str = DEFAULT_MODEL
    device: str = "auto"
    port: int = 7863
    host: str = "127.0.0.1"
    max_megabytes: float = 20
    max_megapixels: float = 50
    max_boxes: int = 500
    max_waiting: int = 32
    static: str | None = None
    onnxruntime: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise UserError(f"--port: expected 0..65535, but got {self.port}")
        for name in ("max_megabytes", "max_megapixels", "max_boxes", "max_waiting"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"--{name.replace('_', '-')}: expected more than 0, but got {getattr(self, name)}")


OPTIONS = DemoOptions


def run(**given: Any) -> int:
    """Write the page, or show it until Ctrl-C."""
    options = DemoOptions(**given)
    limits = Limits(
        upload_bytes=round(options.max_megabytes * 1e6),
        pixels=round(options.max_megapixels * 1e6),
        boxes=options.max_boxes,
        waiting=options.max_waiting,
    )
    if options.static is None:
        if options.onnxruntime is not None:
            raise UserError("--onnxruntime belongs to --static DIR, which writes the page as files")
        _show(options, limits)
        return 0
    for name in _OF_A_SERVER:
        if name in given:
            raise UserError(
                f"--{name.replace('_', '-')} has no use with --static, which writes files and shows nothing"
            )
    _write(Path(options.static), options, limits)
    return 0


def _write(folder: Path, options: DemoOptions, limits: Limits) -> None:
    from maskwright.apps.demo_page.static_page import write_static_page

    write_static_page(folder, options.model, options.onnxruntime, limits)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB for any web server, such as python -m http.server --directory {folder}")


def _show(options: DemoOptions, limits: Limits) -> None:
    require_page_libraries()
    from maskwright.apps.demo_page.server import create_demo
    from maskwright.apps.page.local_server import LOOPBACK, listen, serve

    with listen(options.port, options.host) as listening:
        models = models_of_tabs(load_models(options.model, options.device))
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        if host != LOOPBACK:
            told = "everyone who can reach this address can use the page, and pictures travel there unencrypted"
            print(f"--host {options.host}: {told}", file=sys.stderr)
        print(f"draw boxes at http://{shown}:{port}/ (Ctrl-C ends)", flush=True)
        serve(create_demo(models, limits, options.host), listening)
