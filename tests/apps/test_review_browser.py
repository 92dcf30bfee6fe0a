"""The page of `maskwright review` in a real browser (`browser_page.py`): draw, accept, undo, reload, apply."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from browser_page import Page
from completed_file import HOSTILE, ReviewFolder, completed
from maskwright.cli import main

pytestmark = pytest.mark.browser

HOSTILE_PICTURE = "<img src=x onerror=document.title='broken'>.png"


@pytest.fixture
def folder(tmp_path: Path) -> ReviewFolder:
    annotations = [completed(1, 0.8), completed(2, 0.3, category_id=2), completed(3, 0.5, image_id=2)]
    return ReviewFolder(tmp_path).write(annotations, names=(HOSTILE_PICTURE, "2.png"))


@pytest.fixture
def address(folder: ReviewFolder) -> Iterator[str]:
    command = [sys.executable, "-m", "maskwright", "review", str(folder.path), "--images", str(folder.images)]
    with subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True) as server:
        line = server.stdout.readline() if server.stdout else ""
        yield re.findall(r"http://\S+/", line)[0]
        server.terminate()


def test_draw_accept_undo_reload_apply(browser, address: str, folder: ReviewFolder):
    page = Page(browser, address)
    page.wait("#quality", "0.300")
    page.press("a")
    page.wait("#quality", "0.500")
    page.wait("#counts", "1 of 3: 1 accepted")

    page.press("u")
    page.wait("#quality", "0.300")
    page.wait("#counts", "0 of 3")
    page.press("r")
    page.wait("#counts", "1 rejected")

    page.idle()
    before = page.pixels()
    page.press("d")
    page.drag((0.3, 0.3), (0.6, 0.7))
    page.wait("#status", "New mask, quality")
    after = page.pixels()
    assert after != before
    page.press("Escape")
    page.press("a")
    page.wait("#counts", "2 of 3: 0 accepted, 1 rejected, 1 redrawn")

    page.page.reload()
    page.wait("#counts", "2 of 3: 0 accepted, 1 rejected, 1 redrawn")
    page.press("u")  # the tab remembers its decisions
    page.wait("#counts", "1 of 3")
    page.press("s")
    page.wait("#quality", "0.800")
    page.press("a")
    page.wait("#counts", "2 of 3: 1 accepted, 1 rejected")
    page.press("a")
    page.wait("#status", "Every mask is reviewed")
    assert page.errors == []
    assert all(request.startswith((address, "blob:")) for request in page.requests)

    journal = folder.path.with_name("completed.json.review")
    copy = shutil.copy(journal, folder.path.with_name("copy"))
    arguments = ["review", str(folder.path), "--apply", "--out", str(folder.out), "--journal", str(copy)]
    assert main(arguments) == 0
    verdicts = [entry["maskwright"]["review"] for entry in folder.reviewed()]
    assert verdicts == ["accepted", "rejected", "accepted"]


def test_two_browsers_lose_nothing(browser, address: str):
    first, second = Page(browser, address), Page(browser, address)
    for page in (first, second):
        page.wait("#quality", "0.300")
    second.press("s")
    second.wait("#quality", "0.500")
    first.press("a")
    first.wait("#counts", "1 of 3")
    second.press("r")
    second.wait("#counts", "2 of 3: 1 accepted, 1 rejected")


def test_drawing_by_keys(browser, address: str):
    page = Page(browser, address)
    page.wait("#quality", "0.300")
    page.press("d")
    page.wait("#status", "Draw a box")
    for key in ("ArrowLeft", "ArrowUp", "Shift+ArrowRight", "Shift+ArrowDown"):
        page.press(key)
    page.wait("#status", "Box ")
    page.press("Enter")
    page.wait("#status", "New mask, quality")
    page.wait("#accept-text", "Keep new mask")
    page.press("u")
    page.wait("#accept-text", "Accept")
    assert page.errors == []


def test_single_keys_can_be_switched_off(browser, address: str):
    page = Page(browser, address)
    page.wait("#quality", "0.300")
    page.idle()
    page.page.locator("#keys").uncheck()
    page.press("a")
    page.page.locator("#skip").focus()
    page.press("Enter")  # a button by keyboard
    page.wait("#quality", "0.500")
    page.wait("#counts", "0 of 3")


def test_hostile_names_are_text(browser, address: str):
    page = Page(browser, address)
    page.wait("#class", HOSTILE)
    page.wait("#picture", HOSTILE_PICTURE)
    page.idle()
    assert page.page.title() == "Review of masks"
    assert page.page.locator("img").count() == 0
    assert page.errors == []


def test_a_server_that_is_gone_is_told(browser, address: str):
    page = Page(browser, address)
    page.wait("#quality", "0.300")
    page.context.set_offline(True)
    page.press("a")
    page.wait("#status", "The server does not answer")
    page.context.set_offline(False)
    page.press("a")
    page.wait("#counts", "1 of 3")


@pytest.mark.parametrize(("width", "height"), [(375, 667), (1280, 800)])
def test_it_fits_a_phone_and_a_desktop(browser, address: str, width: int, height: int):
    page = Page(browser, address, width, height)
    page.wait("#quality", "0.300")
    page.idle()
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("accept", "reject", "redraw", "skip", "undo"):
        bounds = page.page.locator(f"#{name}").bounding_box()
        assert bounds["height"] >= 44
        assert bounds["y"] + bounds["height"] <= height  # in sight without scrolling
    assert page.page.locator("#status").bounding_box()["y"] < height - 60  # class and quality, too
    if "MASKWRIGHT_SCREENSHOTS" in os.environ:
        page.page.screenshot(path=Path(os.environ["MASKWRIGHT_SCREENSHOTS"], f"review_{width}.png"))
