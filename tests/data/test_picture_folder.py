from pathlib import Path

import pytest
from PIL import Image

from maskwright.data.picture_folder import ListedImage, PictureFolder, PictureList, picture_frame
from maskwright.errors import UserError


def picture(path: Path, size=(20, 12), orientation: int | None = None) -> Path:
    """A picture of (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.new("RGB", size).save(path, exif=exif)
    return path


def test_a_name_is_a_path_in_the_folder_first(tmp_path):
    for name in ("a.jpg", "b/a.jpg", "b/c.jpg"):
        picture(tmp_path / name)
    pictures = PictureFolder(tmp_path)
    assert pictures.match(["a.jpg", "b/a.jpg", "b/c.jpg"]) == []
    assert pictures.path("b/a.jpg") == tmp_path / "b" / "a.jpg"


def test_other_spellings_find_their_pictures(tmp_path):
    for name in ("a.jpg", "b/c d.jpg"):
        picture(tmp_path / name)
    pictures = PictureFolder(tmp_path)
    names = ["C:\\data\\a.jpg", "/home/ann/b/c%20d.jpg", "nowhere.jpg"]
    assert pictures.match(names) == names[:2]
    assert [pictures.path(name) for name in names] == [
        tmp_path / "a.jpg",
        tmp_path / "b" / "c d.jpg",
        tmp_path / "nowhere.jpg",
    ]


def test_a_name_that_may_mean_two_pictures_means_none(tmp_path):
    for name in ("a/x.jpg", "b/x.jpg"):
        picture(tmp_path / name)
    pictures = PictureFolder(tmp_path)
    assert pictures.match(["c/x.jpg"]) == []
    assert pictures.size_of("c/x.jpg") is None


@pytest.mark.parametrize(("exif", "size"), [("auto", (20, 12)), ("upright", (20, 12)), ("stored", (12, 20))])
def test_the_size_is_that_of_the_frame(tmp_path, exif, size):
    path = picture(tmp_path / "b" / "a.jpg", orientation=6)
    pictures = PictureFolder(tmp_path, exif)
    assert pictures.size_of("b/a.jpg") == size
    assert pictures.size_of("\\other\\a.jpg") == size
    assert PictureList([path], exif).size_of("a.jpg") == size


def test_no_size_where_there_is_no_picture(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    for pictures in (PictureFolder(tmp_path), PictureList([tmp_path / "a.jpg"])):
        assert pictures.size_of("a.jpg") is None
        assert pictures.size_of("b.jpg") is None


def test_the_frame_of_a_picture(tmp_path):
    picture(tmp_path / "a.jpg", orientation=6)
    assert PictureFolder(tmp_path).frame(ListedImage(1, "a.jpg", (12, 20), 0)).upright is False
    assert PictureFolder(tmp_path).frame(ListedImage(1, "a.jpg", (20, 12), 0)).upright is True
    assert PictureFolder(tmp_path, "stored").frame(ListedImage(1, "a.jpg", (20, 12), 0)).upright is False
    with pytest.raises(UserError, match="cannot read the image"):
        picture_frame(tmp_path / "b.jpg")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        PictureFolder(tmp_path / "nowhere")
