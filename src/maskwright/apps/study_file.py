"""A study: a base recipe, what varies, seeds, and what is measured; and the runs that it stands for."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentError, ArgumentParser

from maskwright.apps.evaluate import EvaluateOptions
from maskwright.errors import UserError
from maskwright.evaluation.coco_ap import CocoAP
from maskwright.evaluation.mask_iou import MaskIoU
from maskwright.evaluation.panoptic_quality import PanopticQuality
from maskwright.models.hub import family_class
from maskwright.structures import Category
from maskwright.training.options import Recipe
from maskwright.training.recipes import did_you_mean, parse_yaml, recipe_names, resolve_recipe

Values = Mapping[str, Any]
"""Values of a recipe by dotted key, such as `model.mask_head`."""

GAP = "_gap"
"""Ends the name of a difference: `mask_iou_gap` is `mask_iou_seen` less `mask_iou_unseen`."""

Size = Literal["full", "small"]
"""Of a study: as its file says it, or with what the file's section `small` has in place of that."""

_KEYS = ("about", "recipe", "set", "rows", "vary", "seeds", "measure", "evaluate", "published", "small")
_OWN_KEYS = ("trainer.seed", "trainer.output")
_SET_KEYS = {option.name for option in fields(EvaluateOptions)} - {"model", "json", "reliability", "save_results"}


@dataclass(frozen=True)
class Study:
    """What a study file says.

    Attributes:
        name: the file's, without its suffix.
        recipe: name or path of the base recipe.
        measure: names of the numbers in the table; of those that validation and `maskwright evaluate` give, and their
            gaps.
        rows: of the table by name: the values that each has in place of the recipe's.
        common: values that all rows have in place of the recipe's.
        seeds: of the runs of each row.
        evaluate: data sets by name that the weights are measured on: options of `maskwright evaluate`, with the files
            that the recipe validates on where they name none. Without any set, the numbers are those of each run's own
            validation.
        published: numbers of others by row and measure, to be shown beside ours.
        about: what it asks, in a sentence.
    """

    name: str
    recipe: str
    measure: Sequence[str]
    rows: Mapping[str, Values]
    common: Values = field(default_factory=dict)
    seeds: Sequence[int] = (0,)
    evaluate: Mapping[str, Values] = field(default_factory=dict)
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    about: str = ""

    def with_values(self, values: Values) -> Study:
        """The same study with other values for all rows.

        Raises:
            UserError: the rows differ in one of them.
        """
        varied = {key for row in self.rows.values() for key in row} | set(_OWN_KEYS)
        for key in values:
            if key in varied:
                raise UserError(f"--{key} is a value that study {self.name} gives to its runs itself; leave it out")
        return replace(self, common={**self.common, **values})


@dataclass(frozen=True)
class StudyRun:
    """One training of a study.

    Attributes:
        row: its row of the table.
        seed: its seed.
        folder: of the run.
        recipe: with all of its values.
        arguments: of `maskwright train` that start it.
    """

    row: str
    seed: int
    folder: Path
    recipe: Recipe
    arguments: Sequence[str]

    def __str__(self) -> str:
        return f"{self.row}, seed {self.seed}"

    @property
    def log(self) -> Path:
        """The file beside its folder for what it says, where several run at once."""
        return self.folder.with_name(f"{self.folder.name}.log")


def study_names() -> list[str]:
    """Names of the studies that ship with the package."""
    shipped = (Path(entry.name) for entry in files("maskwright").joinpath("studies").iterdir())
    return sorted(path.stem for path in shipped if path.suffix == ".yaml")


def read_study(name_or_path: str, size: Size = "full") -> Study:
    """Read a study and check its keys, its measures and the shape of its values; its recipes are not read yet.

    Args:
        name_or_path: a name of `study_names()`, or the path of a YAML file. The path of a recipe in the file is
            relative to the file, unless it is a recipe's name.
        size: `small` is another study, with `_small` behind its name.

    Raises:
        UserError: no such study, not a study, an unknown key or measure, a value of the wrong kind, or no such size.
    """
    source, values = _read(name_or_path)
    _require_keys(values, _KEYS, source)
    if size == "small":
        values = _small(values, source)
    recipe = values.get("recipe")
    if not isinstance(recipe, str):
        raise UserError(f"{source}: recipe must be the name of a recipe or the path of a file, but got {recipe!r}")
    if recipe not in recipe_names():
        recipe = str(Path(name_or_path).parent / recipe)
    study = Study(
        name=Path(name_or_path).stem + ("_small" if size == "small" else ""),
        recipe=recipe,
        measure=_list_of(str, values, "measure", source),
        rows=_rows(values, source),
        common=_mapping(values, "set", source),
        seeds=_list_of(int, {"seeds": [0], **values}, "seeds", source),
        evaluate=_mapping_of_mappings(values, "evaluate", source),
        published=_published(values, source),
        about=str(values.get("about", "")),
    )
    _check(study, source)
    return study


def study_sizes(name_or_path: str) -> list[Size]:
    """The sizes in which a study can be read.

    Raises:
        UserError: no such study, or not a study.
    """
    return ["full", "small"] if "small" in _read(name_or_path)[1] else ["full"]


def runs_of(study: Study, out: Path) -> list[StudyRun]:
    """The runs of a study in the folder `out`, all rows with one seed after the other, their recipes checked.

    Raises:
        UserError: a recipe cannot be used.
    """
    return [_run(study, row, seed, out) for seed in study.seeds for row in study.rows]


def _run(study: Study, row: str, seed: int, out: Path) -> StudyRun:
    folder = out / row / f"seed_{seed}"
    own = {"trainer.seed": seed, "trainer.output": str(folder)}
    options = _options({**study.common, **study.rows[row], **own})
    try:
        recipe = resolve_recipe(study.recipe, options)
        _check_model(recipe)
    except (UserError, ValueError) as error:
        raise UserError(f"study {study.name}, row {row}: {error}") from error
    return StudyRun(row, seed, folder, recipe, [study.recipe, *options])


def _options(values: Values) -> list[str]:
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]


def _check_model(recipe: Recipe) -> None:
    """Refuse values that the model has not, as far as that is known without its classes."""
    categories = recipe.model.get("categories") or [Category(id=1, name="object")]
    family_class(recipe.family).config_class(**{**recipe.model, "categories": categories})


def _read(name_or_path: str) -> tuple[str, dict[str, Any]]:
    """What messages call the study, and its values."""
    if name_or_path in study_names():
        source = f"study {name_or_path}"
        text = files("maskwright").joinpath("studies", f"{name_or_path}.yaml").read_text()
    else:
        source, path = name_or_path, Path(name_or_path)
        if not path.is_file():
            hint = did_you_mean(name_or_path, study_names()) or f"; the studies are {', '.join(study_names())}"
            raise UserError(f"{path}: neither the name of a study nor a file{hint}")
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read as text ({error})") from error
    return source, parse_yaml(text, source, "a study with the keys recipe, rows or vary, and measure")


def _require_keys(values: Mapping[str, Any], known: Sequence[str], source: str) -> None:
    for key in values:
        if key not in known:
            hint = did_you_mean(str(key), known)
            raise UserError(f"{source}: unknown key {key!r}{hint}; a study has {', '.join(known)}")


def _small(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The values of the small size: its own, and those of the study that it does not replace.

    Where it has no published numbers of its own, those of the study stay whose row and measure it has.
    """
    own = _mapping(values, "small", source)
    if not own:
        raise UserError(f"{source}: it has no small size, which is what a section 'small' would replace")
    _require_keys(own, [key for key in _KEYS if key not in ("about", "small")], f"{source}: small")
    dropped = {"small", *({"rows", "vary"} if own.keys() & {"rows", "vary"} else ())}
    found = {**{key: value for key, value in values.items() if key not in dropped}, **own}
    if "published" in values and "published" not in own:
        rows, measures = _rows(found, source), _list_of(str, found, "measure", source)
        found["published"] = {
            row: {name: number for name, number in numbers.items() if name in measures}
            for row, numbers in _mapping_of_mappings(values, "published", source).items()
            if row in rows
        }
    return found


def _rows(values: Mapping[str, Any], source: str) -> dict[str, dict[str, Any]]:
    """The rows as they are named, or one of each combination of the values that vary."""
    if ("rows" in values) == ("vary" in values):
        raise UserError(f"{source}: expected one of the keys rows and vary")
    if "rows" in values:
        rows = _mapping_of_mappings(values, "rows", source)
    else:
        varied = _mapping(values, "vary", source)
        choices = [_list_of(object, varied, key, f"{source}: vary") for key in varied]
        combinations = [dict(zip(varied, chosen, strict=True)) for chosen in product(*choices)]
        rows = {_row_name(combination): combination for combination in combinations}
        if len(rows) < len(combinations):
            raise UserError(f"{source}: two combinations of vary have one name; name them under rows")
    if not rows:
        raise UserError(f"{source}: there is no row")
    for row in rows:
        _require_file_name(row, f"{source}: the name of a row")
    return rows


def _require_file_name(name: str, what: str) -> None:
    if not re.fullmatch(r"\w[\w+=,.-]*", name):
        raise UserError(
            f"{what} must be of letters, digits and _+=,.- and begin with one of the first, but got {name!r}"
        )


def _row_name(values: Values) -> str:
    parts = (
        f"{key.rpartition('.')[2]}={option.partition('=')[2]}"
        for key, option in zip(values, _options(values), strict=True)
    )
    return ",".join(re.sub(r"[^\w+=.-]+", "-", part).strip("-") for part in parts)


def _mapping(values: Mapping[str, Any], key: str, source: str) -> dict[str, Any]:
    found = values.get(key, {})
    if not isinstance(found, dict):
        raise UserError(f"{source}: expected keys and values under {key!r}, but got {found!r}")
    return {str(name): value for name, value in found.items()}


def _mapping_of_mappings(values: Mapping[str, Any], key: str, source: str) -> dict[str, dict[str, Any]]:
    found = _mapping(values, key, source)
    return {name: _mapping(found, name, f"{source}: {key}") for name in found}


def _published(values: Mapping[str, Any], source: str) -> dict[str, dict[str, float]]:
    rows = _mapping_of_mappings(values, "published", source)
    for row, numbers in rows.items():
        for name, number in numbers.items():
            if not isinstance(number, int | float) or not math.isfinite(number):
                raise UserError(f"{source}: published: {row}: {name} must be a number, but got {number!r}")
    return {row: {name: float(number) for name, number in numbers.items()} for row, numbers in rows.items()}


def _list_of(kind: type, values: Mapping[str, Any], key: str, source: str) -> list[Any]:
    found = values.get(key)
    words = {str: " of names", int: " of whole numbers"}.get(kind, "")
    if not isinstance(found, list) or not found or not all(isinstance(value, kind) for value in found):
        raise UserError(f"{source}: {key} must be a list{words}, but got {found!r}")
    if any(value in found[:place] for place, value in enumerate(found)):
        raise UserError(f"{source}: {key} has a value twice, {found!r}")
    return found


def _check(study: Study, source: str) -> None:
    own = [key for values in (study.common, *study.rows.values()) for key in values if key in _OWN_KEYS]
    if own:
        raise UserError(f"{source}: {own[0]} is given by the study itself; the seeds stand under 'seeds'")
    measures = _known_measures()
    for name in study.measure:
        _require_known(name, measures, f"{source}: measure", "number that evaluation gives")
    for name, options in study.evaluate.items():
        _require_file_name(name, f"{source}: the name of a set")
        for key in options:
            _require_known(key, _SET_KEYS, f"{source}: evaluate: {name}", "option of `maskwright evaluate`")
        if ("images" in options) != ("annotations" in options):
            raise UserError(f"{source}: evaluate: {name}: expected both images and annotations, or neither of them")
        files = {} if "annotations" in options else {"images": "DIR", "annotations": "FILE"}  # the recipe's
        _check_evaluate({**options, **files}, f"{source}: evaluate: {name}")
    for row, numbers in study.published.items():
        _require_known(row, study.rows, f"{source}: published", "row of this study")
        for name in numbers:
            _require_known(name, study.measure, f"{source}: published: {row}", "measure of this study")


def _check_evaluate(options: Values, source: str) -> None:
    """Refuse options of `maskwright evaluate` whose values are of a wrong kind or out of range."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(EvaluateOptions, skip={"model"})
    try:
        parser.parse_object(dict(options))
        EvaluateOptions("model", **options)
    except ArgumentError as error:
        (key,) = re.findall(r'Parser key "(\w+)"', str(error))[:1] or ["a value"]
        told = f"{key} cannot be {options.get(key)!r}; `maskwright evaluate --help` says what it may be"
        raise UserError(f"{source}: {told}") from error
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def _require_known(name: str, known: Iterable[str], source: str, kind: str) -> None:
    if name not in known:
        raise UserError(f"{source}: {name!r} is no {kind}{did_you_mean(name, known)}")


def _known_measures() -> list[str]:
    categories = [Category(id=1, name="object", isthing=True)]
    metrics = (MaskIoU(categories, []), CocoAP(categories, []), PanopticQuality(categories))
    names = [name for metric in metrics for name in metric.compute()]
    groups = (name.removesuffix("_unseen") for name in names if name.endswith("_unseen"))
    return [*names, *(group + GAP for group in groups)]
