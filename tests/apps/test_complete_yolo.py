"""`maskwright complete data.yaml`: YOLO boxes in, a completed COCO file and YOLO polygons out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

from maskwright.cli import main

SIZES = {"a": (30, 40), "b": (20, 50)}  # height, width


@pytest.fixture(autouse=True)
def data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ellipse_model) -> Path:
    """A data set `set` with two pictures in one split and one without labels in the other."""
    monkeypatch.setattr("maskwright.apps.weights.from_pretrained", lambda _: ellipse_model)
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "set"
    for name, (height, width) in {**SIZES, "empty": (8, 8)}.items():
        split = root / ("images/val" if name == "empty" else "images/train")
        split.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(split / f"{name}.png")
    labels = root / "labels" / "train"
    labels.mkdir(parents=True)
    (labels / "a.txt").write_text("1 0.5 0.5 0.4 0.6\n\nnot a line\n0 0.1 0.1 0.9 0.1 0.9 0.8\n")
    (labels / "b.txt").write_text("0 0.25 0.5 0.2 0.4\n")
    write_yaml("path: /of/another/machine\n", "images")
    return root


def write_yaml(head: str, images: str) -> None:
    Path("set/data.yaml").write_text(f"{head}train: {images}/train\nval: {images}/val\nnames: [cat, dog]\n")


def complete(*arguments: str) -> int:
    return main(["complete", "set/data.yaml", "--out", "done.json", *arguments])


def filled(line: str, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    points = np.array(line.split()[1:], dtype=float).reshape(-1, 2) * [width, height]
    return coco_mask.decode(coco_mask.segmToRle([points.ravel().tolist()], width, height)).astype(bool)


@pytest.mark.parametrize("polygons", [(), ("--polygons",)])
def test_masks_of_both_outputs_are_the_same(polygons: tuple[str, ...], capsys):
    assert complete(*polygons) == 3  # a line is none
    assert "failed: 1 x line of a label file that is no object" in capsys.readouterr().err
    content = json.loads(Path("done.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [
        "images/train/a.png",
        "images/train/b.png",
        "images/val/empty.png",
    ]
    assert content["categories"] == [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    dog, human, cat = content["annotations"]
    assert (dog["category_id"], dog["bbox"]) == (1, [12, 6, 16, 18])
    assert human["segmentation"] == [[4, 3, 36, 3, 36, 24]]
    assert "maskwright" not in human
    first, second, third = Path("done_labels/labels/train/a.txt").read_text().splitlines()
    assert (second, third) == ("not a line", "0 0.1 0.1 0.9 0.1 0.9 0.8")
    (fourth,) = Path("done_labels/labels/train/b.txt").read_text().splitlines()
    for line, entry, size in ((first, dog, SIZES["a"]), (fourth, cat, SIZES["b"])):
        assert line.split()[0] == str(entry["category_id"])
        segmentation = entry["segmentation"]
        if polygons:
            segmentation = coco_mask.segmToRle([[float(x) for x in part] for part in segmentation], size[1], size[0])
        assert (filled(line, size) == coco_mask.decode(segmentation).astype(bool)).all()
        assert entry["area"] == filled(line, size).sum() > 0


def test_a_box_without_a_new_mask_becomes_its_corners():
    assert complete("--classes", "dog") == 3
    assert Path("done_labels/labels/train/b.txt").read_text() == (
        "0 0.150000 0.300000 0.350000 0.300000 0.350000 0.700000 0.150000 0.700000\n"
    )


@pytest.mark.parametrize(
    ("head", "images"), [("path: .\n", "images"), ("", "../images"), ("path: ../set\n", "./images")]
)
def test_where_the_pictures_are(head: str, images: str):
    write_yaml(head, images)
    assert complete() == 3
    assert sorted(path.name for path in Path("done_labels").rglob("*.txt")) == ["a.txt", "b.txt"]


def test_lists_of_pictures_and_a_folder_that_is_given():
    Path("set/train.txt").write_text("./images/train/a.png\n")
    Path("moved.yaml").write_text("train: train.txt\nnames: {0: cat, 1: dog}\n")
    assert main(["complete", "moved.yaml", "--images", "set", "--out", "done.json"]) == 3
    assert [path.name for path in Path("done_labels").rglob("*.txt")] == ["a.txt"]


def test_no_file_of_the_data_set_changes(data_set: Path):
    before = {path: path.read_bytes() for path in data_set.rglob("*") if path.is_file()}
    write_yaml("path: images\n", "../images")  # labels outside of the folder that is named
    before[data_set / "data.yaml"] = (data_set / "data.yaml").read_bytes()
    assert complete() == 3
    assert {path: path.read_bytes() for path in data_set.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: [", "is not a YAML file"),
        ("names: [a]", "expected the data.yaml of a YOLO data set"),
        ("train: nowhere\nnames: [a]", "but found no picture"),
    ],
)
def test_mistakes(text: str, words: str, capsys):
    Path("set/data.yaml").write_text(text)
    assert complete() == 2
    assert words in capsys.readouterr().err
    assert not Path("done.json").exists()


def test_labels_are_written_where_there_is_nothing_to_complete():
    (Path("set/labels/train/b.txt")).unlink()
    Path("set/labels/train/a.txt").write_text("0 0.1 0.1 0.9 0.1 0.9 0.8\n")
    assert complete() == 0
    assert Path("done_labels/labels/train/a.txt").read_text() == "0 0.1 0.1 0.9 0.1 0.9 0.8\n"


def test_labels_of_an_earlier_run_are_not_overwritten(capsys):
    Path("done_labels").mkdir()
    assert complete() == 2
    assert "done_labels exists already; move it away" in capsys.readouterr().err
