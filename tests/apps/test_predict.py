"""`maskwright predict` where a picture, an output or a value is out of the ordinary."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskwright.apps.predict import PredictOptions, predict_files
from maskwright.errors import UserError
from maskwright.predictor import Predictor


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ellipse_model) -> None:
    """A working folder with a photograph, and the ellipse model for every model name."""
    monkeypatch.setattr("maskwright.predictor.from_pretrained", lambda _: ellipse_model)
    monkeypatch.chdir(tmp_path)
    save_photo("a.png")


def results() -> list[dict]:
    return json.loads(Path("masks/predictions.json").read_text())


def save_photo(name: str, width: int = 40, height: int = 30) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(name)


def test_an_overlay_that_cannot_be_written_costs_neither_results_nor_the_others(capsys: pytest.CaptureFixture[str]):
    save_photo("wide.png", 70_000, 8)  # wider than JPEG can be
    Path("boxes.json").write_text(json.dumps({"a.png": [[0, 0, 9, 9]], "wide.png": [[0, 0, 5, 5]]}))
    summary = predict_files(["wide.png", "a.png"], PredictOptions(boxes="boxes.json"))
    assert summary.exit_code == 3
    assert "failed: 1 x output picture that cannot be written, namely wide.png: cannot write" in capsys.readouterr().err
    assert [entry["image_id"] for entry in results()] == ["wide.png", "a.png"]
    assert sorted(path.name for path in Path("masks").iterdir()) == ["a_overlay.jpg", "predictions.json"]


def test_the_boxes_are_never_overwritten():
    content = json.dumps({"a.png": [[0, 0, 9, 9]]})
    Path("predictions.json").write_text(content)
    with pytest.raises(UserError, match=r"--out \.: .* would overwrite the boxes"):
        predict_files(["a.png"], PredictOptions(boxes="./predictions.json", out="."))
    assert Path("predictions.json").read_text() == content
    assert not Path("a_overlay.jpg").exists()


def test_the_model_is_told_those_classes_of_a_coco_file_that_it_knows(monkeypatch: pytest.MonkeyPatch, ellipse_model):
    ellipse_model.categories = ({"id": 7, "name": "cat"}, {"id": 1, "name": "airplane"})
    categories = [{"id": 5, "name": "aeroplane"}, {"id": 6, "name": "fork"}]
    box = {"image_id": 3, "bbox": [0, 0, 9, 9]}
    annotations = [{**box, "id": 1, "category_id": 6}, {**box, "id": 2, "category_id": 5}]
    image = {"id": 3, "file_name": "a.png", "width": 40, "height": 30}
    Path("coco.json").write_text(json.dumps({"images": [image], "annotations": annotations, "categories": categories}))
    predictor = Predictor(ellipse_model, "cpu")
    monkeypatch.setattr("maskwright.apps.predict.load", lambda *_: predictor)
    predict_files(["a.png"], PredictOptions(boxes="coco.json"))
    assert predictor.model.told == [[-1, 1]]
    assert [entry["category_id"] for entry in json.loads(Path("masks/predictions.json").read_text())] == [6, 5]


def test_what_cannot_be_predicted_leaves_no_folder():
    Path("broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken\.png"):
        predict_files(["broken.png"], PredictOptions(boxes="0,0,9,9", out="new/masks"))
    assert not Path("new").exists()
    predict_files(["a.png"], PredictOptions(boxes="0,0,9,9", out="new/masks"))
    assert Path("new/masks/a_overlay.jpg").is_file()


def test_a_folder_that_cannot_be_made_is_told_before_any_work(ellipse_model):
    with pytest.raises(UserError, match=r"--out a\.png/masks: cannot make this folder \(.*a\.png is a file\)"):
        predict_files(["a.png"], PredictOptions(boxes="0,0,9,9", out="a.png/masks"))
    assert ellipse_model.encoded == 0


def test_a_folder_where_the_predictions_go():
    Path("masks/predictions.json").mkdir(parents=True)
    with pytest.raises(UserError, match=r"--out masks: predictions\.json in it is a folder"):
        predict_files(["a.png"], PredictOptions(boxes="0,0,9,9"))
    assert not Path("masks/a_overlay.jpg").exists()
