"""The loop of docs/loop.md on a file whose masks are known: what do completing, fine-tuning and reviewing give?

    python benchmarks/loop.py --images DIR --annotations FILE --out OUT [--model deep-mac-tiny] [--every 10]
        [--SECTION.KEY VALUE ...]

Every tenth image of FILE, a COCO file, keeps its masks, the others keep their boxes: OUT/boxes.json. Objects of FILE
without a mask have no truth to compare with, and are left out. Then the commands of the page run, each printed before:
`complete` with the model, `train deep_mac/fine_tune` on the tenth (any key of the recipe can be given), `complete`
again, and `review --apply`. The reviewer's answers come from FILE, through the journal of a review: of the twentieth of
the masks that has the lowest quality, those with an IoU of at least 0.7 with the true mask are accepted, the others
rejected.

The table is printed, and written to OUT/table.md: all masks that the model made and no review took out, compared with
those of FILE; processor minutes of the step's commands; hours that drawing those masks would take, at 80 s each.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faster_coco_eval.core.mask as coco_mask
import numpy as np

from maskwright.apps.completion.result import SECONDS_TO_DRAW
from maskwright.apps.provenance import is_completed
from maskwright.apps.review_page.completed import read_completed
from maskwright.apps.review_page.decisions import Decision, Review, journal_path, open_journal
from maskwright.apps.run_summary import RunSummary
from maskwright.errors import UserError
from maskwright.files import read_json_object, write_json, write_text
from maskwright.prompts import DEFAULT_MODEL

ACCEPTED_IOU = 0.7
REVIEWED_SHARE = 1 / 20


@dataclass(frozen=True)
class Truth:
    """A COCO file with all masks.

    images: the folder of its pictures.
    content: of the file.
    """

    images: Path
    content: dict[str, Any]

    @classmethod
    def read(cls, images: Path, annotations: Path) -> Truth:
        """The file without its objects that have no mask.

        Raises:
            UserError: it is no COCO file, or has no mask.
        """
        content = read_json_object(annotations, ("images", "annotations"))
        with_masks = [entry for entry in content["annotations"] if entry.get("segmentation")]
        if not with_masks:
            raise UserError(f"{annotations} has no masks to compare with")
        if without := len(content["annotations"]) - len(with_masks):
            print(f"{annotations}: {without} objects without a mask are left out", file=sys.stderr)
        return cls(images, {**content, "annotations": with_masks})

    def boxes(self, every: int) -> dict[str, Any]:
        """The file with the masks of one image in `every`."""
        with_masks = {image["id"] for image in self.content["images"][::every]}
        return {**self.content, "annotations": [_told(entry, with_masks) for entry in self.content["annotations"]]}

    def ious(self, completed: Path) -> dict[int, float]:
        """The IoU with the true mask of each mask that a model made, by the annotation's position in the file."""
        sizes = {image["id"]: (image["width"], image["height"]) for image in self.content["images"]}
        found = read_json_object(completed, ("annotations",))["annotations"]
        pairs = enumerate(zip(found, self.content["annotations"], strict=True))
        return {
            position: _iou(entry["segmentation"], true["segmentation"], sizes[entry["image_id"]])
            for position, (entry, true) in pairs
            if is_completed(entry) and entry.get("segmentation")
        }


def _told(entry: dict[str, Any], with_masks: set[Any]) -> dict[str, Any]:
    hidden = () if entry["image_id"] in with_masks else ("segmentation", "area")
    return {key: value for key, value in entry.items() if key not in hidden}


def _iou(one: Any, other: Any, size: tuple[int, int]) -> float:
    codes = [coco_mask.segmToRle(segmentation, *size) for segmentation in (one, other)]
    return float(coco_mask.iou(codes[:1], codes[1:], [0])[0, 0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="an empty folder")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--every", type=int, default=10, metavar="N", help="one of N images keeps its masks")
    arguments, overrides = parser.parse_known_args()
    try:
        truth = Truth.read(arguments.images, arguments.annotations)
    except UserError as error:
        parser.error(str(error))
    arguments.out.mkdir(parents=True, exist_ok=True)
    if any(arguments.out.iterdir()):
        parser.error(f"--out {arguments.out} is not empty")
    write_json(arguments.out / "boxes.json", truth.boxes(arguments.every), indent=None)
    table = loop(truth, arguments.out, arguments.model, overrides)
    write_text(arguments.out / "table.md", table)
    print(table, end="")


def loop(truth: Truth, out: Path, model: str, overrides: list[str]) -> str:
    """Run all steps on OUT/boxes.json; returns the table."""
    boxes, first, second, reviewed = (out / f"{name}.json" for name in ("boxes", "first", "second", "reviewed"))
    images, run = str(truth.images), out / "run"
    pictures = [f"--data.images={images}", f"--data.annotations={boxes}"]
    training = [*pictures, f"--trainer.initial_weights={model}", f"--trainer.output={run}", *overrides]
    rows = []

    minutes = maskwright("complete", boxes, "--images", images, "--model", model, "--out", first)
    rows.append(row(f"completed with {model}", truth.ious(first), minutes))

    minutes = maskwright("train", "deep_mac/fine_tune", *training)
    again = ("--model", run / "last", "--replace", "unreviewed")
    minutes += maskwright("complete", first, "--images", images, *again, "--out", second)
    rows.append(row("fine-tuned, completed again", truth.ious(second), minutes))

    count = answer(truth, second)
    minutes = maskwright("review", second, "--apply", "--out", reviewed)
    rows.append(row(f"the {count} worst reviewed", truth.ious(reviewed), minutes))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [HEADER, ["---"] * len(HEADER), *rows])


def maskwright(*arguments: str | Path) -> float:
    """Run a command; returns the minutes of the processor that it took.

    Raises:
        SystemExit: it was refused or stopped. A box in which the model sees nothing (exit code 3) has no mask.
    """
    given = [str(argument) for argument in arguments]
    print(f"$ maskwright {shlex.join(given)}", flush=True)
    before = os.times()
    code = subprocess.run([sys.executable, "-m", "maskwright", *given]).returncode
    if code not in (0, 3):
        raise SystemExit(code)
    after = os.times()
    used = after.children_user - before.children_user + after.children_system - before.children_system
    return used / 60


def answer(truth: Truth, completed: Path) -> int:
    """Review the worst masks as someone does who knows the true ones; returns how many."""
    ious = truth.ious(completed)
    with open_journal(journal_path(completed), completed) as journal:
        review = Review(read_completed(completed, truth.images, RunSummary()), journal)
        masks = review.masks()
        worst = masks[: math.ceil(len(masks) * REVIEWED_SHARE)]
        for mask in worst:
            review.decide(mask.position, Decision("accepted" if ious[mask.position] >= ACCEPTED_IOU else "rejected"))
    return len(worst)


HEADER = ["step", "masks", "mean IoU", "over 0.85", "under 0.5", "minutes of computing", "hours of drawing saved"]


def row(step: str, ious: dict[int, float], minutes: float) -> list[str]:
    """A row of the table, in markdown."""
    values = np.array(list(ious.values()))
    shares = [f"{values.mean():.3f}", f"{(values > 0.85).mean():.1%}", f"{(values < 0.5).mean():.1%}"]
    return [step, str(len(values)), *shares, f"{minutes:.1f}", f"{len(values) * SECONDS_TO_DRAW / 3600:.1f}"]


if __name__ == "__main__":
    main()
