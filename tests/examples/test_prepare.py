"""The bundled model's split: fixed, grouped, disjoint, recorded; and the merged file that training reads."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

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
    return module


def coco_file(file_names: list[str], category: str) -> dict[str, Any]:
    box = {"bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0, "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]}
    images = [{"id": 100 + i, "file_name": n, "width": 8, "height": 6} for i, n in enumerate(file_names)]
    annotations = [{"id": 7 * i, "image_id": 100 + i, "category_id": 40, **box} for i in range(len(file_names))]
    return {"images": images, "annotations": annotations, "categories": [{"id": 40, "name": category}]}


@pytest.fixture
def data(prepare, tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name in prepare.SETS:
        names = GROUPED_NAMES.get(name, [f"{name}{i}.jpg" for i in range(30)])
        if name == "coco_dev":
            names = [*names, "000000000009.jpg", "000000000139.jpg"]
        (folder / name).mkdir(parents=True)
        category = "person" if name in ("coco_dev", "coco_person") else f"thing of {name}"
        (folder / name / "instances.json").write_text(json.dumps(coco_file(names, category)))
    return folder


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def test_both_sides_are_whole_and_disjoint(prepare, data: Path, tmp_path: Path):
    prepare.prepare(data, tmp_path / "out")
    trained = {image["file_name"] for image in read(tmp_path / "out" / "train.json")["images"]}
    validated = {image["file_name"] for image in read(tmp_path / "out" / "validation.json")["images"]}
    listed = set((tmp_path / "held_out.txt").read_text().split())
    assert {name.replace("/images/", "/") for name in validated} <= listed
    for name in prepare.SETS:
        every = {image["file_name"] for image in read(data / name / "instances.json")["images"]}
        held_out = {image["file_name"] for image in read(tmp_path / "out" / f"{name}_held_out.json")["images"]}
        assert {f"{name}/{file_name}" for file_name in held_out} == {n for n in listed if n.startswith(f"{name}/")}
        left = {n.removeprefix(f"{name}/images/") for n in trained if n.startswith(f"{name}/")}
        assert left | held_out == every
        assert not left & held_out
        assert left
        assert len(held_out) >= 0.15 * len(every)
        groups = {prepare.group_of(name, n) for n in left} & {prepare.group_of(name, n) for n in held_out}
        assert not groups
    assert {"coco_dev/000000000009.jpg", "coco_dev/000000000139.jpg"} <= listed


def test_merged_file_has_fresh_ids_united_categories_and_weights(prepare, data: Path, tmp_path: Path):
    prepare.prepare(data, tmp_path / "out")
    merged = read(tmp_path / "out" / "train.json")
    assert [i["id"] for i in merged["images"]] == list(range(1, len(merged["images"]) + 1))
    assert len({a["id"] for a in merged["annotations"]}) == len(merged["images"]) == len(merged["annotations"])
    names = {c["id"]: c["name"] for c in merged["categories"]}
    assert len(names) == len(prepare.SETS) - 1  # `person` of two sets is one
    weights = dict.fromkeys(prepare.SETS, 0.0)
    for image, annotation in zip(merged["images"], merged["annotations"], strict=True):
        name = image["file_name"].split("/")[0]
        weights[name] += image["sampling_weight"] / len(merged["images"])
        assert annotation["image_id"] == image["id"]
        assert names[annotation["category_id"]] in ("person", f"thing of {name}")
    assert weights == pytest.approx(prepare.SAMPLING_SHARES, abs=1e-4)


def test_held_out_parts_keep_the_files_own_ids(prepare, data: Path, tmp_path: Path):
    prepare.prepare(data, tmp_path / "out")
    original, part = read(data / "nuts" / "instances.json"), read(tmp_path / "out" / "nuts_held_out.json")
    assert part["categories"] == original["categories"]
    assert part["images"]
    assert all(image in original["images"] for image in part["images"])
    assert {a["image_id"] for a in part["annotations"]} == {image["id"] for image in part["images"]}
    assert all(a in original["annotations"] for a in part["annotations"])


def test_it_stops_where_the_committed_list_says_otherwise(prepare, data: Path, tmp_path: Path):
    prepare.prepare(data, tmp_path / "out")
    prepare.prepare(data, tmp_path / "again")
    first = (tmp_path / "held_out.txt").read_text().split("\n", 1)
    (tmp_path / "held_out.txt").write_text(first[1])
    with pytest.raises(SystemExit, match=f"disagree on 1 files .{first[0]}"):
        prepare.prepare(data, tmp_path / "out")


def test_a_photograph_of_a_set_never_trained_on_stops_it(prepare, data: Path, tmp_path: Path):
    prepare.prepare(data, tmp_path / "out")
    merged = read(tmp_path / "out" / "train.json")["images"]
    trained = next(i["file_name"] for i in merged if i["file_name"].startswith("coco_person/")).split("/")[-1]
    (data / "cocostuff10").mkdir()
    (data / "cocostuff10" / "instances.json").write_text(json.dumps(coco_file([trained], "cow")))
    with pytest.raises(SystemExit, match=f"images of cocostuff10 .*{trained}"):
        prepare.prepare(data, tmp_path / "out")


def test_missing_sets_and_strange_names_are_named(prepare, data: Path, tmp_path: Path):
    with pytest.raises(SystemExit, match=r"davis18: file name 'odd\.jpg' must match"):
        prepare.held_out_names("davis18", ["odd.jpg"])
    (data / "nuts" / "instances.json").unlink()
    with pytest.raises(SystemExit, match=r"missing: \['nuts'\]"):
        prepare.prepare(data, tmp_path / "out")


def test_the_committed_list_is_sorted_and_names_every_set(prepare):
    lines = SCRIPT.with_name("held_out.txt").read_text().split("\n")[:-1]
    assert lines == sorted(set(lines))
    assert {line.split("/")[0] for line in lines} == set(prepare.SETS)
    assert "coco_dev/000000000009.jpg" in lines
    assert "coco_dev/000000000139.jpg" in lines
