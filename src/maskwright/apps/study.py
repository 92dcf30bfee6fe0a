"""`maskwright study`: train what a study compares, measure it, and put it in one table."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import file_digest
from pathlib import Path
from typing import Any, cast, get_args

from maskwright.apps.evaluate import evaluate
from maskwright.apps.study_file import Size, Study, StudyRun, Values, read_study, runs_of, study_names, study_sizes
from maskwright.apps.study_table import Numbers, cells_of, text_table, write_tables
from maskwright.apps.study_training import alone_in, ended_runs, step_of
from maskwright.data.dataset import DataSource
from maskwright.data.shards import index_path
from maskwright.errors import UserError
from maskwright.files import read_json_object, write_json
from maskwright.training.options import Recipe
from maskwright.training.run_folder import LAST_WEIGHTS, VALIDATION


@dataclass(frozen=True)
class StudyOptions:
    """What `maskwright study` is asked for.

    Attributes:
        study: name of a study (`maskwright study` alone lists them) or YAML file; values of its recipe's keys may
            follow, as in --data.images DIR --data.annotations FILE, and hold for all runs.
        size: `small` for a laptop, with what the study's section `small` has in place of its own; data are yours.
        out: folder of the runs and of the table; by default runs/studies/ and the study's name, `_small` behind it.
        seeds: number of seeds, 0, 1, ..., in place of the study's own.
        processes: trainings at the same time, which share the cores; each then writes its progress to a file
            seed_N.log beside its folder.
        dry_run: show the rows, what each changes and how far its runs have come; train nothing.
    """

    study: str
    size: str = "full"
    out: str = ""
    seeds: int = 0
    processes: int = 1
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.size not in get_args(Size):
            raise UserError(f"size must be one of {', '.join(get_args(Size))}, but got {self.size!r}")
        if self.seeds < 0 or self.processes < 1:
            raise UserError(f"expected seeds >= 1 and processes >= 1, but got {self.seeds} and {self.processes}")


OPTIONS = StudyOptions


def run(values: Values, **given: Any) -> int:
    """Run or resume what a study lacks, and print and write its table.

    A run is what `maskwright train` makes of the row's recipe, in the folder OUT/ROW/seed_N. A finished one is not run
    again, a stopped one goes on. The table (`table.md`, `table.json`, `chart.png`) is written anew after every run.

    Args:
        values: of the recipe by dotted key, for all runs.
        given: fields of `StudyOptions`.

    Returns:
        0, or 3 where a run failed; the others have been run.

    Raises:
        UserError: the study, a recipe or a run in the folder cannot be used; nothing is trained.
    """
    options = StudyOptions(**given)
    study = read_study(options.study, cast(Size, options.size)).with_values(values)
    if options.seeds:
        study = replace(study, seeds=list(range(options.seeds)))
    out = Path(options.out or Path("runs") / "studies" / study.name)
    runs = runs_of(study, out)
    if options.dry_run:
        print(study_plan(study, runs))
        return 0
    _require_data(study, runs)
    with alone_in(out) as lock, closing(ended_runs(runs, options.processes, lock)) as ended:
        results: dict[tuple[str, int], Numbers] = {}
        failures: list[str] = []
        for each, code in ended:
            try:
                results[each.row, each.seed] = _result(study, each, code)
            except UserError as error:
                failures.append(f"{each}: {error}")
                print(f"maskwright: failed: {failures[-1]}", file=sys.stderr)
            write_tables(study, cells_of(study, results), out)
    print(text_table(study, cells_of(study, results)))
    print(f"table.md, table.json and chart.png are in {out}", *failures, sep="\nfailed: ", file=sys.stderr)
    return 3 if failures else 0


def list_studies() -> None:
    """Print the studies that ship with the package: what each is about, its recipe and its rows in each size."""
    for name in study_names():
        studies = {size: read_study(name, size) for size in study_sizes(name)}
        print(f"{name}: {studies['full'].about}")
        for size, study in studies.items():
            option = "--size small: " if size == "small" else ""
            print(f"  {option}recipe {study.recipe}; rows {', '.join(study.rows)}")


def study_plan(study: Study, runs: Sequence[StudyRun]) -> str:
    """What all rows change in the recipe, then what each does, and how far its runs have come.

    Raises:
        UserError: as `step_of`.
    """
    steps = [step_of(each) for each in runs]
    lines = [f"{study.name}: {study.recipe}", *_told(study.common)]
    for row, values in study.rows.items():
        lines += [row, *_told(values)]
        for each, step in zip(runs, steps, strict=True):
            if each.row == row:
                total = each.recipe.trainer.steps
                state = "missing" if step is None else "done" if step == total else f"step {step} of {total}"
                lines.append(f"  seed {each.seed}: {state}")
    return "\n".join(lines)


def _told(values: Values) -> list[str]:
    return [f"  {key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]


def _require_data(study: Study, runs: Sequence[StudyRun]) -> None:
    """Refuse what would be found missing only after hours."""
    for each in runs:
        each.recipe.data.training_source()  # says which key is open
        for name, options in study.evaluate.items():
            source = f"study {study.name}: evaluate: {name}"
            files = _with_files(options, each.recipe, source)
            for key, is_there in (
                ("images", Path.is_dir),
                ("annotations", Path.exists),
                ("segmentations", Path.is_dir),
            ):
                if key in files and not is_there(Path(files[key])):
                    raise UserError(f"{source}: {key} {files[key]} does not exist")


def _with_files(options: Values, recipe: Recipe, source: str) -> Values:
    """Options of `maskwright evaluate`, with the files that the recipe validates on where they name none."""
    if "annotations" in options:
        return options
    data = recipe.data
    if data.validation_annotations is None or (data.validation_images or data.images) is None:  # shards, several sets
        raise UserError(
            f"{source}: no annotations are given, and the recipe leaves data.validation_annotations or data.images open"
        )
    files = cast(DataSource, data.validation_source())
    own = {key: getattr(files, key) for key in ("images", "annotations", "segmentations", "exif")}
    return {**{key: value for key, value in own.items() if value not in (None, "auto")}, **options}


def _result(study: Study, run: StudyRun, code: int) -> Numbers:
    """The numbers of a run by data set: those of its last weights, or of the validation of its last step.

    Raises:
        UserError: its training failed, or it cannot be measured.
    """
    if code:
        raise UserError(f"its training ended with exit code {code}")
    if not study.evaluate:
        return {"validation": _validation(run)}
    return {
        name: _evaluated(run, name, _with_files(options, run.recipe, f"evaluate: {name}"))
        for name, options in study.evaluate.items()
    }


def _validation(run: StudyRun) -> dict[str, float]:
    file = run.folder / VALIDATION
    lines = file.read_text().splitlines() if file.is_file() else []
    # A line that a crash broke off has no end.
    found = [json.loads(line) for line in lines if line.endswith("}")]
    last = [numbers for numbers in found if numbers["step"] == run.recipe.trainer.steps]
    if not last:
        raise UserError(f"{file} has no validation of step {run.recipe.trainer.steps}")
    return _with_nan(last[-1])


def _evaluated(run: StudyRun, name: str, options: Values) -> dict[str, float]:
    """The numbers on a data set; from the run's folder where they have been measured with these options."""
    file = run.folder / "evaluated" / f"{name}.json"
    wanted = {"step": run.recipe.trainer.steps, "options": dict(options), "annotations": _hash(options["annotations"])}
    if file.is_file():
        content = read_json_object(file, ("numbers",), kind="measurement")
        if wanted.items() <= content.items():
            return _with_nan(content["numbers"])
    numbers = evaluate(run.folder / LAST_WEIGHTS, **options).compute()
    file.parent.mkdir(exist_ok=True)
    write_json(
        file, {**wanted, "numbers": {key: None if math.isnan(value) else value for key, value in numbers.items()}}
    )
    return numbers


def _hash(annotations: str | Path) -> str:
    """Of an annotation file, or of the index of a folder of shards."""
    path = Path(annotations)
    with (index_path(path) if path.is_dir() else path).open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _with_nan(numbers: Mapping[str, Any]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in numbers.items()}
