"""Is Deep-MARC as fast as torchvision's own Mask R-CNN, and what does a deep mask head cost?

    python benchmarks/deep_marc_latency.py [--rounds 9] [--threads 2] [--image-size 512]

Four models with random weights find exactly 100 instances, of 90 classes, on one image: torchvision's
`maskrcnn_resnet50_fpn`, which has a mask per class; `DeepMARC` with the same trunk, the same box head (`2fc`), the same
numbers of proposals and the mask head `fcn`, with a mask per class and with class-agnostic masks; and the latter with
`hourglass52`. Each is called once per round, in an order that rotates, and the median of each is printed with the ratio
to torchvision's. A call begins with the uint8 image and ends with full-size masks. CPU seconds are of all threads:
they tell more than wall time on a machine that others use, too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import maskrcnn_resnet50_fpn

from maskwright.models.deep_marc import DeepMARC

NUM_CLASSES = 90
DETECTIONS = 100
FCN: dict[str, Any] = {"mask_head": "fcn", "mask_head_width": 256, "mask_size": 14}
HOURGLASS: dict[str, Any] = {"mask_head": "hourglass52", "mask_head_width": 64, "mask_size": 32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--image-size", type=int, default=512)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size = arguments.image_size
    calls = {
        "torchvision maskrcnn_resnet50_fpn": torchvision_call(size),
        "DeepMARC fcn, a mask per class": deep_marc_call(size, **FCN, class_agnostic_masks=False),
        "DeepMARC fcn": deep_marc_call(size, **FCN),
        "DeepMARC hourglass52": deep_marc_call(size, **HOURGLASS),
    }
    image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seconds = measure(calls, image, arguments.rounds)
    print(f"\n{size} x {size}, batch 1, {arguments.threads} threads, {arguments.rounds} rounds, {torch.__version__=}\n")
    print("| model | wall s, median | ratio | CPU s, median | ratio |\n|---|---|---|---|---|")
    medians = {name: [statistics.median(kind) for kind in zip(*times, strict=True)] for name, times in seconds.items()}
    first = medians["torchvision maskrcnn_resnet50_fpn"]
    for name, (wall, cpu) in medians.items():
        print(f"| {name} | {wall:.3f} | {wall / first[0]:.3f} | {cpu:.3f} | {cpu / first[1]:.3f} |")


def torchvision_call(size: int) -> Callable[[Tensor], Tensor]:
    """Image to masks; every candidate counts as a detection, so that there are always `DETECTIONS`."""
    torch.manual_seed(0)
    model = maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=NUM_CLASSES + 1,
        min_size=size,
        max_size=size,
        box_score_thresh=0.0,
        box_detections_per_img=DETECTIONS,
    ).eval()
    return lambda image: model([image.float() / 255])[0]["masks"]


def deep_marc_call(size: int, **mask_head: Any) -> Callable[[Tensor], Tensor]:
    """Image to masks, with the numbers of torchvision's model."""
    torch.manual_seed(0)
    model = DeepMARC(
        categories=[{"id": label + 1, "name": str(label)} for label in range(NUM_CLASSES)],
        image_size=size,
        backbone="resnet50_fpn",
        box_head="2fc",
        min_box_score=0.0,
        **mask_head,
    ).eval()
    return lambda image: model([image], max_detections=DETECTIONS)[0].masks


@torch.inference_mode()
def measure(
    calls: dict[str, Callable[[Tensor], Tensor]], image: Tensor, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU seconds of every call of every round, after one round that is not counted.

    Raises:
        SystemExit: a model found another number of instances.
    """
    for name, call in calls.items():
        if (found := len(call(image))) != DETECTIONS:
            raise SystemExit(f"{name}: expected {DETECTIONS} instances, but it found {found}")
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            wall, cpu = time.perf_counter(), time.process_time()
            calls[name](image)
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return seconds


if __name__ == "__main__":
    main()
