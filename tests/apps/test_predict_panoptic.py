"""Panoptic predictions as files and as pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from painter import Painter
from PIL import Image

from maskwright.apps import predict
from maskwright.apps.check_data import check_data
from maskwright.apps.named_models import NamedModel
from maskwright.apps.predict import PredictOptions, predict_files
from maskwright.drawing.overlays import draw_panoptic_overlay
from maskwright.errors import UserError
from maskwright.predictor import Predictor
from maskwright.structures import Category, PanopticPrediction, SegmentInfo

CATEGORIES = [Category(id=4, name="dog", isthing=True), Category(id=9, name="sky", isthing=False)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    for name, size in (("a.png", (30, 20)), ("b.jpg", (16, 24))):
        Image.new("RGB", size, (90, 120, 60)).save(tmp_path / name)
    model = NamedModel("m", "0", Predictor(Painter(CATEGORIES)))
    monkeypatch.setattr(predict, "load_named", lambda *_: model)
    return tmp_path


def test_files(folder: Path, capsys):
    out = folder / "out"
    predict_files([str(folder)], PredictOptions(out=str(out)))
    assert sorted(path.name for path in out.iterdir()) == [
        "a_overlay.jpg",
        "a_panoptic.png",
        "b_overlay.jpg",
        "b_panoptic.png",
        "panoptic.json",
    ]
    content = json.loads((out / "panoptic.json").read_text())
    assert [entry["image_id"] for entry in content["annotations"]] == ["a.png", "b.jpg"]
    first = content["annotations"][0]["segments_info"]
    assert [(row["category_id"], row["area"], row["bbox"]) for row in first] == [
        (4, 300, [0, 0, 15, 20]),
        (9, 300, [15, 0, 15, 20]),
    ]
    ids = np.asarray(Image.open(out / "a_panoptic.png"))[..., 0]
    assert ids[0].tolist() == [5] * 15 + [9] * 15
    report = check_data(out / "panoptic.json", folder, out)
    assert report.problems == []
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("\t") == [str(folder / "a.png"), "2 segments", str(out / "a_overlay.jpg")]


@pytest.mark.parametrize("name", ["panoptic.json", "b_panoptic.png"])
def test_what_is_there_is_not_overwritten(folder: Path, name: str):
    (folder / "out").mkdir()
    (folder / "out" / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name} exists already and is not overwritten; give another folder as --out"):
        predict_files([str(folder)], PredictOptions(out=str(folder / "out")))
    assert [path.name for path in (folder / "out").iterdir()] == [name]
    assert (folder / "out" / name).read_text() == "mine"


def test_ctrl_c_leaves_whole_files_only(folder: Path, monkeypatch):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", lambda image, path, **_: Path(path).write_bytes(b"half") and stop())
    with pytest.raises(KeyboardInterrupt):
        predict_files([str(folder)], PredictOptions(out=str(folder / "out")))
    assert list((folder / "out").iterdir()) == []


def test_a_broken_image_does_not_cost_the_others(folder: Path):
    (folder / "c.png").write_bytes(b"no picture")
    summary = predict_files([str(folder)], PredictOptions(out=str(folder / "out")))
    assert summary.exit_code == 3
    assert "c.png: not an image" in summary.causes["failed", "picture that cannot be read"][1]
    assert len(json.loads((folder / "out" / "panoptic.json").read_text())["images"]) == 2


def test_masks_are_for_other_models(folder: Path):
    with pytest.raises(UserError, match="it takes no --boxes and has no --masks"):
        predict_files([str(folder)], PredictOptions(out=str(folder / "out"), masks=True))


def overlay(ids: torch.Tensor, background: int = 100) -> np.ndarray:
    height, width = ids.shape
    infos = [
        SegmentInfo(id=value, label=value % 2, category_id=0, isthing=True, score=0.5, area=int((ids == value).sum()))
        for value in ids.unique().tolist()
        if value
    ]
    prediction = PanopticPrediction(ids.int(), infos, (height, width), CATEGORIES)
    return np.asarray(draw_panoptic_overlay(np.full((height, width, 3), background, dtype=np.uint8), prediction))


def test_void_stays_and_segments_differ():
    ids = torch.zeros(60, 90, dtype=torch.int64)
    ids[5:55, 5:40], ids[5:55, 45:80] = 3, 8
    picture = overlay(ids)
    assert (picture[ids == 0] == 100).mean() > 0.8  # but for a name that reaches out
    insides = [picture[50, 10], picture[50, 60]]
    assert all((inside != 100).any() for inside in insides)
    assert np.abs(insides[0].astype(int) - insides[1]).max() > 40
    assert (picture[5, 5] != picture[50, 10]).any()  # the contour is opaque


def test_names_stand_in_the_widest_part_of_segments_that_have_room():
    wide = torch.zeros(80, 100, dtype=torch.int64)
    wide[10:70, 10:90] = 1
    named = overlay(wide)
    assert len(np.unique(named[38:42, 30:70].reshape(-1, 3), axis=0)) > 3
    thin = torch.zeros(80, 100, dtype=torch.int64)
    thin[40:44, 10:90] = 1
    assert (overlay(thin)[thin == 0] == 100).all()


def test_an_image_of_another_size():
    prediction = PanopticPrediction(torch.zeros(4, 4).int(), [], (4, 4), CATEGORIES)
    with pytest.raises(ValueError, match="expected an image of"):
        draw_panoptic_overlay(np.zeros((4, 5, 3), dtype=np.uint8), prediction)
