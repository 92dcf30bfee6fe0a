"""Scripts in node: those of the page without a server, and those of the documentation.

The environment variable MASKWRIGHT_ONNXRUNTIME_WEB names the npm package onnxruntime-web, a folder or a .tgz.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_SECONDS = 600
_MASKS = """
import { readFileSync } from "node:fs";
import * as ort from "./ort.wasm.bundle.min.mjs";
import { encode, masksOf } from "./model.js";
import { paste } from "./paste.js";

const given = JSON.parse(readFileSync(0));
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmBinary = readFileSync("ort-wasm-simd-threaded.wasm"); // node cannot fetch a file
const [encoder, masks] = await Promise.all(
  ["model.encoder.onnx", "model.onnx"].map((name) => ort.InferenceSession.create(readFileSync(name))),
);
const files = { model: given.model, encoder, masks };
const [height, width] = given.size;
const pixels = Buffer.from(given.pixels, "base64");
const read = (left, top, right, bottom) => {
  const rows = Array.from({ length: bottom - top }, (_, row) => 4 * ((top + row) * width + left));
  return Uint8ClampedArray.from(Buffer.concat(rows.map((start) => pixels.subarray(start, start + 4 * (right - left)))));
};
const picture = { size: given.size, read };
const found = await masksOf(files, picture, await encode(files, picture), given.boxes);
console.log(JSON.stringify(found.map(({ probabilities, side, score }, row) => ({
  probabilities: [...probabilities],
  score,
  mask: paste(probabilities, side, given.boxes[row], files.model.box_frame, given.size, 0.5),
}))));
"""


def require_node() -> str:
    """The program; without it the test is skipped."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("there is no node")
    return program


def require_runtime() -> Path:
    """The npm package onnxruntime-web; without it the test is skipped."""
    if "MASKWRIGHT_ONNXRUNTIME_WEB" not in os.environ:
        pytest.skip("MASKWRIGHT_ONNXRUNTIME_WEB names nothing")
    return Path(os.environ["MASKWRIGHT_ONNXRUNTIME_WEB"])


def run_script(folder: Path, script: str, value: object) -> Any:
    """The JSON that a module, which lies in `folder` as it were, writes; it reads `value` as JSON from its input."""
    command = [require_node(), "--input-type=module", "-e", script]
    done = subprocess.run(
        command, input=json.dumps(value), cwd=folder, capture_output=True, text=True, check=False, timeout=_SECONDS
    )
    assert done.returncode == 0, done.stderr[-2000:]  # the runtime is one long line
    return json.loads(done.stdout)


def masks_of_page(folder: Path, model: dict[str, Any], picture: np.ndarray, boxes: list[Any]) -> list[dict[str, Any]]:
    """What the scripts in a folder, beside the model and its runtime, say of boxes: probabilities, score and mask.

    Args:
        folder: a copy of the page's folder `static` whose `.js` files are modules.
        model: the metadata.
        picture: uint8 RGB [H, W, 3].
        boxes: xyxy, in its pixels.
    """
    opaque = np.concatenate([picture, np.full((*picture.shape[:2], 1), 255, np.uint8)], axis=2)
    pixels = base64.b64encode(opaque.tobytes()).decode()
    return run_script(folder, _MASKS, {"model": model, "size": picture.shape[:2], "pixels": pixels, "boxes": boxes})


def as_modules(folder: Path) -> None:
    """Have node take the `.js` files of a folder for modules, as browsers do."""
    (folder / "package.json").write_text('{"type": "module"}')


def painted(mask: dict[str, Any] | None, size: tuple[int, ...]) -> np.ndarray:
    """The plane of a mask as `canvas.js` reads it; its box must be tight."""
    plane = np.zeros(size, dtype=bool)
    if mask is None:
        return plane
    inside = np.repeat(np.arange(len(mask["runs"])) % 2 == 1, mask["runs"]).reshape(mask["height"], mask["width"])
    assert inside.any(axis=0)[[0, -1]].all()
    assert inside.any(axis=1)[[0, -1]].all()
    plane[mask["y"] : mask["y"] + mask["height"], mask["x"] : mask["x"] + mask["width"]] = inside
    return plane


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """The IoU of two masks."""
    return (one & other).sum() / (one | other).sum()
