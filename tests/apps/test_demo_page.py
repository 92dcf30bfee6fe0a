"""The routes behind the page of `maskwright demo`."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import ExifTags, Image
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

from demo_models import HOSTILE, LIMITS, named_models, running_demo
from maskwright.apps.demo_page.models import models_of_tabs
from maskwright.apps.demo_page.server import create_demo
from maskwright.apps.demo_page.work_queue import WorkQueue
from maskwright.data.images import read_image
from maskwright.errors import UserError

# Pictures are temporary files, which end with the process.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

BYTES = {"Content-Type": "application/octet-stream"}


@pytest.fixture
def client(ellipse_model) -> TestClient:
    return TestClient(create_demo(named_models(ellipse_model), LIMITS), base_url="http://127.0.0.1")


def encoded(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def noise(width: int, height: int, channels: int = 3) -> Image.Image:
    values = np.random.default_rng(width).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(values.squeeze())


def png_header(width: int, height: int) -> bytes:
    """A PNG that says that it has so many pixels, and has none."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def send(client: TestClient, content: bytes):
    return client.post("/api/pictures", content=content, headers=BYTES)


def sent(client: TestClient, content: bytes) -> str:
    answer = send(client, content)
    assert answer.status_code == 200, answer.text
    return answer.json()["picture"]


def painted(mask: dict[str, Any], height: int, width: int) -> np.ndarray:
    """The plane of a mask as `canvas.js` reads it."""
    plane = np.zeros((height, width), dtype=bool)
    values = np.repeat(np.arange(len(mask["runs"])) % 2 == 1, mask["runs"])
    rows, columns = slice(mask["y"], mask["y"] + mask["height"]), slice(mask["x"], mask["x"] + mask["width"])
    plane[rows, columns] = values.reshape(mask["height"], mask["width"])
    return plane


def test_a_picture_is_encoded_once_and_prompted_often(client: TestClient, ellipse_model):
    key = sent(client, encoded(noise(80, 60)))
    for box in ([20, 10, 60, 50], [0, 0, 30, 30]):
        answer = client.post("/api/boxes", json={"picture": key, "boxes": [box]})
        (found,) = answer.json()
        assert (found["box"], found["quality"], found["category"]) == (box, 0.75, None)
    assert ellipse_model.encoded == 1
    plane = painted(found["mask"], 60, 80)
    prediction = named_models(ellipse_model)["boxes"].predictor.predict(noise(80, 60), boxes=[[0, 0, 30, 30]])
    assert (plane == prediction.masks[0].numpy()).all()


def test_the_threshold_is_that_of_pixels(client: TestClient):
    key = sent(client, encoded(noise(80, 60)))
    areas = []
    for threshold in (0.05, 0.5, 0.95, 1):
        body = {"picture": key, "boxes": [[20, 10, 60, 50]], "threshold": threshold}
        (found,) = client.post("/api/boxes", json=body).json()
        areas.append(0 if found["mask"] is None else int(painted(found["mask"], 60, 80).sum()))
    assert areas == sorted(areas, reverse=True)
    assert areas[0] > areas[2] > 0
    assert areas[3] == 0


def test_features_and_pictures_that_were_dropped(client: TestClient, ellipse_model):
    pictures = [encoded(noise(40 + number, 30)) for number in range(70)]
    keys = [sent(client, content) for content in pictures]
    assert ellipse_model.encoded == 70
    late = client.post("/api/boxes", json={"picture": keys[20], "boxes": [[0, 0, 9, 9]]})
    assert late.status_code == 200
    assert ellipse_model.encoded == 71  # its features were dropped, not the picture
    gone = client.post("/api/boxes", json={"picture": keys[0], "boxes": [[0, 0, 9, 9]]})
    assert (gone.status_code, gone.json()["error"]) == (404, "this picture is no longer here; send it again")
    assert client.get(f"/api/pictures/{keys[0]}").status_code == 404


def test_objects_and_segments(client: TestClient):
    key = sent(client, encoded(noise(80, 60)))
    (found,) = client.post("/api/find/objects", json={"picture": key, "threshold": 0.3}).json()
    assert (found["category"], found["box"], found["quality"]) == (HOSTILE, [20, 15, 60, 45], 0.6)
    assert client.post("/api/find/objects", json={"picture": key, "threshold": 0.7}).json() == []
    dog, sky = client.post("/api/find/panoptic", json={"picture": key}).json()
    assert (dog["category"], dog["box"], sky["category"]) == ("dog", [0, 0, 40, 60], "sky")
    assert (painted(dog["mask"], 60, 80) ^ painted(sky["mask"], 60, 80)).all()
    assert client.post("/api/find/boxes", json={"picture": key}).status_code == 422
    assert client.post("/api/find/nothing", json={"picture": key}).status_code == 404


def test_tabs_without_a_model(ellipse_model):
    models = {"panoptic": named_models(ellipse_model)["panoptic"]}
    client = TestClient(create_demo(models, LIMITS), base_url="http://127.0.0.1")
    assert list(client.get("/api/state").json()["models"]) == ["panoptic"]
    key = sent(client, encoded(noise(80, 60)))
    assert client.post("/api/boxes", json={"picture": key, "boxes": []}).status_code == 404
    assert len(client.post("/api/find/panoptic", json={"picture": key}).json()) == 2


class TestPictures:
    @pytest.mark.parametrize(
        "content",
        [
            encoded(noise(31, 22, 1)),
            encoded(noise(31, 22, 4)),
            encoded(Image.fromarray((np.arange(682, dtype=np.uint16) * 96).reshape(22, 31))),
            encoded(noise(31, 22).convert("CMYK"), "JPEG"),
            encoded(noise(31, 22).convert("P"), "GIF"),
            encoded(noise(31, 22), "WEBP", lossless=True),
            encoded(noise(31, 22), "TIFF"),
            encoded(noise(31, 22), "BMP"),
        ],
        ids=["grey", "alpha", "16 bit", "cmyk", "palette", "webp", "tiff", "bmp"],
    )
    def test_of_any_kind_are_those_of_predict(self, client: TestClient, content: bytes):
        key = sent(client, content)
        original = Image.open(BytesIO(client.get(f"/api/pictures/{key}/original").content))
        expected = read_image(Image.open(BytesIO(content))).permute(1, 2, 0).numpy()
        assert (np.asarray(original) == expected).all()

    def test_are_turned_upright(self, client: TestClient):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        answer = send(client, encoded(noise(80, 60), "JPEG", exif=exif)).json()
        assert answer["size"] == [80, 60]
        assert Image.open(BytesIO(client.get(f"/api/pictures/{answer['picture']}").content)).size == (60, 80)

    @pytest.mark.parametrize(
        ("content", "status", "words"),
        [
            (b"", 422, "not an image in a known format"),
            (b"only text", 422, "not an image in a known format"),
            (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", 422, "not an image in"),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 422, "not an image in a known format"),
            (encoded(noise(80, 60))[:2000], 422, "cannot be read and may be damaged"),
            (png_header(10_000, 10_000), 422, "10000 x 10000 pixels, and at most 2 million are taken"),
            (png_header(60_000, 60_000), 422, "too large an image"),
            (encoded(noise(2001, 1000)), 413, "larger than 5 MB"),
            (encoded(noise(9, 9).convert("L").convert("F"), "TIFF"), 422, "mode F are not supported"),
        ],
        ids=["empty", "text", "svg", "eps", "cut off", "100 MP", "bomb", "large file", "floats"],
    )
    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    def test_that_cannot_be_taken(self, client: TestClient, content: bytes, status: int, words: str):
        answer = send(client, content)
        assert (answer.status_code, words in answer.json()["error"]) == (status, True)
        assert "/" not in answer.json()["error"]  # nothing of this machine's folders

    def test_of_other_pages_are_refused(self, client: TestClient):
        for kind in ("text/plain", "multipart/form-data; boundary=x", "image/png"):
            answer = client.post("/api/pictures", content=encoded(noise(9, 9)), headers={"Content-Type": kind})
            assert answer.status_code == 415


class TestQuestions:
    @pytest.mark.parametrize(
        ("body", "status", "words"),
        [
            ({"boxes": [[0, 0, 9, 9]]}, 404, "expected the key of a picture"),
            ({"picture": "../../etc/passwd", "boxes": [[0, 0, 9, 9]]}, 404, "no longer here"),
            ({"picture": "", "boxes": "all"}, 422, "a list of at most 500 boxes"),
            ({"picture": "", "boxes": [[0, 0, 9, 9]] * 501}, 422, "a list of at most 500 boxes"),
            ({"picture": "", "boxes": [[0, 0, 9]]}, 422, "box 0: expected four numbers"),
            ({"picture": "", "boxes": [[0, 0, 9, 9], [900, 0, 999, 9]]}, 422, "box 1: .* outside of the image"),
            ({"picture": "", "boxes": [[0, 0, 9, 9]], "threshold": "high"}, 422, "a threshold in 0..1"),
            ({"picture": "", "boxes": [[0, 0, 9, 9]], "threshold": 2}, 422, "a threshold in 0..1"),
            ({"picture": "", "boxes": [], "more": "x" * 200_000}, 413, "too long"),
        ],
    )
    def test_that_have_no_answer(self, client: TestClient, body: Any, status: int, words: str):
        if body.get("picture") == "":
            body = {**body, "picture": sent(client, encoded(noise(80, 60)))}
        answer = client.post("/api/boxes", json=body)
        assert (answer.status_code, re.search(words, answer.json()["error"]) is not None) == (status, True)

    def test_500_boxes(self, client: TestClient):
        key = sent(client, encoded(noise(80, 60)))
        boxes = [[x % 50, x % 30, x % 50 + 9, x % 30 + 9] for x in range(500)]
        found = client.post("/api/boxes", json={"picture": key, "boxes": boxes}).json()
        assert [one["box"] for one in found] == boxes

    def test_under_other_names_are_refused(self, ellipse_model):
        for host, allowed in (("127.0.0.1", []), ("0.0.0.0", []), ("Box.example", ["box.example", "BOX.example:80"])):
            client = TestClient(create_demo(named_models(ellipse_model), LIMITS, host))
            for name in ("localhost", "localhost:7863", "127.0.0.1:7863", "192.168.1.5:80", "[::1]:80", *allowed):
                assert client.get("/api/state", headers={"Host": name}).status_code == 200, name
            for name in ("evil.example", "evil.example:7863", "127.0.0.1.evil.example", "", "localhost.evil:80"):
                assert client.get("/api/state", headers={"Host": name}).status_code == 400, name


def test_who_finds_the_queue_full_is_told_so():
    async def ask() -> None:
        queue = WorkQueue(2)
        with queue.place(), queue.place():
            with pytest.raises(HTTPException, match="try again"), queue.place():
                pass
            results = await asyncio.gather(*(queue.run(lambda x: x * x, number) for number in range(9)))
        assert results == [number**2 for number in range(9)]
        with queue.place():  # they are free again
            pass

    asyncio.run(ask())


def test_too_many_at_once_are_told_so(ellipse_model):
    may_encode = threading.Event()
    models = named_models(ellipse_model)
    encode = ellipse_model.encode
    with running_demo(models, replace(LIMITS, waiting=2)) as address, ThreadPoolExecutor(2) as threads:
        ellipse_model.encode = lambda images: may_encode.wait() and encode(images)

        def ask() -> httpx.Response:
            while True:  # a place may be taken for a moment by those who look whether there is one
                answer = httpx.post(
                    f"{address}api/pictures", content=encoded(noise(80, 60)), headers=BYTES, timeout=600
                )
                if answer.status_code != 503:
                    return answer

        def look() -> httpx.Response:  # it names no picture, so that it needs a place but waits for no one's work
            return httpx.post(f"{address}api/boxes", json={}, timeout=600)

        try:
            asked = [threads.submit(ask) for _ in range(2)]
            while (refused := look()).status_code != 503:  # until both have a place
                assert refused.status_code == 404
        finally:
            may_encode.set()
        assert refused.json()["error"] == "too many people ask at once; try again in a moment"
        assert [answer.result().status_code for answer in asked] == [200, 200]
        assert look().status_code == 404


def test_who_leaves_while_sending_leaves_nothing(ellipse_model, capfd):
    with running_demo(named_models(ellipse_model), replace(LIMITS, waiting=1)) as address:
        host, port = address.removeprefix("http://").strip("/").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /api/pictures HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000\r\n"
            connection.sendall(f"{head}Content-Type: application/octet-stream\r\n\r\nhalf of it".encode())
            while (
                httpx.get(f"{address}api/pictures/x/original", timeout=600).status_code != 503
            ):  # until it has the place
                pass
        while httpx.get(f"{address}api/pictures/x/original", timeout=600).status_code != 404:  # until the place is free
            pass
    assert capfd.readouterr().err == ""


def test_the_example_is_that_of_the_repository(client: TestClient):
    assert client.get("/static/cat.jpg").content == (Path(__file__).parents[2] / "examples" / "cat.jpg").read_bytes()


def test_a_model_that_adds_nothing_is_refused(ellipse_model):
    models = named_models(ellipse_model)
    assert models_of_tabs(list(models.values())) == models
    with pytest.raises(UserError, match="boxes model does already what boxes model can do"):
        models_of_tabs([models["boxes"], models["boxes"]])
