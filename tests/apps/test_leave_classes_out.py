"""`maskwright study leave-classes-out`: what each training may see, what is measured of it, and what is told."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from coco_folder import CocoFolder, annotation, polygon

from maskwright.apps import leave_classes_out
from maskwright.apps.left_out_files import read_sides
from maskwright.cli import main
from maskwright.errors import UserError
from maskwright.evaluation.left_out_classes import MeasuredBoxes
from maskwright.training.recipes import resolve_recipe

RECIPE = """
family: deep_mac
model: {image_size: 64, backbone: resnet18_fpn, mask_head: resnet4, mask_head_width: 8, mask_size: 16, width: 0.0625}
data: {batch_size: 2, num_workers: 0, scale: [0.5, 1.2]}
optimizer: {learning_rate: 0.002, warmup_steps: 2}
trainer: {steps: 2, accelerator: cpu}
"""
CATEGORIES = [{"id": 10 * number, "name": name} for number, name in enumerate(("cat", "dog", "cup", "tree"), 1)]
COMMAND = [
    "study", "leave-classes-out", "--recipe", "toy.yaml", "--out", "out",
    "--data.images", "images", "--data.annotations", "instances.json",
]  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> CocoFolder:
    """The folder of the test: twelve images, each with a cat, a dog and a cup with masks and a tree with a box."""
    monkeypatch.chdir(tmp_path)
    Path("toy.yaml").write_text(RECIPE)
    entries = [
        annotation(
            100 * image + category, image, category, bbox=[category, 5, 20, 24],
            segmentation=polygon(category, 5, category + 20, 29) if category < 40 else ...,
        )
        for image in range(1, 13) for category in (10, 20, 30, 40)
    ]  # fmt: skip
    return CocoFolder(tmp_path).write(entries, images=12, categories=CATEGORIES, size=(48, 64))


@pytest.fixture
def fake(monkeypatch) -> dict[str, float]:
    """No training, no model: each row reaches the IoU that is named here, 0.5 if none is; NaN: its training fails."""
    ious: dict[str, float] = {}

    def ended(runs, *_):
        for run in runs:
            run.folder.mkdir(parents=True, exist_ok=True)
            yield run, 1 if math.isnan(ious.get(run.row, 0)) else 0

    def measured(weights, source):
        content = json.loads(Path(source.annotations).read_text())
        place = {image["id"]: number for number, image in enumerate(content["images"])}
        labels = {category["id"]: label for label, category in enumerate(content["categories"])}
        iou = ious.get(weights.parts[1], 0.5)
        rows = [
            (place[entry["image_id"]], labels[entry["category_id"]], iou if "segmentation" in entry else math.nan, 0.4)
            for entry in content["annotations"]
        ]
        return MeasuredBoxes(*np.array(rows, dtype=float).T)

    monkeypatch.setattr(leave_classes_out, "ended_runs", ended)
    monkeypatch.setattr(leave_classes_out, "measure_boxes", measured)
    return ious


def written(name: str) -> dict:
    return json.loads(Path(f"out/data/{name}.json").read_text())


def masks_of(name: str) -> dict[str, set[int]]:
    names = {category["id"]: category["name"] for category in CATEGORIES}
    found: dict[str, set[int]] = {own: set() for own in names.values()}
    for entry in written(name)["annotations"]:
        if "segmentation" in entry:
            found[names[entry["category_id"]]].add(entry["id"])
    return found


class TestFiles:
    def test_every_class_with_masks_is_left_out_of_one_fold_and_the_images_are_divided(self, fake):
        assert main([*COMMAND, "--masks", "2,4"]) == 0
        training, measured = written("fold_1_masks_0"), written("measured")
        sides = [{image["id"] for image in side["images"]} for side in (training, measured)]
        assert sides[0] | sides[1] == set(range(1, 13))
        assert not sides[0] & sides[1]
        assert {entry["image_id"] for entry in training["annotations"]} == sides[0]
        everything = {len(sides[0])}
        left_out = [
            {name for name, masks in masks_of(f"fold_{fold}_masks_0").items() if not masks} for fold in (1, 2, 3)
        ]
        assert sorted(map(sorted, left_out)) == [["cat", "tree"], ["cup", "tree"], ["dog", "tree"]]
        for fold, (name, _) in enumerate(map(sorted, left_out), 1):
            two, four = masks_of(f"fold_{fold}_masks_2"), masks_of(f"fold_{fold}_masks_4")
            assert (len(two[name]), len(four[name])) == (2, 4)
            assert two[name] < four[name]
            assert {len(two[other]) for other in ("cat", "dog", "cup") if other != name} == everything
        # Boxes stay, of all classes.
        assert {len(written(f"fold_1_masks_{n}")["annotations"]) for n in (0, 2, 4)} == {4 * len(sides[0])}

    def test_folds_do_not_depend_on_the_order_of_the_file(self, fake, here):
        assert main(COMMAND) == 0
        content = json.loads(here.annotations.read_text())
        for key in ("images", "annotations", "categories"):
            content[key].reverse()
        here.annotations.write_text(json.dumps(content))
        assert main([*COMMAND, "--out", "reversed"]) == 0
        before = masks_of("fold_1_masks_5")
        Path("out").rename("first")
        Path("reversed").rename("out")
        assert masks_of("fold_1_masks_5") == before

    def test_rows_that_would_repeat_another_are_left_out(self, fake):
        assert main([*COMMAND, "--masks", "5,100", "--folds", "2"]) == 0
        rows = sorted(path.name for path in Path("out").iterdir() if path.name.startswith("fold"))
        assert rows == ["fold_1_masks_0", "fold_1_masks_5", "fold_2_masks_0", "fold_2_masks_5"]

    def test_a_file_to_measure_on_keeps_all_images_for_training(self):
        options = ["--data.images=images", "--data.annotations=instances.json"]
        data = resolve_recipe("toy.yaml", [*options, "--data.validation_annotations=instances.json"]).data
        training, measured = read_sides(data)
        assert len(training.images) == len(measured.images) == 12

    def test_other_data_in_the_same_folder_are_refused(self, fake, here, capsys):
        assert main(COMMAND) == 0
        content = json.loads(here.annotations.read_text())
        del content["annotations"][0]["segmentation"]
        here.annotations.write_text(json.dumps(content))
        assert main(COMMAND) == 2
        assert "is of a study of other data, folds or masks; give another --out" in capsys.readouterr().err


class TestAnswer:
    def test_it_is_printed_and_written_as_markdown_json_and_picture(self, fake, capsys):
        fake.update({f"fold_{fold}_masks_5": 0.6 for fold in (1, 2, 3)})
        assert main([*COMMAND, "--masks", "5"]) == 0
        said, markdown = capsys.readouterr().out, Path("out/table.md").read_text()
        for text in (said, markdown):
            assert "gain by 5" in text
            assert "(any other)" in text
            assert "hardly known: cat, dog, cup." in text
        table = json.loads(Path("out/table.json").read_text())
        classes = {each["name"]: each for each in table["classes"]}
        assert classes["cat"]["without"][0] == pytest.approx(0.5)
        assert classes["cat"]["gains"]["5"][0] == pytest.approx(0.1)
        # Scores of 0.4 where the others reach 0.5.
        assert classes["tree"]["predicted"] == pytest.approx([0.5] * 3)
        assert classes["tree"]["without"] is None
        assert table["prediction_error"] == pytest.approx(0, abs=1e-9)
        assert Path("out/chart.png").stat().st_size

    def test_a_failed_training_is_named_and_its_classes_are_not_measured(self, fake, capsys):
        fake["fold_1_masks_0"] = math.nan
        assert main([*COMMAND, "--masks", ""]) == 3
        said = capsys.readouterr()
        assert said.err.splitlines()[-1] == "failed: fold_1_masks_0, seed 0: its training ended with exit code 1"
        assert "Not measured, or not yet: " in said.out

    def test_what_has_been_measured_is_read(self, fake):
        assert main([*COMMAND, "--masks", ""]) == 0
        fake.update({f"fold_{fold}_masks_0": 0.9 for fold in (1, 2, 3)})
        assert main([*COMMAND, "--masks", ""]) == 0
        assert json.loads(Path("out/table.json").read_text())["classes"][0]["without"][0] == pytest.approx(0.5)

    def test_classes_that_the_first_weights_know_are_named(self, fake, monkeypatch, capsys):
        monkeypatch.setattr(leave_classes_out, "_classes_of_weights", lambda *_: ["cat"])
        assert main([*COMMAND, "--masks", ""]) == 0
        assert "may be worse: cat." in capsys.readouterr().out


def test_models_are_trained_and_measured(capfd):
    command = [*COMMAND, "--masks", "", "--folds", "2", "--trainer.steps", "1"]
    assert main([*command, "--dry-run"]) == 0
    assert "fold_2_masks_0" in capfd.readouterr().out
    assert not Path("out").exists()
    assert main(command) == 0
    table = json.loads(Path("out/table.json").read_text())
    assert [each["instances"] > 0 for each in table["classes"]] == [True, True, True, False]
    boxes = [json.loads(Path(f"out/fold_{fold}_masks_0/seed_0/evaluated/boxes.json").read_text()) for fold in (1, 2)]
    assert boxes[0]["labels"] == boxes[1]["labels"] == [0, 1, 2, 3] * (len(boxes[0]["labels"]) // 4)
    assert [iou is None for iou in boxes[0]["ious"][:4]] == [False, False, False, True]
    assert all(0 <= score <= 1 for score in boxes[0]["scores"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--folds", "1"], "expected folds >= 2"),
        (["--masks", "5,x"], "masks must be different whole numbers > 0"),
        (["--masks", "5,5"], "masks must be different whole numbers > 0"),
        (["--fold", "3"], "did you mean --folds?"),
        (["--data.mask_classes", "voc"], "leave data.mask_classes out"),
        (["--data.annotations", "absent.json"], "cannot read the annotation file absent.json"),
        (["--data.images", "absent"], "absent"),
        (["--trainer.seed", "3"], "--trainer.seed is a value that study leave-classes-out gives to its runs itself"),
        (["--recipe", "max_deeplab/tiny"], "asks for masks of given boxes"),
        (["--model.mask_haed", "resnet4"], "did you mean --model.mask_head?"),
    ],
)
def test_mistakes_are_refused_with_one_sentence(fake, capsys, options, words):
    assert main([*COMMAND, *options]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1
    assert not Path("out").exists()


def test_two_classes_with_masks_are_too_few(fake, here, capsys):
    content = json.loads(here.annotations.read_text())
    content["annotations"] = [entry for entry in content["annotations"] if entry["category_id"] in (10, 20)]
    here.annotations.write_text(json.dumps(content))
    assert main(COMMAND) == 2
    assert "needs 3 or more classes with masks among the training images, but there are 2: " in capsys.readouterr().err


def test_images_without_masks_cannot_be_measured(here):
    content = json.loads(here.annotations.read_text())
    for entry in content["annotations"]:
        entry.pop("segmentation", None)
    Path("boxes.json").write_text(json.dumps(content))
    options = ["--data.images=images", "--data.annotations=instances.json", "--data.validation_annotations=boxes.json"]
    with pytest.raises(UserError, match="none of the 12 images to measure on has a mask"):
        read_sides(resolve_recipe("toy.yaml", options).data)


def test_boxes_of_an_unknown_class_are_refused_before_anything_is_trained(here, capsys):
    content = json.loads(here.annotations.read_text())
    content["categories"].append({"id": 77, "name": "zebra"})
    content["annotations"].append({"id": 9999, "image_id": 1, "category_id": 77, "bbox": [1, 1, 9, 9]})
    Path("more.json").write_text(json.dumps(content))
    assert main([*COMMAND, "--data.validation_annotations", "more.json"]) == 2
    assert "more.json has classes that instances.json lacks: zebra" in capsys.readouterr().err


def test_shards_are_refused_with_one_sentence():
    assert main(["data", "shards", "instances.json", "--images", "images", "--out", "shards"]) == 0
    with pytest.raises(UserError, match="is a folder of shards; classes are left out of a COCO instances file"):
        read_sides(resolve_recipe("toy.yaml", ["--data.shards=shards"]).data)
