"""Instances and stuff to panoptic files: what lies on what, what is lost, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from coco_folder import annotation, polygon
from PIL import Image

from maskwright.apps.panoptic_from_instances import Counts, panoptic_from_instances
from maskwright.cli import main
from maskwright.errors import UserError

HEIGHT, WIDTH = 8, 10
THINGS = [{"id": 7, "name": "person"}, {"id": 3, "name": "dog"}]
STUFF = [{"id": 20, "name": "sky"}, {"id": 31, "name": "grass", "isthing": 0}, {"id": 32, "name": "car", "isthing": 1}]


def square(identity: int, x1: int, y1: int, x2: int, y2: int, **changes) -> dict:
    box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": polygon(x1, y1, x2, y2)}
    return annotation(identity, **{**box, **changes})


class Inputs:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.instances, self.out = folder / "instances.json", folder / "panoptic.json"
        self.stuff, self.stuff_categories = folder / "stuff", folder / "stuff.json"

    def write(self, annotations: list, stuff: np.ndarray | None = None) -> None:
        image = {"id": 1, "file_name": "a/1.jpg", "height": HEIGHT, "width": WIDTH}
        content = {"images": [image], "annotations": annotations, "categories": THINGS}
        self.instances.write_text(json.dumps(content))
        self.stuff_categories.write_text(json.dumps({"categories": STUFF}))
        (self.stuff / "a").mkdir(parents=True)
        if stuff is not None:
            Image.fromarray(stuff.astype(np.uint8)).save(self.stuff / "a" / "1.png")

    def convert(self, **options) -> Counts:
        return panoptic_from_instances(self.instances, self.out, **options)

    def with_stuff(self, **options) -> Counts:
        return self.convert(stuff=self.stuff, stuff_categories=self.stuff_categories, **options)

    def result(self) -> tuple[np.ndarray, list[dict]]:
        """The category id at each pixel (0 void), and the segments."""
        content = json.loads(self.out.read_text())
        (entry,) = content["annotations"]
        ids = np.asarray(Image.open(self.folder / "panoptic" / entry["file_name"])).astype(int) @ [1, 256, 65536]
        classes = np.zeros_like(ids)
        for segment in entry["segments_info"]:
            classes[ids == segment["id"]] = segment["category_id"]
            assert segment["area"] == (ids == segment["id"]).sum()
        return classes, entry["segments_info"]


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    return Inputs(tmp_path)


def test_the_smaller_lies_on_top(inputs: Inputs):
    inputs.write([square(1, 2, 2, 4, 4, category_id=3), square(2, 0, 0, 6, 6), square(3, 5, 0, 7, 2)])
    counts = inputs.convert()
    classes, segments = inputs.result()
    expected = np.zeros((HEIGHT, WIDTH), dtype=int)
    expected[0:6, 0:6] = 7
    expected[2:4, 2:4] = 3
    expected[0:2, 5:7] = 7
    assert np.array_equal(classes, expected)
    assert [(row["id"], row["category_id"], row["area"]) for row in segments] == [(1, 3, 4), (2, 7, 30), (3, 7, 4)]
    assert [row["bbox"] for row in segments] == [[2, 2, 2, 2], [0, 0, 6, 6], [5, 0, 2, 2]]
    assert (counts.things, counts.stuff, counts.void) == (3, 0, 80 - 38)


def test_of_equal_ones_the_first_lies_on_top_and_the_hidden_is_dropped(inputs: Inputs):
    inputs.write([square(1, 0, 0, 3, 3, category_id=3), square(2, 0, 0, 3, 3)])
    counts = inputs.convert()
    assert [row["category_id"] for row in inputs.result()[1]] == [3]
    assert (counts.things, counts.hidden) == (1, 1)


def test_layers(inputs: Inputs):
    """Stuff lies below boxes without a mask (void), below crowds, below instances."""
    stuff = np.full((HEIGHT, WIDTH), 20)
    stuff[4:] = 31
    stuff[:, 9] = 5  # no class
    crowd = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    crowd[0:2, 0:2] = 1
    counts = _run_lengths(crowd)
    inputs.write(
        [
            square(1, 1, 0, 5, 6),
            annotation(2, bbox=[6, 0, 2, 5], segmentation=...),
            annotation(3, bbox=[0, 0, 2, 2], iscrowd=1, segmentation={"size": [HEIGHT, WIDTH], "counts": counts}),
        ],
        stuff,
    )
    report = inputs.with_stuff()
    classes, segments = inputs.result()
    expected = np.where(stuff == 5, 0, stuff)
    expected[0:5, 6:8] = 0
    expected[0:2, 0:2] = 7
    expected[0:6, 1:5] = 7
    assert np.array_equal(classes, expected)
    rows = [(row["id"], row["category_id"], row["iscrowd"]) for row in segments]
    assert rows == [(1, 7, 0), (2, 7, 1), (3, 20, 0), (4, 31, 0)]
    assert segments[1]["area"] == 2  # the instance, though larger, lies on the crowd
    assert (report.boxes, report.unknown, report.crowds, report.stuff) == (1, HEIGHT, 1, 2)
    assert "instances without a mask, their boxes void: 1" in str(report)
    categories = json.loads(inputs.out.read_text())["categories"]
    assert [(row["id"], row["isthing"]) for row in categories] == [(7, True), (3, True), (20, False), (31, False)]


def _run_lengths(mask: np.ndarray) -> list[int]:
    values = mask.T.ravel()
    changes = np.flatnonzero(np.diff(values)) + 1
    return [*([0] if values[0] else []), *np.diff([0, *changes, len(values)]).tolist()]


def test_values_that_are_ids_less_one(inputs: Inputs):
    stuff = np.full((HEIGHT, WIDTH), 255)
    stuff[0] = 19
    inputs.write([square(1, 0, 4, 2, 6)], stuff)
    inputs.with_stuff(stuff_offset=1)
    assert (inputs.result()[0][0] == 20).all()


def test_stuff_as_regions(inputs: Inputs):
    inputs.write([square(1, 0, 0, 2, 2)])
    image = {"id": 1, "file_name": "other.jpg", "height": HEIGHT, "width": WIDTH}
    regions = [square(1, 0, 0, 10, 4, category_id=20), square(2, 0, 3, 4, 6, category_id=31)]
    file = inputs.folder / "regions.json"
    file.write_text(json.dumps({"images": [image], "annotations": regions, "categories": STUFF[:2]}))
    inputs.convert(stuff=file)
    expected = np.zeros((HEIGHT, WIDTH), dtype=int)
    expected[0:4] = 20
    expected[3:6, 0:4] = 31
    expected[0:2, 0:2] = 7
    assert np.array_equal(inputs.result()[0], expected)


def test_stuff_that_does_not_fit_the_images(inputs: Inputs):
    inputs.write([square(1, 0, 0, 2, 2)])
    content = json.loads(inputs.instances.read_text())
    content["images"].append({"id": 2, "file_name": "2.jpg", "height": HEIGHT, "width": WIDTH})
    inputs.instances.write_text(json.dumps(content))
    file = inputs.folder / "regions.json"
    image = {"id": 1, "file_name": "a/1.jpg", "height": HEIGHT, "width": WIDTH}
    regions = [square(1, 0, 0, 10, 4, category_id=20), square(2, 0, 0, 1, 1, category_id=55)]
    file.write_text(json.dumps({"images": [image], "annotations": regions, "categories": STUFF[:2]}))
    counts = inputs.convert(stuff=file)
    assert (counts.bare, counts.stuff, counts.problems) == (1, 1, {"unknown category_id": 1})
    assert "images that the stuff does not list: 1" in str(counts)

    for changes, words in [
        ({"height": 9}, r"image 1 is 9 x 10 pixels .* but 8 x 10 in the instances file"),
        ({"id": 3}, "lists none of the images of"),
    ]:
        changed = {**image, **changes}
        regions = [square(1, 0, 0, 10, 4, category_id=20, image_id=changed["id"])]
        file.write_text(json.dumps({"images": [changed], "annotations": regions, "categories": STUFF[:2]}))
        with pytest.raises(UserError, match=words):
            panoptic_from_instances(inputs.instances, inputs.folder / "other.json", stuff=file)
        assert not [path for path in inputs.folder.iterdir() if "other" in path.name]


def test_two_images_of_one_stuff_map(inputs: Inputs):
    inputs.write([square(1, 0, 0, 2, 2)], np.full((HEIGHT, WIDTH), 20))
    content = json.loads(inputs.instances.read_text())
    content["images"].append({"id": 2, "file_name": "a/1.png", "height": HEIGHT, "width": WIDTH})
    inputs.instances.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"the images a/1\.jpg and a/1\.png have one stuff map, .*1\.png"):
        inputs.with_stuff()


def test_refusals(inputs: Inputs):
    inputs.write([square(1, 0, 0, 2, 2)], np.zeros((3, 3)))
    with pytest.raises(UserError, match=r"must have one value per pixel and 8 x 10 pixels .* shape is \(3, 3\)"):
        inputs.with_stuff()
    assert not inputs.out.exists()
    assert not (inputs.folder / "panoptic").exists()
    (inputs.stuff / "a" / "1.png").unlink()
    with pytest.raises(UserError, match="cannot read the stuff map"):
        inputs.with_stuff()
    with pytest.raises(UserError, match="--stuff-categories must name a file"):
        inputs.convert(stuff=inputs.stuff)
    with pytest.raises(UserError, match="--stuff-categories without --stuff"):
        inputs.convert(stuff_categories=inputs.stuff_categories)
    inputs.stuff_categories.write_text(json.dumps({"categories": [{"id": 3, "name": "sky"}]}))
    with pytest.raises(UserError, match=r"every category needs its own id, but these repeat: \[3\]"):
        inputs.with_stuff()
    with pytest.raises(UserError, match="exists already and is not overwritten"):
        panoptic_from_instances(inputs.instances, inputs.instances)
    assert json.loads(inputs.instances.read_text())["annotations"]
    with pytest.raises(UserError, match=r"the folder .*nowhere does not exist"):
        panoptic_from_instances(inputs.instances, inputs.folder / "nowhere" / "panoptic.json")


def test_the_command(inputs: Inputs, capsys):
    inputs.write([square(1, 0, 0, 2, 2), square(2, 0, 0, 2, 2, category_id=99)], np.full((HEIGHT, WIDTH), 20))
    arguments = [
        str(inputs.instances),
        "--stuff",
        str(inputs.stuff),
        "--stuff-categories",
        str(inputs.stuff_categories),
    ]
    assert main(["data", "panoptic", *arguments, "--out", str(inputs.out)]) == 0
    out = capsys.readouterr().out
    assert "segments: 2 (things: 1, stuff: 1, crowds among them: 0)" in out
    assert "broken annotations: 1 unknown category_id" in out
    assert main(["data", "check", str(inputs.out)]) == 2  # one image: nothing to validate on
    assert "void: 0.0% of all pixels" in capsys.readouterr().out
    assert main(["data", "panoptic", *arguments, "--out", str(inputs.out)]) == 2
    assert "exists already" in capsys.readouterr().err
