"""How fast annotations and images are read: `python benchmarks/data_loading.py [--images DIR --annotations FILE]`.

The first two are left out with `--synthetic-images 0`.

1. Index: a synthetic annotation file of COCO's size (118,000 images, 860,000 annotations) is read, beside the time
   that parsing its JSON alone takes, each in a process of its own.
2. Memory: what each loader worker adds on that file (pages of its own, `smaps_rollup`; Linux only).
3. Speed: augmented images per second on a given COCO file, and on its shards, against the number of workers.
4. Large image (`--large-image`): seconds and peak memory of one sample of 12,000 x 12,000 pixels with 400 masks, as
   evaluation and as training read it, each in a process of its own (the picture alone has 432 MB).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import platform
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from PIL import Image

from maskwright.apps.shards import shard_data
from maskwright.data.annotations import read_annotations
from maskwright.data.coco import CocoInstances
from maskwright.data.dataset import SegmentationDataset
from maskwright.data.loaders import training_loader
from maskwright.data.shards import ShardedInstances
from maskwright.data.transforms import training_transforms

HEIGHT, WIDTH = 480, 640
LARGE_SIDE, LARGE_MASKS = 12_000, 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of images of a COCO file, for the speed")
    parser.add_argument("--annotations", type=Path, help="the COCO file")
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=15.0, help="how long each number of workers is measured")
    parser.add_argument("--synthetic-images", type=int, default=118_000)
    parser.add_argument("--synthetic-annotations", type=int, default=860_000)
    parser.add_argument("--repeats", type=int, default=1, help="of parsing and indexing; the medians are printed")
    parser.add_argument("--large-image", action="store_true", help="measure one picture of 12,000 x 12,000 pixels")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"machine: {platform.platform()}, {_processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"python {platform.python_version()}, torch {torch.__version__}, 1 thread per process")
    if arguments.synthetic_images:
        with tempfile.TemporaryDirectory() as folder:
            measure_index(Path(folder), arguments.synthetic_images, arguments.synthetic_annotations, arguments.repeats)
    if arguments.annotations:
        measure_speed(arguments)
    if arguments.large_image:
        with tempfile.TemporaryDirectory() as folder:
            measure_large_image(Path(folder))


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def measure_index(folder: Path, images: int, annotations: int, repeats: int) -> None:
    path = folder / "instances.json"
    write_synthetic(path, images, annotations)
    Image.effect_noise((WIDTH, HEIGHT), 60).convert("RGB").save(folder / "noise.jpg")
    for number in range(images):  # every image is the same file, under a name of its own
        (folder / f"{number:012d}.jpg").symlink_to("noise.jpg")
    print(f"\nsynthetic file: {images} images, {annotations} annotations, {path.stat().st_size / 1e6:.0f} MB")
    parsing = statistics.median(in_own_process(parse_seconds, path) for _ in range(repeats))
    indexing = statistics.median(in_own_process(index_seconds, path) for _ in range(repeats))
    print(f"JSON parsing alone: {parsing:.1f} s CPU; parsing and index: {indexing:.1f} s CPU")
    print(f"index ready in {indexing / parsing:.2f} times the time of parsing (required: at most 3)")
    if Path("/proc/self/smaps_rollup").exists():
        workers, parent = in_own_process(worker_megabytes, folder)
        own = ", ".join(f"{megabytes:.0f}" for megabytes in workers)
        print(
            f"memory: main process {parent:.0f} MB; each of {len(workers)} workers adds {own} MB (required: under 200)"
        )


def write_synthetic(path: Path, images: int, annotations: int) -> None:
    """A file with the keys, the lengths of polygons and the share of crowds (1 %) of COCO's instances file."""
    generator = random.Random(0)
    image_entries = [
        {
            "license": 3,
            "file_name": f"{number:012d}.jpg",
            "coco_url": f"http://images.example.org/train/{number:012d}.jpg",
            "height": HEIGHT,
            "width": WIDTH,
            "date_captured": "2013-11-14 11:18:45",
            "flickr_url": f"http://farm5.example.org/{number}/z.jpg",
            "id": number,
        }
        for number in range(images)
    ]
    categories = [{"supercategory": "thing", "id": number, "name": f"class {number}"} for number in range(1, 81)]
    with path.open("w") as file:
        file.write(f'{{"categories": {json.dumps(categories)}, "images": {json.dumps(image_entries)}, "annotations": [')
        for number in range(annotations):
            file.write((", " if number else "") + json.dumps(synthetic_annotation(number, images, generator)))
        file.write("]}")


def synthetic_annotation(number: int, images: int, generator: random.Random) -> dict:
    x, y = generator.randrange(0, 500), generator.randrange(0, 400)
    width, height = generator.randrange(20, 140), generator.randrange(20, 80)
    crowd = number % 100 == 0
    if crowd:
        runs = [generator.randrange(1, 900) for _ in range(300)]
        segmentation = {"size": [HEIGHT, WIDTH], "counts": [*runs, HEIGHT * WIDTH - sum(runs)]}
    else:
        points = [
            (round(x + generator.random() * width, 2), round(y + generator.random() * height, 2))
            for _ in range(generator.randrange(6, 36))
        ]
        segmentation = [[value for point in points for value in point]]
    return {
        "segmentation": segmentation,
        "area": width * height / 2,
        "iscrowd": int(crowd),
        "image_id": generator.randrange(images),
        "bbox": [x, y, width, height],
        "category_id": generator.randrange(1, 81),
        "id": number,
    }


def in_own_process(function: Callable, path: Path):
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, path).result()


def parse_seconds(path: Path) -> float:
    start = time.process_time()
    json.loads(path.read_bytes())
    return time.process_time() - start


def index_seconds(path: Path) -> float:
    start = time.process_time()
    read_annotations(path)
    return time.process_time() - start


def worker_megabytes(folder: Path, num_workers: int = 2, batches: int = 100) -> tuple[list[float], float]:
    """MB of pages that belong to each loader worker alone after `batches` batches, and those of its parent."""
    torch.set_num_threads(1)
    dataset = CocoInstances(folder, folder / "instances.json", transforms=training_transforms(384))
    loader = training_loader(dataset, batch_size=4, seed=0, num_workers=num_workers)
    iterator = iter(loader)
    for _ in itertools.islice(iterator, batches):
        pass
    workers = [own_megabytes(process.pid) for process in multiprocessing.active_children()]
    return workers, resident_megabytes()


def own_megabytes(process: int | None) -> float:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty"))) / 1e3


def resident_megabytes() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1e3


def measure_speed(arguments: argparse.Namespace) -> None:
    transforms = training_transforms(arguments.image_size)
    dataset = CocoInstances(arguments.images, arguments.annotations, transforms=transforms)
    instances = [len(dataset[index][1]["boxes"]) for index in range(min(50, len(dataset)))]
    print(f"\n{arguments.annotations}: {len(dataset)} images, {statistics.mean(instances):.1f} instances per crop")
    print(f"augmented to {arguments.image_size} x {arguments.image_size}, batches of {arguments.batch_size}")
    print("read from  workers  images/s  ms per image")
    with tempfile.TemporaryDirectory() as folder:
        shard_data(arguments.annotations, arguments.images, folder)
        shards = ShardedInstances(folder, transforms=transforms)
        for num_workers in (0, 1, 2):
            for name, source in (("files", dataset), ("shards", shards)):
                speed = images_per_second(source, arguments, num_workers)
                print(f"{name:<9}  {num_workers:>7}  {speed:>8.1f}  {1e3 / speed:>12.1f}")


def images_per_second(dataset: SegmentationDataset, arguments: argparse.Namespace, num_workers: int) -> float:
    iterator = iter(training_loader(dataset, batch_size=arguments.batch_size, seed=0, num_workers=num_workers))
    for _ in itertools.islice(iterator, 2 * num_workers + 1):  # start-up and what was prefetched
        pass
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < arguments.seconds:
        count += len(next(iterator)[0])
    return count / (time.perf_counter() - start)


def measure_large_image(folder: Path) -> None:
    write_large_image(folder, LARGE_SIDE, LARGE_MASKS)
    print(f"\none image of {LARGE_SIDE} x {LARGE_SIDE} pixels with {LARGE_MASKS} masks: one sample")
    print("read for    seconds  MB at the peak")
    for purpose, read in (("evaluation", read_for_evaluation), ("training", read_for_training)):
        seconds, megabytes = in_own_process(read, folder)
        print(f"{purpose:<10}  {seconds:>7.1f}  {megabytes:>14.0f}")


def write_large_image(folder: Path, side: int, masks: int) -> None:
    """A grid of roofs, as polygons and as run lengths in turn."""
    Image.new("RGB", (side, side), "green").save(folder / "large.png")
    per_row = math.ceil(math.sqrt(masks))
    step, annotations = side // per_row, []
    for number in range(masks):
        x, y = (step * place for place in divmod(number, per_row))
        width, height = step // 15 + 1, step // 20 + 1
        run_lengths = [x * side + y, *[height, side - height] * (width - 1), height]
        forms = [
            [[x, y, x + width, y, x + width, y + height, x, y + height]],
            {"size": [side, side], "counts": [*run_lengths, side * side - sum(run_lengths)]},
        ]
        annotations.append(
            {
                "id": number + 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [x, y, width, height],
                "segmentation": forms[number % 2],
            }
        )
    content = {
        "images": [{"id": 1, "file_name": "large.png", "height": side, "width": side}],
        "categories": [{"id": 1, "name": "roof"}],
        "annotations": annotations,
    }
    (folder / "instances.json").write_text(json.dumps(content))


def read_for_evaluation(folder: Path) -> tuple[float, float]:
    return read_one(CocoInstances(folder, folder / "instances.json"))


def read_for_training(folder: Path) -> tuple[float, float]:
    return read_one(CocoInstances(folder, folder / "instances.json", transforms=training_transforms(384)))


def read_one(dataset: CocoInstances) -> tuple[float, float]:
    """Seconds of one sample, and the most MB that this process ever held."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    dataset[0, 0]
    return time.perf_counter() - start, peak_megabytes()


def peak_megabytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


if __name__ == "__main__":
    main()
