"""`maskwright data check RECIPE`: the union of the recipe's sets, and that training agrees."""

import json
from pathlib import Path

import pytest
import yaml
from coco_folder import CocoFolder, annotation

from maskwright.apps.check_data import check_data
from maskwright.apps.check_recipe import check_recipe
from maskwright.cli import main
from maskwright.errors import UserError
from maskwright.training.data_sets import open_data_sets
from maskwright.training.recipes import resolve_recipe

PEOPLE = [{"id": 7, "name": "person"}, {"id": 3, "name": "TV"}]
OTHERS = [{"id": 3, "name": "kite"}, {"id": 4, "name": "tvmonitor"}]


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, CocoFolder]:
    """Two images with masks; three with boxes of kites, of which one is a crowd, and a TV's mask."""
    made = {}
    for name in ("people", "others"):
        (tmp_path / name).mkdir()
        made[name] = CocoFolder(tmp_path / name)
    made["people"].write(
        [annotation(1), annotation(2, image_id=2), annotation(3, image_id=2, category_id=3)],
        images=2,
        categories=PEOPLE,
    )
    made["others"].write(
        [
            annotation(1, category_id=3, segmentation=...),
            annotation(2, category_id=3, image_id=3, iscrowd=1),
            annotation(3, category_id=4, image_id=2),
        ],
        images=3,
        categories=OTHERS,
    )
    return made


@pytest.fixture
def recipe(folders, tmp_path: Path):
    """Write a recipe with changed values for each set; its path."""

    def write(**changes: dict) -> Path:
        sets = [
            {"name": name, "images": str(folder.images), "annotations": str(folder.annotations)} | changes.get(name, {})
            for name, folder in folders.items()
        ]
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({"base": "deep_mac/tiny", "data": {"sets": sets}}))
        return path

    return write


def test_the_union_is_shown(recipe, folders):
    path = recipe(
        people={"share": 3, "validation_annotations": str(folders["people"].annotations)}, others={"share": 1}
    )
    report = check_recipe(path)
    assert report.usable
    assert str(report).splitlines() == [
        str(path),
        "2 sets: 5 images, 4 instances with masks, 1 with boxes only; masks of 2 of 3 classes",
        "set       images     boxes     masks     share  validation images",
        "people         2         3         3     75.0%                  2",
        "others         3         2         1     25.0%                  -",
        "",
        "boxes/masks    people    others",
        "person            2/2         -",
        "TV                1/1       1/1",
        "kite                -       1/0",
        "",
        "repaired: 0",
        "problems: 0",
        "usable for training: yes",
    ]


def test_without_shares_each_set_has_that_of_its_images_and_masks_are_those_that_are_learnt(recipe):
    text = str(check_recipe(recipe(others={"mask_classes": []}))).splitlines()
    assert text[3].split() == ["people", "2", "3", "3", "40.0%"]
    assert text[4].split() == ["others", "3", "2", "0", "60.0%"]
    assert text[8].split() == ["TV", "1/1", "1/0"]


def test_problems_and_repairs_name_their_set(recipe, folders):
    for folder in folders.values():
        content = json.loads(folder.annotations.read_text())
        content["annotations"].append(annotation(9, image_id=77))
        content["annotations"][0]["iscrowd"] = "0"
        folder.annotations.write_text(json.dumps(content))
    report = check_recipe(recipe())
    assert [(problem.id, problem.effect) for problem in report.problems] == [
        ("9 of people", "dropped"),
        ("9 of others", "dropped"),
    ]
    assert sum(report.repairs.counts.values()) == 2
    assert any("of people" in line for line in report.repairs.lines)
    assert report.usable


def test_an_image_that_cannot_be_read_makes_the_recipe_unusable(recipe, folders, capsys):
    (folders["others"].images / "2.png").write_bytes(b"no picture")
    path = recipe()
    assert main(["data", "check", str(path)]) == 2
    text = capsys.readouterr().out
    assert "image 2 of others: cannot read the image" in text
    assert "usable for training: no" in text


def boxes_alone(folder: CocoFolder) -> None:
    content = json.loads(folder.annotations.read_text())
    for entry in content["annotations"]:
        entry["segmentation"] = []
    folder.annotations.write_text(json.dumps(content))


def agrees_with_training(path: Path) -> bool:
    usable = check_recipe(path).usable
    options = resolve_recipe(path).data
    if usable:
        open_data_sets(options, 64, None)
    else:
        with pytest.raises(UserError):
            open_data_sets(options, 64, None)
    return usable


def test_a_set_may_have_boxes_alone_but_not_all_of_them(recipe, folders):
    boxes_alone(folders["others"])
    assert agrees_with_training(recipe())
    boxes_alone(folders["people"])
    assert not agrees_with_training(recipe())
    reasons = [problem.reason for problem in check_recipe(recipe()).problems]
    assert reasons[0].startswith("the sets people, others have fewer than 2 images with a usable mask to learn from")


def test_validation_files_need_masks_of_their_own(recipe, folders):
    boxes_alone(folders["others"])
    named = {"validation_annotations": str(folders["others"].annotations)}
    assert not agrees_with_training(recipe(others=named))
    (problem,) = check_recipe(recipe(others=named)).problems
    assert problem.reason == "the sets others have fewer than 1 images with a usable mask to validate on"


def test_a_recipe_of_one_file_is_checked_as_that_file(folders, tmp_path):
    folder = folders["people"]
    path = tmp_path / "one.yaml"
    data = {"images": str(folder.images), "annotations": str(folder.annotations)}
    path.write_text(yaml.safe_dump({"base": "deep_mac/tiny", "data": data}))
    assert str(check_recipe(path)) == str(check_data(folder.annotations, folder.images))


def test_what_a_recipe_says_itself_is_refused(recipe, capsys):
    assert main(["data", "check", str(recipe()), "--images", "x", "--exif", "stored"]) == 2
    assert "says itself where its data are; leave --images and --exif out" in capsys.readouterr().err


@pytest.fixture
def one_set(folders, tmp_path: Path):
    """Write a recipe of one set with a validation file; its path."""

    def write(validation: Path) -> Path:
        people = folders["people"]
        data = {"images": str(people.images), "annotations": str(people.annotations)}
        path = tmp_path / "recipe.yaml"
        path.write_text(
            yaml.safe_dump({"base": "deep_mac/tiny", "data": {**data, "validation_annotations": str(validation)}})
        )
        return path

    return write


def test_the_validation_file_of_one_set_is_checked_too(one_set, folders, tmp_path: Path):
    content = json.loads(folders["people"].annotations.read_text())
    content["annotations"].append(annotation(9, image_id=77))
    validation = tmp_path / "validation.json"
    validation.write_text(json.dumps(content))
    report = check_recipe(one_set(validation))
    assert report.usable
    assert [problem.id for problem in report.problems] == [f"9 of {validation}"]
    assert f"validation: {validation}" in str(report).splitlines()
    assert agrees_with_training(one_set(validation))
    validation.write_text(json.dumps({**content, "annotations": []}))
    assert not agrees_with_training(one_set(validation))


def test_a_class_that_only_the_validation_file_has_is_refused_as_by_training(one_set, folders, tmp_path: Path):
    content = json.loads(folders["people"].annotations.read_text())
    content["categories"].append({"id": 8, "name": "kite"})
    content["annotations"].append(annotation(9, category_id=8))
    validation = tmp_path / "validation.json"
    validation.write_text(json.dumps(content))
    with pytest.raises(UserError, match="kite"):
        check_recipe(one_set(validation))


def test_one_image_to_learn_from_is_enough_beside_a_validation_file(one_set, folders, tmp_path: Path):
    people = folders["people"]
    content = json.loads(people.annotations.read_text())
    validation = tmp_path / "validation.json"
    validation.write_text(json.dumps(content))
    people.annotations.write_text(json.dumps({**content, "annotations": content["annotations"][:1]}))
    assert agrees_with_training(one_set(validation))


def test_shards_as_validation_file(recipe, one_set, folders, tmp_path: Path):
    people = folders["people"]
    shards = str(tmp_path / "shards")
    assert main(["data", "shards", str(people.annotations), "--images", str(people.images), "--out", shards]) == 0
    assert agrees_with_training(one_set(Path(shards)))
    assert agrees_with_training(recipe(people={"validation_annotations": shards}))


def test_a_misspelt_exif_is_refused(folders, tmp_path: Path, capsys):
    people = folders["people"]
    files = [str(people.annotations), "--images", str(people.images), "--exif", "uprigth"]
    for command in (["check"], ["shards", "--out", str(tmp_path / "shards")]):
        assert main(["data", command[0], *files, *command[1:]]) == 2
        assert "exif must be one of auto, upright, stored, but got 'uprigth'" in capsys.readouterr().err
    assert not (tmp_path / "shards").exists()
