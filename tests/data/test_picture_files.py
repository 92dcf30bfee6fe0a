"""Which files of a folder are pictures that a person means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from maskwright.data.images import read_image
from maskwright.data.picture_files import find_pictures
from maskwright.errors import UserError
from maskwright.files import write_picture


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(name: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(name)


def names(*patterns: str, out: str = "masks") -> list[str]:
    return [path.as_posix() for path in find_pictures(patterns, out).paths]


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        (".jfif", "jpg"),
        (".jpe", "jpg"),
        (".JPG", "jpg"),
        (".avif", "avif"),
        (".jp2", "jpg_2000"),
        (".webp", "webp"),
        *[(suffix, None) for suffix in (".ppm", ".pgm", ".tga", ".bmp", ".dib", ".TIFF")],
    ],
)
def test_every_format_that_is_read_is_found(suffix: str, codec: str | None):
    if codec is not None and not features.check(codec):
        pytest.skip(f"this Pillow has no {codec}")
    save(f"photos/a{suffix}")
    assert names("photos") == [f"photos/a{suffix}"]
    assert read_image(f"photos/a{suffix}").shape == (3, 12, 16)


def test_folders_are_searched_with_the_folders_in_them_and_each_file_is_there_once(folder: Path):
    for name in ("p/b.png", "p/x/y/a.png", "p/x/c.png", "q/d.png"):
        save(name)
    (folder / "p" / "x" / "loop").symlink_to(folder / "p")
    (folder / "p" / "q").symlink_to(folder / "q")
    Path("p/notes.txt").write_text("no picture")
    assert names("p") == ["p/b.png", "p/q/d.png", "p/x/c.png", "p/x/y/a.png"]
    assert names("p/b.png", "p", "q") == ["p/b.png", "p/q/d.png", "p/x/c.png", "p/x/y/a.png"]


def test_hidden_files_are_left_out_and_told():
    save("p/a.png")
    for name in ("p/._a.png", "p/.thumb.jpg", "p/__MACOSX/._a.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(b"\0\5\x16\7")
    save("p/.ipynb_checkpoints/a-checkpoint.png")
    found = find_pictures(["p"], "masks")
    assert found.paths == [Path("p/a.png")]
    assert {(why, path.name) for why, path in found.left_out} == {
        ("a hidden file", "._a.png"),
        ("a hidden file", ".thumb.jpg"),
    }


def test_our_own_pictures_are_left_out_and_those_that_are_only_called_so_are_not(folder: Path):
    save("p/a.png")
    save("p/street_overlay.jpg")
    for name in ("a_overlay.jpg", "a_mask_0.png", "a_panoptic.png"):
        write_picture(folder / "p" / name, Image.new("RGB", (4, 4)))
    found = find_pictures(["p"], "p")
    assert found.paths == [Path("p/a.png"), Path("p/street_overlay.jpg")]
    assert [path.name for _, path in found.left_out] == ["a_mask_0.png", "a_overlay.jpg", "a_panoptic.png"]
    assert names("p/a_overlay.jpg") == ["p/a_overlay.jpg"]


def test_a_folder_of_hidden_files_only():
    Path("p").mkdir()
    Path("p/._a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"p: the folder has no images .*; p/\._a\.jpg is a hidden file"):
        names("p")


def test_an_argument_longer_than_a_file_name_can_be():
    with pytest.raises(UserError, match="no such file or folder"):
        names("x" * 300 + ".png")
