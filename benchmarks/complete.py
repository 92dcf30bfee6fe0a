"""Boxes a second of `maskwright complete`, against the bare network on the same pictures, and of two processes.

    python benchmarks/complete.py ANNOTATIONS --images DIR [--model deep-mac-tiny] [--precision auto] [--limit N]
        [--processes 2] [--repeats 3] [--json OUT]

All masks of a COCO file are made anew. "network" is the model on pictures that are in memory, with all boxes of each
at once, and without pasting. "reading" is reading the pictures from their files, and nothing more. "complete" is the
whole of the command after the model is loaded: reading pictures, masks, run lengths, the journal and the completed
file. Each process has one thread. With several processes it includes their start; give more pictures (or each several
times, `--copies`) to make that matter less. Runs alternate, and numbers are medians: boxes for each second on the
clock, and for each second of the processor, which other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskwright.apps import complete
from maskwright.apps.run_summary import RunSummary
from maskwright.data.annotated_pictures import read_annotated_picture
from maskwright.data.images import image_of
from maskwright.evaluation.report import format_table
from maskwright.files import write_json

WARM_UP = 10  # pictures


def without_masks(annotations: Path, limit: int | None, copies: int, out: Path) -> None:
    """Write the file without its masks and crowds, with the first pictures alone, each several times."""
    content = json.loads(annotations.read_text())
    images = content["images"][:limit]
    by_image: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in images}
    for entry in content["annotations"]:
        if entry["image_id"] in by_image and not entry.get("iscrowd"):
            by_image[entry["image_id"]].append({"category_id": entry["category_id"], "bbox": entry["bbox"]})
    rows = [(image, by_image[image["id"]]) for image in images for _ in range(copies)]
    listed = [{**image, "id": row} for row, (image, _) in enumerate(rows)]
    boxes = [{**entry, "image_id": row} for row, (_, entries) in enumerate(rows) for entry in entries]
    content |= {"images": listed, "annotations": [{**entry, "id": row} for row, entry in enumerate(boxes)]}
    out.write_text(json.dumps(content))


def clocks() -> np.ndarray:
    """Seconds on the clock, and of the processor, here and in processes that have ended."""
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return np.array([time.perf_counter(), sum(usage.ru_utime + usage.ru_stime for usage in used)])


def seconds(work: Callable[[], object]) -> np.ndarray:
    """What `work` takes on both clocks."""
    start = clocks()
    work()
    return clocks() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--model", default="deep-mac-tiny")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--limit", type=int, help="the number of pictures")
    parser.add_argument("--copies", type=int, default=1, help="how often the command completes each picture")
    parser.add_argument("--processes", type=int, default=2, help="of the third row; 1 leaves it out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rates = measure(arguments, Path(folder))
    rows = [[name, *rate, *(rate / rates["network"])] for name, rate in rates.items()]
    header = ["", "boxes/s (clock)", "boxes/s (processor)", "of the network (clock)", "of the network (processor)"]
    print(format_table(header, rows))
    if arguments.json:
        write_json(arguments.json, {name: rate.tolist() for name, rate in rates.items()})


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, np.ndarray]:
    """Boxes a second of each way, on both clocks."""
    boxes, out = folder / "boxes.json", folder / "done.json"
    without_masks(arguments.annotations, arguments.limit, arguments.copies, boxes)
    options = complete.CompleteOptions(
        boxes, images=arguments.images, out=out, model=arguments.model, precision=arguments.precision
    )
    plan = complete.completion_plan(options, None, RunSummary())
    predictor = complete.load_completer(options).predictor
    once = plan.jobs[:: arguments.copies]

    def read() -> list[torch.Tensor]:
        return [image_of(read_annotated_picture(job.path, job.image_size, plan.source)) for job in once]

    pictures = read()
    prompts = [torch.from_numpy(job.boxes) for job in once]

    def network(count: int | None = None) -> None:
        with predictor.inference():
            for pixels, given in list(zip(pictures, prompts, strict=True))[:count]:
                features = predictor.model.encode([pixels])
                predictor.model.masks_from_boxes(features, [given], [torch.full((len(given),), -1)])

    def command(processes: int) -> None:
        with redirect_stdout(StringIO()):
            complete.run(**vars(options) | {"processes": processes})

    ways: dict[str, Callable[[], object]] = {"network": network, "reading": read, "complete": lambda: command(1)}
    if arguments.processes > 1:
        ways[f"complete, {arguments.processes} processes"] = lambda: command(arguments.processes)
    network(WARM_UP)
    spent: dict[str, list[np.ndarray]] = {name: [] for name in ways}
    for _ in range(arguments.repeats):
        for name, work in ways.items():
            spent[name].append(seconds(work))
    loading = np.median([seconds(lambda: complete.load_completer(options)) for _ in range(3)], axis=0)
    count = sum(map(len, prompts))
    rates: dict[str, np.ndarray] = {}
    for name, times in spent.items():
        is_command = name.startswith("complete")
        boxes_done = count * (arguments.copies if is_command else 1)
        rates[name] = boxes_done / (np.median(times, axis=0) - (loading if is_command else 0))
    return rates


if __name__ == "__main__":
    main()
