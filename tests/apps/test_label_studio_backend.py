"""`maskwright label-studio`: the routes, and the server as a process."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from maskwright.apps.label_studio import BrushTags, brush_run_lengths
from maskwright.apps.label_studio_backend import LabelStudioBackend, label_studio_app
from maskwright.cli import main
from maskwright.errors import UserError
from maskwright.predictor import Predictor
from maskwright.structures import EncodedMasks

TAGS = BrushTags("mask", "image", "picture", ["cat", "dog"])
SIZE = (60, 80)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "media" / "3").mkdir(parents=True)
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "media" / "3" / "a.png")
    return tmp_path / "media"


@pytest.fixture
def client(images: Path, ellipse_model) -> TestClient:
    return TestClient(label_studio_app(LabelStudioBackend(Predictor(ellipse_model, "cpu"), "ellipse 1", images)))


def region(label: str = "cat", **changes: Any) -> dict[str, Any]:
    """The box 8, 6, 48, 36 of a picture of 80 x 60 pixels."""
    value = {"x": 10, "y": 10, "width": 50, "height": 50, "rotation": 0, "rectanglelabels": [label], **changes}
    return {"id": "r", "type": "rectanglelabels", "from_name": "box", "to_name": "image", "value": value}


def request(*regions: dict[str, Any], address: str = "/data/upload/3/a.png") -> dict[str, Any]:
    return {
        "tasks": [{"id": 1, "data": {"picture": address}}],
        "label_config": TAGS.configuration(),
        "params": {"context": {"result": list(regions)}},
    }


def test_health_and_setup(client: TestClient):
    assert client.get("/health").json()["status"] == "UP"
    assert client.post("/setup", json={"project": "1.2", "schema": "<View/>"}).json() == {"model_version": "ellipse 1"}


def test_a_box_becomes_a_stroke(client: TestClient, images: Path, ellipse_model):
    answer = client.post("/predict", json=request(region(), region("dog", x=50, width=25))).json()
    assert answer["model_version"] == "ellipse 1"
    ((first, second),) = [result["result"] for result in answer["results"]]
    expected = Predictor(ellipse_model, "cpu").predict(images / "3" / "a.png", [[8, 6, 48, 36], [40, 6, 60, 36]])
    masks = EncodedMasks.from_planes(expected.masks)
    for row, (stroke, label) in enumerate([(first, "cat"), (second, "dog")]):
        rle = brush_run_lengths(masks[torch.tensor([row])])
        assert stroke["value"] == {"format": "rle", "rle": rle, "brushlabels": [label]}
        assert (stroke["original_width"], stroke["original_height"]) == (80, 60)
        assert (stroke["from_name"], stroke["to_name"], stroke["score"]) == ("mask", "image", 0.75)
    assert first["id"] != second["id"]


def test_a_picture_is_encoded_once(images: Path, ellipse_model):
    predictor = Predictor(ellipse_model, "cpu", in_place=True)
    backend = LabelStudioBackend(predictor, "ellipse 1", images)
    for _ in range(3):
        backend.predict(request(region()))
    assert ellipse_model.encoded == 1


def test_pictures_that_came_later_are_found(client: TestClient, images: Path):
    later = request(region(), address="http://localhost:8080/data/local-files/?d=media/3/b.png")
    assert client.post("/predict", json=later).status_code == 400
    Image.new("RGB", SIZE[::-1]).save(images / "3" / "b.png")
    assert client.post("/predict", json=later).status_code == 200


def test_without_boxes_nothing_is_found_by_a_model_that_needs_them(client: TestClient):
    results = client.post("/predict", json={**request(), "params": {}}).json()["results"]
    assert results == [{"result": [], "score": 0.0, "model_version": "ellipse 1"}]


def test_a_detector_answers_whole_pictures(images: Path, ellipse_model):
    """With those of its classes that the configuration has."""

    class Detecting(torch.nn.Module):
        needs_boxes, task = False, "instance"
        categories = ({"id": 4, "name": "dog"}, {"id": 7, "name": "cow"})

        def forward(self, images, *, score_threshold, max_detections):
            (found,) = ellipse_model.masks_from_boxes(
                ellipse_model.encode(images), [torch.tensor([[0.0, 0, 9, 9]] * 2)]
            )
            return [replace(found, labels=torch.tensor([1, 0]), categories=self.categories)]

    backend = LabelStudioBackend(Predictor(Detecting(), "cpu"), "detector", images)
    (result,) = backend.predict(request())["results"]
    assert [stroke["value"]["brushlabels"] for stroke in result["result"]] == [["dog"]]
    assert result["score"] == 0.75


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            request(region(), address="/data/upload/3/missing.png"),
            "has a path that ends like /data/upload/3/missing.png",
        ),
        (request(region(), address="a" * 300), "has a path that ends like aaa"),
        (request(region("cow")), "<BrushLabels> 'mask' lacks the label 'cow'"),
        (request(region(rotation=30)), "the box is turned"),
        (request(region(width=0)), "box 0: expected corners"),
        (request(region(x="left")), "expected what Label Studio sends to /predict"),
        ({**request(region()), "label_config": "<View/>"}, "has no <BrushLabels>"),
        ({}, "expected what Label Studio sends to /predict"),
        ([], "expected what Label Studio sends to /predict"),
    ],
)
def test_what_cannot_be_answered(client: TestClient, body: Any, told: str):
    answer = client.post("/predict", json=body)
    assert answer.status_code == 400
    assert told in answer.json()["error"]
    assert "UserError" not in answer.json()["error"]


def test_what_is_no_json(client: TestClient):
    assert client.post("/predict", content=b"{").status_code == 400


def test_a_panoptic_model(images: Path):
    class Panoptic(torch.nn.Module):
        needs_boxes, task, categories = False, "panoptic", ()

    with pytest.raises(UserError, match="expected a model of single objects"):
        LabelStudioBackend(Predictor(Panoptic(), "cpu"), "maps", images)


def test_a_folder_that_is_not_there(capsys: pytest.CaptureFixture[str]):
    assert main(["label-studio", "--images", "nowhere", "--port", "0", "--device", "cpu"]) == 2
    assert "the image folder nowhere does not exist" in capsys.readouterr().err


def test_the_server_as_a_process(images: Path):
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(images / "3" / "a.png")
    command = [sys.executable, "-m", "maskwright", "label-studio", "--images", str(images), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline() if process.stdout else ""
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line
        body = json.dumps(request(region())).encode()
        asked = urllib.request.Request(f"{found[0]}/predict", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked) as answer:
            content = json.load(answer)
        assert re.fullmatch(r"deep-mac-tiny [0-9a-f]{8}", content["model_version"])
        assert len(content["results"]) == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=600) == 130
        assert "Traceback" not in (process.stderr.read() if process.stderr else "")
