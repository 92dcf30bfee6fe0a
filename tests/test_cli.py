"""The command line, called as a person calls it: results, exit codes, one sentence per mistake."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

import maskwright
from maskwright import cli
from maskwright.cli import VERBS, main
from maskwright.predictor import resolve_precision

BOXES = "4,2,24,22;0,0,40,30"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ellipse_model) -> Path:
    """A working folder with two photographs, and the ellipse model for every model name."""
    for home in ("maskwright.predictor", "maskwright.apps.weights"):
        monkeypatch.setattr(f"{home}.from_pretrained", lambda _: ellipse_model)
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a.png", 0), ("b.jpg", 1)):
        save_photo(tmp_path / name, seed)
    return tmp_path


def save_photo(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(path)


def predict(*arguments: str, code: int = 0) -> list[dict]:
    assert main(["predict", *arguments]) == code
    return json.loads(Path("masks/predictions.json").read_text())


def refused(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """The one sentence that answers a mistake."""
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("maskwright: error: ")
    return lines[0].removeprefix("maskwright: error: ")


def coco_file(path: Path, **changes) -> None:
    content = {
        "images": [
            {"id": 70, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 71, "file_name": "b.jpg", "width": 40, "height": 30},
        ],
        "annotations": [
            {"id": 1, "image_id": 70, "category_id": 9, "bbox": [4, 2, 20, 20]},
            {"id": 2, "image_id": 70, "category_id": 5, "bbox": [0, 0, 40, 30]},
            {"id": 3, "image_id": 70, "category_id": 5, "bbox": [1, 1, 5, 5], "iscrowd": 1},
        ],
        "categories": [{"id": 5, "name": "cat"}, {"id": 9, "name": "kite"}],
    }
    path.write_text(json.dumps(content | changes))


class TestPredict:
    def test_inline_boxes(self, folder: Path, capsys):
        results = predict("a.png", "--boxes", BOXES)
        assert capsys.readouterr().out == f"a.png\t2 masks\t{Path('masks/a_overlay.jpg')}\n"
        assert [entry["image_id"] for entry in results] == ["a.png", "a.png"]
        assert not any("category_id" in entry for entry in results)
        assert [entry["score"] for entry in results] == [0.75, 0.75]
        circle = coco_mask.decode(results[0]["segmentation"])
        assert circle.shape == (30, 40)
        assert abs(int(circle.sum()) - 314) <= 12
        assert Image.open("masks/a_overlay.jpg").size == (40, 30)
        assert sorted(path.name for path in Path("masks").iterdir()) == ["a_overlay.jpg", "predictions.json"]

    def test_inline_boxes_that_begin_with_a_minus_sign(self, folder: Path, capsys):
        assert len(predict("a.png", "--boxes=-5,-5,9,9")) == 1
        with suppress(SystemExit):
            main(["predict", "--help"])
        assert "--boxes=-5," in capsys.readouterr().out

    def test_boxes_by_file_name(self, folder: Path):
        Path("boxes.json").write_text(json.dumps({"b.jpg": [[0, 0, 9, 9]], "a.png": [], "other.jpg": [[1, 2, 3]]}))
        results = predict("a.png", "b.jpg", "--boxes", "boxes.json")
        assert [entry["image_id"] for entry in results] == ["b.jpg"]
        assert Path("masks/a_overlay.jpg").exists()

    def test_a_coco_file_keeps_its_ids_and_order(self, folder: Path, capsys):
        coco_file(Path("boxes.json"))
        results = predict("b.jpg", "a.png", "--boxes", "boxes.json")
        assert [(entry["image_id"], entry["category_id"]) for entry in results] == [(70, 9), (70, 5)]
        assert "b.jpg\t0 masks" in capsys.readouterr().out

    def test_a_coco_file_with_a_broken_annotation_says_so(self, folder: Path, capsys):
        good = {"id": 1, "image_id": 70, "category_id": 9, "bbox": [4, 2, 20, 20]}
        bad = {"id": 2, "image_id": 70, "category_id": 9, "bbox": [4, 2, 0, 20]}
        coco_file(Path("boxes.json"), annotations=[good, bad])
        assert len(predict("a.png", "--boxes", "boxes.json", code=3)) == 1
        assert "annotation 2" in capsys.readouterr().err

    def test_mask_pictures(self, folder: Path):
        (_, whole) = predict("a.png", "--boxes", BOXES, "--masks")
        picture = Image.open("masks/a_mask_1.png")
        assert picture.mode == "L"
        assert (np.asarray(picture) == 255 * coco_mask.decode(whole["segmentation"])).all()
        assert Path("masks/a_mask_0.png").exists()

    def test_folders_and_quoted_globs(self, folder: Path, capsys):
        save_photo(folder / "many" / "c.PNG")
        save_photo(folder / "many" / "deep" / "d.png")
        (folder / "many" / "notes.txt").write_text("no picture")
        names = {"a.png": [], "b.jpg": [], "c.PNG": [], "d.png": []}
        Path("boxes.json").write_text(json.dumps(names))
        for arguments, expected in [
            (["many"], ["c", "d"]),
            (["many/*"], ["c"]),
            (["*.png", "*.jpg"], ["a", "b"]),
            (["many/**/*"], ["c", "d"]),
            ([str(folder / "?.png"), "a.png", "./a.png"], ["a"]),
        ]:
            predict(*arguments, "--boxes", "boxes.json")
            overlays = [line.split("\t")[2] for line in capsys.readouterr().out.splitlines()]
            assert overlays == [str(Path("masks") / f"{stem}_overlay.jpg") for stem in expected]

    def test_a_bracket_in_a_file_name_is_no_pattern(self, folder: Path):
        save_photo(folder / "x[1].png")
        assert len(predict("x[1].png", "--boxes", "0,0,5,5")) == 1

    def test_same_file_names_overwrite_nothing(self, folder: Path, capsys):
        save_photo(folder / "one" / "x.png", 1)
        save_photo(folder / "two" / "x.png", 2)
        save_photo(folder / "two" / "x.jpg", 3)
        Path("boxes.json").write_text(json.dumps({"one/x.png": [[0, 0, 9, 9]], "two/x.png": [], "x.jpg": []}))
        results = predict("one", "two", "--boxes", "boxes.json")
        assert [entry["image_id"] for entry in results] == ["one/x.png"]
        overlays = [line.split("\t")[2] for line in capsys.readouterr().out.splitlines()]
        assert len(set(overlays)) == 3
        assert all(Path(overlay).is_file() for overlay in overlays)

    def test_an_input_is_never_overwritten(self, folder: Path):
        shutil.copy("b.jpg", "a_overlay.jpg")
        before = Path("a_overlay.jpg").read_bytes()
        Path("boxes.json").write_text(json.dumps({"a.png": [[0, 0, 9, 9]], "a_overlay.jpg": []}))
        assert main(["predict", "a.png", "a_overlay.jpg", "--boxes", "boxes.json", "--out", "."]) == 0
        assert Path("a_overlay.jpg").read_bytes() == before
        assert Path("a_2_overlay.jpg").is_file()

    def test_five_hundred_boxes(self, folder: Path):
        boxes = [[x % 30, x % 20, x % 30 + 5, x % 20 + 6] for x in range(500)]
        Path("boxes.json").write_text(json.dumps({"a.png": boxes}))
        assert len(predict("a.png", "--boxes", "boxes.json")) == 500

    def test_boxes_beyond_the_edge_are_cut_off(self, folder: Path):
        (result,) = predict("a.png", "--boxes", "30,20,99,99")
        rows, columns = np.nonzero(coco_mask.decode(result["segmentation"]))
        assert (rows.min(), columns.min()) == (20, 30)

    def test_one_damaged_image_does_not_cost_the_others(self, folder: Path, capsys):
        Path("a.png").write_bytes(Path("a.png").read_bytes()[:1000])
        Path("boxes.json").write_text(json.dumps({"a.png": [[0, 0, 9, 9]], "b.jpg": [[0, 0, 9, 9]]}))
        assert main(["predict", "a.png", "b.jpg", "--boxes", "boxes.json"]) == 3
        captured = capsys.readouterr()
        assert captured.out.startswith("b.jpg\t1 masks")
        assert captured.err.splitlines()[-1].startswith("failed: 1 x picture that cannot be read, namely a.png: ")
        assert len(json.loads(Path("masks/predictions.json").read_text())) == 1

    @pytest.mark.parametrize(
        ("boxes", "words"),
        [
            ("1,2,3", "box 0: expected four numbers"),
            ("1,2,3,x", "'1,2,3,x' is not a box"),
            ("0,0,5,nan", "box 0: expected finite"),
            ("9,0,5,5", "box 0: expected corners"),
            ("0,0,1,1;0.5,0.25,0.75,0.5", "all of its boxes lie within 0..1"),
            ("50,40,60,50", "a.png: box 0: [50, 40, 60, 50] lies outside of the image, which is 40 wide and 30 high"),
            ("absent.json", "absent.json: no such file"),
        ],
    )
    def test_wrong_inline_boxes(self, capsys, boxes: str, words: str):
        assert words in refused(capsys, "predict", "a.png", "--boxes", boxes)
        assert not list(Path().glob("masks/*"))

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("{oops", "not valid JSON"),
            ("", "not valid JSON (it is empty)"),
            ("7", "it names no image; expected"),
            ("[[1, 2, 3]]", "box 0: expected four numbers"),
            ("{}", "boxes.json: it names no image; expected"),
            ('{"b.jpg": []}', "no entry for the image a.png (it has 1: b.jpg)"),
            ('{"a.png": 7}', "at 'a.png'"),
            ('{"a.png": [1, 2, 3, 4]}', "at 'a.png', box 0: expected four numbers"),
            ('{"a.png": [[0, 0, 5]]}', "at 'a.png', box 0: expected four numbers"),
            ('{"a.png": [[0.1, 0.2, 0.3, 0.4]]}', "all of its boxes lie within 0..1"),
            ('{"a.png": [[0, 0, NaN, 5]]}', "at 'a.png', box 0: expected finite"),
            ('{"a.png": [[9, 0, 5, 5]]}', "at 'a.png', box 0: expected corners"),
            ('{"x/a.png": [], "y/a.png": []}', "'x/a.png' is not the only name there that may mean a.png"),
            ('{"images": [], "categories": []}', "a COCO file without annotations has no boxes"),
            ('{"images": [], "annotations": []}', "it lists no images"),
        ],
    )
    def test_wrong_box_files(self, capsys, content: str, words: str):
        Path("boxes.json").write_text(content)
        sentence = refused(capsys, "predict", "a.png", "--boxes", "boxes.json")
        assert words in sentence
        assert "boxes.json" in sentence
        assert not Path("masks").exists()

    def test_a_size_that_contradicts_the_coco_file(self, capsys):
        coco_file(Path("boxes.json"), images=[{"id": 70, "file_name": "a.png", "width": 41, "height": 30}])
        sentence = refused(capsys, "predict", "a.png", "--boxes", "boxes.json")
        assert "a.png has 30 x 40 pixels (height x width), but boxes.json says 30 x 41" in sentence

    def test_a_coco_file_with_swapped_sizes(self, capsys):
        coco_file(Path("boxes.json"), images=[{"id": 70, "file_name": "a.png", "width": 30, "height": 40}])
        assert len(predict("a.png", "--boxes", "boxes.json")) == 2
        assert "repaired: 1 x image height and width swapped" in capsys.readouterr().err

    def test_a_coco_file_annotates_the_pixels_as_stored(self, folder: Path):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.open("a.png").save("a.png", exif=exif)
        assert main(["predict", "a.png", "--boxes", "0,0,30,40"]) == 0
        assert Image.open("masks/a_overlay.jpg").size == (30, 40)
        coco_file(Path("boxes.json"))
        assert len(predict("a.png", "--boxes", "boxes.json")) == 2
        assert Image.open("masks/a_overlay.jpg").size == (40, 30)

    def test_no_boxes(self, capsys):
        sentence = refused(capsys, "predict", "a.png")
        assert "deep-mac-tiny has no detector and needs boxes: add --boxes" in sentence

    def test_inline_boxes_for_two_images(self, capsys):
        assert "are for one image" in refused(capsys, "predict", "a.png", "b.jpg", "--boxes", BOXES)

    @pytest.mark.parametrize(
        ("image", "words"),
        [
            ("absent.jpg", "absent.jpg: no such file"),
            ("*.gif", "*.gif: no such file or folder, and as a pattern it matches no image"),
            ("empty", "empty: the folder has no images"),
            ("notes.txt", "notes.txt: not an image"),
            ("half.png", "half.png: the image cannot be read"),
        ],
    )
    def test_wrong_images(self, capsys, image: str, words: str):
        Path("empty").mkdir()
        Path("notes.txt").write_text("no picture")
        Path("half.png").write_bytes(Path("a.png").read_bytes()[:1000])
        assert words in refused(capsys, "predict", image, "--boxes", "0,0,5,5")
        assert not list(Path().glob("masks/*"))

    def test_an_output_folder_that_cannot_be(self, capsys):
        assert "--out a.png" in refused(capsys, "predict", "b.jpg", "--boxes", "0,0,5,5", "--out", "a.png")

    def test_a_device_that_is_not_there(self, capsys):
        assert "'tpu7'" in refused(capsys, "predict", "a.png", "--boxes", "0,0,5,5", "--device", "tpu7")

    def test_a_precision_that_is_not_known(self, capsys):
        sentence = refused(capsys, "predict", "a.png", "--boxes", "0,0,5,5", "--precision", "half")
        assert sentence == "precision must be one of auto, float32, bfloat16, but got 'half'"


class TestDataCheck:
    def test_a_good_file(self, capsys):
        square = {"category_id": 9, "bbox": [4, 2, 9, 9], "segmentation": [[4, 2, 13, 2, 13, 11, 4, 11]]}
        coco_file(
            Path("boxes.json"), annotations=[{**square, "id": 1, "image_id": 70}, {**square, "id": 2, "image_id": 71}]
        )
        assert main(["data", "check", "boxes.json", "--images", "."]) == 0
        assert "kite" in capsys.readouterr().out

    def test_a_file_that_training_would_refuse(self, capsys):
        coco_file(Path("boxes.json"), images=[])
        assert main(["data", "check", "boxes.json"]) == 2
        assert "usable for training: no" in capsys.readouterr().out

    def test_a_file_with_boxes_only(self, capsys):
        coco_file(Path("boxes.json"))
        assert main(["data", "check", "boxes.json"]) == 0
        assert (
            "usable for training: not before it has masks, which `maskwright complete` makes" in capsys.readouterr().out
        )

    def test_a_file_with_boxes_only_that_cannot_be_used(self, capsys):
        coco_file(Path("boxes.json"))
        content = json.loads(Path("boxes.json").read_text())
        content["images"].append({**content["images"][0], "width": 50})
        Path("boxes.json").write_text(json.dumps(content))
        assert main(["data", "check", "boxes.json"]) == 2
        assert "usable for training: no\n" in capsys.readouterr().out

    def test_a_file_that_is_not_there(self, capsys):
        assert "absent.json" in refused(capsys, "data", "check", "absent.json")


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["predict", "a" * 9000, "--boxes", "1,2,3,4"], "a" * 500 + "... no such file"),
            (["predic"], "there is no command 'predic'; did you mean 'predict'?"),
            (["xyzzy"], "there is no command 'xyzzy'; expected one of: predict"),
            (["predict"], "images"),
            (["predict", "a.png", "--bxoes", "1"], "--bxoes 1; did you mean --boxes?"),
            (["predict", "a.png", "--boxes", "-20,3,9,9"], "did you mean --boxes=-20,3,9,9?"),
            (["predict", "a.png", "--labels", "some"], "--labels: expected one of auto, on, off, but got 'some'"),
            (["predict", "a.png", "--score-threshold", "high"], "--score-threshold: expected float, but got high"),
            (["predict", "a.png", "--boxes"], "--boxes: expected one argument"),
            (["evaluate", "model"], "required: annotations"),
            (["evaluate", "model", "--annotations", "a.json"], "evaluate needs --images, the folder of the images"),
            (["models", "more"], "more"),
            (["data"], "there is no command 'data'; did you mean 'data check'?"),
            (["data", "chek"], "did you mean 'data check'?"),
            (["data", "check"], "annotations"),
            (["train"], "recipe"),
            (["train", "no/such"], "no/such"),
        ],
    )
    def test_mistakes(self, capsys, arguments: list[str], words: str):
        assert words in refused(capsys, *arguments)

    def test_no_command_prints_the_usage_as_an_error(self, capsys):
        assert main([]) == 2
        assert capsys.readouterr().err.startswith("usage: maskwright COMMAND")

    def test_help_on_the_commands_of_data(self, capsys):
        assert main(["data", "--help"]) == 0
        assert "data panoptic" in capsys.readouterr().out

    @pytest.mark.parametrize("verb", VERBS)
    def test_every_command_explains_itself(self, capsys, verb: str):
        with suppress(SystemExit):
            assert main([*verb.split(), "--help"]) == 0
        assert f"usage: maskwright {verb}" in capsys.readouterr().out

    def test_ctrl_c(self, monkeypatch, capsys):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("maskwright.apps.predict.predict_files", interrupt)
        assert main(["predict", "a.png"]) == 130
        assert "Traceback" not in capsys.readouterr().err

    def test_a_full_disk_is_one_sentence(self, monkeypatch, capsys):
        def fill(*_):
            raise OSError(28, "No space left on device", "masks/a_overlay.jpg")

        monkeypatch.setattr("maskwright.apps.predict.predict_files", fill)
        assert refused(capsys, "predict", "a.png") == "masks/a_overlay.jpg: No space left on device"


def run(*arguments: str, code: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(argument: str):
    heavy = "{'torch', 'numpy', 'jsonargparse', 'PIL', 'lightning'}"
    code = f"import sys\nfrom maskwright.cli import main\nmain([{argument!r}])\nprint({heavy} & set(sys.modules))"
    done = run(code=code)
    assert done.stdout.splitlines()[-1] == "set()", done.stderr


def test_importing_the_package_imports_nothing_heavy():
    done = run(code="import sys, maskwright\ndir(maskwright)\nprint({'torch', 'numpy', 'PIL'} & set(sys.modules))")
    assert done.stdout == "set()\n", done.stderr


def test_in_a_process_of_its_own(folder: Path):
    """Real weights, real streams: results on stdout, the rest on stderr, no warnings, a quiet broken pipe."""
    torch.manual_seed(0)
    model = maskwright.DeepMAC(
        backbone="resnet18_fpn", mask_head="resnet4", image_size=64, mask_size=8, width=0.1, box_frame="pixel"
    )
    maskwright.save_pretrained(model, folder / "weights")
    program = "import sys\nfrom maskwright.cli import main\nsys.exit(main())"
    done = run("predict", "a.png", "--boxes", BOXES, "--model", "weights", "--device", "cpu", code=program)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"a.png\t2 masks\t{Path('masks/a_overlay.jpg')}\n"
    precision = resolve_precision("auto", torch.device("cpu"))
    assert done.stderr == f"2 masks in {Path('masks/predictions.json')}, computed in {precision}\n"
    wrong = run("predic", code=program)
    assert wrong.returncode == 2
    assert wrong.stderr == "maskwright: error: there is no command 'predic'; did you mean 'predict'?\n"


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_name_that_the_terminal_cannot_show_is_printed_with_escapes(monkeypatch, encoding):
    def dispatch(_: list[str]) -> int:
        print("caf\udce9")  # of a file whose name is no UTF-8
        return 0

    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(cli, "_dispatch", dispatch)
    assert main([]) == 0
    assert terminal.buffer.getvalue() == b"caf\\udce9\n"
