"""Every page of the site in a real browser, at the width of a desk and of a phone.

The environment variable MASKWRIGHT_CHROMIUM names the browser where `chromium` is not on the path.
MASKWRIGHT_SCREENSHOTS names a folder for pictures of all pages.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from documented import DOCS, NOTEBOOKS, ROOT

pytestmark = pytest.mark.browser

CHROMIUM = os.environ.get("MASKWRIGHT_CHROMIUM") or shutil.which("chromium")
SCREENSHOTS = os.environ.get("MASKWRIGHT_SCREENSHOTS")
WIDTHS = {"desk": 1280, "phone": 390}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the site, built and served on this machine."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    subprocess.run(command, cwd=ROOT, check=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        pytest.fail("there is no chromium; MASKWRIGHT_CHROMIUM names one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.mark.parametrize("device", WIDTHS)
def test_every_page_fits_and_asks_nobody(device: str, browser, address: str):
    context = browser.new_context(viewport={"width": WIDTHS[device], "height": 900})
    page = context.new_page()
    requests: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("response", lambda response: response.status >= 400 and wrong.append(response.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
    for name in sorted([path.stem for path in DOCS.glob("*.md")] + [f"notebooks/{path.stem}" for path in NOTEBOOKS]):
        page.goto(f"{address}/{name}.html", wait_until="networkidle")
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > WIDTHS[device]:
            wrong.append(f"{name} is {width} pixels wide")
        small = "[...document.images].filter(image => image.naturalWidth === 0).map(image => image.src)"
        wrong += page.evaluate(small)
        if SCREENSHOTS:
            page.screenshot(path=Path(SCREENSHOTS) / f"{Path(name).name}_{device}.png", full_page=True)
    assert wrong == []
    assert [url for url in requests if not url.startswith((address, "data:"))] == []
    context.close()


def test_the_search_finds_a_page(browser, address: str):
    page = browser.new_page()
    page.goto(f"{address}/index.html", wait_until="networkidle")
    page.keyboard.press("/")
    page.keyboard.type("hourglass52", delay=20)
    page.wait_for_selector(".md-search-result__item", timeout=20_000)
    assert page.locator(".md-search-result__item").count() > 0
    page.close()
