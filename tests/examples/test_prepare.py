"""The bundled model's split: fixed, grouped, disjoint, recorded; and the recipe that trains on it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskwright.apps.check_recipe import check_recipe
from maskwright.errors import UserError
from maskwright.training.recipes import resolve_recipe

SCRIPT = Path(__file__).parents[2] / "examples" / "bundled_model" / "prepare.py"
GROUPED_NAMES = {
    "davis18": [f"{video}_{frame:05}.jpg" for video in ("cow-walk", "dog", "tram", "swan") for frame in range(5)],
    "camvid": [f"{drive}_f{frame}.jpg" for drive in ("Seq1", "0006R0", "0016E5") for frame in range(4)],
    "facade": [f"{part}_IMG_{n}_scaled_{n % 2}_png.jpg" for n in range(10) for part in ("train", "test")],
}


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    specification = importlib.util.spec_from_file_location("prepare", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(module, "HELD_OUT_LIST", tmp_path / "held_out.txt")
    monkeypatch.setattr(module, "DEVELOPMENT_LIST", tmp_path / "development.txt")
    return module


def coco_file(file_names: list[str], category: str) -> dict[str, Any]:
    box = {"bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0, "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]}
    images = [{"id": 100 + i, "file_name": n, "width": 8, "height": 6} for i, n in enumerate(file_names)]
    annotations = [{"id": 7 * i, "image_id": 100 + i, "category_id": 40, **box} for i in range(len(file_names))]
    return {"images": images, "annotations": annotations, "categories": [{"id": 40, "name": category}]}


def coco_names(name: str) -> list[str]:
    """Thirty photographs of each COCO set, of which coco_panoptic200 shares ten with either of the first two."""
    start = {"coco_dev": 0, "coco_person": 100, "coco_street": 200}.get(name)
    if start is not None:
        names = [f"{start + number:012}.jpg" for number in range(1000, 1030)]
        return [*names, "000000000009.jpg", "000000000139.jpg"] if name == "coco_dev" else names
    return [f"{start + number:012}.jpg" for start in (0, 100, 300) for number in range(1010, 1020)] + [
        "000000004495.jpg"
    ]


@pytest.fixture
def data(prepare, tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name in prepare.SETS:
        names = GROUPED_NAMES.get(name, [f"{name}{i}.jpg" for i in range(30)])
        if name in prepare.COCO_SETS:
            names = coco_names(name)
        (folder / name / "images").mkdir(parents=True)
        category = "person" if name in prepare.COCO_SETS else f"thing of {name}"
        (folder / name / "instances.json").write_text(json.dumps(coco_file(names, category)))
        for file_name in names:
            Image.new("RGB", (8, 6)).save(folder / name / "images" / file_name)
    write_panoptic(folder / "coco_panoptic200")
    return folder


def write_panoptic(folder: Path) -> None:
    """A person of 2 x 3 pixels, sky on the other 42, in each image; segment ids repeat from image to image."""
    (folder / "panoptic").mkdir()
    content = read(folder / "instances.json")
    colours = np.full((6, 8, 3), (2, 1, 0), dtype=np.uint8)
    colours[1:4, 2:4] = (1, 1, 0)
    annotations = []
    for image in content["images"]:
        Image.fromarray(colours).save(folder / "panoptic" / f"{image['id']}.png")
        segments = [
            {"id": 257, "category_id": 40, "area": 6, "bbox": [2, 1, 2, 3], "iscrowd": 0},
            {"id": 258, "category_id": 90, "area": 42, "bbox": [0, 0, 8, 6], "iscrowd": 0},
        ]
        annotations.append({"image_id": image["id"], "file_name": f"{image['id']}.png", "segments_info": segments})
    categories = [{"id": 40, "name": "person", "isthing": 1}, {"id": 90, "name": "sky", "isthing": 0}]
    whole = {"images": content["images"], "annotations": annotations, "categories": categories}
    (folder / "panoptic.json").write_text(json.dumps(whole))


def read(file: Path) -> Any:
    return json.loads(file.read_text())


@pytest.fixture
def parts(prepare, data: Path, tmp_path: Path) -> dict[str, dict[str, set[str]]]:
    """The file names of each part of each set, as the files have them."""
    prepare.prepare(data, tmp_path / "out")
    return {
        part: {
            name: {image["file_name"] for image in read(tmp_path / "out" / f"{name}_{part}.json")["images"]}
            for name in prepare.SETS
            if (name, part) != ("camvid", "development")
        }
        for part in ("train", "development", "held_out")
    }


def test_the_parts_are_whole_disjoint_and_recorded(prepare, parts, data: Path, tmp_path: Path):
    for name in prepare.SETS:
        every = {image["file_name"] for image in read(data / name / "instances.json")["images"]}
        own = {part: names.get(name, set()) for part, names in parts.items()}
        assert own["train"]
        assert len(own["held_out"]) >= 0.15 * len(every)
        assert len(own["development"]) >= (0 if name == "camvid" else 0.1 * (len(every) - len(own["held_out"])))
        assert set().union(*own.values()) == every
        assert sum(map(len, own.values())) == len(every)
        groups = [{prepare.group_of(name, file_name) for file_name in names} for names in own.values()]
        assert len(set().union(*groups)) == sum(map(len, groups))
    for part in ("held_out", "development"):
        lines = (tmp_path / f"{part}.txt").read_text().splitlines()
        assert lines == sorted(f"{name}/{file_name}" for name, names in parts[part].items() for file_name in names)
    assert not (tmp_path / "out" / "camvid_development.json").exists()


def test_a_coco_photograph_is_on_one_side_in_all_sets(prepare, parts):
    sides = {}
    for part, names in parts.items():
        for name in prepare.COCO_SETS:
            for file_name in names[name]:
                assert sides.setdefault(file_name, part) == part
    assert {sides[name] for name in ("000000000009.jpg", "000000000139.jpg", "000000004495.jpg")} == {"held_out"}
    both = parts["held_out"]["coco_dev"] & set(coco_names("coco_panoptic200"))
    assert both <= parts["held_out"]["coco_panoptic200"]


def test_other_sets_do_not_move_what_was_held_out(prepare, parts):
    """A set before others in `SETS` is split as if it were alone, but for the photographs that always are held out."""
    alone = prepare.choose("coco_dev", coco_names("coco_dev"), 0.15, dict.fromkeys(prepare.ALWAYS_HELD_OUT, True))
    assert parts["held_out"]["coco_dev"] == alone
    reached = sorted(coco_names("coco_dev"), key=prepare.fraction)[:5]  # 15 % of 32
    assert alone == {*reached, "000000000009.jpg", "000000000139.jpg"}


def test_a_name_whose_side_is_known_keeps_it(prepare):
    names = [f"{number}.jpg" for number in range(20)]
    order = sorted(names, key=prepare.fraction)
    known = {order[0]: False, order[1]: True, order[19]: True}
    assert prepare.choose("coco_dev", names, 0.15, known) == {*order[1:4], order[19]}
    assert prepare.choose("coco_dev", names, 0.15, {}) == set(order[:3])


def test_files_keep_the_sets_own_ids(prepare, parts, data: Path, tmp_path: Path):
    original, part = read(data / "nuts" / "instances.json"), read(tmp_path / "out" / "nuts_held_out.json")
    assert part["categories"] == original["categories"]
    assert part["images"]
    assert all(image in original["images"] for image in part["images"])
    assert {a["image_id"] for a in part["annotations"]} == {image["id"] for image in part["images"]}
    assert all(a in original["annotations"] for a in part["annotations"])


def test_the_file_to_calibrate_with_unites_the_development_parts_of_coco(prepare, parts, data: Path, tmp_path: Path):
    united = read(tmp_path / "out" / "calibration.json")
    expected = {f"{name}/images/{file_name}" for name in prepare.COCO_SETS for file_name in parts["development"][name]}
    assert {image["file_name"] for image in united["images"]} == expected
    assert all((data / name).is_file() for name in expected)
    classes = {category["id"]: category["name"] for category in united["categories"]}
    assert sorted(classes.values()) == ["person", "sky"]
    for key in ("images", "annotations"):
        assert [entry["id"] for entry in united[key]] == list(range(1, len(united[key]) + 1))
    found = Counter(a["image_id"] for a in united["annotations"])
    sizes = {image["id"]: 2 if "panoptic" in image["file_name"] else 1 for image in united["images"]}
    assert found == sizes
    skies = [a for a in united["annotations"] if classes[a["category_id"]] == "sky"]
    assert len(skies) == len(parts["development"]["coco_panoptic200"])


def test_the_files_for_studies_have_the_things_of_each_photograph_once(prepare, parts, tmp_path: Path):
    out = tmp_path / "out"
    first_set: dict[str, str] = {}
    for name in ("coco_street", "coco_panoptic200", "coco_dev"):
        for names in (parts["train"], parts["development"], parts["held_out"]):
            first_set |= dict.fromkeys(names[name], name)
    for file, chosen in (("train", ["train"]), ("measured", ["development", "held_out"])):
        content = read(out / f"things_{file}.json")
        wanted = {
            f"{first_set[n]}/images/{n}" for part in chosen for name in prepare.STUDY_SETS for n in parts[part][name]
        }
        assert sorted(image["file_name"] for image in content["images"]) == sorted(wanted)
        assert [category["name"] for category in content["categories"]] == ["person"]
        assert len(content["annotations"]) == len(wanted)  # one person each, no sky


def test_things_and_stuff_of_panoptic_maps_become_instances(prepare, parts, tmp_path: Path):
    content = read(tmp_path / "out" / "coco_panoptic200_train.json")
    assert [category["name"] for category in content["categories"]] == ["person", "sky"]
    annotations = content["annotations"]
    assert len(annotations) == 2 * len(content["images"])
    assert len({a["id"] for a in annotations}) == len(annotations)
    person, sky = annotations[:2]
    assert (person["category_id"], person["area"], person["bbox"]) == (40, 6, [2, 1, 2, 3])
    # Columns of 6: rows 1 to 3 of the columns 2 and 3.
    assert runs(person) == [[13, 16], [19, 22]]
    assert runs(sky) == [[0, 13], [16, 19], [22, 48]]


def runs(annotation: dict[str, Any]) -> list[list[int]]:
    from maskwright.ops.run_lengths import runs_of_code

    return runs_of_code(annotation["segmentation"]).tolist()


def test_the_recipe_trains_on_all_sets_by_their_shares_and_validates_on_the_development_parts(
    prepare, parts, data: Path, tmp_path: Path
):
    options = resolve_recipe(tmp_path / "out" / "recipe.yaml").data
    assert list(options.named_sets) == list(prepare.SETS)
    assert {name: one.share for name, one in options.named_sets.items()} == prepare.SAMPLING_SHARES
    assert sum(prepare.SAMPLING_SHARES.values()) == pytest.approx(1)
    for name, one in options.named_sets.items():
        assert one.images == str(data / name / "images")
        assert Path(one.annotations) == tmp_path / "out" / f"{name}_train.json"
        development = None if name == "camvid" else str(tmp_path / "out" / f"{name}_development.json")
        assert one.validation_annotations == development
    report = check_recipe(tmp_path / "out" / "recipe.yaml")
    assert report.usable
    assert [row["boxes/masks"] for row in report.classes][:3] == ["person", "sky", "thing of facade"]


def test_sets_that_are_left_out_are_held_out_alone(prepare, parts, data: Path, tmp_path: Path):
    lists = [(tmp_path / f"{part}.txt").read_text() for part in ("held_out", "development")]
    prepare.prepare(data, tmp_path / "out", ["nuts", "davis18"])
    assert [(tmp_path / f"{part}.txt").read_text() for part in ("held_out", "development")] == lists
    kept = list(resolve_recipe(tmp_path / "out" / "recipe.yaml").data.named_sets)
    assert kept == [name for name in prepare.SETS if name not in ("nuts", "davis18")]
    files = {file.name for name in ("nuts", "davis18") for file in (tmp_path / "out").glob(f"{name}_*")}
    assert files == {"nuts_held_out.json", "davis18_held_out.json"}


@pytest.mark.parametrize("part", ["held_out", "development"])
def test_it_stops_where_a_committed_list_says_otherwise(prepare, parts, data: Path, tmp_path: Path, part: str):
    prepare.prepare(data, tmp_path / "again")
    first = (tmp_path / f"{part}.txt").read_text().split("\n", 1)
    (tmp_path / f"{part}.txt").write_text(first[1])
    with pytest.raises(UserError, match=f"{part}.txt .*disagree on 1 files .{first[0]}"):
        prepare.prepare(data, tmp_path / "out")


def test_a_photograph_of_a_set_never_trained_on_stops_it(prepare, parts, data: Path, tmp_path: Path):
    trained = min(parts["development"]["coco_person"])
    (data / "cocostuff10").mkdir()
    (data / "cocostuff10" / "instances.json").write_text(json.dumps(coco_file([trained], "cow")))
    with pytest.raises(UserError, match=f"images of cocostuff10 .*{trained}"):
        prepare.prepare(data, tmp_path / "out")


def test_missing_sets_and_strange_names_are_named(prepare, data: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"davis18: file name 'odd\.jpg' must match"):
        prepare.choose("davis18", ["odd.jpg"], 0.15, {})
    (data / "nuts" / "instances.json").unlink()
    with pytest.raises(UserError, match=r"missing: \['nuts'\]"):
        prepare.prepare(data, tmp_path / "out")


FIRST_SETS = ("coco_dev", "coco_person", "facade", "davis18", "camvid", "clothes", "nuts")


def test_the_committed_lists_are_sorted_and_name_every_set(prepare):
    held_out, development = (
        SCRIPT.with_name(f"{part}.txt").read_text().split("\n")[:-1] for part in ("held_out", "development")
    )
    for lines, sets in ((held_out, set(prepare.SETS)), (development, set(prepare.SETS) - {"camvid"})):
        assert lines == sorted(set(lines))
        assert {line.split("/")[0] for line in lines} == sets
    assert not set(held_out) & set(development)
    photographs = [
        {line.split("/")[1] for line in lines if line.split("/")[0] in prepare.COCO_SETS}
        for lines in (held_out, development)
    ]
    assert not photographs[0] & photographs[1]
    assert {"000000000009.jpg", "000000000139.jpg", "000000004495.jpg", "000000007977.jpg"} <= photographs[0]


def test_what_the_first_bundled_model_was_measured_on_is_held_out_as_it_was():
    lines = SCRIPT.with_name("held_out.txt").read_text().splitlines()
    first = [line for line in lines if line.split("/")[0] in FIRST_SETS]
    assert len(first) == 368
    assert (
        hashlib.sha256("\n".join(first).encode()).hexdigest()
        == "d137617d8e23b0efb4e0b221fc65e7feb0afd4fafcaa9dfc818dfdf3dd374d80"
    )
