"""How fast the exported files of a model are beside torch, both in turn in one run.

    python benchmarks/onnx_speed.py MODEL FILE.onnx [--boxes 10] [--repeats 5] [--image FILE] [--device cpu]

Each stage is measured by turns, `--repeats` times after one that does not count. The medians are printed: seconds on
the clock, and of the processor, which other programs on the machine disturb less. `OMP_NUM_THREADS` says how many
threads both take.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import maskwright
import maskwright.onnx
from maskwright.evaluation.report import format_table
from maskwright.pictures import read_picture


def stages(predictor: Any, picture: np.ndarray, boxes: list[list[float]]) -> dict[str, Callable[[], Any]]:
    """What is measured of a predictor."""
    features = predictor.encode(picture)
    return {
        "encode": lambda: predictor.encode(picture),
        f"masks of {len(boxes)} boxes": lambda: predictor.masks_from_boxes(features, boxes),
        "both": lambda: predictor.predict(picture, boxes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="weights folder or bundled model")
    parser.add_argument("file", help="its exported file")
    parser.add_argument("--boxes", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--image", default="examples/cat.jpg")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    picture = read_picture(arguments.image)
    height, width = picture.shape[:2]
    corners = np.random.default_rng(0).uniform(0, 0.6, (arguments.boxes, 2)) * (width, height)
    boxes = np.hstack([corners, corners + np.array([0.4 * width, 0.4 * height])]).tolist()
    runtimes = {
        "torch": stages(maskwright.load(arguments.model, arguments.device), picture, boxes),
        "onnxruntime": stages(maskwright.onnx.Predictor(arguments.file, arguments.device), picture, boxes),
    }
    spent: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(1 + arguments.repeats):
        for stage in runtimes["torch"]:
            for runtime, run_stage in runtimes.items():
                wall, cpu = time.perf_counter(), time.process_time()
                run_stage[stage]()
                spent.setdefault((stage, runtime), []).append((time.perf_counter() - wall, time.process_time() - cpu))
    rows = []
    for stage in runtimes["torch"]:
        torch_s, onnx_s = (np.median(spent[stage, runtime][1:], axis=0) for runtime in runtimes)
        rows.append([stage, *map(float, (*torch_s, *onnx_s, *torch_s / onnx_s))])
    columns = ["torch s", "CPU s", "onnxruntime s", "CPU s", "times as fast", "by CPU s"]
    print(format_table(["stage", *columns], rows))


if __name__ == "__main__":
    main()
