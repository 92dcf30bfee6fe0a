"""A page in Debian's chromium, as a person uses it.

The environment variable MASKWRIGHT_CHROMIUM names the browser where `chromium` is not on the path.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

WAIT = 20_000  # milliseconds


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser; without one the test fails."""
    from playwright.sync_api import sync_playwright

    path = os.environ.get("MASKWRIGHT_CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.fail("there is no chromium; MASKWRIGHT_CHROMIUM names one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


def processor_seconds() -> float:
    """What the processes that this one started, and those that they started, have used; 0 where there is no /proc."""
    parents, used = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            fields = path.read_text().rpartition(")")[2].split()
            parents[path.parent.name] = fields[1]
            used[path.parent.name] = int(fields[11]) + int(fields[12])
    total, generation = 0, {str(os.getpid())}
    while generation := {process for process, parent in parents.items() if parent in generation}:
        total += sum(used[process] for process in generation)
    return total / os.sysconf("SC_CLK_TCK")


class Page:
    """The page in a window, with what it asked for and what went wrong."""

    def __init__(self, browser, address: str, width: int = 1280, height: int = 800) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height})
        self.page = self.context.new_page()
        self.address = address
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.page.goto(address)

    def wait(self, selector: str, text: str) -> None:
        """Until an element has a text."""
        self.page.locator(selector).filter(has_text=text).first.wait_for(state="attached", timeout=WAIT)

    def idle(self) -> None:
        """Until no action is going on."""
        self.page.locator("body[aria-busy=false]").wait_for(timeout=WAIT)

    def press(self, key: str) -> None:
        self.idle()
        self.page.keyboard.press(key)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Draw on the canvas, in shares of its sides."""
        bounds = self.page.locator("#canvas").bounding_box()
        corners = [(bounds["x"] + x * bounds["width"], bounds["y"] + y * bounds["height"]) for x, y in (start, end)]
        self.page.mouse.move(*corners[0])
        self.page.mouse.down()
        self.page.mouse.move(*corners[1], steps=4)
        self.page.mouse.up()

    def draw_many(self, count: int) -> None:
        """Draw by keys: each box is the one that arrow keys begin with, a little to the left."""
        self.page.locator("#canvas").evaluate(
            """(canvas, count) => {
                const press = (key) => canvas.dispatchEvent(new KeyboardEvent("keydown", { key }));
                for (let box = 0; box < count; box += 1) ["ArrowLeft", "Enter"].forEach(press);
            }""",
            count,
        )

    def frame(self) -> None:
        """Until the screen is drawn again."""
        self.page.evaluate("new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")

    def pixels(self) -> str:
        self.frame()
        return self.page.evaluate("document.getElementById('canvas').toDataURL()")
