"""`maskwright predict` where a picture, an output or a value is out of the ordinary."""

from __future__ import annotations

import json
import struct
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask
from PIL import Image, ImageFile

from maskwright.apps.named_models import NamedModel
from maskwright.apps.predict import PredictOptions, predict_files
from maskwright.drawing.captions import font_file
from maskwright.errors import UserError
from maskwright.predictor import Predictor


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ellipse_model) -> None:
    """A working folder with a photograph, and the ellipse model for every model name."""
    monkeypatch.setattr("maskwright.apps.weights.from_pretrained", lambda _: ellipse_model)
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
    monkeypatch.setattr("maskwright.apps.predict.load_named", lambda *_: NamedModel("m", "0", predictor))
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


class TestResults:
    """What stands in predictions.json for boxes of every kind."""

    def test_bad_boxes_keep_their_place_as_empty_masks(self, capsys: pytest.CaptureFixture[str]):
        boxes = [[0, 0, 9, 9], [5, 5, 5, 9], [300, 10, 320, 40], [10, 10, 30, 25]]
        Path("boxes.json").write_text(json.dumps({"a.png": boxes}))
        summary = predict_files(["a.png"], PredictOptions(boxes="boxes.json", masks=True))
        areas = [int(coco_mask.area(entry["segmentation"])) for entry in results()]
        assert [area > 0 for area in areas] == [True, False, False, True]
        assert [entry["score"] for entry in results()] == [0.75, 0.0, 0.0, 0.75]
        assert summary.causes["failed", "box that cannot be used"][0] == 2
        assert capsys.readouterr().out.startswith("a.png\t2 masks\t")
        assert sorted(path.name for path in Path("masks").glob("*.png")) == ["a_mask_0.png", "a_mask_3.png"]

    def test_classes_and_scores_of_a_box_file_are_kept(self):
        boxes = [{"box": [0, 0, 9, 9], "label": "猫 cat", "score": 0.5}, {"box": [0, 0, 9, 9], "label": "dog"}]
        Path("boxes.json").write_text(json.dumps({"a.png": boxes}))
        with (
            pytest.warns(UserWarning, match="no font of this system") if font_file("猫 cat") is None else nullcontext()
        ):
            predict_files(["a.png"], PredictOptions(boxes="boxes.json"))
        first, second = results()
        assert (first["category_name"], first["box_score"], first["score"]) == ("猫 cat", 0.5, 0.375)
        assert (second["category_name"], second["score"]) == ("dog", 0.75)
        assert not {"category_id", "box_score"} & second.keys()

    def test_ids_of_a_results_list_are_kept_and_whole_boxes_without_a_class_have_none(self):
        entries = [
            {"image_id": "a", "category_id": 7, "bbox": [1, 2, 9, 9], "score": 0.5},
            {"image_id": "a", "bbox": [1, 2, 9, 9], "score": 1},
        ]
        Path("found.json").write_text(json.dumps(entries))
        predict_files(["a.png"], PredictOptions(boxes="found.json"))
        assert [entry["image_id"] for entry in results()] == ["a", "a"]
        assert [entry.get("category_id") for entry in results()] == [7, None]

    def test_fractions_are_of_the_picture_in_hand(self):
        save_photo("wide.png", 80, 20)
        Path("labels").mkdir()
        for name in ("a", "wide"):
            Path(f"labels/{name}.txt").write_text("2 0.5 0.5 0.5 1.0")
        predict_files(["a.png", "wide.png"], PredictOptions(boxes="labels"))
        boxes = [coco_mask.toBbox(entry["segmentation"]).tolist() for entry in results()]
        assert boxes == [[10, 0, 20, 30], [20, 0, 40, 20]]
        assert [entry["category_id"] for entry in results()] == [2, 2]

    def test_results_do_not_depend_on_the_overlays(self):
        options = {"boxes": "0,0,9,9;5,5,20,20"}
        predict_files(["a.png"], PredictOptions(**options))
        with_overlays = Path("masks/predictions.json").read_bytes()
        predict_files(["a.png"], PredictOptions(**options, overlays=False, out="bare"))
        assert Path("bare/predictions.json").read_bytes() == with_overlays
        assert [path.name for path in Path("bare").iterdir()] == ["predictions.json"]


@pytest.mark.parametrize("error", [RuntimeError("cannot decode"), NotImplementedError("DXT9"), struct.error("short")])
def test_whatever_a_decoder_raises_costs_its_picture(monkeypatch: pytest.MonkeyPatch, error: Exception):
    save_photo("b.bmp")
    Path("boxes.json").write_text(json.dumps({"a.png": [[0, 0, 9, 9]], "b.bmp": [[0, 0, 9, 9]]}))
    load = ImageFile.ImageFile.load

    def failing(image: ImageFile.ImageFile):
        if image.format == "BMP":
            raise error
        return load(image)

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", failing)
    summary = predict_files(["b.bmp", "a.png"], PredictOptions(boxes="boxes.json", overlays=False))
    assert summary.causes["failed", "picture that cannot be read"][0] == 1
    assert [entry["image_id"] for entry in results()] == ["a.png"]


@pytest.mark.parametrize("place", ["photos", "photos/deeper"])
def test_a_second_run_into_the_folder_of_the_pictures_finds_the_same_pictures(place: str, capsys):
    save_photo_in(place)
    for _ in range(2):
        summary = predict_files(["photos"], PredictOptions(boxes="boxes.json", out="photos", masks=True))
        assert [entry["image_id"] for entry in json.loads(Path("photos/predictions.json").read_text())] == ["x.png"]
    assert summary.causes["left out", "picture that is an output of maskwright"][0] == 2


def save_photo_in(place: str) -> None:
    Path(place).mkdir(parents=True)
    save_photo(f"{place}/x.png")
    Path("boxes.json").write_text(json.dumps({"x.png": [[0, 0, 9, 9]]}))


def test_a_picture_that_is_listed_twice_is_answered_twice(monkeypatch: pytest.MonkeyPatch):
    Path("boxes.json").write_text(json.dumps({"a.png": [[0, 0, 9, 9]], "./a.png": [[0, 0, 20, 20]]}))
    predict_files(["a.png"], PredictOptions(boxes="boxes.json"))
    assert len(results()) == 2
    assert sorted(path.name for path in Path("masks").glob("*.jpg")) == ["a_2_overlay.jpg", "a_overlay.jpg"]


def test_a_detector_that_finds_more_than_it_may_is_told(monkeypatch: pytest.MonkeyPatch, ellipse_model):
    class Detecting(torch.nn.Module):
        needs_boxes, task, categories = False, "instance", ({"id": 4, "name": "dot"},)

        def forward(self, images, *, score_threshold, max_detections):
            boxes = torch.tensor([[0.0, 0, 9, 9]] * min(max_detections, 300))
            (found,) = ellipse_model.masks_from_boxes(ellipse_model.encode(images), [boxes])
            return [replace(found, labels=torch.zeros(len(boxes), dtype=torch.int64), categories=self.categories)]

    monkeypatch.setattr("maskwright.apps.weights.from_pretrained", lambda _: Detecting())
    summary = predict_files(["a.png"], PredictOptions(overlays=False))
    assert [entry["category_id"] for entry in results()] == [4] * 300
    assert summary.causes == {}
    summary = predict_files(["a.png"], PredictOptions(overlays=False, max_detections=120))
    assert len(results()) == 120
    (((_, cause), (count, example)),) = summary.causes.items()
    assert (cause.startswith("image with as many detections as --max-detections allows"), count) == (True, 1)
    assert example == "a.png"
    assert summary.exit_code == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_detections": 0}, "--max-detections: expected 1 or more, but got 0"),
        ({"processes": 0}, "--processes: expected 1 or more, but got 0"),
        ({"boxes": None, "annotations": "a.json"}, "--annotations .* needs --boxes"),
    ],
)
def test_options_that_cannot_be(changes: dict, words: str):
    with pytest.raises(UserError, match=words):
        PredictOptions(**{"boxes": "0,0,9,9", **changes})


def test_a_run_or_a_recipe_is_no_model(tmp_path: Path):
    weights = tmp_path / "runs" / "mine" / "best"
    weights.mkdir(parents=True)
    (weights / "config.json").write_text("{}")
    with pytest.raises(UserError, match="this is the folder of a training run; its weights are in runs/mine/best"):
        predict_files(["a.png"], PredictOptions(model="runs/mine", boxes="0,0,9,9"))
    for recipe in ("deep_mac/tiny", "mine.yaml"):
        with pytest.raises(UserError, match=f"--model {recipe}: this is a recipe"):
            predict_files(["a.png"], PredictOptions(model=recipe, boxes="0,0,9,9"))
