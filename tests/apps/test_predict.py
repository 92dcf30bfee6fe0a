"""`maskwright predict` where a picture, an output or a value is out of the ordinary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskwright.apps.predict import find_images
from maskwright.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ellipse_model) -> None:
    """A working folder with a photograph, and the ellipse model for every model name."""
    monkeypatch.setattr("maskwright.predictor.from_pretrained", lambda _: ellipse_model)
    monkeypatch.chdir(tmp_path)
    save_photo("a.png")


def save_photo(name: str, width: int = 40, height: int = 30) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(name)


def test_an_image_argument_longer_than_a_file_name_can_be():
    with pytest.raises(UserError, match="no such file or folder"):
        find_images(["x" * 300 + ".png"])
