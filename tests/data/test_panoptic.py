"""COCO panoptic files to targets and back, whole; and what a broken file says.

`MASKWRIGHT_PANOPTIC="IMAGES=ANNOTATIONS;..." pytest tests/data/test_panoptic.py -k round_trip -n 0 -s` also makes the
round trip of whole data sets (folders of images, panoptic files with their PNGs beside them), and prints what came
back.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from panoptic_folder import CATEGORIES, HEIGHT, WIDTH, PanopticFolder, colours, segment, stripes
from PIL import Image

from maskwright.data import panoptic as panoptic_module
from maskwright.data.loaders import evaluation_loader, training_loader
from maskwright.data.normalise import Kind
from maskwright.data.panoptic import CocoPanoptic, PanopticEntry, new_map_names, panoptic_to_coco, write_panoptic
from maskwright.errors import UserError
from maskwright.structures import Category, PanopticTarget, check_panoptic_targets

HERE = Path(__file__).parent
REAL = {
    "facade": HERE / "facade_panoptic" / "panoptic.json",
    "coco": HERE.parent / "parity" / "data" / "max_deeplab" / "pq" / "sample_data" / "gt.json",
}
KEPT = ("id", "category_id", "iscrowd", "area", "bbox")
WHOLE = [pair.split("=") for pair in os.environ.get("MASKWRIGHT_PANOPTIC", "").split(";") if pair]


def data_set(folder: PanopticFolder, **options) -> CocoPanoptic:
    return CocoPanoptic(folder.images, folder.annotations, **options)


def test_a_target(panoptic: PanopticFolder):
    ids = stripes(300, 7, 70000, 12)
    panoptic.write((ids, [segment(7, 200), segment(300, 3), segment(12, iscrowd=1), segment(5, 92)]))
    image, target = data_set(panoptic)[0]
    assert image.shape == (3, HEIGHT, WIDTH)
    assert target["segmentation"].dtype == torch.int32
    assert target["segmentation"][2].tolist() == [1, 1, 0, 0, -1, -1, 2, 2]  # 70000 is nobody's
    assert target["labels"].tolist() == [1, 2, 0, 3]
    assert target["iscrowd"].tolist() == [False, False, True, False]
    assert target["ids"].tolist() == [7, 300, 12, 5]  # 5 has no pixel, and stays
    assert target["image_id"] == 1
    check_panoptic_targets([image], [target], num_classes=4)


def test_an_image_without_segments_and_a_segment_that_is_everything(panoptic: PanopticFolder):
    panoptic.write((stripes(), []), (np.full((HEIGHT, WIDTH), 9), [segment(9, 200)]))
    data = data_set(panoptic)
    samples = [data[index] for index in range(2)]
    check_panoptic_targets([image for image, _ in samples], [target for _, target in samples], num_classes=4)
    assert (samples[0][1]["segmentation"] == -1).all()
    assert (samples[1][1]["segmentation"] == 0).all()
    assert data.count_instances() == (1, 0)
    assert data.subset([0]).count_instances() == (0, 0)


@pytest.mark.parametrize("kind", [0, 1])
def test_things_only_and_stuff_only(panoptic: PanopticFolder, kind: int):
    categories = [category for category in CATEGORIES if category["isthing"] == kind]
    segments = [segment(4, categories[1]["id"]), segment(6, categories[0]["id"])]
    panoptic.write((stripes(4, 6), segments), categories=categories)
    data = data_set(panoptic)
    assert [category.get("isthing") for category in data.categories] == [bool(kind)] * 2
    assert data[0][1]["labels"].tolist() == [1, 0]


def test_the_label_space_of_a_model(panoptic: PanopticFolder):
    panoptic.write((stripes(4), [segment(4, 92)]))
    labels = [{"id": 1, "name": "Grass"}, {"id": 2, "name": "dog"}]
    assert data_set(panoptic, categories=labels)[0][1]["labels"].tolist() == [0]
    with pytest.raises(UserError, match="classes that the model does not know: grass; it knows: dog"):
        data_set(panoptic, categories=labels[1:])


def test_loaders_and_seeds(panoptic: PanopticFolder):
    panoptic.write(*[(stripes(number), [segment(number)]) for number in (3, 4, 5)])
    data = data_set(panoptic)
    images, targets = next(iter(evaluation_loader(data, batch_size=3)))
    assert [target["image_id"] for target in targets] == [1, 2, 3]
    assert [int(image[0, 0, 0]) for image in images] == [20, 40, 60]

    def shift(image: torch.Tensor, target: PanopticTarget) -> tuple[torch.Tensor, PanopticTarget]:
        return image + torch.randint(9, ()), target

    data.transforms = shift
    assert torch.equal(data[(1, 7)][0], data[(1, 7)][0])
    assert len({int(data[(1, seed)][0][0, 0, 0]) for seed in range(9)}) > 1
    assert len(next(iter(training_loader(data, batch_size=2, seed=0)))[0]) == 2


def assert_round_trip(images: Path, annotations: Path, maps: Path, out: Path) -> int:
    """Every file -> target -> file; returns the number of images."""
    data = CocoPanoptic(images, annotations, maps)
    assert data.skipped == {}
    content = json.loads(annotations.read_text())
    listed = {entry["image_id"]: entry for entry in content["annotations"]}
    sizes = {entry["id"]: entry for entry in content["images"]}

    def entries():
        for _, target in (data[index] for index in range(len(data))):
            name = listed[target["image_id"]]["file_name"]
            yield PanopticEntry(sizes[target["image_id"]], *panoptic_to_coco(target, data.categories, name))

    write_panoptic(out, entries(), data.categories)
    written = json.loads(out.read_text())
    assert len(written["annotations"]) == len(data) == len(listed)
    for entry in written["annotations"]:
        before = listed[entry["image_id"]]["segments_info"]
        assert len(entry["segments_info"]) == len(before)
        for new_row, row in zip(entry["segments_info"], before, strict=True):
            assert {key: new_row.get(key) for key in row if key in KEPT} == {
                key: row[key] for key in row if key in KEPT
            }
        old, new = (np.asarray(Image.open(folder / entry["file_name"])) for folder in (maps, out.with_suffix("")))
        assert np.array_equal(old[..., :3], new)
    segments = sum(len(entry["segments_info"]) for entry in written["annotations"])
    print(f"{annotations}: {len(data)} images and {segments} segments come back")
    return len(data)


@pytest.mark.parametrize("name", REAL)
def test_round_trip_of_real_maps(tmp_path: Path, name: str):
    """COCO's own sample maps (CC BY 4.0; with crowds and void) and three of facade (CC BY 4.0)."""
    annotations = REAL[name]
    maps = annotations.with_suffix("")
    content = json.loads(annotations.read_text())
    if "images" not in content:  # the fixture keeps what panopticapi needs
        content["images"] = []
        for entry in content["annotations"]:
            width, height = Image.open(maps / entry["file_name"]).size
            image = {"id": entry["image_id"], "file_name": entry["file_name"], "height": height, "width": width}
            content["images"].append(image)
    (tmp_path / "images").mkdir()
    for entry in content["images"]:
        Image.new("RGB", (entry["width"], entry["height"])).save(tmp_path / "images" / entry["file_name"])
    (tmp_path / "in.json").write_text(json.dumps(content))
    assert assert_round_trip(tmp_path / "images", tmp_path / "in.json", maps, tmp_path / "out.json") >= 2


@pytest.mark.parametrize("pair", WHOLE)
def test_round_trip_of_whole_data_sets(tmp_path: Path, pair: list[str]):
    images, annotations = (Path(part) for part in pair)
    assert_round_trip(images, annotations, annotations.with_suffix(""), tmp_path / "out.json")


@pytest.mark.parametrize(
    ("file_names", "map_names"),
    [
        (["1.jpg", "a/1.jpg", "2.v1.jpg", "3"], ["1.png", "a/1.png", "2.v1.png", "3.png"]),
        (["1.jpg", "1.png", "2.jpg"], ["1.jpg.png", "1.png.png", "2.png"]),
        (["a.jpg", "A.png"], ["a.jpg.png", "A.png.png"]),  # one file, where case does not count
        (["1.jpg", "1.png", "1.jpg.gif"], ["1.jpg.png", "1.png.png", "1.jpg.gif.png"]),
        (["1", "1.jpg"], ["1.png", "1.jpg.png"]),
    ],
)
def test_names_of_new_maps(file_names: list[str], map_names: list[str]):
    assert new_map_names(file_names) == map_names


PARTS = st.lists(st.sampled_from(["a", "A", "b", ".png", ".PNG", ".jpg"]), min_size=1, max_size=4)


@given(st.lists(PARTS.map("".join), unique_by=str.casefold, max_size=12))
def test_no_two_new_maps_have_one_name(file_names: list[str]):
    assert len({name.casefold() for name in new_map_names(file_names)}) == len(file_names)


class TestBrokenFiles:
    def test_broken_segments_are_void_and_counted(self, panoptic: PanopticFolder):
        segments = [segment(1), segment(2, 55), segment(1, 3), segment(3, iscrowd=2), segment(4, area=1.5), {"id": "x"}]
        panoptic.write((stripes(1, 2, 3, 4), segments))
        data = data_set(panoptic)
        assert data[0][1]["segmentation"][0].tolist() == [0, 0, -1, -1, -1, -1, 1, 1]
        assert data.skipped == {
            "unknown category": 1,
            "segment id is not unique in its image": 1,
            "iscrowd must be 0 or 1": 1,
            "segment id must be an integer in 1..16777215": 1,
        }
        assert data.repaired == {Kind.SEGMENT_AREA: 1}

    def test_images_without_an_annotation_are_left_out(self, panoptic: PanopticFolder):
        panoptic.write((stripes(1), [segment(1)]), (stripes(2), [segment(2)]), (stripes(3), [segment(3)]))
        content = json.loads(panoptic.annotations.read_text())
        del content["annotations"][0]
        panoptic.annotations.write_text(json.dumps(content))
        data = data_set(panoptic)
        assert data.file_names == ["2.png", "3.png"]
        assert data.skipped == {"image without annotation": 1}

    def test_two_images_with_one_map(self, panoptic: PanopticFolder):
        panoptic.write((stripes(1), [segment(1)]), (stripes(2), [segment(2)]))
        content = json.loads(panoptic.annotations.read_text())
        content["annotations"][1]["file_name"] = "1.png"
        panoptic.annotations.write_text(json.dumps(content))
        with pytest.raises(
            UserError, match=r"annotation of image 2: the segmentation '1\.png' is that of image 1, too"
        ):
            data_set(panoptic)

    def test_a_png_that_is_not_there(self, panoptic: PanopticFolder):
        panoptic.write((stripes(1), [segment(1)]), (stripes(2), [segment(2)]))
        (panoptic.maps / "2.png").unlink()
        data = data_set(panoptic)
        with pytest.raises(UserError, match=r"2\.png, listed in .*panoptic\.json, does not exist"):
            data[1]

    def test_a_png_of_another_size(self, panoptic: PanopticFolder):
        panoptic.write((stripes(1), [segment(1)]))
        Image.fromarray(colours(stripes(1, size=(5, WIDTH)))).save(panoptic.maps / "1.png")
        with pytest.raises(UserError, match=r"1\.png has 5 x 8 pixels .* says 6 x 8"):
            data_set(panoptic)[0]

    def test_a_picture_that_is_no_map(self, panoptic: PanopticFolder):
        panoptic.write((stripes(1), [segment(1)]))
        Image.new("RGB", (WIDTH, HEIGHT)).save(panoptic.maps / "1.png", "JPEG")
        with pytest.raises(UserError, match=r"must be a PNG in colours \(RGB\), but is a JPEG of mode RGB"):
            data_set(panoptic)[0]
        Image.new("L", (WIDTH, HEIGHT)).save(panoptic.maps / "1.png")
        with pytest.raises(UserError, match="but is a PNG of mode L"):
            data_set(panoptic)[0]
        (panoptic.maps / "1.png").write_bytes(b"no picture")
        with pytest.raises(UserError, match="cannot read the segmentation"):
            data_set(panoptic)[0]

    def test_a_folder_that_is_not_there(self, panoptic: PanopticFolder):
        panoptic.write((stripes(1), [segment(1)]))
        panoptic.maps.rename(panoptic.maps.with_name("maps"))
        with pytest.raises(UserError, match="name the folder of its PNGs as `segmentations`"):
            data_set(panoptic)
        assert len(data_set(panoptic, segmentations=panoptic.maps.with_name("maps"))) == 1

    @pytest.mark.parametrize(
        ("keys", "words"),
        [
            ({"annotations": {}}, "'annotations' must be a list, but is a dict"),
            ({"annotations": []}, "none of its images .1. has a usable annotation"),
            ({"categories": []}, "'categories' must be a non-empty list"),
            (
                {"categories": [CATEGORIES[0], {"id": 5, "name": "sky"}]},
                r"panoptic\.json: category 5 \(sky\) has no 'isthing', .* give it 1 \(thing\) or 0 \(stuff\)",
            ),
            (
                {"images": [{"id": 1, "file_name": "2.png", "height": 0, "width": 8}]},
                "image 'height' must be a positive",
            ),
            ({"annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": 3}]}, "has a usable annotation"),
            (
                {"annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": [{}]}]},
                "none of its 1 segments can be used",
            ),
        ],
    )
    def test_unusable_files(self, panoptic: PanopticFolder, keys: dict, words: str):
        panoptic.write((stripes(1), [segment(1)]), **keys)
        with pytest.raises(UserError, match=words):
            data_set(panoptic)


class TestWriting:
    def entry(self, name: str = "1.png") -> PanopticEntry:
        image = {"id": 1, "file_name": "1.jpg", "height": HEIGHT, "width": WIDTH}
        return PanopticEntry(image, colours(stripes(1)), {"image_id": 1, "file_name": name, "segments_info": []})

    @pytest.mark.parametrize("error", [UserError("the second image is broken"), KeyboardInterrupt()])
    def test_nothing_is_left_of_a_failure(self, tmp_path: Path, error: BaseException):
        def entries():
            yield self.entry("deep/1.png")
            assert len(list(tmp_path.iterdir())) == 1
            raise error

        with pytest.raises(type(error)):
            write_panoptic(tmp_path / "out.json", entries(), CATEGORIES)
        assert list(tmp_path.iterdir()) == []

    def test_what_is_there_is_not_touched(self, tmp_path: Path):
        (tmp_path / "out").mkdir()
        with pytest.raises(UserError, match="exists already"):
            write_panoptic(tmp_path / "out.json", [self.entry()], CATEGORIES)
        assert not (tmp_path / "out.json").exists()

    def test_a_name_that_leads_elsewhere(self, tmp_path: Path):
        with pytest.raises(UserError, match="would lie outside of"):
            write_panoptic(tmp_path / "out.json", [self.entry("../1.png")], CATEGORIES)
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_is_not_there_is_told_before_any_work(self, tmp_path: Path):
        for name, maps in (("nowhere/out.json", tmp_path / "maps"), ("out.json", tmp_path / "nowhere" / "maps")):
            entries = iter([self.entry()])
            with pytest.raises(UserError, match=r"cannot write the .*: the folder .*nowhere does not exist"):
                write_panoptic(tmp_path / name, entries, CATEGORIES, maps)
            assert next(entries)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("error", [UserError("the disk is full"), KeyboardInterrupt()])
    def test_maps_without_their_file_are_taken_back(self, tmp_path: Path, monkeypatch, error: BaseException):
        def write_json(*_: object, **__: object) -> None:
            assert (tmp_path / "out" / "1.png").exists()
            raise error

        monkeypatch.setattr(panoptic_module, "write_json", write_json)
        with pytest.raises(type(error)):
            write_panoptic(tmp_path / "out.json", [self.entry()], CATEGORIES)
        assert list(tmp_path.iterdir()) == []

    def test_a_json_file_that_is_there_is_not_touched(self, tmp_path: Path):
        (tmp_path / "out.json").write_text("mine")
        with pytest.raises(UserError, match="exists already"):
            write_panoptic(tmp_path / "out.json", [self.entry()], CATEGORIES)
        assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
        assert (tmp_path / "out.json").read_text() == "mine"

    def test_two_images_of_one_segmentation(self, tmp_path: Path):
        with pytest.raises(UserError, match="two images have the segmentation"):
            write_panoptic(tmp_path / "out.json", [self.entry("1.png"), self.entry("1.png")], CATEGORIES)
        assert list(tmp_path.iterdir()) == []

    def test_every_category_says_whether_it_is_a_thing(self, tmp_path: Path):
        categories = [Category(id=3, name="dog"), Category(id=4, name="sky", isthing=False)]
        write_panoptic(tmp_path / "out.json", [self.entry()], categories)
        written = json.loads((tmp_path / "out.json").read_text())["categories"]
        assert written == [{"id": 3, "name": "dog", "isthing": 1}, {"id": 4, "name": "sky", "isthing": 0}]

    def test_an_id_that_is_void(self):
        target = PanopticTarget(
            segmentation=torch.zeros(2, 2).int(),
            labels=torch.tensor([0]),
            iscrowd=torch.tensor([False]),
            ids=torch.tensor([0]),
            image_id=1,
        )
        with pytest.raises(ValueError, match="segment ids must be at least 1"):
            panoptic_to_coco(target, CATEGORIES, "1.png")
