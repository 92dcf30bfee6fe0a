"""Recipes: found by name or path, overridden by dotted keys, checked against the family's config."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from maskwright.errors import UserError
from maskwright.models.hub import bundled_names, family_class
from maskwright.training.options import DATA_OPTIONS, DataOptions, OptimizerOptions, Recipe, SetOptions, TrainerOptions
from maskwright.training.recipe_names import recipe_names

_SECTIONS = ("data", "optimizer", "trainer")


def recipe_parser(family: str) -> ArgumentParser:
    """The typed keys of a recipe: `family`, the values of that family's config under `model`, and the rest.

    Raises:
        UserError: no family has that name.
    """
    parser = _parser(
        "Every key of a recipe can be given another value here; the defaults shown are the recipe's. "
        "`maskwright train FOLDER --resume last` goes on with the run in a folder."
    )
    parser.add_argument("--family", type=str, default=family, help="name of the model's family")
    # What a model's masks are learnt from is a property of the data: `data.mask_classes` decides it.
    parser.add_class_arguments(family_class(family).config_class, "model", skip={"mask_classes"})
    for section, options in _section_classes(family).items():
        parser.add_class_arguments(options, section)
    return parser


def help_parser() -> ArgumentParser:
    """The keys that the recipes of all families have, for a help text without a recipe."""
    parser = _parser(
        f"RECIPE is a YAML file or one of: {', '.join(recipe_names())}. `maskwright train RECIPE --help` adds the keys "
        "of its model and of its kind of data, with the recipe's values. `maskwright train FOLDER --resume last` goes "
        "on with the run in a folder."
    )
    for section, options in (("data", DataOptions), ("optimizer", OptimizerOptions), ("trainer", TrainerOptions)):
        parser.add_class_arguments(options, section)
    return parser


def resolve_recipe(name_or_path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and its base, apply `--section.key value` overrides, and check every name and type.

    A recipe may name one other as its `base:` and then says only what it changes. A key that it gives replaces the
    base's value as a whole, lists and mappings too.

    Args:
        name_or_path: a name of `recipe_names()`, or the path of a YAML file.
        overrides: command-line arguments such as `["--trainer.steps", "300"]`; the last one wins.

    Raises:
        UserError: no such recipe, not a recipe, a base that has a base itself, an unknown key or a value of the wrong
            type or range.
    """
    return _resolve(*_read_with_base(os.fspath(name_or_path)), overrides)


def parse_recipe(text: str, source: str) -> Recipe:
    """The recipe of the text of `recipe_yaml`; `source` names it in errors.

    Raises:
        UserError: as `resolve_recipe`.
    """
    return _resolve("recipe", source, _parse_yaml(text, source), ())


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean ...?)` where one of the known words is close, else nothing."""
    close = get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _resolve(name: str, source: str, values: dict[str, Any], overrides: Sequence[str]) -> Recipe:
    family = values.get("family")
    if not isinstance(family, str):
        raise UserError(f"{source}: expected the key 'family' with the name of a model family")
    try:
        parser = recipe_parser(family)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    try:
        parser.set_defaults(vars(parser.parse_object(values).as_flat()))  # so that --help shows this recipe
    except ArgumentError as error:
        sentence = _one_sentence(error, parser).replace("data.sets:", _faulty_set(parser, values), 1)
        raise UserError(f"{source}: {sentence}") from error
    try:
        parsed = parser.parse_args(list(overrides)).as_dict()
    except ArgumentError as error:
        raise UserError(_one_sentence(error, parser)) from error
    if parsed["family"] != family:
        raise UserError(f"{source}: the family of a recipe is {family!r} and cannot be changed; choose another recipe")
    if "sets" in parsed["data"]:
        parsed["data"]["sets"] = [SetOptions(**entry) for entry in parsed["data"]["sets"] or []]
    sections = {section: options(**parsed[section]) for section, options in _section_classes(family).items()}
    return Recipe(family=family, model=parsed["model"], name=name, **sections)


def recipe_yaml(recipe: Recipe) -> str:
    """The recipe as the text of a YAML file that `resolve_recipe` reads back to the same values."""
    values = asdict(recipe)
    del values["name"]
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=False)


def _parser(description: str) -> ArgumentParser:
    return ArgumentParser(
        prog="maskwright train RECIPE",
        usage="maskwright train RECIPE|FOLDER [--resume last] [--SECTION.KEY VALUE ...]",
        description=description,
        exit_on_error=False,
        allow_abbrev=False,
    )


def _section_classes(family: str) -> dict[str, type[Any]]:
    """The class of each section's values; what the data are depends on what the family's models find."""
    return {"data": DATA_OPTIONS[family_class(family).task], "optimizer": OptimizerOptions, "trainer": TrainerOptions}


def _read_with_base(name_or_path: str) -> tuple[str, str, dict[str, Any]]:
    """Name, source for messages, and values; those of the base where the recipe leaves a key out."""
    name, source, values = _read(name_or_path)
    base = values.pop("base", None)
    if base is None:
        return name, source, values
    if not isinstance(base, str):
        raise UserError(f"{source}: base must be the name of a recipe or the path of a file, but got {base!r}")
    source = f"{source} with base {base}"
    try:
        _, _, below = _read(base if base in recipe_names() else str(Path(name_or_path).parent / base))
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    if below.pop("base", None) is not None:
        raise UserError(
            f"{source}: the base has a base itself and only one level is allowed; write it out with "
            f"`maskwright models --recipe {base}`, and take that file as the base"
        )
    if values.setdefault("family", below.get("family")) != below.get("family"):
        raise UserError(f"{source}: the family is {values['family']!r}, but the base's is {below.get('family')!r}")
    return name, source, values | {section: below[section] | values[section] for section in ("model", *_SECTIONS)}


def _read(name_or_path: str) -> tuple[str, str, dict[str, Any]]:
    """Name, source for messages, and values by section of a recipe's own file."""
    if name_or_path in recipe_names():
        text = files("maskwright.training").joinpath("recipes", f"{name_or_path}.yaml").read_text()
        return name_or_path, f"recipe {name_or_path}", _parse_yaml(text, f"recipe {name_or_path}")
    path = Path(name_or_path)
    if path.is_dir():
        raise UserError(f"{path}: a folder without a run; expected a recipe's name, a YAML file or a run's folder")
    if not path.is_file():
        raise UserError(f"{path}: neither the name of a recipe nor a file{_hint(name_or_path)}")
    try:
        return path.stem, str(path), _parse_yaml(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from error


def _hint(name: str) -> str:
    """What was probably meant in place of a recipe that is not there."""
    if name in bundled_names():
        return f": it is a model, whose weights a run begins with by --trainer.initial_weights {name}"
    beside = [str(path) for path in Path(name).parent.glob("*") if path.is_dir() or path.suffix in (".yaml", ".yml")]
    names = ", ".join(recipe_names())
    return did_you_mean(name, [*recipe_names(), *beside]) or f"; the recipes are {names}"


def parse_yaml(text: str, source: str, expected: str) -> dict[str, Any]:
    """The keys and values of a YAML text.

    Args:
        text: of the file.
        source: what messages call it.
        expected: what it should be, in words.

    Raises:
        UserError: it is no YAML, or nothing with keys.
    """
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise UserError(f"{source}: expected {expected}")
    return values


def _parse_yaml(text: str, source: str) -> dict[str, Any]:
    values = parse_yaml(text, source, "a recipe with the keys family, model, data, optimizer and trainer")
    sections = ("model", *_SECTIONS)
    known = ("base", "family", *sections)
    for key in values.keys() - {*known}:
        hint = did_you_mean(str(key), known)
        raise UserError(f"{source}: unknown key {key!r}{hint}; a recipe has base or family, {', '.join(sections)}")
    for section in sections:
        if values.setdefault(section, {}) is None:
            values[section] = {}
        if not isinstance(values[section], dict):
            raise UserError(f"{source}: expected keys and values under {section!r}, but got {values[section]!r}")
    return values


def _faulty_set(parser: ArgumentParser, values: dict[str, Any]) -> str:
    """What a sentence about the first of the recipe's `data.sets` that the parser refuses begins with."""
    sets = values["data"].get("sets")
    for number, entry in enumerate(sets if isinstance(sets, list) else [], 1):
        try:
            parser.parse_object({"data": {"sets": [entry]}})
        except ArgumentError:
            return f"data.sets, set {number} of {len(sets)}:"
    return "data.sets:"


def _one_sentence(error: ArgumentError, parser: ArgumentParser) -> str:
    """The parser's message on one line: types in words, and the key that was probably meant."""
    text = " ".join(str(error).split()).replace("typing.", "")
    if match := re.match(r'Parser key "data\.sets": (?!Expected a <class)(?:Problem with .*?: )?(.*)', text):
        return f"data.sets: {_set_sentence(match[1], parser)}"
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    text = re.sub(r"Literal\[(.+?)\]", lambda match: f"one of {match[1].replace(chr(39), '')}", text)
    if match := re.match(r'Parser key "(\w+)": Unable to load config .([^"\']*)', text):
        hint = "; weights to begin with are given with --trainer.initial_weights" if match[1] == "model" else ""
        return f"--{match[1]} is a section: give one of its keys, as in --{match[1]}.KEY VALUE{hint}"
    if match := re.match(
        r'Parser key "(.+?)": Does not validate against any .*?Errors: (.*) Given value type: .*?Given '
        r"value: (.*)",
        text,
    ):
        reasons = [re.sub(r"^Expected an? ", "", reason) for reason in match[2].removeprefix("- ").split(" - ")]
        kinds = " or ".join(reason.partition(". Got value")[0] for reason in reasons).replace("NoneType", "null")
        return f"{match[1]}: expected {kinds}, but got {match[3]}"
    if match := re.match(r"Group '(\w+)' does not accept option '(\w+)'", text):
        return _unknown_key(f"{match[1]}.{match[2]}", parser)
    if match := re.match(r"unrecognized arguments: (--)([^\s=]+)", text):
        return _unknown_key(match[2], parser, match[1])
    return re.sub(r'Parser key "(.+?)": Expected an? (.+?)\. Got value: ', r"\1: expected \2, but got ", text)


def _set_sentence(problem: str, parser: ArgumentParser) -> str:
    """The parser's message about one of `data.sets`."""
    known = [one.name for one in fields(SetOptions)]
    if match := re.match(r"Option '(.+?)' is not accepted", problem):
        return f"{match[1]} is no key of a set{did_you_mean(match[1], known)}"
    if problem.startswith("Parser key"):
        return _one_sentence(ArgumentError(None, problem), parser)
    return f"each set must have keys and values; the keys are {', '.join(known)}"


def _unknown_key(key: str, parser: ArgumentParser, dashes: str = "") -> str:
    known = list(vars(parser.get_defaults().as_flat()))
    same = [
        name for name in known if name.endswith(f".{key.rpartition('.')[2]}")
    ]  # the section may be wrong or missing
    meant = [dashes + name for name in same or get_close_matches(key, known, n=1)]
    hint = f" (did you mean {' or '.join(meant)}?)" if meant else ""
    return f"{dashes}{key} is no key of this recipe{hint}"
