"""The table of a study: mean and spread over the seeds, published numbers beside them; text, JSON and a picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from maskwright.apps.study_file import GAP, Study
from maskwright.drawing.bar_chart import Bar, bar_chart
from maskwright.evaluation.tables import format_table
from maskwright.files import write_json, write_picture, write_text

Numbers = Mapping[str, Mapping[str, float]]
"""What a run has reached: by data set, then by name of the number."""

_NOTE = "mean ± sample standard deviation over the seeds"


@dataclass(frozen=True)
class TableCell:
    """One number of one row.

    Attributes:
        row: name of the row.
        data_set: that it was measured on.
        measure: name of the number.
        by_seed: the number of each run that has it.
        published: what others have published for it, if anything.
    """

    row: str
    data_set: str
    measure: str
    by_seed: Mapping[int, float]
    published: float | None = None

    @property
    def mean(self) -> float | None:
        """The mean over the seeds; None where no run has the number."""
        return statistics.fmean(self.by_seed.values()) if self.by_seed else None

    @property
    def spread(self) -> float | None:
        """The sample standard deviation over the seeds; None of less than two."""
        return statistics.stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" ± {self.spread:.4f}"
        return "-" if self.mean is None else f"{self.mean:.4f}{spread}"


def cells_of(study: Study, results: Mapping[tuple[str, int], Numbers]) -> list[TableCell]:
    """The cells of the table, row by row, of the `results` by row and seed; a run may be missing."""
    data_sets = list(study.evaluate) or ["validation"]
    return [
        TableCell(row, data_set, measure, _by_seed(results, row, data_set, measure), _published(study, row, measure))
        for row in study.rows
        for data_set in data_sets
        for measure in study.measure
    ]


def text_table(study: Study, cells: Sequence[TableCell]) -> str:
    """The table for a terminal."""
    header, rows = _grid(cells)
    return f"{_title(study)}\n\n{format_table(header, rows)}\n\n{_NOTE}"


def markdown_table(study: Study, cells: Sequence[TableCell]) -> str:
    """The table in markdown."""
    header, rows = _grid(cells)
    lines = [header, ["---"] * len(header), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{_title(study)}; {_NOTE}.\n\n{table}\n"


def write_tables(study: Study, cells: Sequence[TableCell], folder: Path) -> None:
    """Write `table.md`, `table.json` and `chart.png` into the folder, each whole or not at all."""
    write_text(folder / "table.md", markdown_table(study, cells))
    write_json(folder / "table.json", _summary(study, cells))
    panels: dict[str, list[Bar]] = {}
    for cell in cells:
        bars = panels.setdefault(f"{cell.measure} on {cell.data_set}", [])
        bars.append(Bar(cell.row, cell.mean, cell.spread, cell.published))
    write_picture(folder / "chart.png", bar_chart(panels))


def _title(study: Study) -> str:
    return f"{study.name}: {study.recipe}, seeds {', '.join(map(str, study.seeds))}"


def _by_seed(results: Mapping[tuple[str, int], Numbers], row: str, data_set: str, measure: str) -> dict[int, float]:
    found = {
        seed: _number(numbers.get(data_set, {}), measure) for (name, seed), numbers in results.items() if name == row
    }
    return {seed: number for seed, number in sorted(found.items()) if not math.isnan(number)}


def _number(numbers: Mapping[str, float], measure: str) -> float:
    """The number, or the difference of two; NaN where there is none."""
    if not measure.endswith(GAP):
        return numbers.get(measure, math.nan)
    group = measure.removesuffix(GAP)
    return numbers.get(f"{group}_seen", math.nan) - numbers.get(f"{group}_unseen", math.nan)


def _published(study: Study, row: str, measure: str) -> float | None:
    return study.published.get(row, {}).get(measure)


def _grid(cells: Sequence[TableCell]) -> tuple[list[str], list[list[str]]]:
    """The header and the rows as texts; a published number stands in a column after ours."""
    several = len({cell.data_set for cell in cells}) > 1
    with_published = {cell.measure for cell in cells if cell.published is not None}
    columns: dict[str, dict[str, str]] = {}
    for cell in cells:
        name = f"{cell.data_set}: {cell.measure}" if several else cell.measure
        columns.setdefault(name, {})[cell.row] = str(cell)
        if cell.measure in with_published:
            text = "-" if cell.published is None else f"{cell.published:g}"
            columns.setdefault(f"{name}, published", {})[cell.row] = text
    names = dict.fromkeys(cell.row for cell in cells)
    return ["", *columns], [[row, *(column[row] for column in columns.values())] for row in names]


def _summary(study: Study, cells: Sequence[TableCell]) -> dict[str, Any]:
    return {**asdict(study), "cells": [{**asdict(cell), "mean": cell.mean, "spread": cell.spread} for cell in cells]}
