"""The overfit benchmark: which images are learnt by heart, and which commands are run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "overfit.py"

FILE = {
    "images": [{"id": number, "file_name": f"{number}.jpg"} for number in range(6)],
    "annotations": [
        {"image_id": 0, "category_id": 7, "bbox": [0, 0, 30, 30]},
        {"image_id": 1, "category_id": 8, "bbox": [0, 0, 30, 30]},
        {"image_id": 1, "category_id": 7, "bbox": [0, 0, 30, 9]},
        {"image_id": 2, "category_id": 9, "bbox": [0, 0, 40, 40]},
        {"image_id": 3, "category_id": 8, "bbox": [0, 0, 30, 30], "iscrowd": 1},
        {"image_id": 4, "category_id": 7, "bbox": [0, 0, 30, 30]},
    ],
    "categories": [{"id": 7, "name": "dog"}, {"id": 8, "name": "cat"}, {"id": 9, "name": "cow"}],
}


@pytest.fixture
def overfit():
    specification = importlib.util.spec_from_file_location("overfit", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_images_have_an_object_and_no_small_one(overfit):
    everything = overfit.few_images(FILE, 9, 0)
    assert {image["id"] for image in everything["images"]} == {0, 1, 2, 4}
    large = overfit.few_images(FILE, 9, 0, min_side=10)
    assert {image["id"] for image in large["images"]} == {0, 2, 4}
    assert [entry["image_id"] for entry in large["annotations"]] == [0, 2, 4]
    assert [category["name"] for category in large["categories"]] == ["dog", "cow"]


def test_the_choice_is_that_of_the_seed(overfit):
    chosen = {tuple(image["id"] for image in overfit.few_images(FILE, 2, seed)["images"]) for seed in (0, 0, 1, 2, 3)}
    assert 1 < len(chosen) <= 4
    assert all(len(images) == 2 for images in chosen)


def test_it_trains_then_evaluates_with_both_kinds_of_boxes(overfit, tmp_path, monkeypatch):
    annotations, run, ran = tmp_path / "instances.json", tmp_path / "run", []
    annotations.write_text(json.dumps(FILE))
    monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append((command[3:], check)))
    arguments = ["toy", "--images", "DIR", "--annotations", annotations, "--out", run, "--trainer.steps", "7"]
    monkeypatch.setattr(sys, "argv", ["overfit.py", *map(str, arguments)])
    overfit.main()
    (train, must_train), (predicted, _), (given, _) = ran
    assert train[:2] == ["train", "toy"]
    assert train[-2:] == ["--trainer.steps", "7"]
    assert must_train
    assert (tmp_path / "run.json").is_file()
    for command, boxes in ((predicted, "predicted"), (given, "ground-truth")):
        assert command[:2] == ["evaluate", str(run / "last")]
        assert command[-2:] == ["--boxes", boxes]

    run.mkdir()
    (run / "recipe.yaml").touch()
    overfit.main()
    assert ran[3][0][-2:] == ["--resume", "last"]
    assert not ran[3][1]


def test_a_panoptic_file_is_learnt_and_evaluated_as_one(overfit, tmp_path, monkeypatch):
    segments = {0: [7, 9], 1: [8], 2: []}
    entries = [
        {"image_id": image, "segments_info": [{"category_id": label} for label in labels]}
        for image, labels in segments.items()
    ]
    annotations, run, ran = tmp_path / "panoptic.json", tmp_path / "run", []
    annotations.write_text(json.dumps({**FILE, "annotations": entries}))
    monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append((command[3:], check)))
    arguments = ["toy", "--images", "DIR", "--annotations", annotations, "--out", run, "--trainer.steps", "7"]
    monkeypatch.setattr(sys, "argv", ["overfit.py", *map(str, arguments)])
    overfit.main()
    subset = json.loads((tmp_path / "run.json").read_text())
    assert {image["id"] for image in subset["images"]} == {0, 1}
    assert [category["id"] for category in subset["categories"]] == [7, 8, 9]
    (train, must_train), (evaluate, must_evaluate) = ran
    assert must_train
    assert must_evaluate
    maps = str(tmp_path / "panoptic")
    assert train[train.index("--data.segmentations") + 1] == maps
    assert "--data.crop_size" not in train
    assert evaluate[-4:] == ["--json", str(tmp_path / "run.panoptic.json"), "--segmentations", maps]
