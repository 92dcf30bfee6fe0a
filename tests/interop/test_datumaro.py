"""Round trips with datumaro, which runs in an environment of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from painter import Painter
from panoptic_folder import PanopticFolder, segment, stripes
from pycocotools.coco import COCO
from tool_scene import CLASSES, Scene, answer, interop_python, masks_of_dataset

from maskwright.apps.panoptic_from_instances import panoptic_from_instances
from maskwright.cli import main
from maskwright.data.panoptic import CocoPanoptic
from maskwright.structures import Category

pytestmark = pytest.mark.interop

JOB = Path(__file__).with_name("datumaro_job.py")
Found = dict[str, np.ndarray]


def datumaro(*arguments: str | Path) -> None:
    subprocess.run([interop_python(), str(JOB), *map(str, arguments)], check=True)


def export(scene: Scene, form: str, folder: Path, **options: str) -> Path:
    """Write the scene with datumaro; returns the annotation file."""
    arrays = {f"{Path(name).stem}/masks": masks for name, masks in scene.masks.items()}
    labels = {f"{Path(name).stem}/labels": [CLASSES[label] for label in rows] for name, rows in scene.labels.items()}
    np.savez(folder.with_suffix(".npz"), **arrays, **labels)
    datumaro("write", form, folder.with_suffix(".npz"), scene.images, folder, json.dumps(options))
    (file,) = (folder / "annotations").glob("*.json")
    return file


def read(form: str, annotations: Path, images: Path, maps: Path | None = None) -> Found:
    """What datumaro finds in a file of ours, laid out as COCO's own."""
    folder = annotations.parent / "layout"
    file = folder / "annotations" / f"{form.removeprefix('coco_')}_train.json"
    file.parent.mkdir(parents=True)
    shutil.copy(annotations, file)
    shutil.copytree(images, folder / "images" / "train")
    if maps is not None:
        shutil.copytree(maps, file.with_suffix(""), ignore=shutil.ignore_patterns("layout"))
    datumaro("read", form, folder, folder / "found.npz")
    return dict(np.load(folder / "found.npz"))


class TestRead:
    """Files that datumaro wrote."""

    @pytest.mark.parametrize("mode", ["mask", "polygons"])
    def test_instances(self, scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str):
        """As run lengths all are crowds, which are taken as the instances that they are."""
        file = export(scene, "coco_instances", tmp_path / "datumaro", segmentation_mode=mode)
        coco = COCO(file)
        assert {entry["iscrowd"] for entry in coco.dataset["annotations"]} == {int(mode == "mask")}
        assert main(["data", "check", str(file), "--images", str(scene.images)]) == 0
        told = capsys.readouterr().out
        assert "annotations: 5 (masks: 5, boxes without masks: 0, crowds among them: 0), dropped: 0" in told
        assert "usable for training: yes" in told
        found = masks_of_dataset(scene.images, file)
        for image in coco.dataset["images"]:
            expected = [coco.annToMask(entry) for entry in coco.imgToAnns[image["id"]]]
            np.testing.assert_array_equal(found[image["file_name"]], expected)
            if mode == "mask":
                np.testing.assert_array_equal(found[image["file_name"]], scene.masks[image["file_name"]])
        answers = answer(scene, file, tmp_path / "out")
        assert len(answers) == scene.count

    def test_panoptic(self, scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        file = export(scene, "coco_panoptic", tmp_path / "datumaro")
        assert main(["data", "check", str(file), "--images", str(scene.images)]) == 0
        told = capsys.readouterr().out
        assert "usable for training: yes" in told
        data = CocoPanoptic(scene.images, file)
        for name, index in zip(data.file_names, range(len(data)), strict=True):
            target = data.read_sample(index)[1]
            found = np.stack([target["segmentation"].numpy() == row for row in range(len(target["labels"]))])
            np.testing.assert_array_equal(found, scene.masks[name])


def test_it_reads_a_completed_file(scene: Scene, completed: Path):
    found = read("coco_instances", completed, scene.images)
    for name, labels in scene.labels.items():
        stem = Path(name).stem
        np.testing.assert_array_equal(found[f"{stem}/masks"], scene.predicted(name))
        assert found[f"{stem}/labels"].tolist() == [CLASSES[label] for label in labels]


def test_it_reads_a_panoptic_file_made_of_instances(scene: Scene, instances: Path, tmp_path: Path):
    panoptic_from_instances(instances, tmp_path / "panoptic.json")
    found = read("coco_panoptic", tmp_path / "panoptic.json", scene.images, tmp_path / "panoptic")
    for name, masks in scene.masks.items():
        np.testing.assert_array_equal(found[f"{Path(name).stem}/masks"], masks)


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_it_reads_predicted_panoptic_maps(panoptic: PanopticFolder, tmp_path: Path, monkeypatch, command: str):
    panoptic.write(*[(stripes(5, 9), [segment(5, 3), segment(9, 200)])] * 2)
    categories = [Category(id=3, name="dog", isthing=True), Category(id=200, name="sky", isthing=False)]
    for home in ("maskwright.predictor", "maskwright.apps.weights"):
        monkeypatch.setattr(f"{home}.from_pretrained", lambda _: Painter(categories))
    out = tmp_path / "out"
    if command == "predict":
        assert main(["predict", str(panoptic.images), "--model", "painter", "--out", str(out)]) == 0
        file, maps = out / "panoptic.json", out
        number_images(file)
    else:
        arguments = ["--images", str(panoptic.images), "--annotations", str(panoptic.annotations)]
        assert main(["evaluate", "painter", *arguments, "--save-results", str(out.with_suffix(".json"))]) == 0
        file, maps = out.with_suffix(".json"), out
    found = read("coco_panoptic", file, panoptic.images, maps)
    for name in ("1", "2"):
        assert found[f"{name}/labels"].tolist() == ["dog", "sky"]
        np.testing.assert_array_equal(found[f"{name}/masks"], [stripes(1, 0) == 1, stripes(0, 1) == 1])


def number_images(file: Path) -> None:
    """Make the ids of images numbers, as which alone datumaro takes them; those of `predict` are the file names."""
    content = json.loads(file.read_text())
    numbers = {image["id"]: number for number, image in enumerate(content["images"], 1)}
    for image, annotation in zip(content["images"], content["annotations"], strict=True):
        image["id"] = annotation["image_id"] = numbers[image["id"]]
    file.write_text(json.dumps(content))
