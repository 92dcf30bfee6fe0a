"""The page of `maskwright demo --static` in a real browser (`browser_page.py`), from a plain file server.

The environment variable MASKWRIGHT_ONNXRUNTIME_WEB names the npm package onnxruntime-web, a folder or a .tgz. With -s
a test prints how long pictures and masks took.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import ExifTags, Image
from pycocotools import mask as coco_mask

import maskwright
from browser_page import Page, processor_seconds
from maskwright.apps.check_data import check_data
from maskwright.data.images import read_image
from node_page import as_modules, masks_of_page, overlap, painted

LONG = 120_000  # milliseconds: a busy machine
EXAMPLE = Path(maskwright.__file__).parent / "apps" / "demo_page" / "static" / "cat.jpg"
WIDTH, HEIGHT = 640, 522  # of the example
MIRRORED_CAT, CAT, FACE = [385, 60, 620, 500], [60, 50, 290, 500], [70, 55, 130, 120]
SMALL = [FACE, [10, 10, 80, 90], [200, 200, 230, 230]]
AT_THE_EDGE = [[0, 0, 60, 70], [590, 470, WIDTH, HEIGHT], [560, 0, WIDTH, 100], [0, 300, 300, HEIGHT]]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        "MASKWRIGHT_ONNXRUNTIME_WEB" not in os.environ, reason="MASKWRIGHT_ONNXRUNTIME_WEB names nothing"
    ),
    pytest.mark.skipif(
        "MASKWRIGHT_CHROMIUM" not in os.environ and shutil.which("chromium") is None, reason="there is no chromium"
    ),
]


class QuietHandler(SimpleHTTPRequestHandler):
    """As `python -m http.server`."""

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("static") / "page"
    package = os.environ["MASKWRIGHT_ONNXRUNTIME_WEB"]
    # In a process of its own: the checks of shapes in this one would make constants of sizes that are free.
    command = [sys.executable, "-m", "maskwright", "demo", "--static", str(folder), "--onnxruntime", package]
    subprocess.run([*command, "--max-megapixels", "30"], check=True)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 48e6
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """Of the page in a subfolder of a server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder.parent)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/{folder.name}/"
        server.shutdown()
        thread.join()


class StaticPage(Page):
    """The page, and boxes drawn in pixels of its picture."""

    def open(self, path: Path) -> None:
        self.page.set_input_files("#file", path)
        self.wait_for_picture()

    def example(self) -> None:
        self.page.click("#example")
        self.wait_for_picture()

    def wait_for_picture(self) -> None:
        self.page.locator("#status").filter(has_text="Drag on the picture").wait_for(timeout=LONG)

    def draw(self, box: list[int], width: int = WIDTH, height: int = HEIGHT) -> None:
        self.page.locator("#canvas").scroll_into_view_if_needed()  # buttons below it have been clicked
        bounds = self.page.locator("#canvas").bounding_box()
        scale = min(bounds["width"] / width, bounds["height"] / height)
        left, top = (bounds["width"] - width * scale) / 2, (bounds["height"] - height * scale) / 2
        across = [(left + x * scale) / bounds["width"] for x in box[::2]]
        down = [(top + y * scale) / bounds["height"] for y in box[1::2]]
        count = self.count()
        self.drag((across[0], down[0]), (across[1], down[1]))
        self.page.locator("#objects-list li").nth(count).wait_for(timeout=LONG)

    def count(self) -> int:
        return self.page.locator("#objects-list li").count()

    def download(self, button: str) -> bytes:
        self.idle()
        with self.page.expect_download(timeout=LONG) as waiting:
            self.page.click(f"#save-{button}")
        return Path(waiting.value.path()).read_bytes()

    def masks(self) -> tuple[list[list[float]], list[np.ndarray]]:
        """The boxes and masks of the COCO file."""
        rows = json.loads(self.download("coco"))["annotations"]
        boxes = [[x, y, x + width, y + height] for x, y, width, height in (row["bbox"] for row in rows)]
        return boxes, [coco_mask.decode(row["segmentation"]).astype(bool) for row in rows]


def assert_masks_are_those_of_python(page: StaticPage, path: Path) -> None:
    boxes, masks = page.masks()
    expected = maskwright.load("deep-mac-tiny", "cpu").predict(path, boxes=boxes).masks.numpy()
    assert masks[0].shape == expected[0].shape
    assert min(map(overlap, masks, expected)) > 0.99


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Print how long something takes the clock, and the processor in the browser."""
    clock, used = time.perf_counter(), processor_seconds()
    yield
    clock, used = time.perf_counter() - clock, processor_seconds() - used
    print(f"\n{name}: {clock:.2f} s, of the processor {used:.2f} s", end="")


def test_draw_see_undo_download(browser, address: str, tmp_path: Path):
    with timed("page and picture"):
        page = StaticPage(browser, address)
        page.example()
    for name, box in (("first mask", CAT), ("next box", MIRRORED_CAT), ("small box", FACE)):
        before = page.pixels()
        with timed(name):
            page.draw(box)
        assert page.pixels() != before
    if "MASKWRIGHT_SCREENSHOTS" in os.environ:
        page.page.screenshot(path=Path(os.environ["MASKWRIGHT_SCREENSHOTS"], "static.png"))
    page.page.keyboard.press("Control+z")
    assert page.count() == 2

    shutil.copy(EXAMPLE, tmp_path)
    (tmp_path / "cat.json").write_bytes(page.download("coco"))
    report = check_data(tmp_path / "cat.json", tmp_path)
    assert [problem.subject for problem in report.problems] in ([], ["file"])  # one picture is too few for training
    assert_masks_are_those_of_python(page, EXAMPLE)
    _, planes = page.masks()
    archive = ZipFile(BytesIO(page.download("masks")))
    for member, plane in zip(archive.namelist(), planes, strict=True):
        assert (np.asarray(Image.open(archive.open(member))) == plane).all()
    assert len(ZipFile(BytesIO(page.download("cut-outs"))).namelist()) == 2

    page.page.locator("#threshold").fill("0.9")
    page.idle()
    assert all(smaller.sum() < plane.sum() for smaller, plane in zip(page.masks()[1], planes, strict=True))
    assert page.errors == []
    assert all(request.startswith((address, "blob:")) for request in page.requests)


def test_small_boxes_and_boxes_at_the_edge(browser, address: str):
    page = StaticPage(browser, address)
    page.example()
    for box in (*SMALL, *AT_THE_EDGE):
        page.draw(box)
    assert_masks_are_those_of_python(page, EXAMPLE)
    assert page.errors == []


def test_masks_of_the_scripts_in_node(folder: Path, tmp_path: Path):
    static = shutil.copytree(folder / "static", tmp_path / "static")
    as_modules(static)
    model = json.loads((static / "model.json").read_text())["model"]
    boxes = [CAT, [0, 0, WIDTH, HEIGHT], *SMALL, *AT_THE_EDGE]
    picture = read_image(EXAMPLE)
    expected = maskwright.load("deep-mac-tiny", "cpu").predict(picture, boxes=boxes)
    for row, one in enumerate(masks_of_page(static, model, picture.permute(1, 2, 0).numpy(), boxes)):
        assert overlap(painted(one["mask"], (HEIGHT, WIDTH)), expected.masks[row].numpy()) > 0.99
        assert abs(one["score"] - expected.mask_scores[row]) < 0.01


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pictures_of_all_kinds(browser, address: str, tmp_path: Path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    with Image.open(EXAMPLE) as example:
        example.save(tmp_path / "turned.png", exif=exif)
        clear = example.convert("RGBA")
        clear.putalpha(Image.linear_gradient("L").resize(example.size))
        clear.save(tmp_path / "clear.png")
        example.resize((5120, 4176)).save(tmp_path / "large.jpg")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "huge.png")
    (tmp_path / "text.jpg").write_text("only text")
    (tmp_path / "script.svg").write_text(
        "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><script>document.title='broken'</script></svg>"
    )

    page = StaticPage(browser, address, 375, 667)  # as wide as a phone
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 375
    for name, (width, height), *boxes in (
        ("clear.png", (WIDTH, HEIGHT), CAT, FACE),
        ("turned.png", (HEIGHT, WIDTH), [22, 60, 472, 290], [402, 70, 467, 130]),
        ("large.jpg", (5120, 4176), [8 * side for side in CAT], [8 * side for side in FACE]),
    ):
        page.open(tmp_path / name)
        for box in boxes:
            page.draw(box, width, height)
        assert_masks_are_those_of_python(page, tmp_path / name)
        page.download("cut-outs")
    for name, words in (
        ("huge.png", "10000 x 10000 pixels, and at most 30 million are taken"),
        ("text.jpg", "not a picture that this browser can read"),
        ("script.svg", "not a picture that this browser can read"),
    ):
        page.page.set_input_files("#file", tmp_path / name)
        page.wait("#status.error", words)
        page.idle()
    assert page.page.title() == "Masks from boxes"
    assert page.count() == 2  # the picture before is there still
    page.draw([80, 400, 2000, 3600], 5120, 4176)
    assert_masks_are_those_of_python(page, tmp_path / "large.jpg")
    assert page.errors == []


def test_500_boxes(browser, address: str):
    page = StaticPage(browser, address)
    page.example()
    page.draw_many(500)
    page.page.locator("#objects-list li").nth(499).wait_for(timeout=30 * LONG)
    page.page.locator("#canvas").focus()
    page.press("ArrowLeft")
    page.page.keyboard.press("Enter")
    page.wait("#status.error", "A picture has at most 500 boxes.")
    assert len(page.masks()[0]) == 500
    assert page.errors == []


def test_keys_alone(browser, address: str):
    page = StaticPage(browser, address)
    page.page.locator("#example").press("Enter")
    page.wait_for_picture()
    page.page.locator("#canvas").focus()
    page.press("ArrowLeft")
    page.page.keyboard.press("Enter")
    page.page.locator("#status").filter(has_text="Mask 1, quality").wait_for(timeout=LONG)
    page.page.keyboard.press("Control+z")
    assert page.count() == 0


def test_what_is_missing_is_told(browser, address: str, folder: Path):
    for name, words in (("model.onnx", "The model cannot be loaded"), ("paste.js", "A file of this page is missing")):
        page = Page(browser, "about:blank")
        page.page.route(f"**/{name}", lambda route: route.abort())
        page.page.goto(address)
        page.idle()
        page.page.click("#example")
        page.page.locator("#status.error").filter(has_text=words).wait_for(timeout=LONG)
    page.page.goto((folder / "index.html").as_uri())
    page.wait("#status", "only through a web server")
