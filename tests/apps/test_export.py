"""`maskwright export` as a person calls it, and what takes its files."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import small_deep_mac
import small_max_deeplab
import torch
from onnx import TensorProto, helper, save
from PIL import Image

import maskwright
from maskwright.apps import export as exporting
from maskwright.apps.named_models import load_named
from maskwright.cli import main
from maskwright.errors import UserError
from maskwright.models.hub import save_pretrained
from maskwright.onnx import Predictor

ROOT = Path(__file__).parents[2]
BOXES = "10,10,60,50;5,20,80,70"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A weights folder `weights`, its export `model.onnx`, and a picture `picture.png`."""
    folder = tmp_path_factory.mktemp("export")
    save_pretrained(small_deep_mac.build(mask_head="resnet4").eval(), folder / "weights")
    assert main(["export", str(folder / "weights"), "--out", str(folder / "model.onnx")]) == 0
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    return folder


def test_predict_takes_the_file(folder, tmp_path):
    results = []
    for model in ("weights", "model.onnx"):
        arguments = [str(folder / "picture.png"), "--boxes", BOXES, "--model", str(folder / model)]
        options = ["--out", str(tmp_path / model), "--precision", "float32", "--device", "cpu"]
        assert main(["predict", *arguments, *options]) == 0
        results.append(json.loads((tmp_path / model / "predictions.json").read_text()))
    assert [len(rows) for rows in results] == [2, 2]
    for own, other in zip(*results, strict=True):
        assert own["score"] == pytest.approx(other["score"], abs=1e-3)
        assert own["segmentation"]["size"] == other["segmentation"]["size"] == [80, 100]


def test_load_takes_the_file(folder):
    predictor, other = maskwright.load(folder / "model.onnx"), maskwright.load(folder / "weights", "cpu")
    boxes = [[10, 10, 60, 50], [5, 20, 80, 70]]
    found, expected = (each.predict(folder / "picture.png", boxes, [3, -1]) for each in (predictor, other))
    torch.testing.assert_close(found.mask_probabilities, expected.mask_probabilities, rtol=0, atol=1e-3)
    assert found.labels.tolist() == [3, -1]
    assert found.frame == expected.frame
    assert predictor.predict(folder / "picture.png", []).masks.shape == (0, 80, 100)
    two = predictor.model.masks_from_boxes(
        predictor.model.encode([torch.zeros(3, 20, 30), torch.zeros(3, 50, 40)]),
        [torch.tensor([[1.0, 2, 20, 15]]), torch.zeros(0, 4)],
    )
    assert [(len(each), each.image_size) for each in two] == [(1, (20, 30)), (0, (50, 40))]


@pytest.mark.gpu
def test_a_gpu_gives_the_same(folder):
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA")
    boxes = [[10, 10, 60, 50]]
    found, expected = (
        Predictor(folder / "model.onnx", d).predict(folder / "picture.png", boxes) for d in ("cuda", "cpu")
    )
    np.testing.assert_allclose(found.mask_probabilities, expected.mask_probabilities, rtol=0, atol=1e-3)


def test_the_benchmark_compares_both(folder, capsys, monkeypatch):
    files = [str(folder / "weights"), str(folder / "model.onnx"), "--image", str(folder / "picture.png")]
    monkeypatch.setattr("sys.argv", ["onnx_speed.py", *files, "--repeats", "1", "--boxes", "2"])
    runpy.run_path(str(ROOT / "benchmarks" / "onnx_speed.py"), run_name="__main__")
    stages = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert {"encode", "masks of 2 boxes", "both"} <= set(stages)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["weights", "--out", "model.pt"], "model.pt: expected the name of a file that ends in .onnx"),
        (["weights", "--out", "nowhere/model.onnx"], "the folder nowhere does not exist"),
        (["missing", "--out", "model.onnx"], "missing: neither a weights folder nor a bundled model"),
        (
            ["weights", "--out", "x.onnx", "--precision", "int4"],
            "weights: precision must be one of float32, float16, int8",
        ),
        (["weights", "--out", "x.onnx", "--detector"], "weights: only Deep-MAC models with a detector"),
        (["weights", "--out", "x.onnx", "--max-detections", "0"], "--max-detections: expected 1 or more"),
        (["model.onnx", "--out", "x.onnx"], "model.onnx is an exported model"),
        (["panoptic", "--out", "x.onnx", "--single"], "panoptic: it finds all segments by itself"),
    ],
)
def test_what_cannot_be_exported(folder, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    if arguments[0] == "panoptic" and not Path("panoptic").exists():
        save_pretrained(small_max_deeplab.small_model(), "panoptic")
    before = sorted(folder.iterdir())
    assert main(["export", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("options", [{"raw_image": True}, {"single": True, "raw_image": True}, {"detector": True}, {}])
def test_a_second_look_that_is_left_out_is_told(options, tmp_path, capsys, monkeypatch):
    save_pretrained(small_deep_mac.build(second_look_below=9.0, second_look_size=32), tmp_path / "weights")
    monkeypatch.setattr(exporting, "export_model", lambda *_: {})
    exporting.export(exporting.ExportArguments(str(tmp_path / "weights"), str(tmp_path / "model.onnx"), **options))
    cause = "--detector" if "detector" in options else "--raw-image"
    told = f"{tmp_path / 'model.onnx'} has no second look at small boxes, as the model has: {cause} leaves it out\n"
    assert capsys.readouterr().err == (told if options else "")


def test_other_verbs_say_what_takes_it(folder, tmp_path, capsys):
    (tmp_path / "file.json").write_text('{"images": [], "annotations": [], "categories": []}')
    data = ["--images", str(folder), "--annotations", str(tmp_path / "file.json")]
    assert main(["calibrate", str(folder / "model.onnx"), *data]) == 2
    assert "model.onnx" in capsys.readouterr().err
    with pytest.raises(
        UserError, match="is an exported model, for `maskwright predict`, `complete`, `demo` and `evaluate`"
    ):
        maskwright.from_pretrained(folder / "model.onnx")
    for precision in ("bfloat16", "float16"):
        for load in (maskwright.load, load_named):
            with pytest.raises(UserError, match="computes in float32, and cannot be compiled"):
                load(str(folder / "model.onnx"), precision=precision)


def test_files_that_are_no_exports_are_named(folder, tmp_path):
    model = tmp_path / "model.onnx"
    with pytest.raises(UserError, match=r"model.onnx: no such file; expected a model that `maskwright export` made"):
        Predictor(model)
    model.write_bytes(b"")
    with pytest.raises(UserError, match=r"model.onnx: (not a whole ONNX file|an ONNX file, but not one)"):
        Predictor(model)
    model.write_bytes((folder / "model.onnx").read_bytes()[:5000])
    with pytest.raises(UserError, match=r"model.onnx: not a whole ONNX file"):
        Predictor(model)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "other", ends[:1], ends[1:])
    save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]), model)
    with pytest.raises(UserError, match=r"an ONNX file, but not one that `maskwright export` made"):
        Predictor(model)
    with pytest.raises(UserError, match="is the encoder of a pair"):
        Predictor(folder / "model.encoder.onnx")
    with pytest.raises(UserError, match="device 'tpu' is unknown"):
        Predictor(folder / "model.onnx", "tpu")


def test_files_of_two_exports_are_no_pair(folder, tmp_path):
    (tmp_path / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
    encoder = (folder / "model.encoder.onnx").read_bytes()
    identity = Predictor(folder / "model.onnx").metadata.id.encode()
    assert encoder.count(identity) == 1
    (tmp_path / "model.encoder.onnx").write_bytes(encoder.replace(identity, b"0" * len(identity)))
    with pytest.raises(UserError, match=r"is not the encoder of .*: export the two together again"):
        Predictor(tmp_path / "model.onnx")
