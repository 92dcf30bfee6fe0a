"""The routes behind the page of `maskwright review`, and its server as a process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from completed_file import HEIGHT, HOSTILE, WIDTH, ReviewFolder, completed
from maskwright.apps.page.local_server import listen
from maskwright.apps.page.shown_masks import mask_json
from maskwright.apps.review_page.completed import read_completed
from maskwright.apps.review_page.decisions import Review, journal_path, open_journal, read_decisions
from maskwright.apps.review_page.redraw import Redrawer
from maskwright.apps.review_page.server import create_review
from maskwright.apps.run_summary import RunSummary
from maskwright.cli import main
from maskwright.errors import UserError
from maskwright.ops.run_lengths import runs_of_code, runs_of_plane
from maskwright.predictor import Predictor


@pytest.fixture
def folder(tmp_path: Path) -> ReviewFolder:
    return ReviewFolder(tmp_path).write(
        [completed(1, 0.8), completed(2, 0.3, category_id=2), completed(3, 0.5, image_id=2)]
    )


@pytest.fixture
def client(folder: ReviewFolder, ellipse_model) -> Iterator[TestClient]:
    file = read_completed(folder.path, folder.images, RunSummary())
    with open_journal(journal_path(file.path), file.path) as journal:
        redrawer = Redrawer(file, Predictor(ellipse_model, "cpu", in_place=True), "ellipse", "123")
        yield TestClient(create_review(Review(file, journal), redrawer), base_url="http://127.0.0.1")


def painted(mask: dict[str, Any]) -> np.ndarray:
    """The plane of a mask as `canvas.js` reads it."""
    plane = np.zeros((HEIGHT, WIDTH), dtype=bool)
    values = np.repeat(np.arange(len(mask["runs"])) % 2 == 1, mask["runs"])
    x, y, width, height = mask["x"], mask["y"], mask["width"], mask["height"]
    plane[y : y + height, x : x + width] = values.reshape(height, width)
    return plane


def decide(client: TestClient, position: int, verdict: str | None, **values: Any):
    return client.post("/api/decisions", json={"position": position, "verdict": verdict, **values})


def test_the_worst_mask_comes_with_all_that_the_page_shows(client: TestClient):
    shown = client.get("/api/next").json()
    assert (shown["position"], shown["id"], shown["category"], shown["quality"]) == (1, 2, HOSTILE, 0.3)
    assert shown["box"] == [10, 10, 50, 40]
    assert shown["size"] == [HEIGHT, WIDTH]
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected[10:40, 10:50] = True
    assert (painted(shown["mask"]) == expected).all()
    picture = client.get(f"/api/pictures/{shown['image']}")
    assert Image.open(BytesIO(picture.content)).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("seed", range(5))
def test_any_mask_survives_the_way_to_the_page(seed: int):
    plane = np.random.default_rng(seed).random((HEIGHT, WIDTH)) < 0.3
    plane[:, : seed * 7] = False
    assert (painted(mask_json(runs_of_plane(plane), HEIGHT)) == plane).all()


def test_an_empty_mask_has_no_runs():
    assert painted(mask_json(np.zeros((0, 2), dtype=np.int64), HEIGHT)).sum() == 0


def test_decide_undo_and_count(client: TestClient):
    assert decide(client, 1, "accepted").json() == {"position": 1, "verdict": "accepted"}
    assert decide(client, 2, "rejected").status_code == 200
    state = client.get("/api/state").json()
    assert state["counts"] == {"accepted": 1, "rejected": 1, "redrawn": 0}
    assert state["categories"] == [HOSTILE, "cat"]
    assert [(row["masks"], row["reviewed"], row["share"]) for row in state["bins"]] == [
        (1, 1, 1),
        (1, 1, 0),
        (1, 0, None),
    ]
    assert state["rest"]["masks"] == 1
    assert client.get("/api/next").json()["position"] == 0
    assert decide(client, 1, None).status_code == 200
    assert client.get("/api/next").json()["position"] == 1
    assert client.get("/api/next?after=1").json()["position"] == 0
    assert client.get("/api/next?category=1").json()["position"] == 0
    assert client.get("/api/next?category=2").status_code == 404
    for position in range(3):
        decide(client, position, "accepted")
    assert client.get("/api/next").json() is None


def test_redraw_encodes_a_picture_once(client: TestClient, folder: ReviewFolder, ellipse_model):
    box = [20, 10, 60, 50]
    for _ in range(3):
        answer = client.post("/api/redraw", json={"position": 0, "box": box}).json()
    assert client.get("/api/state").json()["counts"]["redrawn"] == 0
    assert answer["box"] == box
    assert answer["quality"] == 0.75
    plane = painted(answer["mask"])
    assert plane[30, 40]
    assert not plane[12, 22]
    assert plane.sum() == pytest.approx(np.pi * 20 * 20, rel=0.05)
    assert decide(client, 0, "redrawn", box=box).status_code == 200
    assert ellipse_model.encoded == 1
    shown = client.get("/api/masks/0").json()
    assert (painted(shown["redrawn"]["mask"]) == plane).all()
    assert shown["verdict"] == "redrawn"


def test_what_was_redrawn_is_applied(client: TestClient, folder: ReviewFolder):
    decide(client, 0, "redrawn", box=[20, 10, 60, 50])
    decide(client, 1, "rejected")
    # The server has the journal: applying is refused while it runs.
    assert main(["review", str(folder.path), "--apply", "--out", str(folder.out)]) == 2
    file = read_completed(folder.path, folder.images, RunSummary())
    copy = folder.path.with_name("copy")
    copy.write_bytes(journal_path(file.path).read_bytes())
    arguments = ["review", str(folder.path), "--apply", "--out", str(folder.out), "--journal", str(copy)]
    assert main(arguments) == 0
    first, second, third = folder.reviewed()
    provenance = first["maskwright"]
    assert provenance["prompt_box"] == [20, 10, 40, 40]
    assert (provenance["model"], provenance["quality"], provenance["review"]) == ("ellipse", 0.75, "redrawn")
    assert first["bbox"] == [10, 10, 40, 30]
    runs = runs_of_code(first["segmentation"])
    assert first["area"] == (runs[:, 1] - runs[:, 0]).sum()
    assert "segmentation" not in second
    assert "area" not in second
    assert second["maskwright"] == {"model": "deep-mac-tiny", "weights": "abc", "version": "0", "quality": 0.3} | {
        "review": "rejected"
    }
    assert third == json.loads(folder.path.read_text())["annotations"][2]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"position": 9, "verdict": "accepted"}, 404, "no completed mask"),
        ({"position": "1", "verdict": "accepted"}, 404, "no completed mask"),
        ({"position": True, "verdict": "accepted"}, 404, "no completed mask"),
        ({"position": 1, "verdict": "maybe"}, 422, "expected a verdict"),
        ({"position": 1, "verdict": []}, 422, "expected a verdict"),
        ({"position": 1, "verdict": "redrawn"}, 422, "expected four numbers"),
        ({"position": 1, "verdict": "redrawn", "box": [5, 5, 5, 9]}, 422, "x1 < x2"),
        ({"position": 1, "verdict": "redrawn", "box": [500, 5, 600, 9]}, 422, "outside of the image"),
        ([], 400, "expected a JSON object"),
        ({"position": 1, "verdict": "accepted", "more": "x" * 20_000}, 413, "too long"),
    ],
)
def test_wrong_decisions_change_nothing(client: TestClient, folder: ReviewFolder, body: Any, status: int, words: str):
    before = journal_path(folder.path).read_bytes()
    answer = client.post("/api/decisions", json=body)
    assert (answer.status_code, words in answer.json()["error"]) == (status, True)
    assert journal_path(folder.path).read_bytes() == before


def test_a_picture_that_cannot_be_read_is_told(client: TestClient, folder: ReviewFolder):
    (folder.images / "1.png").write_bytes(b"no picture")
    answer = client.get("/api/pictures/0")
    assert answer.status_code == 422
    assert "1.png" in answer.json()["error"]
    assert client.get("/api/pictures/7").status_code == 404


class TestOnlyItsOwnPage:
    def test_headers(self, client: TestClient):
        for path in ("/", "/static/review.js", "/api/state", "/nothing"):
            headers = client.get(path).headers
            assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
            assert "unsafe" not in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cross-origin-resource-policy"] == "same-origin"

    def test_another_host_name_is_refused(self, client: TestClient):
        assert client.get("/api/state", headers={"Host": "evil.example"}).status_code == 400

    def test_a_form_of_another_page_is_refused(self, client: TestClient):
        body = json.dumps({"position": 1, "verdict": "accepted"})
        answer = client.post("/api/decisions", content=body, headers={"Content-Type": "text/plain"})
        assert answer.status_code == 415

    def test_no_file_outside_of_the_page(self, client: TestClient):
        assert client.get("/static/../server.py").status_code == 404
        assert client.get("/static/%2e%2e/server.py").status_code == 404

    def test_the_page_loads_nothing_from_elsewhere(self, client: TestClient):
        page = client.get("/").text
        sources = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert sources
        assert all(source.startswith("static/") and client.get(f"/{source}").status_code == 200 for source in sources)
        scripts = "".join(client.get(f"/static/{name}").text for name in ("review.js", "canvas.js", "review.css"))
        assert not re.search(r"https?:|innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", page + scripts)


def test_a_port_in_use():
    with listen(0) as first, pytest.raises(UserError, match=r"--port \d+ cannot be used"):
        listen(first.getsockname()[1])


class Server:
    """`maskwright review` as a process of its own."""

    def __init__(self, folder: ReviewFolder) -> None:
        command = [sys.executable, "-m", "maskwright", "review", str(folder.path), "--images", str(folder.images)]
        self.process = subprocess.Popen(
            [*command, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        line = self.process.stdout.readline() if self.process.stdout else ""
        found = re.search(r"http://\S+/", line)
        if found is None:
            raise AssertionError(self.process.communicate()[1])
        self.address = found[0]

    def ask(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.load(answer)

    def end(self, number: int) -> tuple[int, str]:
        os.kill(self.process.pid, number)
        return self.process.wait(timeout=600), self.process.communicate()[1]


def test_a_killed_server_goes_on_and_two_browsers_lose_nothing(folder: ReviewFolder):
    folder.write([completed(number, number / 100) for number in range(1, 41)])
    server = Server(folder)
    with ThreadPoolExecutor(4) as browsers:  # each decides on its own masks, all at once
        bodies = [{"position": number, "verdict": ("accepted", "rejected")[number % 2]} for number in range(39)]
        list(browsers.map(lambda body: server.ask("api/decisions", body), bodies))
    redrawn = server.ask("api/redraw", {"position": 39, "box": [5, 5, 60, 50]})
    assert 0 <= redrawn["quality"] <= 1
    assert server.end(signal.SIGKILL)[0] == -signal.SIGKILL

    server = Server(folder)
    assert server.ask("api/state")["counts"] == {"accepted": 20, "rejected": 19, "redrawn": 0}
    assert server.ask("api/next")["position"] == 39
    code, told = server.end(signal.SIGINT)
    assert code == 130
    assert "20 accepted, 19 rejected, 0 redrawn" in told
    assert "Traceback" not in told
    with open_journal(journal_path(folder.path), folder.path) as journal:
        assert len(read_decisions(journal)) == 39
