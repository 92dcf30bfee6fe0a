"""Box to mask on the same instances: our model, others beside it, GrabCut, the filled box and the inscribed ellipse.

    python benchmarks/box_to_mask.py --images DIR --annotations FILE [--model NAME|PATH|none] [--against OTHER ...]
        [--out DIR]

All sets that `examples/bundled_model/prepare.py` wrote, in one command:

    python benchmarks/box_to_mask.py --images DATA/{set}/images --annotations OUT/*_held_out.json --model NEW
        --against OLD --out DIR

Every method gets the image and its ground-truth boxes and returns masks at full resolution, which
`maskwright.evaluation.mask_iou.MaskIoU` scores. Crowds and annotations without a mask are left out. OTHER is another
model or weights folder, or SAM of transformers: `sam`, `sam2`, `sam:WEIGHTS` or `sam2:WEIGHTS`. The difference of mean
IoU has a 95 % interval (paired bootstrap over images); a set has fallen if that lies wholly below -0.005.

Groups of hard objects (`GROUPS`; an object may be in several) and sizes have numbers of their own.

The tables are printed; DIR receives them as `tables.md`, all numbers as `numbers.json`, and of each set a picture of
the 24 worst masks of the model, `worst_<set>.jpg`. Needs OpenCV: pip install 'maskwright[benchmark]'.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from contact_sheet import contact_sheet, draw_cell
from mask_methods import Method, create_method, filled_boxes, grabcut, inscribed_ellipses, planes_of
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou
from tqdm import tqdm

from maskwright.apps.compare_panoptic import tell_reading
from maskwright.apps.outputs import check_can_make, output_folder
from maskwright.data.coco import CocoInstances
from maskwright.errors import UserError
from maskwright.evaluation.calibration import THRESHOLDS
from maskwright.evaluation.mask_iou import MaskIoU
from maskwright.evaluation.report import SIZES, format_table, summarize
from maskwright.files import write_json, write_picture, write_text
from maskwright.ops.boxes import expand_boxes
from maskwright.structures import Category, Target, encoded_masks, select_rows

BASELINES: dict[str, Method] = {"GrabCut": grabcut, "box": filled_boxes, "ellipse": inscribed_ellipses}
NAME_OF_PART = "_(train|development|held_out)$"  # ends the name of a file, but is not part of the set's

THIN_CLASSES = (
    *("baseball bat", "belt", "bicycle", "fork", "knife", "necklace", "scissors", "skis", "snowboard", "spoon"),
    *("tennis racket", "tie", "toothbrush"),
)
THIN_FILL = 0.35
OCCLUDED_IOU = 0.2
CROWDED_MARGIN, CROWDED_NEIGHBOURS = 0.25, 2
# What `groups_of` finds. Boxes are those of all annotations of the image, whether their masks count or not.
GROUPS = {
    "thin": f"of a thin class ({', '.join(THIN_CLASSES)}), or the mask fills less than {THIN_FILL} of its box",
    "occluded": f"the IoU of its box and another one is at least {OCCLUDED_IOU}",
    "crowded": f"at least {CROWDED_NEIGHBOURS} boxes of its class reach into its own, enlarged by {CROWDED_MARGIN} of "
    "its sides on each side",
}

LIMITS = (0.5, 0.7)  # the shares of masks with a lower IoU are told
RESAMPLES, SEED, FALLEN = 10_000, 0, -0.005
WORST = 24


@dataclass(frozen=True)
class Sample:
    """The instances of a set that count: those with a mask that are no crowd, and among `ids` if these are given."""

    dataset: CocoInstances
    ids: set[int] | None

    def read(self, index: int) -> tuple[Tensor, Target, Tensor]:
        """An image, its instances that count, and the groups of each (`groups_of`)."""
        image, target = self.dataset[index]
        keep = target["has_mask"] & ~target["iscrowd"]
        if self.ids is not None:
            keep &= torch.tensor([int(i) in self.ids for i in target["ids"]], dtype=torch.bool)
        groups = groups_of(target, self.dataset.categories)
        return torch.as_tensor(image), select_rows(target, keep), groups[keep]


@dataclass(frozen=True)
class Measured:
    """What was measured on a set: of each method the metric and the seconds, in one order of the instances.

    places: of each instance its image's position in the data set, and its row among the instances of that which count.
    groups: of each instance and each of `GROUPS`, whether it belongs to it.
    """

    metrics: dict[str, MaskIoU]
    seconds: dict[str, float]
    places: list[tuple[int, int]] = field(default_factory=list)
    groups: list[list[bool]] = field(default_factory=list)

    def ious(self, method: str) -> np.ndarray:
        """Of each instance."""
        return self.metrics[method].state()[:, 1].numpy()


class Difference(NamedTuple):
    """A difference of mean IoU and its 95 % interval; None where there are too few images for it."""

    mean: float | None
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str | None:
        """`fallen` if the interval lies wholly below `FALLEN`, `risen` if wholly above 0, else `as before`."""
        if self.low is None or self.high is None:
            return None
        return "fallen" if self.high < FALLEN else "risen" if self.low > 0 else "as before"


class Table(NamedTuple):
    """What is printed, and written as Markdown: cells are text."""

    title: str
    header: list[str]
    rows: list[list[str]]

    def text(self) -> str:
        """Aligned, for a terminal."""
        return f"{self.title}\n\n{format_table(self.header, self.rows)}\n"

    def markdown(self) -> str:
        """For GitHub."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join([f"### {self.title}\n", *(f"| {' | '.join(line)} |" for line in lines), ""])


def groups_of(target: Target, categories: Sequence[Category]) -> Tensor:
    """Which of `GROUPS` each instance of an image belongs to, bool [N, 3]."""
    boxes, labels = target["boxes"], target["labels"]
    other = ~torch.eye(len(boxes), dtype=torch.bool)
    fill = encoded_masks(target).areas() / (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    of_thin_class = torch.tensor([categories[label]["name"] in THIN_CLASSES for label in labels], dtype=torch.bool)
    overlapping = (box_iou(boxes, boxes) >= OCCLUDED_IOU) & other
    near = (box_iou(expand_boxes(boxes, CROWDED_MARGIN), boxes) > 0) & other & (labels[:, None] == labels)
    thin = of_thin_class | (fill < THIN_FILL)
    return torch.stack([thin, overlapping.any(dim=1), near.sum(dim=1) >= CROWDED_NEIGHBOURS], dim=1)


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


def compare(sample: Sample, methods: Mapping[str, Method], name: str = "") -> Measured:
    """Ask every method about every image."""
    metrics = {method: MaskIoU(sample.dataset.categories, seen=[]) for method in methods}
    measured = Measured(metrics, dict.fromkeys(methods, 0.0))
    for index in tqdm(range(len(sample.dataset)), unit="image", desc=name, file=sys.stderr):
        image, target, groups = sample.read(index)
        if not len(target["boxes"]):
            continue
        measured.places.extend((index, row) for row in range(len(target["boxes"])))
        measured.groups.extend(groups.tolist())
        for method, masks in methods.items():
            start = time.perf_counter()
            found = masks(image, target["boxes"])
            planes_of(found)  # others give planes, so ours are charged for making them, too
            measured.seconds[method] += time.perf_counter() - start
            metrics[method].update([found], [target])
    return measured


def paired_difference(images: Sequence[int], ious: np.ndarray, others: np.ndarray) -> Difference:
    """How much higher the mean of `ious` is than that of `others`, of the same instances.

    The interval comes from `RESAMPLES` draws of as many images, with all their instances, as there are (`images`: the
    image of each instance).
    """
    _, image_rows = np.unique(images, return_inverse=True)
    counts = np.bincount(image_rows)
    sums = np.bincount(image_rows, weights=ious - others)
    if len(counts) < 2:
        return Difference(float(np.mean(ious - others)) if len(ious) else None, None, None)
    generator = np.random.default_rng(SEED)
    draws = (generator.integers(len(counts), size=len(counts)) for _ in range(RESAMPLES))
    low, high = np.quantile([sums[drawn].sum() / counts[drawn].sum() for drawn in draws], (0.025, 0.975))
    return Difference(float(sums.sum() / counts.sum()), float(low), float(high))


def shares(ious: np.ndarray) -> dict[str, Any]:
    """Number, mean and the shares below `LIMITS` of some IoUs; None without any."""
    below = {f"share_below_{limit}": float(np.mean(ious < limit)) if len(ious) else None for limit in LIMITS}
    return {"instances": len(ious), "mask_iou": float(np.mean(ious)) if len(ious) else None, **below}


def numbers_of(measured: Measured, model: str | None) -> dict[str, Any]:
    """All numbers of a set, ready for JSON; `differences` are those of `model` to each other method."""
    groups = np.array(measured.groups, dtype=bool).reshape(-1, len(GROUPS))
    methods = {}
    for name, metric in measured.metrics.items():
        ious = measured.ious(name)
        methods[name] = {
            **shares(ious),
            **summarize(metric),
            "groups": {group: shares(ious[groups[:, row]]) for row, group in enumerate(GROUPS)},
            "seconds_per_instance": measured.seconds[name] / len(ious) if len(ious) else None,
        }
    images = [image for image, _ in measured.places]
    differences = {}
    for other in methods:
        if model and other != model:
            found = paired_difference(images, measured.ious(model), measured.ious(other))
            differences[other] = {**found._asdict(), "verdict": found.verdict}
    return {"images": len(set(images)), "instances": len(images), "methods": methods, "differences": differences}


def draw_worst(sample: Sample, measured: Measured, method: str, masks: Method, name: str) -> Image.Image:
    """A picture of the `WORST` instances of a method, which is asked again about their images."""
    ious, scores = measured.ious(method), measured.metrics[method].state()[:, 3].numpy()
    cells = []
    for instance in np.argsort(ious, kind="stable")[:WORST].tolist():
        index, row = measured.places[instance]
        image, target, _ = sample.read(index)
        label = sample.dataset.categories[int(target["labels"][row])]["name"]
        score = "" if np.isnan(scores[instance]) else f", score {scores[instance]:.2f}"
        captions = (label, f"IoU {ious[instance]:.2f}{score}", f"annotation {int(target['ids'][row])}")
        truth = encoded_masks(target)[torch.tensor([row])]
        predicted = planes_of(masks(image, target["boxes"]))[row]
        cells.append(draw_cell(image, target["boxes"][row], (truth, predicted), captions))
    return contact_sheet(f"{name}: the {len(cells)} worst of {len(ious)} masks of {method}", cells)


def side_by_side(
    title: str, sets: Mapping[str, Any], names: Sequence[str], columns: Mapping[str, str], part: str = ""
) -> Table:
    """A row for each set: how many instances, and for each column its number of each of the methods `names`.

    The values of `columns` are paths into a method's numbers, after `part` ("groups/thin/").
    """
    header = [f"{column}, {name}" for column in columns for name in names]
    rows = []
    for set_name, content in sets.items():
        methods = [content["methods"][name] for name in names]
        if part and not number_at(methods[0], part + "instances"):
            continue  # a set without such objects
        numbers = [number_at(method, part + path) for path in columns.values() for method in methods]
        rows.append([set_name, number_at(methods[0], part + "instances"), *numbers])
    return Table(title, ["set", "instances", *header], cells(rows))


def number_at(numbers: Any, path: str) -> Any:
    """What lies at a path of keys; None where the way ends before."""
    for key in path.split("/"):
        numbers = None if numbers is None else numbers[key]
    return numbers


def cells(rows: Sequence[Sequence[Any]]) -> list[list[str]]:
    """Numbers as texts: floats with 3 decimals, None as `-`."""

    def cell(value: Any) -> str:
        return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)

    return [[cell(value) for value in row] for row in rows]


def difference_table(sets: Mapping[str, Any], model: str, other: str) -> Table:
    """Where `model` is better or worse than another one."""
    found = {name: content["differences"][other] for name, content in sets.items()}
    rows = [[name, *(row[key] for key in ("mean", "low", "high")), row["verdict"]] for name, row in found.items()]
    return Table(f"{model} less {other}: mean IoU", ["set", "difference", "from", "to", "verdict"], cells(rows))


def score_table(sets: Mapping[str, Any], names: Sequence[str]) -> Table:
    """How well mask scores foretell the IoU."""
    columns = {"error": "mask_scores/error", "Spearman": "mask_scores/spearman"}
    return side_by_side(
        "Mask scores: expected calibration error, and rank correlation with the IoU", sets, names, columns
    )


def accept_table(sets: Mapping[str, Any], names: Sequence[str]) -> Table:
    """What is accepted at which score."""
    columns = {"masks": "masks", "share": "share", "IoU": "mean_iou", "IoU < 0.5": "share_below_half"}
    rows = []
    for set_name, content in sets.items():
        scores = [content["methods"][name]["mask_scores"] for name in names]
        for place, threshold in enumerate(THRESHOLDS):
            at = [score and score["accepted"][place] for score in scores]
            numbers = [number_at(row, key) for key in columns.values() for row in at]
            rows.append([set_name, f"{threshold:.2f}", *numbers])
    header = [f"{column}, {name}" for column in columns for name in names]
    return Table("Accepted at a mask score of at least", ["set", "score", *header], cells(rows))


def tables_of(sets: Mapping[str, Any], model: str | None, others: Sequence[str]) -> list[Table]:
    """All tables of the numbers of some sets that have rows; models stand in the order before, after."""
    models = [*others, *([model] if model else [])]
    methods = [*models, *BASELINES]
    quality = {"IoU": "mask_iou", **{f"IoU < {limit}": f"share_below_{limit}" for limit in LIMITS}}
    sizes = {"classes": "class_mask_iou", **{size: f"mask_iou_{size}" for size in SIZES}}
    tables = [
        side_by_side("Mean mask IoU", sets, methods, {"IoU": "mask_iou"}),
        *(difference_table(sets, model, other) for other in others),
        side_by_side("All objects", sets, models or methods, quality),
        *(
            side_by_side(f"{name.capitalize()} objects: {meaning}", sets, models or methods, quality, f"groups/{name}/")
            for name, meaning in GROUPS.items()
        ),
        side_by_side("Mean IoU over classes, and by size", sets, models or methods, sizes),
        *([score_table(sets, models), accept_table(sets, models)] if models else []),
        side_by_side("Seconds per instance", sets, methods, {"seconds": "seconds_per_instance"}),
    ]
    return [table for table in tables if table.rows]


def machine(threads: int) -> dict[str, Any]:
    """What the seconds were measured on."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line.split(":", 1)[1].strip() for line in information.read_text().split("\n") if "model name" in line]
        processor = names[0] if names else processor
    versions = {"python": platform.python_version(), "torch": torch.__version__, "opencv": cv2.__version__}
    return {"processor": processor, "cores": os.cpu_count(), "threads": threads, **versions}


def sets_of(images: Sequence[str], annotations: Sequence[Path]) -> dict[str, tuple[Path, Path]]:
    """Folder and file of each set, by the name of the file without `NAME_OF_PART`.

    Raises:
        UserError: there is not one folder per file, nor one with `{set}`; or two files have one name.
    """
    names = [re.sub(NAME_OF_PART, "", file.stem) for file in annotations]
    if len(set(names)) < len(names):
        raise UserError(f"--annotations: sets are told apart by their files' names, but got {', '.join(sorted(names))}")
    if len(images) == 1:
        folders = [images[0].replace("{set}", name) for name in names]
    elif len(images) == len(names):
        folders = list(images)
    else:
        raise UserError(
            f"--images: expected one folder for each of the {len(names)} annotation files, or one with {{set}} for "
            f"their names, but got {len(images)}"
        )
    return {name: (Path(folder), file) for name, folder, file in zip(names, folders, annotations, strict=True)}


def measure(arguments: argparse.Namespace) -> None:
    """Compare on every set, print the tables and write what `--out` asks for."""
    sets = sets_of(arguments.images, arguments.annotations)
    model = None if arguments.model == "none" else arguments.model
    others = list(dict.fromkeys(arguments.against))
    if others and (model is None or model in others):
        raise UserError(f"--against {' '.join(others)}: expected other models than --model {arguments.model}")
    if arguments.out:
        check_can_make(arguments.out)
    samples = {}
    for name, (images, file) in sets.items():
        dataset = CocoInstances(images, file)
        tell_reading(file, dataset.skipped, dataset.repaired)
        samples[name] = Sample(dataset, sampled_ids(file, arguments.max_instances, arguments.seed))
    models = [*([model] if model else []), *others]
    methods = {**{name: create_method(name, arguments.device) for name in models}, **BASELINES}
    numbers, sheets = {}, {}
    for name, sample in samples.items():
        measured = compare(sample, methods, name)
        numbers[name] = numbers_of(measured, model)
        if model and arguments.out and measured.places:
            sheets[name] = draw_worst(sample, measured, model, methods[model], name)
    description, tables = machine(arguments.threads), tables_of(numbers, model, others)
    print(", ".join(f"{key} {value}" for key, value in description.items()), end="\n\n")
    print("\n\n".join(table.text() for table in tables))
    if arguments.out:
        with output_folder(arguments.out):
            write_json(arguments.out / "numbers.json", {"machine": description, "sets": numbers})
            write_text(arguments.out / "tables.md", "\n".join(table.markdown() for table in tables))
            for name, sheet in sheets.items():
                write_picture(arguments.out / f"worst_{name}.jpg", sheet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", nargs="+", required=True, metavar="DIR", help="one, or one per file; {set}: its name"
    )
    parser.add_argument("--annotations", type=Path, nargs="+", required=True, metavar="FILE", help="COCO instances")
    parser.add_argument("--model", default="deep-mac-tiny", help="name, weights folder, or none: baselines only")
    parser.add_argument("--against", nargs="+", default=[], metavar="OTHER", help="models before, or sam, sam2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--max-instances", type=int, metavar="N", help="compare on N instances of a set, drawn by --seed"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="of torch and of OpenCV")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for tables.md, numbers.json and worst_<set>.jpg")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    try:
        measure(arguments)
    except UserError as error:
        print(f"box_to_mask: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        print("box_to_mask: stopped", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
