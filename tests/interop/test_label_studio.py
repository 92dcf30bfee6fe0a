"""Tasks for Label Studio and answers of its backend, read by label-studio-sdk in an environment of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from tool_scene import CLASSES, Scene, interop_python

from maskwright.apps.label_studio_backend import LabelStudioBackend, label_studio_app
from maskwright.cli import main
from maskwright.predictor import Predictor

pytestmark = pytest.mark.interop

JOB = Path(__file__).with_name("label_studio_job.py")


def read(folder: Path) -> dict[str, np.ndarray]:
    """What label-studio-sdk finds in a folder, after it has accepted every prediction."""
    out = folder.with_suffix(".npz")
    subprocess.run([interop_python(), str(JOB), str(folder), str(out)], check=True)
    return dict(np.load(out))


def export(scene: Scene, completed: Path, out: Path) -> Path:
    arguments = [str(completed), "--images", str(scene.images), "--out", str(out)]
    assert main(["data", "label-studio", *arguments]) == 0
    return out


def test_it_accepts_the_tasks_of_a_completed_file(scene: Scene, completed: Path, tmp_path: Path):
    found = read(export(scene, completed, tmp_path / "tasks"))
    for position, name in enumerate(scene.masks):
        np.testing.assert_array_equal(found[f"{position}/masks"], scene.predicted(name))
        assert found[f"{position}/labels"].ravel().tolist() == [CLASSES[label] for label in scene.labels[name]]
        assert found[f"{position}/address"] == f"/data/local-files/?d={name}"


def test_it_accepts_the_answers_of_the_backend(scene: Scene, completed: Path, tmp_path: Path, ellipse_model):
    configuration = (export(scene, completed, tmp_path / "tasks") / "label_config.xml").read_text()
    client = TestClient(label_studio_app(LabelStudioBackend(Predictor(ellipse_model, "cpu"), "ellipse", scene.images)))
    tasks = []
    for name, masks in scene.masks.items():
        data = {"image": f"/data/upload/1/{name}"}
        height, width = masks.shape[1:]
        drawn = zip(scene.boxes(name), scene.labels[name], strict=True)
        regions = [rectangle(box, label, (height, width)) for box, label in drawn]
        request = {
            "tasks": [{"id": 1, "data": data}],
            "label_config": configuration,
            "params": {"context": {"result": regions}},
        }
        answer = client.post("/predict", json=request)
        assert answer.status_code == 200, answer.text
        tasks.append({"data": data, "predictions": answer.json()["results"]})
    folder = tmp_path / "answered"
    folder.mkdir()
    (folder / "label_config.xml").write_text(configuration)
    (folder / "tasks_1.json").write_text(json.dumps(tasks))
    found = read(folder)
    for position, name in enumerate(scene.masks):
        np.testing.assert_array_equal(found[f"{position}/masks"], scene.predicted(name))
        assert found[f"{position}/labels"].ravel().tolist() == [CLASSES[label] for label in scene.labels[name]]


def rectangle(box: np.ndarray, label: int, image_size: tuple[int, int]) -> dict[str, Any]:
    """A box as Label Studio's page sends it."""
    x1, y1, x2, y2 = box.tolist()
    height, width = image_size
    value = {
        "x": x1 * 100 / width,
        "y": y1 * 100 / height,
        "width": (x2 - x1) * 100 / width,
        "height": (y2 - y1) * 100 / height,
        "rotation": 0,
        "rectanglelabels": [CLASSES[label]],
    }
    return {"id": "r", "type": "rectanglelabels", "from_name": "box", "to_name": "image", "value": value}
