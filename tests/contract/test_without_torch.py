"""Exported models where there is no torch: `maskwright.onnx`, and the commands `predict`, `complete` and `demo`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
import small_deep_mac
from jaxtyping import config
from packaging.requirements import Requirement
from torch import nn

from maskwright.apps.export import ExportArguments, export
from maskwright.models.hub import save_pretrained
from maskwright.onnx.metadata import encoder_path
from maskwright.predictor import load

ROOT = Path(__file__).parents[2]
ALONE = ("numpy", "pillow", "onnxruntime")
"""What `maskwright.onnx` needs."""

LISTED = [line for line in (ROOT / "docker" / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
"""What the commands need: the packages of the container."""

SCRIPT = """
import importlib.util, json, sys
import numpy as np
from maskwright.onnx import Predictor

assert [name for name in ("torch", "torchvision", "jaxtyping", "scipy") if importlib.util.find_spec(name)] == []
predictor = Predictor(sys.argv[1])
prediction = predictor.predict(sys.argv[2], json.loads(sys.argv[3]))
found = {"probabilities": prediction.mask_probabilities, "scores": prediction.mask_scores, "masks": prediction.masks}
np.savez(sys.argv[4], **found)
assert "torch" not in sys.modules
"""


COMMAND = """
import importlib.util, sys
from maskwright.cli import main

assert [name for name in ("torch", "torchvision") if importlib.util.find_spec(name)] == []
sys.exit(main(sys.argv[1:]))
"""

WITH_TORCH = """
import sys
from maskwright.cli import main

code = main(sys.argv[1:])
assert "torch" not in sys.modules, "an exported model needs no torch, also where there is one"
sys.exit(code)
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter that sees `ALONE` and this package."""
    return make_python(tmp_path, ALONE)


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that sees what the container's has."""
    return make_python(tmp_path_factory.mktemp("container"), LISTED)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model of Deep-MAC in reduced size, and beside it the folder of its weights."""
    folder = tmp_path_factory.mktemp("model")
    crops = {"use_image_crop": True, "box_frame": "pixel", "box_margin": 0.1}
    twice = {"second_look_below": 10.0, "second_look_size": 32}  # of four boxes
    built = small_deep_mac.build(mask_head="resnet4", **crops, **twice)
    nn.init.ones_(built.network.mask_head.project_out.bias)  # no mask is empty
    save_pretrained(built, folder / "deep-mac-tiny")
    file = folder / "deep-mac-tiny.onnx"
    config.update("jaxtyping_disable", True)  # to compare the sizes of shapes would make constants of them
    try:
        export(ExportArguments(str(folder / "deep-mac-tiny"), str(file)))
    finally:
        config.update("jaxtyping_disable", False)
    return file


def make_python(folder: Path, requirements: Sequence[str]) -> Path:
    """An interpreter that sees what `pip install` of some packages brings, as they are installed here, and this one."""
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    (site_packages,) = (folder / "venv").glob("lib/python*/site-packages")
    (site_packages / "maskwright").symlink_to(ROOT / "src" / "maskwright")
    for name in brought(requirements, "maskwright"):
        installed = distribution(name)
        for top in {file.parts[0] for file in installed.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            if not (site_packages / top).exists() and not top.endswith(".pth"):
                (site_packages / top).symlink_to(Path(str(installed.locate_file(top))).resolve())
    return folder / "venv" / "bin" / "python"


def brought(requirements: Sequence[str], *others: str) -> set[str]:
    """The names of packages, of those that they require, and so on, and of `others` alone."""
    found, waiting = set(others), [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        if requirement.name not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            found.add(requirement.name)
            waiting += map(Requirement, distribution(requirement.name).requires or [])
    return found


def test_it_predicts_the_same(python: Path, model: Path, tmp_path: Path):
    picture = ROOT / "examples" / "cat.jpg"
    (boxes,) = json.loads((ROOT / "examples" / "cat_boxes.json").read_text()).values()
    arguments = [model, picture, json.dumps(boxes), tmp_path / "found.npz"]
    ran = subprocess.run([python, "-I", "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found, expected = np.load(tmp_path / "found.npz"), load(model.with_suffix(""), "cpu").predict(picture, boxes)
    np.testing.assert_allclose(found["probabilities"], expected.mask_probabilities, rtol=0, atol=1e-3)
    np.testing.assert_allclose(found["scores"], expected.mask_scores, rtol=0, atol=1e-3)
    assert (found["masks"] != expected.masks.numpy()).mean() < 1e-4
    check_the_page_s_example(python, model, tmp_path)


def check_the_page_s_example(python: Path, model: Path, folder: Path) -> None:
    """The Python of docs/export.md does what it says, in a folder with the exported file."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)
    for file in (model, encoder_path(model)):
        (folder / file.name).symlink_to(file)
    (folder / "cat.jpg").symlink_to(ROOT / "examples" / "cat.jpg")
    ran = subprocess.run([python, "-I", "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "1 (522, 640)"


def run(python: Path | str, script: str, folder: Path, *arguments: str) -> str:
    """What a command prints, run in a folder; it must succeed."""
    flags = ["-I"] if script is COMMAND else []
    ran = subprocess.run(
        [python, *flags, "-c", script, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_predict_and_complete_write_the_same_files(container: Path, model: Path, tmp_path: Path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "cat.jpg").symlink_to(ROOT / "examples" / "cat.jpg")
    (boxes,) = json.loads((ROOT / "examples" / "cat_boxes.json").read_text()).values()
    content = json.loads((ROOT / "examples" / "cat_instances.json").read_text())
    content["images"][0]["file_name"] = "cat.jpg"
    for entry in content["annotations"]:
        entry["segmentation"] = []
    (tmp_path / "boxes.json").write_text(json.dumps({"cat.jpg": [*boxes, [0, 0, 9999, 3]]}))
    (tmp_path / "coco.json").write_text(json.dumps(content))
    written: list[dict[str, bytes]] = []
    for where, interpreter, script in (("without", container, COMMAND), ("with", sys.executable, WITH_TORCH)):
        asked = ("--model", str(model), "--device", "cpu")
        pictures = ("pictures", "--boxes", "boxes.json", "--masks", "--out", f"{where}/predicted")
        run(interpreter, script, tmp_path, "predict", *pictures, *asked)
        for form in ((), ("--polygons",)):
            out = f"{where}/completed{len(form)}.json"
            given = ("coco.json", "--images", "pictures", "--out", out)
            run(interpreter, script, tmp_path, "complete", *given, *asked, *form)
        files = sorted(path for path in (tmp_path / where).rglob("*") if path.is_file())
        written.append({str(path.relative_to(tmp_path / where)): path.read_bytes() for path in files})
    without, with_torch = written
    assert without.keys() == with_torch.keys() >= {"completed0.json", "predicted/predictions.json"}
    assert {name for name in without if without[name] != with_torch[name]} == set()
    (result, *_) = json.loads(without["predicted/predictions.json"])
    assert result["segmentation"]["counts"]


def test_the_demo_answers(container: Path, model: Path, tmp_path: Path):
    arguments = ("demo", "--model", str(model), "--device", "cpu", "--port", "0")
    with subprocess.Popen(
        [container, "-I", "-c", COMMAND, *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        try:
            told = re.search(r"http://\S+", demo.stdout.readline())
            assert told is not None, demo.stderr.read()
            picture = (ROOT / "examples" / "cat.jpg").read_bytes()
            sent = ask(told[0] + "api/pictures", picture, "application/octet-stream")
            body = {"picture": sent["picture"], "boxes": [[40, 40, 295, 477]], "threshold": 0.0}
            (found,) = ask(told[0] + "api/boxes", json.dumps(body).encode(), "application/json")
            assert found["mask"]["width"] == 255
        finally:
            demo.terminate()
            demo.communicate()


def ask(address: str, content: bytes, kind: str):
    with urlopen(Request(address, content, {"Content-Type": kind}), timeout=300) as answer:
        return json.load(answer)


def test_other_models_are_refused_in_one_sentence(container: Path, tmp_path: Path):
    picture = str(ROOT / "examples" / "cat.jpg")
    arguments = ("predict", picture, "--boxes", "1,1,9,9")
    ran = subprocess.run(
        [container, "-I", "-c", COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    told = "--model deep-mac-tiny needs torch, which is not installed here: give an exported model (FILE.onnx)"
    assert (ran.returncode, ran.stderr) == (2, f"maskwright: error: {told}\n")
    assert not (tmp_path / "masks").exists()


def test_the_list_for_the_container_is_that_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[><=\[ ]", text)[0]: text.replace("[signatures]", "") for text in project["dependencies"]}
    needed |= {"onnxruntime": project["optional-dependencies"]["onnx"][0]}
    names = {re.split("[><=]", line)[0]: line for line in LISTED}
    assert {name: needed[name] for name in names if name in needed} == {
        name: line for name, line in names.items() if name in needed
    }
    assert needed.keys() - names.keys() == {"torch", "torchvision", "safetensors", "huggingface_hub"}
    assert names.keys() - needed.keys() == {"starlette", "uvicorn"}  # which come with gradio elsewhere
