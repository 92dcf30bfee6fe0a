"""Seconds from a photograph and 10 boxes to masks at full resolution, of several models in one run.

    python benchmarks/box_to_mask_speed.py deep-mac-tiny [OTHER ...] [--threads 1] [--repeats 5] [--json OUT]

OTHER is another model or weights folder, or `sam` or `sam2`: SAM ViT-B and SAM 2 tiny of transformers, with random
weights, whose masks mean nothing. The photograph is `examples/cat.jpg` at 640 x 480. The models take turns; seconds
are medians of `--repeats`, on the clock and of the processor, and the ratio is that of the latter to the first model's.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from box_to_mask import machine
from mask_methods import Method, create_method, planes_of
from PIL import Image

from maskwright.apps.outputs import check_outputs
from maskwright.data.images import read_image
from maskwright.errors import UserError
from maskwright.evaluation.report import format_table
from maskwright.files import write_json

PHOTOGRAPH = Path(__file__).parents[1] / "examples" / "cat.jpg"
WIDTH, HEIGHT = 640, 480
BOXES = [[128.0 * x + 10, 240.0 * y + 10, 128.0 * x + 118, 240.0 * y + 230] for x in range(5) for y in range(2)]


def measure(methods: dict[str, Method], repeats: int) -> dict[str, dict[str, Any]]:
    """Median seconds of each method, and the ratio to the first one's."""
    image = read_image(Image.open(PHOTOGRAPH).convert("RGB").resize((WIDTH, HEIGHT)))
    boxes = torch.tensor(BOXES)
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    for _ in range(repeats):
        for name, method in methods.items():
            before = time.perf_counter(), time.process_time()
            planes_of(method(image, boxes))
            spent[name].append((time.perf_counter() - before[0], time.process_time() - before[1]))
    medians = {name: [median(seconds) for seconds in zip(*rows, strict=True)] for name, rows in spent.items()}
    first = next(iter(medians.values()))
    return {
        name: {"seconds": clock, "cpu_seconds": processor, "ratio": processor / first[1]}
        for name, (clock, processor) in medians.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        if arguments.repeats < 1:
            raise UserError(f"--repeats must be at least 1, but got {arguments.repeats}")
        check_outputs([arguments.json] if arguments.json else [])
        methods = {name: create_method(name, arguments.device, random_weights=True) for name in arguments.models}
        found, description = measure(methods, arguments.repeats), machine(arguments.threads)
        print(", ".join(f"{key} {value}" for key, value in description.items()))
        print(
            format_table(["model", *next(iter(found.values()))], [[name, *row.values()] for name, row in found.items()])
        )
        if arguments.json:
            write_json(arguments.json, {"machine": description, "models": found})
    except UserError as error:
        print(f"box_to_mask_speed: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
