"""`maskwright data check`: what a file, or all files of a recipe, hold, and everything that is wrong with them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskwright.data.annotated_pictures import UNCERTAIN_FRAME
from maskwright.data.dataset import Inspection
from maskwright.data.formats import format_of
from maskwright.data.normalise import Repairs
from maskwright.data.orientation import exif_rule
from maskwright.data.picture_folder import PictureFolder
from maskwright.data.problems import Effect, Problem
from maskwright.errors import UserError

_COLUMN_WIDTH = 8


@dataclass(frozen=True)
class DataReport:
    """The contents of an annotation file, or of all sets of a recipe, counted.

    source: the file.
    summary: the counts, as lines of text.
    classes: a row for each class in file order (or of the label space), by the heads of the table's columns.
    repairs: what is wrong, but was corrected.
    problems: every broken entry, image or flaw of the whole file, with its reason and what it leads to.
    boxes_without_masks: annotations of a file that `maskwright complete` could give a mask.
    """

    source: str
    summary: Sequence[str]
    classes: Sequence[Mapping[str, str]]
    repairs: Repairs
    problems: Sequence[Problem]
    boxes_without_masks: int = 0

    @property
    def usable(self) -> bool:
        """Whether `maskwright train` takes the file: its data set can be opened (and read to its end, if the images
        were checked), and something is left to learn from when some images are set aside for validation.
        """
        return not self._leads_to("refused", "not for training")

    @property
    def completable(self) -> bool:
        """Whether `maskwright complete` takes the file and has something to do."""
        return self.boxes_without_masks > 0 and not self._leads_to("refused")

    def _leads_to(self, *effects: Effect) -> bool:
        return any(problem.effect in effects for problem in self.problems)

    def __str__(self) -> str:
        """The report as lines of text: counts, a table of the classes that have annotations, all repairs by kind, all
        problems, the verdict.
        """
        used = [row for row in self.classes if _has_annotations(row)]
        unused = len(self.classes) - len(used)
        lines = [
            self.source,
            *self.summary,
            "",
            *table(used),
            *([f"classes without annotations: {unused}"] if unused else []),
            "",
            f"repaired: {sum(self.repairs.counts.values())}",
            *(f"  {line}" for line in self.repairs.lines),
            f"problems: {len(self.problems)}",
            *(f"  {problem} [{problem.effect}]" for problem in self.problems),
            "usable for training: " + self._verdict,
        ]
        return "\n".join(lines)

    @property
    def _verdict(self) -> str:
        if self.usable:
            return "yes"
        return "not before it has masks, which `maskwright complete` makes" if self.completable else "no"


def _has_annotations(row: Mapping[str, str]) -> bool:
    _, *counts = row.values()
    return any(set(count) & set("123456789") for count in counts)


def table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Rows by the heads of their columns as lines of text, with a line of heads; the first column to the left."""
    if not rows:
        return []
    first, *others = heads = list(rows[0])
    lines = [dict(zip(heads, heads, strict=True)), *rows]
    widths = {head: max(_COLUMN_WIDTH if head else 0, *(len(line[head]) for line in lines)) for head in others}
    widths[first] = max(len(line[first]) for line in lines)
    return [
        "  ".join([line[first].ljust(widths[first]), *(line[head].rjust(widths[head]) for head in others)])
        for line in lines
    ]


def check_data(
    annotations: str | Path,
    images: str | Path | None = None,
    segmentations: str | Path | None = None,
    exif: str = "auto",
) -> DataReport:
    """Read an annotation file as training does, decode every mask, and report all that is found.

    Args:
        annotations: COCO instances or COCO panoptic file (any of the `FORMATS`); on the command line also a recipe
            (.yaml), of which all sets are checked, and shown as the one that they are united to.
        images: image folder; if given, every image is read and its size compared with the file's. Images whose
            annotations may be in another frame than the one that is taken are named.
        segmentations: folder of a panoptic file's PNGs; by default the one beside the file, named like it.
        exif: frame of the annotations of images with an EXIF orientation, where you know it: upright or stored; auto
            decides by sizes, boxes and polygons.

    Raises:
        UserError: the file is of no known format, a folder does not exist, or `segmentations` has no use.
    """
    pictures = None if images is None else PictureFolder(images, exif_rule(exif))
    return report_of(format_of(annotations).inspect(annotations, segmentations, pictures))


OPTIONS = check_data


def report_of(found: Inspection, needed: int = 2) -> DataReport:
    """The report on a file of which training needs `needed` images, 1 or 2 (one of them to set aside)."""
    problems = list(found.problems)
    if not any(problem.effect == "refused" for problem in problems):
        problems += _training_problems(found, needed)
    problems += image_problems(found)
    boxes = found.boxes_without_masks
    return DataReport(found.source, found.summary, found.classes, found.repairs, problems, boxes)


def run(**given: Any) -> int:
    """Print the report; the exit code is 2 for what neither `maskwright train` nor `maskwright complete` would take.

    Raises:
        UserError: as `check_data` and `check_recipe`, or an option has no use beside a recipe.
    """
    path = given["annotations"]
    if Path(path).suffix in (".yaml", ".yml"):
        from maskwright.apps.check_recipe import check_recipe

        others = [f"--{name}" for name in given if name != "annotations"]
        if others:
            raise UserError(f"{path}: a recipe says itself where its data are; leave {' and '.join(others)} out")
        report = check_recipe(path)
    else:
        report = check_data(**given)
    print(report)
    return 0 if report.usable or report.completable else 2


def _training_problems(found: Inspection, needed: int) -> list[Problem]:
    """Training needs an image to learn from and, where no file has others, another one to validate on."""
    if found.learnable_images >= needed:
        return []
    use = "2: one to learn from and one set aside for validation" if needed > 1 else "1"
    reason = (
        f"{'only 1' if found.learnable_images else 'none'} of its images ({len(found.images)}) has {found.lesson}; "
        f"training needs at least {use}"
    )
    return [Problem("file", "as a whole", "too few images to learn from", reason, "not for training")]


def image_problems(found: Inspection) -> list[Problem]:
    """The images that cannot be used, or not for certain, in the order of the file; none where no picture is known."""
    pictures = found.pictures
    if pictures is None:
        return []
    problems = []
    for image in found.images:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=re.escape(UNCERTAIN_FRAME))
                pictures.read(image, found.source)
            frame = pictures.frame(image)
        except UserError as error:
            problems.append(Problem("image", image.id, "unusable image", str(error), "refused"))
            continue
        if not frame.certain:
            reason = (
                f"{image.file_name} is taken upright, which is not certain: {frame.reason} (--exif says which it is)"
            )
            problems.append(Problem("image", image.id, "orientation that is not certain", reason, "kept"))
    return problems
