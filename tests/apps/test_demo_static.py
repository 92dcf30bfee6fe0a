"""`maskwright demo --static`: the folder it writes, what it refuses, and its JavaScript against Python's numpy."""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import small_deep_mac
import small_max_deeplab
from jaxtyping import config
from PIL import Image

from maskwright.apps.demo_page.static_page import RUNTIME, read_runtime
from maskwright.cli import main
from maskwright.export.files import ExportOptions, export_model, save_models
from maskwright.models.calibration import MaskCalibration
from maskwright.models.hub import save_pretrained
from maskwright.onnx import Predictor
from maskwright.onnx.metadata import Metadata
from maskwright.onnx.paste import paste_region
from maskwright.onnx.preparation import network_input
from maskwright.onnx.second_look import mean_of_looks, small_rows, square_around
from node_page import as_modules, masks_of_page, painted, require_runtime, run_script

SCRIPTS = Path(__file__).parents[2] / "src" / "maskwright" / "apps" / "demo_page" / "in_browser"


def runtime(folder: Path, name: str = "onnxruntime-web", version: str = "1.30.0") -> Path:
    """An npm package of that name whose libraries are empty."""
    (folder / "dist").mkdir(parents=True)
    for file in RUNTIME:
        (folder / "dist" / file).write_bytes(b"library")
    (folder / "package.json").write_text(json.dumps({"name": name, "version": version}))
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("static") / "weights"
    save_pretrained(small_deep_mac.build(mask_head="resnet4").eval(), folder)
    return folder


def test_the_folder(weights: Path, tmp_path: Path, capsys):
    archive = tmp_path / "runtime.tgz"
    with tarfile.open(archive, "w:gz") as writer:
        writer.add(runtime(tmp_path / "package"), "package")
    folder = tmp_path / "page"
    arguments = ["demo", "--static", str(folder), "--onnxruntime", str(archive), "--model", str(weights)]
    assert main([*arguments, "--max-boxes", "7"]) == 0
    assert f"python -m http.server --directory {folder}" in capsys.readouterr().out
    static = folder / "static"
    assert [(static / name).read_bytes() for name in RUNTIME] == [b"library"] * 2
    about = json.loads((static / "model.json").read_text())
    assert about["models"]["boxes"]["name"] == weights.name  # not where it lies
    assert str(tmp_path.parent) not in (static / "model.json").read_text()
    assert about["limits"] == {"bytes": 20_000_000, "pixels": 50_000_000, "boxes": 7}
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    predictor = Predictor(static / "model.onnx")
    assert len(predictor.predict(Image.fromarray(pixels), [[10, 10, 60, 50]])) == 1
    assert Metadata(**about["model"]) == predictor.metadata
    own = [path for path in folder.rglob("*") if path.suffix in (".html", ".js", ".css")]
    assert len(own) >= 9
    for path in own:  # whatever the page names is there
        assert "://" not in path.read_text().replace("http://www.w3.org", "")
    assert not (static / "requests.js").exists()
    assert main(arguments) == 2  # it is not empty any more
    assert "expected the name of a folder" in capsys.readouterr().err


def test_refusals(weights: Path, tmp_path: Path, capsys):
    good = str(runtime(tmp_path / "good"))
    panoptic = tmp_path / "panoptic"
    save_pretrained(small_max_deeplab.small_model(), panoptic)
    (tmp_path / "text.tgz").write_text("no archive")
    with tarfile.open(tmp_path / "empty.tgz", "w:gz"):
        pass
    partial = runtime(tmp_path / "partial")
    (partial / "dist" / RUNTIME[1]).unlink()
    page = str(tmp_path / "page")
    others = [tmp_path / name for name in ("text.tgz", "empty.tgz", "missing.tgz", "partial")]
    others.append(runtime(tmp_path / "other", name="onnxruntime-node"))
    for arguments, words in (
        (["--static", page], "--static needs --onnxruntime too"),
        (["--onnxruntime", good], "--onnxruntime belongs to --static"),
        (["--static", str(tmp_path / "no" / "page"), "--onnxruntime", good], "new or empty"),
        (["--static", str(tmp_path / "text.tgz"), "--onnxruntime", good], "new or empty"),
        (["--static", ".", "--onnxruntime", good], "new or empty"),
        (["--static", page, "--onnxruntime", str(runtime(tmp_path / "old", version="1.22.0"))], "1.22.0"),
        (["--static", page, "--onnxruntime", good, "--model", str(panoptic)], "expected a model that takes boxes"),
        (["--static", page, "--onnxruntime", good, "--model", f"{weights},{weights}"], "neither a weights folder"),
        *((["--static", page, "--onnxruntime", str(other)], "npm pack onnxruntime-web") for other in others),
    ):
        assert main(["demo", *arguments]) == 2
        assert words in capsys.readouterr().err
        assert not Path(page).exists()


@pytest.mark.parametrize("option", ["--device=cpu", "--port=7863", "--host=0.0.0.0", "--max-waiting=3"])
def test_options_of_a_server_have_no_use(option: str, tmp_path: Path, capsys):
    page = tmp_path / "page"
    good = str(runtime(tmp_path / "good"))
    assert main(["demo", "--static", str(page), "--onnxruntime", good, option]) == 2
    told = capsys.readouterr().err
    assert f"{option.partition('=')[0]} has no use with --static" in told
    assert told.count("\n") == 1
    assert not page.exists()


@pytest.fixture
def node(tmp_path: Path):
    """A function that runs a script beside the page's own, with a JSON value in and one out."""
    shutil.copytree(SCRIPTS, tmp_path, dirs_exist_ok=True)
    as_modules(tmp_path)
    head = "import { readFileSync } from 'node:fs';\nconst given = JSON.parse(readFileSync(0));\n"
    return lambda script, value: run_script(tmp_path, head + script, value)


def metadata(resize: str = "antialias", size_rule: str = "round", channel_order: str = "rgb", **values) -> Metadata:
    return Metadata(
        id="",
        graph="masks",
        family="deep_mac",
        raw_image=False,
        image_size=64,
        resize=resize,
        size_rule=size_rule,
        channel_order=channel_order,
        mean=[0.5, 0.4, 0.3],
        std=[0.2, 0.3, 0.4],
        padding=[0.5, 0.0, 1.0],
        precision="float32",
        categories=[],
        mask_classes=[],
        **values,
    )


def test_preparation_is_that_of_python(node):
    generator = np.random.default_rng(3)
    cases, expected = [], []
    rules = [("round", "rgb"), ("floor_twice", "bgr")]
    for resize, rule in product(("antialias", "half_pixel", "tf1", "align_corners"), rules):
        model = metadata(resize, *rule)
        for size in ((300, 150), (30, 41), (64, 64), (1, 300), (5, 128)):  # 2.5 rows of the last become 2
            picture = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
            opaque = np.concatenate([picture, np.full((*size, 1), 255, np.uint8)], axis=2)
            cases.append({"pixels": opaque.ravel().tolist(), "size": size, "model": asdict(model)})
            expected.append(network_input(picture, model))
    found = node(
        """import { networkInput } from "./preparation.js";
        console.log(JSON.stringify(given.map(({ pixels, size, model }) => {
            const stride = 4 * size[1];
            const rows = (first, end) => Uint8ClampedArray.from(pixels).subarray(stride * first, stride * end);
            return [...networkInput(rows, size, model)];
        })))""",
        cases,
    )
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.reshape(own, (1, 3, 64, 64)), other, rtol=0, atol=1e-4)


def test_paste_is_that_of_python(node):
    generator = np.random.default_rng(4)
    size = (50, 70)
    cases, expected = [], []
    for frame in ("corner", "pixel"):
        for box in ([0, 0, 70, 50], [3.3, 4.7, 40.2, 31.9], [10, 10, 11, 11], [60, 40, 70, 50], [5.6, 5.6, 5.9, 5.9]):
            probabilities = generator.random((8, 8), dtype=np.float32)
            cases.append({"values": probabilities.ravel().tolist(), "box": box, "frame": frame})
            plane = np.zeros(size, dtype=bool)
            pixels, (left, top) = paste_region(probabilities, np.array(box, dtype=np.float32), size, frame)
            plane[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
            expected.append(plane)
    found = node(
        """import { paste } from "./paste.js";
        console.log(JSON.stringify(given.map(({ values, box, frame }) =>
            paste(Float32Array.from(values), 8, box, frame, [50, 70], 0.5))))""",
        cases,
    )
    assert any(plane.any() for plane in expected)
    for mask, plane in zip(found, expected, strict=True):
        assert (painted(mask, size) == plane).all()


def test_the_second_look_is_that_of_python(node):
    generator = np.random.default_rng(5)
    looks = {"below": 24.0, "context": 1.5, "size": 32}
    curve = {"scores": [0.3, 0.5, 0.7], "ious": [0.1, 0.2, 0.6]}  # scores are beyond its ends, too
    sizes = [(50, 70), (9, 200), (64, 64)]
    given, expected = [], []
    for number in range(60):
        size = sizes[number % 3]
        corners = np.sort(generator.random((2, 2)), axis=0) * size[::-1]
        box = (corners.round() if number % 2 else corners).astype(np.float32).ravel()  # halves of pixels are rounded
        quality = {"mask_quality_logits": generator.normal(size=2).astype(np.float32)} if number % 4 < 2 else {}
        probabilities = generator.random((2, 3, 3), dtype=np.float32)
        scale = number % 5 / 4  # of none, and of all over a half
        both = {"mask_probabilities": probabilities * scale, "mask_scores": np.zeros(2, np.float32), **quality}
        first, second = ({name: values[[row]] for name, values in both.items()} for row in (0, 1))
        model = metadata(second_look=looks, mask_calibration=curve if number % 3 else None)
        part, inside = square_around(np.zeros((*size, 3)), box, looks["context"])
        mean = mean_of_looks(first, second, model)
        expected.append(
            (
                len(small_rows(box[None], model, 1)) == 1,
                [*(box - inside)[:2].tolist(), *part.shape[1::-1]],
                mean["mask_probabilities"].ravel().tolist(),
                mean["mask_scores"].item(),
            )
        )
        given.append(
            {
                "model": asdict(model),
                "size": size,
                "box": box.tolist(),
                "probabilities": both["mask_probabilities"].reshape(2, 9).tolist(),
                "logits": [value.tolist() for value in quality.values()],
            }
        )
    found = node(
        """import { isSmall, meanOfLooks, squareAround } from "./second_look.js";
        console.log(JSON.stringify(given.map(({ model, size, box, probabilities, logits }) => {
            const [left, top, right, bottom] = squareAround(size, box, model);
            const looks = [0, 1].map((row) => (
                { probabilities: Float32Array.from(probabilities[row]), side: 3, logit: logits[0]?.[row] }));
            const mean = meanOfLooks(...looks, model);
            const part = [left, top, right - left, bottom - top];
            return [isSmall(box, model), part, [...mean.probabilities], mean.score];
        })))""",
        given,
    )
    assert {small for small, *_ in expected} == {False, True}
    for own, other in zip(found, expected, strict=True):
        assert own[:2] == list(other[:2])
        np.testing.assert_allclose(own[2], other[2], rtol=1e-6)
        np.testing.assert_allclose(own[3], other[3], rtol=1e-5)
    assert (
        node(
            "import { isSmall } from './second_look.js'; console.log(isSmall([0, 0, 9, 9], given))", asdict(metadata())
        )
        is False
    )


@pytest.mark.parametrize("quality", [False, True])
def test_masks_are_those_of_python(node, tmp_path: Path, quality: bool):
    for name, content in read_runtime(require_runtime()).items():
        (tmp_path / name).write_bytes(content)
    looks = {"second_look_below": 24.0, "second_look_size": 32}
    model = small_deep_mac.build(use_image_crop=quality, mask_quality=quality, **looks).eval()
    model.mask_calibration = MaskCalibration([0.1, 0.5, 0.9], [0.2, 0.3, 0.95])
    config.update("jaxtyping_disable", True)  # to compare the sizes of shapes would make constants of them
    try:
        save_models(export_model(model, ExportOptions()), tmp_path / "model.onnx")
    finally:
        config.update("jaxtyping_disable", False)
    predictor = Predictor(tmp_path / "model.onnx")
    picture = np.random.default_rng(6).integers(0, 256, (100, 130, 3), dtype=np.uint8)
    boxes = [[3, 4, 100, 90], [20.25, 30.5, 40, 45], [0, 0, 20, 30], [110, 80, 130, 100], [60, 0, 64, 100]]
    boxes += [[x, 50, x + 30, 80] for x in range(20)]  # more than go at once
    expected = predictor.predict(picture, boxes)
    found = masks_of_page(tmp_path, asdict(predictor.metadata), picture, boxes)
    for row, one in enumerate(found):
        np.testing.assert_allclose(one["probabilities"], expected.mask_probabilities[row].ravel(), rtol=0, atol=1e-3)
        np.testing.assert_allclose(one["score"], expected.mask_scores[row], rtol=0, atol=1e-3)
    assert len(found) == len(boxes)
