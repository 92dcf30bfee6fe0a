"""Predictions as people meet them: a line of text, a picture, files."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskwright.data.dataset import DataSource
from maskwright.data.formats import open_data_set
from maskwright.errors import UserError
from maskwright.structures import Category, InstancePrediction, PanopticPrediction, SegmentInfo

CATEGORIES = [Category(id=7, name="dog", isthing=True), Category(id=44, name="sky", isthing=False)]
GREY = torch.full((3, 20, 30), 90, dtype=torch.uint8)


@pytest.fixture
def instances() -> InstancePrediction:
    """A square, and a frame around a hole."""
    frame = torch.ones(8, 8)
    frame[2:6, 2:6] = 0
    return InstancePrediction(
        boxes=torch.tensor([[2.0, 3, 10, 11], [12, 4, 28, 20]]),
        labels=torch.tensor([0, -1]),
        scores=torch.tensor([1.0, 0.5]),
        mask_scores=torch.tensor([0.75, 1.0]),
        mask_probabilities=torch.stack([torch.ones(8, 8), frame]),
        image_size=(20, 30),
        frame="pixel",
        categories=CATEGORIES,
        image=GREY,
    )


@pytest.fixture
def panoptic() -> PanopticPrediction:
    segmentation = torch.zeros(20, 30, dtype=torch.int32)
    segmentation[:5], segmentation[5:] = 300, 2
    sky = SegmentInfo(id=300, label=1, category_id=44, isthing=False, score=0.9, area=150)
    dog = SegmentInfo(id=2, label=0, category_id=7, isthing=True, score=0.8, area=450)
    return PanopticPrediction(segmentation, [sky, dog], (20, 30), CATEGORIES, GREY)


def test_a_line_of_text(instances: InstancePrediction, panoptic: PanopticPrediction):
    assert repr(instances) == "InstancePrediction: 2 masks on 30 x 20, 1 dog"
    assert repr(panoptic) == "PanopticPrediction: 2 segments on 30 x 20, 1 sky, 1 dog"
    one = replace(panoptic, segments_info=panoptic.segments_info[:1])
    assert repr(one) == "PanopticPrediction: 1 segment on 30 x 20, 1 sky"
    many = [Category(id=number, name=f"c{number}") for number in range(8)]
    rows = torch.tensor([0, 0, 1, 2, 3, 4, 5, 6])
    picked = {
        name: getattr(instances, name)[rows % 2] for name in ("boxes", "scores", "mask_scores", "mask_probabilities")
    }
    wide = replace(instances, labels=rows, categories=many, **picked)
    assert repr(wide) == ("InstancePrediction: 8 masks on 30 x 20, 2 c0, 1 c1, 1 c2, 1 c3, 1 c4, and 2 more classes")


def test_polygons_are_in_pixels_of_the_image_and_give_back_the_masks(instances: InstancePrediction):
    (square,), (outer, hole) = instances.polygons
    assert sorted(square.tolist()) == [[2, 3], [2, 11], [10, 3], [10, 11]]
    assert sorted(outer.tolist()) == [[12, 4], [12, 20], [28, 4], [28, 20]]
    low, high = hole.min(axis=0), hole.max(axis=0)
    assert (low > [12, 4]).all()
    assert (high < [28, 20]).all()
    left, top = low.tolist()
    unset = ~instances.masks[1][4:20, 12:28]
    assert unset.any(dim=1).nonzero()[0] + 4 == top
    assert unset.any(dim=0).nonzero()[0] + 12 == left
    assert [len(one) for one in replace(instances, mask_probabilities=torch.zeros(2, 8, 8)).polygons] == [0, 0]


@pytest.mark.parametrize("name", ["cat.png", "cat.JPG", "cat.webp"])
def test_a_picture_s_name_saves_the_overlay(instances: InstancePrediction, tmp_path: Path, name: str):
    instances.save(tmp_path / name)
    with Image.open(tmp_path / name) as picture:
        painted = np.asarray(picture.convert("RGB")).astype(int)
    assert painted.shape == (20, 30, 3)
    assert np.abs(painted[4:10, 3:9] - 90).max() > 40
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_json_is_coco_results(instances: InstancePrediction, tmp_path: Path):
    replace(instances, image=None).save(str(tmp_path / "cat.json"), image_id=17)
    assert json.loads((tmp_path / "cat.json").read_text()) == instances.to_coco(17)


def test_a_folder_gets_everything(instances: InstancePrediction, tmp_path: Path):
    for _ in range(2):  # again, over itself
        instances.save(tmp_path / "new" / "cat")
    names = sorted(path.name for path in (tmp_path / "new" / "cat").iterdir())
    assert names == ["mask_0.png", "mask_1.png", "overlay.jpg", "predictions.json"]
    with Image.open(tmp_path / "new" / "cat" / "mask_1.png") as picture:
        assert (np.asarray(picture) == 255 * instances.masks[1].numpy()).all()


def test_a_panoptic_folder_is_a_panoptic_data_set(panoptic: PanopticPrediction, tmp_path: Path):
    panoptic.save(tmp_path / "map", image_id="cat.jpg")
    Image.fromarray(GREY.permute(1, 2, 0).numpy()).save(tmp_path / "cat.jpg")
    assert (tmp_path / "map" / "overlay.jpg").is_file()
    data = open_data_set(DataSource(tmp_path, tmp_path / "map" / "panoptic.json"), "panoptic")
    _, target = data[0]
    classes = torch.tensor([data.categories[label]["id"] for label in target["labels"].tolist()])
    assert (classes[target["segmentation"].long()] == torch.where(panoptic.segmentation == 300, 44, 7)).all()


def test_notebooks_show_the_overlay_or_the_text(instances: InstancePrediction, panoptic: PanopticPrediction):
    for prediction in (instances, panoptic):
        content = prediction._repr_png_()
        assert content is not None
        assert Image.open(io.BytesIO(content)).tobytes() == prediction.overlay().tobytes()
        assert replace(prediction, image=None)._repr_png_() is None


def test_show_opens_the_overlay(instances: InstancePrediction, monkeypatch: pytest.MonkeyPatch):
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda picture: shown.append(picture))
    instances.show()
    assert shown == [instances.overlay()]


def test_what_cannot_be_saved_is_one_sentence(instances: InstancePrediction, tmp_path: Path):
    with pytest.raises(UserError, match="the suffix of a picture"):
        instances.save(tmp_path / "cat.txt")
    with pytest.raises(UserError, match="does not hold its image"):
        replace(instances, image=None).save(tmp_path / "cat")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot make the folder"):
        instances.save(tmp_path / "file" / "cat")
    with pytest.raises(UserError):
        instances.save(tmp_path / "nowhere" / "cat.png")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_no_path_is_refused(instances: InstancePrediction):
    with pytest.raises(UserError, match="expected the path of a picture"):
        instances.save("")
