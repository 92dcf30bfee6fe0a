"""What a study of left-out classes says, for people: text, markdown, JSON and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from maskwright.apps.study_file import Study
from maskwright.drawing.bar_chart import Bar, bar_chart
from maskwright.evaluation.left_out_classes import FEW_IMAGES, ClassAnswer, Estimate, LeftOutAnswer
from maskwright.evaluation.tables import format_table
from maskwright.files import write_json, write_picture, write_text


def answer_text(found: LeftOutAnswer, known: Sequence[str]) -> str:
    """The answer for a terminal.

    Args:
        found: the answer.
        known: classes whose masks the first weights were made with.
    """
    return "\n\n".join([format_table(*_grid(found)), *_sentences(found, known)])


def answer_markdown(study: Study, found: LeftOutAnswer, known: Sequence[str]) -> str:
    """The answer in markdown."""
    header, rows = _grid(found)
    lines = [header, ["---"] * len(header), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([f"{study.name}: {study.recipe}", table, *_sentences(found, known)]) + "\n"


def write_answer(study: Study, found: LeftOutAnswer, known: Sequence[str], folder: Path) -> None:
    """Write `table.md`, `table.json` and `chart.png` into the folder, each whole or not at all."""
    write_text(folder / "table.md", answer_markdown(study, found, known))
    classes = [asdict(each) | {"few_images": each.few, "pays": each.pays} for each in found.classes]
    content = {"recipe": study.recipe, "values": study.common, **asdict(found), "classes": classes}
    write_json(folder / "table.json", {**content, "known_to_first_weights": known})
    write_picture(folder / "chart.png", bar_chart(_panels(found)))


def _panels(found: LeftOutAnswer) -> dict[str, list[Bar]]:
    expected = [
        _bar(each.name if each.without else f"{each.name} (predicted)", _expected(each)) for each in found.classes
    ]
    panels = {"mask IoU, none of the class's masks trained on": expected}
    for number in _numbers(found):
        panels[f"gain by {number} masks of the class"] = [
            _bar(each.name, each.gains.get(number)) for each in found.classes
        ]
    return panels


def _bar(name: str, estimate: Estimate | None) -> Bar:
    if estimate is None:
        return Bar(name, None)
    return Bar(name, estimate.mean, (estimate.high - estimate.low) / 2)


def _expected(each: ClassAnswer) -> Estimate | None:
    """What is measured, else what is predicted."""
    return each.without or each.predicted


def _numbers(found: LeftOutAnswer) -> list[int]:
    return sorted({number for each in found.classes for number in each.gains})


def _grid(found: LeftOutAnswer) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the classes, those with the lowest IoU first, then one that is not in the file."""
    numbers = _numbers(found)
    gains = [f"gain by {number}" for number in numbers]
    header = ["class", "masks", "measured", "IoU without", "90 % range", *gains, "IoU with all", "drawing pays"]
    classes = [each for each in found.classes if _expected(each) is not None]
    rows = [
        [
            each.name,
            str(each.masks),
            f"{each.instances} in {each.images}" if each.without else "predicted",
            *_cells(_expected(each)),
            *(_gain(each.gains.get(number)) for number in numbers),
            "-" if each.with_all is None else f"{each.with_all:.3f}",
            each.pays,
        ]
        for each in sorted(classes, key=lambda each: _cells(_expected(each)))
    ]
    rows.append(["(any other)", "-", "predicted", *_cells(found.any_class), *("-" for _ in numbers), "-", "-"])
    return header, rows


def _cells(estimate: Estimate | None) -> tuple[str, str]:
    return ("-", "-") if estimate is None else (f"{estimate.mean:.3f}", f"{estimate.low:.2f} to {estimate.high:.2f}")


def _gain(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.mean:+.3f} ± {(estimate.high - estimate.low) / 2:.3f}"


def _sentences(found: LeftOutAnswer, known: Sequence[str]) -> list[str]:
    """What has to be known to read the numbers."""
    said = [
        "IoU without: mean mask IoU from true boxes on the measured images, none of the class's masks trained on; "
        "measured: its masks, and the images they are in. The range is of that mean, not of single masks."
    ]
    if found.prediction_error is not None and found.predictions_in_range is not None:
        said.append(
            f"A check of such predictions: each class foretold by the others is off by {found.prediction_error:.3f} on "
            f"average, and {found.predictions_in_range:.0%} lie in their range."
        )
    if found.training_spread is None:
        said.append("The spread between trainings is not known yet, and not in the ranges.")
    if few := [each.name for each in found.classes if each.few]:
        said.append(f"Measured in fewer than {FEW_IMAGES} images, so hardly known: {', '.join(few)}.")
    if unmeasured := [each.name for each in found.classes if each.masks and each.without is None]:
        said.append(f"Not measured, or not yet: {', '.join(unmeasured)}.")
    if known:
        said.append(
            "The first weights were made with masks of classes of these names, so that a class that is really new may "
            f"be worse: {', '.join(known)}."
        )
    return said
