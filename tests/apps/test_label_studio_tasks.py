"""`maskwright data label-studio`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image

from completed_file import HEIGHT, HOSTILE, WIDTH, ReviewFolder, completed, rectangle
from maskwright.apps import label_studio_tasks
from maskwright.apps.label_studio import BrushTags
from maskwright.cli import main


@pytest.fixture
def folder(tmp_path: Path) -> ReviewFolder:
    return ReviewFolder(tmp_path)


def export(folder: ReviewFolder, *arguments: str) -> int:
    out = folder.path.with_name("tasks")
    return main(
        ["data", "label-studio", str(folder.path), "--images", str(folder.images), "--out", str(out), *arguments]
    )


def tasks(folder: ReviewFolder) -> list[dict[str, Any]]:
    """Those of all files, in order."""
    parts = sorted(folder.path.with_name("tasks").glob("*.json"))
    return [task for part in parts for task in json.loads(part.read_text())]


def test_a_task_per_picture_with_a_stroke_per_mask(folder: ReviewFolder):
    drawn = completed(2, 0.1)
    del drawn["maskwright"]
    annotations = [completed(1, 0.8), drawn, completed(3, 0.3, category_id=2), completed(4, 0.5, image_id=2)]
    assert export(folder.write(annotations)) == 0
    first, second = tasks(folder)
    assert first["data"] == {"image": "/data/local-files/?d=1.png", "file_name": "1.png"}
    (prediction,) = first["predictions"]
    assert (prediction["model_version"], prediction["score"]) == ("deep-mac-tiny abc", 0.3)
    found = [(stroke["id"], stroke["score"], stroke["value"]["brushlabels"]) for stroke in prediction["result"]]
    assert found == [("3", 0.3, [HOSTILE]), ("1", 0.8, ["cat"])]
    assert {(stroke["original_height"], stroke["original_width"]) for stroke in prediction["result"]} == {
        (HEIGHT, WIDTH)
    }
    assert [stroke["id"] for stroke in second["predictions"][0]["result"]] == ["4"]
    configuration = folder.path.with_name("tasks").joinpath("label_config.xml").read_text()
    assert BrushTags.read(configuration).labels == [HOSTILE, "cat"]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://host/{name}?size=full", "https://host/a/%C3%BC%20%23.png?size=full"),
        ("s3://bucket/{name}", "s3://bucket/a/ü #.png"),
    ],
)
def test_addresses_hold_the_path_of_the_picture(folder: ReviewFolder, url: str, expected: str):
    """The path is that in the folder, where the file spells it in another way."""
    folder.write([completed(1, 0.8)], names=("1.png",))
    content = json.loads(folder.path.read_text())
    content["images"][0]["file_name"] = "C:\\photos\\a\\ü #.png"
    folder.path.write_text(json.dumps(content))
    (folder.images / "a").mkdir()
    shutil.move(folder.images / "1.png", folder.images / "a" / "ü #.png")
    assert export(folder, "--url", url) == 0
    assert [task["data"]["image"] for task in tasks(folder)] == [expected]


def test_ids_that_are_no_ids(folder: ReviewFolder):
    assert export(folder.write([completed(7, 0.3), completed(7, 0.8)])) == 0
    (task,) = tasks(folder)
    assert [stroke["id"] for stroke in task["predictions"][0]["result"]] == ["#0", "#1"]


def test_what_cannot_be_shown_is_counted(folder: ReviewFolder, capsys: pytest.CaptureFixture[str]):
    """A missing picture, one that is annotated as stored, and masks without pixels and without sense."""
    annotations = [
        completed(1, 0.8),
        completed(2, 0.5, segmentation=rectangle(0, 0, 0, 0)),
        completed(3, 0.5, segmentation={"size": [HEIGHT, WIDTH], "counts": "?"}),
        completed(4, 0.5, image_id=2),
        completed(5, 0.5, image_id=3),
        completed(6, 0.5, image_id=4),
    ]
    folder.write(annotations, names=("1.png", "missing.png", "3.png", "4.png"))
    turned = Image.new("RGB", (WIDTH, HEIGHT))
    turned.getexif()[ExifTags.Base.Orientation] = 6
    turned.save(folder.images / "3.png", exif=turned.getexif())
    (folder.images / "4.png").write_bytes(b"no picture")
    assert export(folder) == 3
    assert [stroke["id"] for task in tasks(folder) for stroke in task["predictions"][0]["result"]] == ["1"]
    told = capsys.readouterr().err
    assert "failed: 1 x picture that cannot be read, namely cannot read the image" in told
    assert "failed: 1 x picture that is missing, namely missing.png" in told
    assert "failed: 2 x mask that is malformed or has no pixel" in told
    assert "failed: 1 x picture annotated as stored, which Label Studio shows upright, namely 3.png" in told


def test_files_of_limited_size(folder: ReviewFolder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(label_studio_tasks, "_LARGEST_FILE", 3000)
    names = tuple(f"{number}.png" for number in range(1, 6))
    annotations = [completed(number, 0.5, image_id=number) for number in range(1, 6)]
    assert export(folder.write(annotations, names)) == 0
    parts = list(folder.path.with_name("tasks").glob("tasks_*.json"))
    assert len(parts) > 1
    assert all(part.stat().st_size < 3100 for part in parts)
    assert sorted(task["data"]["file_name"] for task in tasks(folder)) == list(names)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--url", "https://host/"], "--url must hold {name}"),
        (["--exif", "sideways"], "exif must be one of auto, upright, stored"),
    ],
)
def test_wrong_options(folder: ReviewFolder, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str):
    assert export(folder.write([completed(1, 0.8)]), *arguments) == 2
    assert told in capsys.readouterr().err
    assert not folder.path.with_name("tasks").exists()


def test_what_is_there_stays(folder: ReviewFolder, capsys: pytest.CaptureFixture[str]):
    out = folder.path.with_name("tasks")
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert export(folder.write([completed(1, 0.8)])) == 2
    assert f"{out} is there already; expected a new folder" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
