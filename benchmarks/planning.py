"""Seconds and memory that `maskwright complete` takes to plan a file of COCO's size.

    python benchmarks/planning.py OUT [--pictures 118287] [--boxes 860001]

OUT/boxes.json has random boxes without masks, and its pictures in OUT/images are links to one. The command is
`maskwright complete OUT/boxes.json --images OUT/images --dry-run`, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT = 640, 480
CLASSES = 80


def write_boxes(out: Path, pictures: int, boxes: int) -> None:
    """Write the pictures and the file."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(out / "one.jpg")
    images = [
        {"id": number, "file_name": f"{number:012d}.jpg", "width": WIDTH, "height": HEIGHT}
        for number in range(pictures)
    ]
    for image in images:
        path = out / "images" / image["file_name"]
        path.unlink(missing_ok=True)
        path.symlink_to("../one.jpg")
    drawn = random.Random(0)
    annotations = []
    for number in range(1, boxes + 1):
        width, height = drawn.uniform(5, WIDTH), drawn.uniform(5, HEIGHT)
        corner = drawn.uniform(0, WIDTH - width), drawn.uniform(0, HEIGHT - height)
        place = {"image_id": drawn.randrange(pictures), "category_id": drawn.randrange(CLASSES)}
        box = [round(value, 2) for value in (*corner, width, height)]
        annotations.append({"id": number, **place, "bbox": box, "area": round(width * height, 4), "iscrowd": 0})
    categories = [{"id": number, "name": f"class {number}"} for number in range(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (out / "boxes.json").write_text(json.dumps(content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--pictures", type=int, default=118287)
    parser.add_argument("--boxes", type=int, default=860001)
    arguments = parser.parse_args()
    if min(arguments.pictures, arguments.boxes) < 1:
        parser.error("--pictures and --boxes must be at least 1")
    write_boxes(arguments.out, arguments.pictures, arguments.boxes)
    command = [sys.executable, "-m", "maskwright", "complete", str(arguments.out / "boxes.json"), "--dry-run"]
    command += ["--images", str(arguments.out / "images"), "--out", str(arguments.out / "completed.json")]
    started = time.perf_counter()
    subprocess.run(command, check=True)
    seconds, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"planned in {seconds:.1f} s ({used.ru_utime + used.ru_stime:.1f} of the processor), "
        f"{used.ru_maxrss * 1024 / 1e9:.2f} GB at most"  # Linux counts in KiB
    )


if __name__ == "__main__":
    main()
