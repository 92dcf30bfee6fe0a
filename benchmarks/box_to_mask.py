"""Box to mask on the same instances: our model, GrabCut, the filled box and the inscribed ellipse.

    python benchmarks/box_to_mask.py --images DIR --annotations FILE [--model NAME|PATH|none] [--json OUT]

Every method gets the image and its ground-truth boxes and returns masks at full resolution, which
`maskwright.evaluation.mask_iou.MaskIoU` scores. Crowds and annotations without a mask are left out.
Needs OpenCV: pip install 'maskwright[benchmark]'.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import maskwright
from maskwright.data.coco import CocoInstances
from maskwright.errors import UserError
from maskwright.evaluation.mask_iou import MaskIoU
from maskwright.evaluation.report import format_table, summarize
from maskwright.files import write_json
from maskwright.structures import Target, select_rows

GRABCUT_ITERATIONS = 5
GRABCUT_MARGIN = 0.25  # of the box's width and height, on each side
GRABCUT_LONG_SIDE = 320

# (RGB uint8 [3, H, W], boxes [N, 4] in its pixels) -> bool [N, H, W]
Method = Callable[[Tensor, Tensor], Tensor]


def filled_boxes(image: Tensor, boxes: Tensor) -> Tensor:
    """The pixels whose centres lie in the box."""
    x, y = pixel_centers(image)
    left, top, right, bottom = boxes[:, :, None, None].unbind(1)
    return (x >= left) & (x < right) & (y >= top) & (y < bottom)


def inscribed_ellipses(image: Tensor, boxes: Tensor) -> Tensor:
    """The pixels whose centres lie in the ellipse that touches the box's four sides."""
    x, y = pixel_centers(image)
    left, top, right, bottom = boxes[:, :, None, None].unbind(1)
    across = (2 * x - left - right) / (right - left)
    down = (2 * y - top - bottom) / (bottom - top)
    return across**2 + down**2 <= 1


def pixel_centers(image: Tensor) -> tuple[Tensor, Tensor]:
    """x [1, W] and y [H, 1] of the pixel centres."""
    height, width = image.shape[1:]
    return torch.arange(width)[None] + 0.5, torch.arange(height)[:, None] + 0.5


def grabcut(image: Tensor, boxes: Tensor) -> Tensor:
    """OpenCV's GrabCut from each box: probable foreground inside, background outside; the filled box where it
    returns nothing (also where the crop has no background, which OpenCV refuses)."""
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy()[:, :, ::-1])
    masks = filled_boxes(image, boxes)
    for row, box in enumerate(boxes.tolist()):
        found, (left, top) = grabcut_crop(pixels, box)
        if found.any():
            masks[row] = False
            masks[row, top : top + found.shape[0], left : left + found.shape[1]] = torch.from_numpy(found)
    return masks


def grabcut_crop(pixels: np.ndarray[Any, Any], box: list[float]) -> tuple[np.ndarray[Any, Any], tuple[int, int]]:
    """The foreground in the crop around one box, bool [h, w], and the crop's left and top in the image."""
    height, width = pixels.shape[:2]
    x1, y1, x2, y2 = box
    margin_x, margin_y = GRABCUT_MARGIN * (x2 - x1), GRABCUT_MARGIN * (y2 - y1)
    left, top = max(0, int(x1 - margin_x)), max(0, int(y1 - margin_y))
    right, bottom = min(width, int(np.ceil(x2 + margin_x))), min(height, int(np.ceil(y2 + margin_y)))
    crop = pixels[top:bottom, left:right]
    scale = min(1.0, GRABCUT_LONG_SIDE / max(crop.shape[:2]))
    if scale < 1:
        size = (max(1, round(crop.shape[1] * scale)), max(1, round(crop.shape[0] * scale)))
        crop = cv2.resize(crop, size, interpolation=cv2.INTER_AREA)
    x, y = round((x1 - left) * scale), round((y1 - top) * scale)
    rectangle = (x, y, max(1, round((x2 - left) * scale) - x), max(1, round((y2 - top) * scale) - y))
    labels = np.zeros(crop.shape[:2], np.uint8)
    cv2.setRNGSeed(0)
    try:
        state = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(crop, labels, rectangle, *state, GRABCUT_ITERATIONS, cv2.GC_INIT_WITH_RECT)
    except cv2.error:
        labels[:] = cv2.GC_BGD
    found = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    found = cv2.resize(found, (right - left, bottom - top), interpolation=cv2.INTER_NEAREST)
    return found.astype(bool), (left, top)


def model_method(name: str, device: str) -> Method:
    """Our model, from its name or weights folder."""
    predictor = maskwright.load(name, device=device)

    def masks(image: Tensor, boxes: Tensor) -> Tensor:
        return predictor.predict(image, boxes).masks.cpu()

    masks(torch.zeros(3, 64, 64, dtype=torch.uint8), torch.tensor([[8.0, 8.0, 56.0, 56.0]]))  # warms up
    return masks


def sampled_ids(annotations: Path, count: int | None, seed: int) -> set[int] | None:
    """The ids of `count` instances drawn by `seed`; None for all."""
    if count is None:
        return None
    if count < 1:
        raise UserError(f"--max-instances must be at least 1, but got {count}")
    ids = [
        annotation["id"]
        for annotation in json.loads(annotations.read_text())["annotations"]
        if annotation.get("segmentation") and not annotation.get("iscrowd")
    ]
    return set(random.Random(seed).sample(sorted(ids), min(count, len(ids))))


def scored_rows(target: Target, ids: set[int] | None) -> Target:
    """The rows that count: with a mask, no crowd, and among `ids`."""
    keep = target["has_mask"] & ~target["iscrowd"]
    if ids is not None:
        keep &= torch.tensor([int(i) in ids for i in target["ids"]], dtype=torch.bool)
    return select_rows(target, keep)


def compare(dataset: CocoInstances, methods: dict[str, Method], ids: set[int] | None) -> dict[str, dict[str, Any]]:
    """Per method what `MaskIoU` says, and `seconds_per_instance`."""
    metrics = {name: MaskIoU(dataset.categories, seen=[]) for name in methods}
    seconds = dict.fromkeys(methods, 0.0)
    count = 0
    for index in tqdm(range(len(dataset)), unit="image", file=sys.stderr):
        image, target = dataset[index]
        target = scored_rows(target, ids)
        if not len(target["boxes"]):
            continue
        count += len(target["boxes"])
        for name, method in methods.items():
            start = time.perf_counter()
            masks = method(torch.as_tensor(image), target["boxes"])
            seconds[name] += time.perf_counter() - start
            metrics[name].update([masks], [target])
    return {
        name: {
            **summarize(metric),
            "seconds_per_instance": seconds[name] / count if count else None,
        }
        for name, metric in metrics.items()
    }


def machine(threads: int) -> dict[str, Any]:
    """What the seconds were measured on."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line.split(":", 1)[1].strip() for line in information.read_text().split("\n") if "model name" in line]
        processor = names[0] if names else processor
    versions = {"python": platform.python_version(), "torch": torch.__version__, "opencv": cv2.__version__}
    return {"processor": processor, "cores": os.cpu_count(), "threads": threads, **versions}


def table(results: dict[str, dict[str, Any]]) -> str:
    """One line per method."""
    columns = {
        "mask IoU": "mask_iou",
        "class mean": "class_mask_iou",
        "small": "mask_iou_small",
        "medium": "mask_iou_medium",
        "large": "mask_iou_large",
        "instances": "instances",
        "s/instance": "seconds_per_instance",
    }
    rows = [[name, *(values[key] for key in columns.values())] for name, values in results.items()]
    return format_table(["method", *columns], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE", help="COCO instances")
    parser.add_argument("--model", default="deep-mac-tiny", help="name, weights folder, or none: baselines only")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--max-instances", type=int, metavar="N", help="compare on N instances drawn by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="of torch and of OpenCV")
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    methods: dict[str, Method] = {"GrabCut": grabcut, "box": filled_boxes, "ellipse": inscribed_ellipses}
    try:
        dataset = CocoInstances(arguments.images, arguments.annotations)
        if arguments.model != "none":
            methods = {arguments.model: model_method(arguments.model, arguments.device), **methods}
        ids = sampled_ids(arguments.annotations, arguments.max_instances, arguments.seed)
        results = compare(dataset, methods, ids)
        description = machine(arguments.threads)
        print(", ".join(f"{key} {value}" for key, value in description.items()))
        print(table(results))
        if arguments.json:
            write_json(arguments.json, {"machine": description, "methods": results})
    except UserError as error:
        print(f"box_to_mask: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
