"""The overfit benchmark: which images are learnt by heart, and which commands are run."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from maskwright.training.recipes import recipe_yaml, resolve_recipe
from maskwright.training.run_folder import take

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


@pytest.fixture
def start(overfit, tmp_path, monkeypatch):
    """Runs the benchmark on `file`; in place of its commands it calls `act(command) -> exit code`."""

    def start(*options: str, file=FILE, act=finish, model=DETECTOR) -> list[list[str]]:
        commands: list[list[str]] = []

        def call(command, check):
            commands.append(command[3:])
            return SimpleNamespace(returncode=act(command[3:]))

        annotations = tmp_path / "file.json"
        annotations.write_text(json.dumps(file))
        monkeypatch.setattr(overfit, "subprocess", SimpleNamespace(run=call))
        monkeypatch.setattr(overfit, "from_pretrained", lambda folder: model)
        recipe = "max_deeplab/tiny" if file is PANOPTIC else "deep_mac/tiny_detector"
        given = [recipe, "--images", "DIR", "--annotations", annotations, "--out", tmp_path / "run", *options]
        monkeypatch.setattr(sys, "argv", ["overfit.py", *map(str, given)])
        overfit.main()
        return commands

    return start


def finish(command: list[str]) -> int:
    """What a training leaves behind that ran to its end, and an evaluation."""
    if command[0] == "evaluate":
        Path(command[command.index("--json") + 1]).write_text("{}")
        return 0
    recipe = resolve_recipe(command[1], [part for part in command[2:] if part not in ("--resume", "last")])
    folder = Path(recipe.trainer.output or "")
    take(folder, recipe_yaml(recipe))
    save_checkpoint(folder, recipe.trainer.steps)
    return 0


def save_checkpoint(folder: Path, step: int) -> None:
    """What the benchmark reads of a run's last checkpoint."""
    recipe = (folder / "recipe.yaml").read_text()
    torch.save({"global_step": step, "recipe": recipe, "state_dict": {}}, folder / "last.ckpt")


def prompted(needs_boxes: bool) -> SimpleNamespace:
    return SimpleNamespace(needs_boxes=needs_boxes, encode=list, masks_from_boxes=list)


DETECTOR = prompted(needs_boxes=False)


def test_it_trains_then_evaluates_with_both_kinds_of_boxes(start, tmp_path):
    train, *evaluations = start("--trainer.steps", "7")
    assert train[:2] == ["train", "deep_mac/tiny_detector"]
    assert train[-2:] == ["--trainer.steps", "7"]
    assert train[train.index("--data.annotations") + 1] == str(tmp_path / "run.json")
    assert len(json.loads((tmp_path / "run.json").read_text())["images"]) == 4
    for command, boxes in zip(evaluations, ("predicted", "ground-truth"), strict=True):
        assert command[:2] == ["evaluate", str(tmp_path / "run" / "last")]
        assert command[-4:] == ["--json", str(tmp_path / f"run.boxes-{boxes}.json"), "--boxes", boxes]


@pytest.mark.parametrize(
    ("model", "boxes"),
    [(prompted(needs_boxes=True), "ground-truth"), (SimpleNamespace(needs_boxes=False), "predicted")],
)
def test_a_model_is_evaluated_only_with_boxes_that_it_takes(start, model, boxes):
    assert [command[-1] for command in start(model=model)[1:]] == [boxes]


def test_a_finished_run_is_only_evaluated_and_a_stopped_one_continued(start, tmp_path):
    start("--trainer.steps", "7")
    assert [command[0] for command in start("--trainer.steps", "7")] == ["evaluate", "evaluate"]
    save_checkpoint(tmp_path / "run", 5)
    train, *_ = start("--trainer.steps", "7")
    assert train[-2:] == ["--resume", "last"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--min-side", "10"], "run.json holds other images"),
        (["--count", "2"], "run.json holds other images"),
        (["--model.mask_size", "16"], "model.mask_size is 32 in this run"),
    ],
)
def test_a_run_with_other_images_or_values_is_refused(start, tmp_path, capsys, options, words):
    start()
    before = (tmp_path / "run.json").read_text()
    with pytest.raises(SystemExit) as exit:
        start(*options, act=lambda command: pytest.fail("went on"))
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.endswith("give another --out\n")
    assert (tmp_path / "run.json").read_text() == before


@pytest.mark.parametrize("begun", [False, True])
def test_a_training_that_fails_ends_the_benchmark_with_its_code_and_no_numbers(start, tmp_path, begun):
    if begun:
        start("--trainer.steps", "7")
        assert (tmp_path / "run.boxes-predicted.json").is_file()
    commands = []
    with pytest.raises(SystemExit) as exit:
        start("--trainer.steps", "9", act=lambda command: commands.append(command[0]) or 143)
    assert exit.value.code == 143
    assert commands == ["train"]
    assert not list(tmp_path.glob("run.boxes-*"))


def test_an_evaluation_that_fails_ends_the_benchmark_with_its_code(start):
    with pytest.raises(SystemExit) as exit:
        start(act=lambda command: 2 if command[0] == "evaluate" else finish(command))
    assert exit.value.code == 2


SEGMENTS = {0: [7, 9], 1: [8], 2: []}
PANOPTIC = {
    **FILE,
    "annotations": [
        {
            "image_id": image,
            "segments_info": [{"category_id": label, "bbox": [0, 0, 30, 30 - label]} for label in labels],
        }
        for image, labels in SEGMENTS.items()
    ],
}


def test_a_panoptic_file_is_learnt_and_evaluated_as_one(start, tmp_path):
    train, evaluate = start("--trainer.steps", "7", file=PANOPTIC, model=SimpleNamespace())
    subset = json.loads((tmp_path / "run.json").read_text())
    assert {image["id"] for image in subset["images"]} == {0, 1}
    assert [category["id"] for category in subset["categories"]] == [7, 8, 9]
    maps = str(tmp_path / "file")
    assert train[train.index("--data.segmentations") + 1] == maps
    assert "--data.crop_size" not in train
    assert evaluate[-4:] == ["--json", str(tmp_path / "run.panoptic.json"), "--segmentations", maps]
    assert [command[0] for command in start("--trainer.steps", "7", file=PANOPTIC)] == ["evaluate"]


def test_a_panoptic_run_with_other_images_is_refused(start, capsys):
    start(file=PANOPTIC)
    with pytest.raises(SystemExit):
        start("--min-side", "22", file=PANOPTIC)
    assert "run.json holds other images" in capsys.readouterr().err
