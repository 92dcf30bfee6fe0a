"""`maskwright complete --images URL`: pictures that fsspec reads give the file that those of a folder give."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from coco_folder import CocoFolder, annotation

import maskwright
from maskwright.cli import main
from maskwright.data.picture_folder import RemoteFolder, RemotePicture, is_there
from maskwright.errors import UserError


@pytest.fixture
def boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CocoFolder:
    """Four pictures with a box each, one of them in a folder within, one broken, one missing."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    size = {"image_size": 32, "mask_size": 8, "width": 0.1}
    model = maskwright.DeepMAC(backbone="resnet18_fpn", mask_head="resnet4", box_frame="pixel", **size)
    maskwright.save_pretrained(model, "weights")
    entries = [annotation(image, image, bbox=[4, 6, 20, 24], segmentation=None) for image in range(1, 6)]
    data = CocoFolder(tmp_path).write(entries, images=5, size=(48, 64))
    content = json.loads(data.annotations.read_text())
    names = [data.images / image["file_name"] for image in content["images"]]
    (data.images / "within").mkdir()
    names[1].rename(data.images / "within" / "a picture.png")
    content["images"][1]["file_name"] = "C:\\exported\\within\\a picture.png"
    names[2].write_bytes(b"no picture")
    names[3].unlink()
    data.annotations.write_text(json.dumps(content))
    return data


def complete(boxes: CocoFolder, images: str | Path, out: str, *options: str) -> bytes:
    command = ["complete", str(boxes.annotations), "--images", str(images), "--out", out, "--model", "weights"]
    assert main([*command, "--device", "cpu", *options]) == 3
    return Path(out).read_bytes()


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(boxes: CocoFolder) -> Iterator[str]:
    """The folder of the pictures behind a web server."""
    handler = functools.partial(Silent, directory=str(boxes.images))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_url_gives_the_file_of_a_folder(boxes: CocoFolder, capsys: pytest.CaptureFixture[str], processes: str):
    whole = complete(boxes, boxes.images, "whole.json")
    told = capsys.readouterr().err
    assert "1 x picture that is missing" in told
    url = f"file://{boxes.images}"
    assert complete(boxes, f"{url}/", "done.json", "--processes", processes) == whole
    # The same is told, of other paths.
    assert capsys.readouterr().err.replace(url, str(boxes.images)).splitlines()[0] == told.splitlines()[0]


def test_pictures_of_a_web_server(boxes: CocoFolder, server: str):
    whole = complete(boxes, boxes.images, "whole.json")
    assert complete(boxes, server, "done.json") == whole


def test_pictures_in_memory(boxes: CocoFolder):
    whole = complete(boxes, boxes.images, "whole.json")
    memory = fsspec.filesystem("memory")
    memory.put(str(boxes.images), "/bucket/images", recursive=True)
    assert complete(boxes, "memory://bucket/images", "done.json") == whole
    memory.rm("/bucket", recursive=True)


def test_a_size_that_the_file_does_not_tell_is_that_of_the_picture(boxes: CocoFolder):
    content = json.loads(boxes.annotations.read_text())
    for image in content["images"]:
        del image["width"], image["height"]
    boxes.annotations.write_text(json.dumps(content))
    whole = complete(boxes, boxes.images, "whole.json")
    assert json.loads(whole)["annotations"][1]["segmentation"]["size"] == [48, 64]
    assert complete(boxes, f"file://{boxes.images}", "done.json") == whole


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("memory://nothing", "cannot list the image folder memory://nothing: FileNotFoundError"),
        ("strange://bucket/folder", "cannot list the image folder strange://bucket/folder: "),
        ("http://127.0.0.1:9/", "cannot list the image folder http://127.0.0.1:9: "),
    ],
)
def test_a_folder_that_cannot_be_listed_is_refused_with_a_sentence(
    boxes: CocoFolder, url: str, told: str, capsys: pytest.CaptureFixture[str]
):
    command = ["complete", str(boxes.annotations), "--images", url, "--out", "done.json", "--model", "weights"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert told in said
    assert len(said.splitlines()) == 1
    assert not list(Path().glob("done*"))


def test_another_size_in_the_bucket_does_not_go_on(boxes: CocoFolder):
    url = f"file://{boxes.images}"
    before = RemoteFolder(url).path("within/a picture.png")
    (boxes.images / "within" / "a picture.png").write_bytes(b"another")
    assert RemoteFolder(url).path("within/a picture.png") == RemotePicture(before.url, 7)
    assert before.size != 7


def test_a_machine_sees_whether_a_picture_is_there(boxes: CocoFolder):
    there = RemotePicture(f"file://{boxes.images}/within/a picture.png")
    assert is_there(there)
    assert there.read().getvalue() == (boxes.images / "within" / "a picture.png").read_bytes()
    assert not is_there(RemotePicture(f"file://{boxes.images}/gone.png"))
    assert not is_there(RemotePicture("strange://bucket/a.png"))
    with pytest.raises(UserError, match=r"cannot read the image strange://bucket/a\.png: "):
        RemotePicture("strange://bucket/a.png").read()
