"""Every kind of picture becomes upright RGB, or one sentence that names the file."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskwright.data.images import read_image
from maskwright.errors import UserError

RED, GREEN = (250, 10, 20), (5, 240, 30)


def two_pixels() -> Image.Image:
    """2 wide, 1 high: red, green."""
    image = Image.new("RGB", (2, 1))
    image.putpixel((0, 0), RED)
    image.putpixel((1, 0), GREEN)
    return image


def pixels(tensor: torch.Tensor) -> list[list[tuple[int, ...]]]:
    return [[tuple(pixel) for pixel in row] for row in tensor.permute(1, 2, 0).tolist()]


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [[RED, GREEN]]),
        (2, [[GREEN, RED]]),
        (3, [[GREEN, RED]]),
        (6, [[RED], [GREEN]]),
        (8, [[GREEN], [RED]]),
    ],
)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, expected: list):
    exif = Image.Exif()
    exif[0x0112] = orientation
    two_pixels().save(tmp_path / "photo.png", exif=exif)
    assert pixels(read_image(tmp_path / "photo.png")) == expected


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr"])
def test_every_common_mode_becomes_rgb(mode: str):
    white = Image.new("RGB", (4, 3), "white").convert(mode)
    image = read_image(white)
    assert image.dtype == torch.uint8
    assert pixels(image) == [[(255, 255, 255)] * 4] * 3


def test_palette_colours_survive(tmp_path: Path):
    two_pixels().quantize(2).save(tmp_path / "palette.png")
    assert Image.open(tmp_path / "palette.png").mode == "P"
    assert pixels(read_image(str(tmp_path / "palette.png"))) == [[RED, GREEN]]


def test_transparent_pixels_are_laid_on_white():
    image = two_pixels().convert("RGBA")
    image.putalpha(Image.fromarray(np.array([[255, 0]], dtype=np.uint8)))
    assert pixels(read_image(image)) == [[RED, (255, 255, 255)]]
    assert pixels(read_image(np.asarray(image))) == [[RED, (255, 255, 255)]]


def test_sixteen_bit_grey_uses_the_full_range(tmp_path: Path):
    values = np.array([[0, 257, 65535, 32896, 200, 128]], dtype=np.uint16)
    for name in ("deep.png", "deep.tiff"):
        Image.fromarray(values).save(tmp_path / name)
        assert read_image(tmp_path / name)[0].tolist() == [[0, 1, 255, 128, 1, 0]]
    assert read_image(values)[2].tolist() == [[0, 1, 255, 128, 1, 0]]


def test_an_animation_gives_its_first_frame(tmp_path: Path):
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("white", "black")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "moving.gif").float().mean() == 255


def test_arrays_and_tensors():
    array = np.asarray(two_pixels())
    assert pixels(read_image(array)) == [[RED, GREEN]]
    assert read_image(array[:, :, 0])[1].tolist() == [[250, 5]]
    tensor = torch.tensor([[[0.0, 1.0]], [[0.5, 0.2]], [[1.0, 0.0]]])
    assert pixels(read_image(tensor)) == [[(0, 128, 255), (255, 51, 0)]]
    unchanged = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    assert torch.equal(read_image(unchanged), unchanged)


def test_the_result_does_not_share_memory_with_the_array():
    array = np.zeros((1, 1, 3), dtype=np.uint8)
    image = read_image(array)
    array[:] = 9
    assert image.sum() == 0


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (np.zeros((2, 2, 3)), "uint8"),
        (np.zeros((2, 2, 3), dtype=np.int64), "uint8"),
        (np.zeros((3, 4, 5), dtype=np.uint8), "shape"),
        (np.zeros((0, 4, 3), dtype=np.uint8), "shape"),
        (torch.zeros(4, 4), "shape"),
        (torch.zeros(3, 2, 2, dtype=torch.int64), "uint8"),
        (torch.full((3, 2, 2), 255.0), "[0, 1]"),
        (torch.full((3, 2, 2), float("nan")), "[0, 1]"),
        (Image.new("F", (2, 2)), "mode F"),
        (Image.new("I", (2, 2)), "mode I"),
        (Image.new("RGB", (0, 2)), "0 x 2"),
    ],
)
def test_other_values_are_refused(source: object, words: str):
    with pytest.raises(UserError, match=words.replace("[", r"\[")):
        read_image(source)  # pyright: ignore[reportArgumentType]


def test_files_that_are_no_images_are_refused_by_name(tmp_path: Path):
    text = tmp_path / "notes.jpg"
    text.write_text("no picture")
    truncated = tmp_path / "half.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(truncated)
    truncated.write_bytes(truncated.read_bytes()[:3000])
    empty = tmp_path / "empty.jpg"
    empty.touch()
    for path, words in [
        (text, "not an image"),
        (empty, "not an image"),
        (truncated, "cannot be read"),
        (tmp_path / "absent.jpg", "no such file"),
        (tmp_path, "folder"),
    ]:
        with pytest.raises(UserError, match=words) as caught:
            read_image(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_truncated_jpeg_is_refused(tmp_path: Path):
    path = tmp_path / "half.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="cannot be read"):
        read_image(path)


def test_twelve_bit_data_in_a_sixteen_bit_file_are_named_with_the_remedy(tmp_path: Path):
    Image.fromarray(np.array([[0, 4095]], dtype=np.uint16)).save(tmp_path / "camera.tiff")
    with pytest.warns(UserWarning, match=r"camera\.tiff: .* below 4096.* multiply them by 16"):
        read_image(tmp_path / "camera.tiff")
    with pytest.warns(UserWarning, match="multiply them by 16"):
        read_image(np.array([[0, 1]], dtype=np.uint16))


@pytest.mark.parametrize("values", [[0, 4096], [0, 0]])
def test_other_sixteen_bit_data_are_read_without_a_word(tmp_path: Path, values: list[int]):
    Image.fromarray(np.array([values], dtype=np.uint16)).save(tmp_path / "deep.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(tmp_path / "deep.png")


def test_an_empty_file_is_called_so(tmp_path: Path):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(UserError, match=r"empty\.jpg: not an image, the file is empty"):
        read_image(tmp_path / "empty.jpg")


def test_a_picture_of_too_many_pixels_is_refused_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    two_pixels().save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 0.5)
    with pytest.raises(UserError, match=r"large\.png: too large an image; shrink it, or cut it into tiles"):
        read_image(tmp_path / "large.png")
