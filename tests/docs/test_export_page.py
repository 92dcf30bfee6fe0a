"""The page on exported models: its example in JavaScript in node, and its tables against the graphs of all kinds."""

from __future__ import annotations

import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import small_deep_mac
import small_deep_marc
import small_max_deeplab
import torch
from documented import DOCS, blocks
from jaxtyping import config

from maskwright.export.files import ExportOptions, export_model, save_models
from maskwright.export.graphs import GraphOptions, create_graphs, example_inputs
from maskwright.onnx import Predictor
from node_page import require_node, require_runtime, run_script

PAGE = DOCS / "export.md"
ROW = re.compile(r"^\| (`[^|]*) \| (\w+) \| ([^|]*) \|", re.MULTILINE)


def install(package: Path, folder: Path) -> None:
    """What `npm install` makes of onnxruntime-web, without what its entry `onnxruntime-web/wasm` does not need."""
    folder.mkdir(parents=True)
    if package.is_dir():
        shutil.copytree(package, folder / "onnxruntime-web")
        return
    with tarfile.open(package) as archive:
        archive.extractall(folder, filter="data")
    (folder / "package").rename(folder / "onnxruntime-web")


def test_the_example_in_javascript_gives_what_python_gives(tmp_path: Path):
    require_node()
    install(require_runtime(), tmp_path / "node_modules")
    (script,) = (block.text for block in blocks(PAGE) if block.language == "javascript")
    (tmp_path / "example.mjs").write_text(script)
    model = small_deep_mac.build(use_image_crop=True, box_frame="pixel").eval()
    config.update("jaxtyping_disable", True)  # to compare the sizes of shapes would make constants of them
    try:
        graphs = export_model(model, ExportOptions(GraphOptions(raw_image=True)))
    finally:
        config.update("jaxtyping_disable", False)
    save_models(graphs, tmp_path / "deep-mac-tiny.onnx")
    picture = np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8)
    boxes = [[3, 4, 90, 60], [20.5, 30, 40, 45], [0, 0, 9, 9]]
    expected = Predictor(tmp_path / "deep-mac-tiny.onnx").predict(picture, boxes)
    found = run_script(
        tmp_path,
        """import { readFileSync } from "node:fs";
        import { masksOf } from "./example.mjs";
        const { pixels, boxes } = JSON.parse(readFileSync(0));
        const { side, probabilities, scores } = await masksOf(Uint8Array.from(pixels), 70, 100, boxes);
        console.log(JSON.stringify({ side, probabilities: [...probabilities], scores: [...scores] }))""",
        {"pixels": picture.ravel().tolist(), "boxes": boxes},
    )
    probabilities = np.reshape(found["probabilities"], (len(boxes), found["side"], found["side"]))
    np.testing.assert_allclose(probabilities, expected.mask_probabilities, rtol=0, atol=1e-3)
    np.testing.assert_allclose(found["scores"], expected.mask_scores, rtol=0, atol=1e-3)


def documented_tensors() -> set[tuple[str, str, int]]:
    """Name, type and number of dimensions of each tensor in the tables; `level_N` stands for all levels."""
    found = set()
    for names, kind, shapes in ROW.findall(PAGE.read_text()):
        for name in re.findall(r"`(\w+)`", names):
            for shape in re.findall(r"\[(.*?)\]", shapes):
                found.add((re.sub(r"\d+$", "N", name), kind, shape.count(",") + 1))
    return found


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_the_tables_name_all_inputs_and_outputs():
    deep_mac = small_deep_mac.build(mask_quality=True, use_image_crop=True).eval()
    detector = small_deep_mac.build(mask_quality=True, detector="centernet", categories=[{"id": 1, "name": "cat"}])
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    deep_marc = small_deep_marc.build(class_agnostic_masks=False, categories=categories)
    panoptic = small_max_deeplab.small_model()
    seen = set()
    for model, options in (
        (deep_mac, {}),
        (deep_mac, {"raw_image": True}),
        (deep_mac, {"single": True}),
        (detector.eval(), {"detector": True}),
        (detector, {"detector": True, "raw_image": True}),
        (deep_marc.eval(), {}),
        (panoptic.eval(), {}),
        (panoptic, {"raw_image": True}),
    ):
        for graph in create_graphs(model, GraphOptions(**options, max_detections=5)):
            given = example_inputs(graph)
            with torch.no_grad():
                outputs = dict(zip(graph.outputs, graph(*given.values()), strict=True))
            for name, tensor in (*given.items(), *outputs.items()):
                kind = str(tensor.dtype).removeprefix("torch.")
                seen.add((re.sub(r"\d+$", "N", name), kind, tensor.ndim))
    assert seen == documented_tensors()
