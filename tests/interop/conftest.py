from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from panoptic_folder import PanopticFolder
from PIL import Image
from tool_scene import Scene, complete


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A disc, a ring, a plate of two parts and a plate at the border of one picture; a plate alone on another."""
    images = tmp_path / "images"
    images.mkdir()
    rows, columns = np.mgrid[:60, :90]
    distance = np.hypot(rows - 25, columns - 24)
    parts = np.zeros((60, 90), dtype=bool)
    parts[5:20, 50:60] = parts[25:30, 55:80] = True
    border = np.zeros((60, 90), dtype=bool)
    border[45:, 70:] = True
    alone = np.zeros((40, 30), dtype=bool)
    alone[3:30, 4:20] = True
    first = np.stack([np.hypot(rows - 51, columns - 9) < 8, (distance < 20) & (distance > 8), parts, border])
    masks = {"a.png": first, "b.png": alone[None]}
    for name, of_picture in masks.items():
        Image.fromarray(np.where(of_picture.any(0), 200, 60).astype(np.uint8)).convert("RGB").save(images / name)
    return Scene(images, masks, {"a.png": [0, 0, 1, 1], "b.png": [1]})


@pytest.fixture
def instances(scene: Scene, tmp_path: Path) -> Path:
    """A COCO file of the scene."""
    scene.write_coco(tmp_path / "instances.json")
    return tmp_path / "instances.json"


@pytest.fixture
def completed(scene: Scene, instances: Path, tmp_path: Path) -> Path:
    """The same file with the masks that `predict` finds in its boxes."""
    complete(scene, instances, tmp_path / "completed.json")
    return tmp_path / "completed.json"


@pytest.fixture
def panoptic(tmp_path: Path) -> PanopticFolder:
    folder = tmp_path / "scenes"
    folder.mkdir()
    return PanopticFolder(folder)


@pytest.fixture(autouse=True)
def _ellipses(monkeypatch: pytest.MonkeyPatch, ellipse_model) -> None:
    """The ellipse model for every model name."""
    for home in ("maskwright.predictor", "maskwright.apps.weights"):
        monkeypatch.setattr(f"{home}.from_pretrained", lambda _: ellipse_model)
