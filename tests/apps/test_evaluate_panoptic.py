"""`maskwright evaluate` of panoptic models on panoptic files."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from painter import Painter
from panoptic_folder import CATEGORIES, PanopticFolder, segment, stripes

from maskwright.apps import evaluate as evaluate_app
from maskwright.apps.compare_panoptic import compare_panoptic_files
from maskwright.errors import UserError
from maskwright.evaluation.report import summarize, tables_of
from maskwright.predictor import Predictor
from maskwright.structures import Category


def evaluate(model: Predictor, images: Path, annotations: Path, **options: Any) -> dict[str, Any]:
    """The numbers of an evaluation."""
    return summarize(evaluate_app.evaluate(model=model, images=images, annotations=annotations, **options))


@pytest.fixture
def folder(tmp_path: Path) -> PanopticFolder:
    scenes = [
        (stripes(1, 2), [segment(1, 3), segment(2, 200)]),
        (stripes(3, 3, 4, 4), [segment(3, 3), segment(4, 200)]),
    ]
    return PanopticFolder(tmp_path).write(*scenes)


MODEL = [Category(id=1, name="dog"), Category(id=2, name="cat"), Category(id=3, name="sky", isthing=False)]
IMAGINATIVE = [Category(id=1, name="dog"), Category(id=3, name="sky", isthing=False), Category(id=2, name="cat")]


def test_a_model_with_its_own_label_space(folder: PanopticFolder, tmp_path: Path):
    content = json.loads(folder.annotations.read_text())
    content["categories"] = [CATEGORIES[2], CATEGORIES[1]]
    folder.annotations.write_text(json.dumps(content))
    out = tmp_path / "found.json"
    summary = evaluate(Predictor(Painter(MODEL)), folder.images, folder.annotations, save_results=out, batch_size=2)
    assert (summary["pq"], summary["pq_things"], summary["pq_stuff"]) == (1.0, 1.0, 1.0)
    assert (summary["images"], summary["classes"]) == (2, 2)
    # What is written has the file's categories, and compares with it as the model did.
    assert [entry["id"] for entry in json.loads(out.read_text())["categories"]] == [3, 200]
    assert compare_panoptic_files(folder.annotations, out).compute()["pq"] == 1.0


def test_the_file_says_which_classes_are_things(folder: PanopticFolder):
    """The model takes sky, which says nothing, for a thing; by the file it is stuff."""
    content = json.loads(folder.annotations.read_text())
    content["categories"] = [CATEGORIES[2], CATEGORIES[1]]
    folder.annotations.write_text(json.dumps(content))
    silent = [Category(id=1, name="dog"), Category(id=3, name="sky")]
    summary = evaluate(Predictor(Painter(silent)), folder.images, folder.annotations)
    assert (summary["classes_things"], summary["classes_stuff"], summary["pq_stuff"]) == (1, 1, 1.0)


def test_a_class_that_the_file_does_not_have_is_void(folder: PanopticFolder, tmp_path: Path):
    content = json.loads(folder.annotations.read_text())
    content["categories"] = [CATEGORIES[2], CATEGORIES[1]]
    folder.annotations.write_text(json.dumps(content))
    out = tmp_path / "found.json"
    summary = evaluate(Predictor(Painter(IMAGINATIVE)), folder.images, folder.annotations, save_results=out)
    rows = {row["name"]: (row["pq"], row["false_positives"], row["false_negatives"]) for row in summary["per_class"]}
    assert rows == {"dog": (1.0, 0, 0), "sky": (0.0, 0, 2)}
    assert compare_panoptic_files(folder.annotations, out).compute()["pq"] == summary["pq"]


def test_a_model_for_instances_is_refused(folder: PanopticFolder):
    model = Painter(MODEL)
    model.task = "instance"
    with pytest.raises(UserError, match="but the model finds single instances only"):
        evaluate(Predictor(model), folder.images, folder.annotations)
    with pytest.raises(UserError, match="panoptic_quality must be one of official, in_house, but got 'best'"):
        evaluate(Predictor(model), folder.images, folder.annotations, panoptic_quality="best")


def test_two_processes_measure_every_image_once(folder: PanopticFolder, tmp_path: Path, monkeypatch):
    """What comes back from the processes is pickled; all that is said and saved is that of one process."""
    scenes = [(stripes(number, number + 1), [segment(number, 3), segment(number + 1, 200)]) for number in (1, 5, 9)]
    (tmp_path / "three").mkdir()
    three = PanopticFolder(tmp_path / "three").write(*scenes)
    monkeypatch.setattr(
        evaluate_app,
        "run_jobs",
        lambda work, shares, _: [(share, pickle.loads(pickle.dumps(work(share)))) for share in reversed(shares)],
    )
    found = []
    for processes in (1, 2):
        out = tmp_path / f"found{processes}.json"
        model = Predictor(Painter(MODEL))
        summary = evaluate(model, three.images, three.annotations, save_results=out, processes=processes)
        maps = [(out.with_suffix("") / f"{number}.png").read_bytes() for number in (1, 2, 3)]
        found.append((summary, json.loads(out.read_text()), maps))
    assert found[0] == found[1]
    assert found[0][0]["images"] == 3


def test_the_command_takes_either_kind_of_file(folder: PanopticFolder, tmp_path: Path, ellipse_model):
    painter = Predictor(Painter(MODEL))
    content = json.loads(folder.annotations.read_text())
    content["categories"] = [CATEGORIES[2], CATEGORIES[1]]
    folder.annotations.write_text(json.dumps(content))
    moved = folder.maps.rename(tmp_path / "elsewhere")
    numbers = tmp_path / "numbers.json"
    options = {"segmentations": moved, "panoptic_quality": "in_house"}
    files = {"model": painter, "images": folder.images, "annotations": folder.annotations}
    assert "dog" in tables_of(evaluate_app.evaluate(**files, json=numbers, **options))
    assert json.loads(numbers.read_text())["variant"] == "in_house"

    instances = tmp_path / "instances.json"
    entry = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 4, 4], "segmentation": [[0, 0, 4, 0, 4, 4]]}
    instances.write_text(json.dumps({**content, "annotations": [entry]}))
    for model, file, extra, words in [
        (painter, instances, {}, "instances.json is no COCO panoptic file"),
        (Predictor(ellipse_model), folder.annotations, {"segmentations": moved}, "model finds single instances only"),
        (
            painter,
            folder.annotations,
            {"boxes": "ground-truth"},
            "--boxes cannot be given here, since .* panoptic file",
        ),
        (painter, instances, {"segmentations": moved}, "--segmentations cannot be given here, since .* no COCO panop"),
        (painter, folder.annotations, {"segmentations": moved, "processes": 0}, "processes >= 1"),
        (painter, folder.annotations, {"json": folder.annotations}, "it is an input or another output"),
        (painter, folder.annotations, {"json": numbers, "save_results": numbers}, "it is an input or another output"),
        (
            painter,
            folder.annotations,
            {"seen": "all", "predicted_segmentations": moved},
            "--seen, --predicted-segmentations cannot be given here, since a model is evaluated on",
        ),
        (painter, instances, {"predicted_segmentations": moved}, "--predicted-segmentations cannot be given here"),
        (painter, folder.annotations, {"save_results": tmp_path / "elsewhere.json"}, "exists already"),
    ]:
        with pytest.raises(UserError, match=words):
            evaluate(model, folder.images, file, **extra)
