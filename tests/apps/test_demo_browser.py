"""The page of `maskwright demo` in a real browser (`browser_page.py`): open, draw, see, undo, download."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import ExifTags, Image
from pycocotools import mask as coco_mask

from browser_page import WAIT, Page
from demo_models import HOSTILE, LIMITS, named_models, running_demo
from maskwright.apps.check_data import check_data
from maskwright.data.images import read_image
from maskwright.predictor import Predictor

pytestmark = [
    pytest.mark.browser,
    # Pictures are temporary files, which end with the process.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

HOSTILE_PICTURE = "<img src=x onerror=document.title='broken'>.png"
WIDTH, HEIGHT = 320, 240


@pytest.fixture
def address(ellipse_model) -> Iterator[str]:
    with running_demo(named_models(ellipse_model)) as address:
        yield address


@pytest.fixture
def boxes_address(ellipse_model) -> Iterator[str]:
    """Of a page with boxes only."""
    with running_demo({"boxes": named_models(ellipse_model)["boxes"]}) as address:
        yield address


def picture(folder: Path, name: str = "photo.png", **options: Any) -> Path:
    pixels = np.random.default_rng(7).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name, **options)
    return folder / name


class DemoPage(Page):
    """The page with a picture."""

    def __init__(
        self, browser: Any, address: str, path: Path | None = None, size: tuple[int, int] = (1280, 800)
    ) -> None:
        super().__init__(browser, address, *size)
        self.idle()
        if path is not None:
            self.open(path)

    def open(self, path: Path) -> None:
        self.page.set_input_files("#file", path)
        self.wait("#status", "Drag on the picture")
        self.idle()

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a pixel of the picture is on the screen."""
        bounds = self.page.locator("#canvas").bounding_box()
        scale = min(bounds["width"] / WIDTH, bounds["height"] / HEIGHT)
        left = bounds["x"] + (bounds["width"] - WIDTH * scale) / 2
        top = bounds["y"] + (bounds["height"] - HEIGHT * scale) / 2
        return left + x * scale, top + y * scale

    def draw(self, x1: float, y1: float, x2: float, y2: float) -> None:
        count = self.count()
        self.page.mouse.move(*self.place(x1, y1))
        self.page.mouse.down()
        self.page.mouse.move(*self.place(x2, y2), steps=3)
        self.page.mouse.up()
        self.page.locator("#objects-list li").nth(count).wait_for(timeout=WAIT)

    def count(self) -> int:
        return self.page.locator("#objects-list li").count()

    def colour(self, x: float, y: float) -> list[int]:
        """Of the canvas, at a pixel of the picture."""
        self.frame()
        bounds = self.page.locator("#canvas").bounding_box()
        left, top = self.place(x, y)
        return self.page.evaluate(
            "([x, y]) => [...document.getElementById('canvas').getContext('2d').getImageData(x, y, 1, 1).data]",
            [round(left - bounds["x"]), round(top - bounds["y"])],
        )

    def download(self, button: str) -> tuple[str, bytes]:
        self.idle()
        with self.page.expect_download(timeout=WAIT) as waiting:
            self.page.click(f"#save-{button}")
        return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()


def test_draw_see_undo_download(browser, address: str, tmp_path: Path, ellipse_model):
    path = picture(tmp_path)
    page = DemoPage(browser, address, path)
    before = page.colour(80, 60)
    page.page.fill("#category", "cat")
    page.draw(40, 20, 120, 100)
    assert page.colour(80, 60) != before  # the middle of the ellipse
    page.page.fill("#category", "dog/../x")
    page.draw(150, 50, 310, 230)
    page.draw(10, 150, 60, 220)
    page.page.keyboard.press("Control+z")
    assert page.count() == 2
    page.page.click("#undo")
    assert page.count() == 1
    page.draw(150, 50, 310, 230)
    assert ellipse_model.encoded == 1

    name, content = page.download("coco")
    assert name == "photo.json"
    (tmp_path / name).write_bytes(content)
    file = json.loads(content)
    assert file["images"] == [{"id": 1, "file_name": "photo.png", "height": HEIGHT, "width": WIDTH}]
    assert [category["name"] for category in file["categories"]] == ["cat", "dog/../x"]
    boxes = [[x, y, x + width, y + height] for x, y, width, height in (one["bbox"] for one in file["annotations"])]
    assert np.allclose(boxes, [[40, 20, 120, 100], [150, 50, 310, 230]], atol=1)
    expected = Predictor(ellipse_model, "cpu").predict(path, boxes=boxes)
    planes = [coco_mask.decode(one["segmentation"]).astype(bool) for one in file["annotations"]]
    assert (np.stack(planes) == expected.masks.numpy()).mean() > 0.999  # boxes are written with two digits
    assert [one["area"] for one in file["annotations"]] == [plane.sum() for plane in planes]
    assert {one["maskwright"]["quality"] for one in file["annotations"]} == {0.75}
    report = check_data(tmp_path / name, tmp_path)
    assert [problem.subject for problem in report.problems] in ([], ["file"])  # one picture is too few for training

    name, content = page.download("masks")
    assert name == "photo_masks.zip"
    archive = ZipFile(BytesIO(content))
    assert archive.testzip() is None
    assert archive.namelist() == ["photo_mask_1_cat.png", "photo_mask_2_dog_x.png"]
    for member, plane in zip(archive.namelist(), planes, strict=True):
        assert (np.asarray(Image.open(archive.open(member))) == plane).all()

    _, content = page.download("cut-outs")
    archive = ZipFile(BytesIO(content))
    assert archive.namelist() == ["photo_cut_out_1_cat.png", "photo_cut_out_2_dog_x.png"]
    pixels = read_image(path).permute(1, 2, 0).numpy()
    for member, plane in zip(archive.namelist(), planes, strict=True):
        rows, columns = np.where(plane)
        region = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        cut_out = np.asarray(Image.open(archive.open(member)))
        assert ((cut_out[..., 3] == 255) == plane[region]).all()
        assert (cut_out[..., :3][plane[region]] == pixels[region][plane[region]]).all()

    assert page.errors == []
    assert all(request.startswith((address, "blob:")) for request in page.requests)


def test_classes_and_colours(browser, boxes_address: str, tmp_path: Path):
    page = DemoPage(browser, boxes_address, picture(tmp_path))
    page.draw(40, 20, 120, 100)
    page.draw(150, 50, 310, 230)
    first, second = (page.page.locator("#objects-list li").nth(row) for row in (0, 1))
    colours = [row.locator("input[type=color]").input_value() for row in (first, second)]
    assert colours[0] != colours[1]
    page.page.click("#by-class")
    assert first.locator("input[type=color]").input_value() == second.locator("input[type=color]").input_value()
    second.locator("input[type=text]").fill("dog")
    second.locator("input[type=text]").press("Enter")
    assert first.locator("input[type=color]").input_value() != second.locator("input[type=color]").input_value()
    second.locator("input[type=color]").fill("#00ff00")
    red, green, blue, _ = page.colour(230, 140)
    assert green > max(red, blue)
    first.locator("button").click()
    assert page.count() == 1
    assert page.page.evaluate("document.activeElement.ariaLabel") == "Remove object 1"
    page.page.click("#undo")
    assert page.count() == 2
    page.page.click("#hide")
    assert page.page.locator("#hide").get_attribute("aria-pressed") == "true"
    page.page.click("#clear")
    assert page.count() == 0
    assert page.page.locator("#save-coco").is_disabled()
    assert page.errors == []


def test_the_threshold_changes_masks_that_are_there(browser, boxes_address: str, tmp_path: Path):
    page = DemoPage(browser, boxes_address, picture(tmp_path))
    page.draw(40, 20, 120, 100)
    areas = []
    for threshold in ("0.5", "0.95", "0.05"):
        page.page.locator("#threshold").fill(threshold)
        page.idle()
        areas.append(json.loads(page.download("coco")[1])["annotations"][0]["area"])
    assert areas[1] < areas[0] < areas[2]


def test_objects_and_panoptic_map(browser, address: str, tmp_path: Path):
    page = DemoPage(browser, address, picture(tmp_path))
    page.draw(40, 20, 120, 100)
    page.page.click("#objects")
    page.wait("#status", "1 found")
    assert page.page.locator("#objects-list input[type=text]").input_value() == HOSTILE
    page.page.locator("#threshold").fill("0.7")
    page.wait("#status", "Nothing found")
    page.idle()
    page.page.locator("#objects").press("ArrowRight")
    page.wait("#status", "2 found")
    page.idle()
    file = json.loads(page.download("coco")[1])
    assert [category["name"] for category in file["categories"]] == ["dog", "sky"]
    assert [one["area"] for one in file["annotations"]] == [WIDTH * HEIGHT / 2] * 2
    page.page.click("#boxes")
    page.idle()
    assert page.count() == 1  # the drawn box is there still
    page.page.click("#undo")
    assert page.count() == 0
    assert page.page.title() == "Masks from boxes"
    assert page.errors == []


def test_hostile_names_are_text(browser, boxes_address: str, tmp_path: Path):
    page = DemoPage(browser, boxes_address, picture(tmp_path, HOSTILE_PICTURE))
    page.page.fill("#category", HOSTILE)
    page.draw(40, 20, 120, 100)
    page.draw(140, 20, 220, 100)
    assert page.page.locator("#canvas").get_attribute("aria-label") == f"{HOSTILE_PICTURE}: 2 objects"
    assert page.page.locator("img").count() == 0
    assert page.page.title() == "Masks from boxes"
    file = json.loads(page.download("coco")[1])
    assert (file["images"][0]["file_name"], file["categories"][0]["name"]) == (HOSTILE_PICTURE, HOSTILE)
    assert page.errors == []


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_pictures_are_answered(browser, boxes_address: str, tmp_path: Path):
    page = DemoPage(browser, boxes_address)
    large = Image.new("1", (10_000, 10_000))
    large.save(tmp_path / "large.png")
    (tmp_path / "text.jpg").write_text("only text")
    (tmp_path / "script.svg").write_text(
        "<svg xmlns='http://www.w3.org/2000/svg'><script>document.title='broken'</script></svg>"
    )
    (tmp_path / "heavy.png").write_bytes(bytes(LIMITS.upload_bytes + 1))
    for name, words in (
        ("large.png", "10000 x 10000 pixels, and at most 2 million are taken"),
        ("text.jpg", "not an image in a known format"),
        ("script.svg", "not an image in a known format"),
        ("heavy.png", "larger than 5 MB"),
    ):
        page.page.set_input_files("#file", tmp_path / name)
        page.wait("#status.error", words)
        page.idle()
    assert page.page.title() == "Masks from boxes"
    page.open(picture(tmp_path))  # and all is well
    page.draw(40, 20, 120, 100)
    page.page.mouse.move(*page.place(300, 200))
    page.page.set_input_files("#file", tmp_path / "text.jpg")
    page.wait("#status.error", "not an image")
    assert page.count() == 1  # the picture before is there still


def test_500_boxes(browser, boxes_address: str, tmp_path: Path):
    page = DemoPage(browser, boxes_address, picture(tmp_path))
    page.draw_many(500)
    page.page.locator("#objects-list li").nth(499).wait_for(timeout=30 * WAIT)
    page.page.locator("#canvas").focus()
    page.page.keyboard.press("ArrowLeft")
    page.page.keyboard.press("Enter")
    page.wait("#status.error", "A picture has at most 500 boxes.")
    page.page.locator("#threshold").fill("0.6")
    page.idle()
    file = json.loads(page.download("coco")[1])
    assert len(file["annotations"]) == 500
    assert page.errors == []


def test_a_picture_that_the_server_forgot_is_sent_again(browser, boxes_address: str, tmp_path: Path, ellipse_model):
    path = picture(tmp_path)
    page = DemoPage(browser, boxes_address, path)
    for number in range(64):
        content = BytesIO()
        Image.new("RGB", (9, 9), (number, 0, 0)).save(content, "PNG")
        page.context.request.post(
            f"{boxes_address}api/pictures",
            data=content.getvalue(),
            headers={"Content-Type": "application/octet-stream"},
        )
    page.draw(40, 20, 120, 100)
    assert ellipse_model.encoded == 66
    assert page.count() == 1


def test_keys_alone(browser, boxes_address: str):
    page = DemoPage(browser, boxes_address)
    page.page.locator("#example").press("Enter")
    page.wait("#status", "Drag on the picture")
    page.page.locator("#canvas").focus()
    page.press("ArrowRight")
    page.wait("#status", "Box ")
    page.page.keyboard.press("Escape")
    page.page.keyboard.press("Enter")  # there is no box any more
    page.page.keyboard.press("Shift+ArrowDown")
    page.page.keyboard.press("Enter")
    page.wait("#status", "Mask 1, quality 0.75")
    page.page.keyboard.press("Control+z")
    assert page.count() == 0
    assert page.errors == []


def test_a_turned_picture_is_upright(browser, boxes_address: str, tmp_path: Path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = picture(tmp_path, "turned.jpg", exif=exif)
    page = DemoPage(browser, boxes_address, path)
    page.page.locator("#canvas").focus()
    page.press("ArrowRight")
    page.press("Enter")
    page.wait("#status", "Mask 1")
    file = json.loads(page.download("coco")[1])
    assert (file["images"][0]["height"], file["images"][0]["width"]) == (WIDTH, HEIGHT)
    assert file["annotations"][0]["segmentation"]["size"] == [WIDTH, HEIGHT]


def test_a_phone(browser, boxes_address: str, tmp_path: Path):
    page = DemoPage(browser, boxes_address, picture(tmp_path), (375, 667))
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 375
    for name in ("choose", "example", "undo", "clear"):
        bounds = page.page.locator(f"#{name}").bounding_box()
        assert bounds["height"] >= 44
        assert bounds["y"] + bounds["height"] <= 667  # in sight without scrolling
    touch = page.context.new_cdp_session(page.page)
    moves = [("touchStart", [(60, 60)]), ("touchMove", [(120, 110)]), ("touchMove", [(200, 180)]), ("touchEnd", [])]
    for kind, places in moves:
        points = [{"x": x, "y": y} for x, y in (page.place(*place) for place in places)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    page.wait("#status", "Mask 1, quality 0.75")
    (one,) = json.loads(page.download("coco")[1])["annotations"]
    assert np.allclose(one["bbox"], [60, 60, 140, 120], atol=2)
    if "MASKWRIGHT_SCREENSHOTS" in os.environ:
        page.page.screenshot(path=Path(os.environ["MASKWRIGHT_SCREENSHOTS"], "demo_375.png"))


def test_a_server_that_is_gone_is_told(browser, boxes_address: str, tmp_path: Path):
    page = DemoPage(browser, boxes_address, picture(tmp_path))
    page.context.set_offline(True)
    page.page.mouse.move(*page.place(40, 20))
    page.page.mouse.down()
    page.page.mouse.move(*page.place(120, 100), steps=3)
    page.page.mouse.up()
    page.wait("#status.error", "The server does not answer")
    page.context.set_offline(False)
    page.draw(40, 20, 120, 100)
    assert page.count() == 1


def test_people_who_wait_in_vain_are_told(browser, ellipse_model, tmp_path: Path):
    with running_demo(named_models(ellipse_model), replace(LIMITS, waiting=0)) as address:
        page = DemoPage(browser, address)
        page.page.set_input_files("#file", picture(tmp_path))
        page.wait("#status.error", "too many people ask at once; try again in a moment")
