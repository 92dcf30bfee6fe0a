"""`maskwright demo --static`: the folder it writes, what it refuses, and its JavaScript against Python's numpy."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import small_deep_mac
import small_max_deeplab
from PIL import Image

from maskwright.apps.demo_page.static_page import RUNTIME
from maskwright.cli import main
from maskwright.models.hub import save_pretrained
from maskwright.onnx import Predictor
from maskwright.onnx.metadata import Metadata
from maskwright.onnx.paste import paste_region
from maskwright.onnx.preparation import network_input

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


@pytest.fixture
def node(tmp_path: Path):
    """A function that runs a script beside the page's own, with a JSON value in and one out."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("there is no node")
    shutil.copytree(SCRIPTS, tmp_path, dirs_exist_ok=True)
    (tmp_path / "package.json").write_text('{"type": "module"}')

    def run(script: str, value: object):
        (tmp_path / "script.js").write_text(
            f"import {{ readFileSync }} from 'node:fs';\nconst given = JSON.parse(readFileSync(0));\n{script}"
        )
        command = [program, str(tmp_path / "script.js")]
        done = subprocess.run(command, input=json.dumps(value), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def metadata(resize: str, size_rule: str, channel_order: str) -> Metadata:
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
        drawn = np.zeros(size, dtype=bool)
        if mask is not None:
            inside = np.repeat(np.arange(len(mask["runs"])) % 2 == 1, mask["runs"])
            region = np.s_[mask["y"] : mask["y"] + mask["height"], mask["x"] : mask["x"] + mask["width"]]
            drawn[region] = inside.reshape(mask["height"], mask["width"])
            assert drawn[region].any(axis=0)[[0, -1]].all()  # its box is tight
            assert drawn[region].any(axis=1)[[0, -1]].all()
        assert (drawn == plane).all()
