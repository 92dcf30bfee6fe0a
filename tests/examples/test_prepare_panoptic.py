"""The small panoptic set of photographs: split by name, merged into supercategories, and its recipe resolves."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskwright.data.panoptic import CocoPanoptic, PanopticEntry, panoptic_to_coco, write_panoptic
from maskwright.errors import UserError
from maskwright.structures import PanopticTarget
from maskwright.training.recipes import resolve_recipe

SCRIPT = Path(__file__).parents[2] / "examples" / "panoptic_photographs" / "prepare.py"
CLASSES = [
    {"id": 1, "name": "cat", "supercategory": "animal", "isthing": 1},
    {"id": 4, "name": "road", "supercategory": "ground", "isthing": 0},
    {"id": 5, "name": "sand", "supercategory": "ground", "isthing": 0},
    {"id": 9, "name": "dog", "supercategory": "animal", "isthing": 1},
]


@pytest.fixture
def prepare():
    specification = importlib.util.spec_from_file_location("prepare_panoptic", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ten pictures of four stripes: road, sand, a cat and a crowd of dogs; the last row is void."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    segmentation = torch.arange(4).repeat_interleave(4).repeat(9, 1).int()
    segmentation[-1] = -1
    entries = []
    for number in range(10):
        name = f"{number:012}.jpg"
        Image.fromarray(np.zeros((9, 16, 3), dtype=np.uint8)).save(folder / "images" / name)
        target = PanopticTarget(
            segmentation=segmentation,
            labels=torch.tensor([1, 2, 0, 3]),
            iscrowd=torch.tensor([False, False, False, True]),
            ids=torch.tensor([70, 30, 20, 10]),
            image_id=100 + number,
        )
        colours, annotation = panoptic_to_coco(target, CLASSES, name.replace("jpg", "png"))
        image = {"id": 100 + number, "file_name": name, "width": 16, "height": 9, "license": 4}
        entries.append(PanopticEntry(image, colours, annotation))
    write_panoptic(folder / "panoptic.json", entries, CLASSES)
    return folder


def test_split_and_classes(prepare, data: Path, tmp_path: Path):
    out = tmp_path / "out"
    prepare.prepare(data, out, held_out=3)
    parts = {name: json.loads((out / f"{name}.json").read_text()) for name in ("train", "held_out")}
    names = {name: {image["file_name"] for image in content["images"]} for name, content in parts.items()}
    assert (len(names["train"]), len(names["held_out"])) == (7, 3)
    assert not names["train"] & names["held_out"]
    assert parts["train"]["categories"] == [
        {"id": 1, "name": "animal", "isthing": 1},
        {"id": 2, "name": "ground", "isthing": 0},
    ]
    assert {image["license"] for image in parts["train"]["images"]} == {4}
    part = CocoPanoptic(data / "images", out / "held_out.json")
    for index in range(len(part)):
        _, target = part.read_sample(index)
        assert (target["labels"].tolist(), target["ids"].tolist()) == ([1, 0, 0], [70, 20, 10])
        assert target["iscrowd"].tolist() == [False, False, True]
        assert target["segmentation"][0].tolist() == [0] * 8 + [1] * 4 + [2] * 4
        assert (target["segmentation"][-1] == -1).all()


def test_a_photograph_stays_on_its_side_when_more_are_held_out(prepare, data: Path, tmp_path: Path):
    held_out = []
    for count in (2, 5):
        prepare.prepare(data, tmp_path / str(count), held_out=count)
        content = json.loads((tmp_path / str(count) / "held_out.json").read_text())
        held_out.append({image["file_name"] for image in content["images"]})
    assert held_out[0] < held_out[1]
    with pytest.raises(UserError, match="must lie between 0 and the 10 photographs, but is 10"):
        prepare.prepare(data, tmp_path / "all", held_out=10)


def test_the_recipe_resolves(prepare, data: Path, tmp_path: Path):
    prepare.prepare(data, tmp_path / "out", held_out=3)
    recipe = resolve_recipe(str(tmp_path / "out" / "recipe.yaml"))
    assert recipe.model["backbone"] == "efficientnet_lite0"
    assert recipe.data.validation_annotations == str(tmp_path / "out" / "held_out.json")


def test_one_class_is_the_stuff_of_the_most_pixels(prepare, data: Path, tmp_path: Path):
    prepare.prepare(data, tmp_path / "out", held_out=3)
    part = CocoPanoptic(data / "images", tmp_path / "out" / "one_class.json")
    assert len(part) == 3
    _, target = part.read_sample(0)
    assert (target["labels"].tolist(), target["segmentation"].any().item()) == ([1], False)


def test_a_supercategory_of_both_kinds_is_refused(prepare):
    mixed = [*CLASSES, {"id": 11, "name": "herd", "supercategory": "animal", "isthing": 0}]
    with pytest.raises(UserError, match="both things and stuff: \\['animal'\\]"):
        prepare.merged_classes(mixed)


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path):
    command = [sys.executable, SCRIPT, tmp_path / "no", tmp_path]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, len(ran.stderr.splitlines())) == (2, 1)
    assert str(tmp_path / "no" / "panoptic.json") in ran.stderr
