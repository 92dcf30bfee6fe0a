"""Every command that README and site show is one that the command line takes, and those that need nothing run."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

import pytest
from documented import DOCS, PAGES, ROOT, blocks, mentioned, shown_commands

from maskwright import cli
from maskwright.apps import leave_classes_out
from maskwright.apps.study_file import read_study, runs_of
from maskwright.nn.mask_heads import MASK_HEADS
from maskwright.training.recipes import recipe_names, recipe_parser, resolve_recipe
from maskwright.training.run import _split_resume

WALKS = ["index", "for_annotators", "for_data_set_owners", "for_deployers", "for_researchers", "extending"]
RUN = [ROOT / "README.md", *(DOCS / f"{name}.md" for name in WALKS)]
"""The pages whose blocks run as they stand, in their order, unless their title says what they need."""

OF_OTHER_TOOLS = {
    *("--conf-threshold", "--conv-mask-to-poly", "--head", "--port", "--disable-usage-stats", "--include-dashboard"),
    *("--num-cpus", "--num-gpus", "--no-deps", "--shm-size", "--strict"),
}
PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_/|]*(\.\w+)?|[\w/]+\.yaml")  # NAME, RECIPE.yaml, mine.yaml
FAMILIES = ("deep_mac", "deep_marc", "max_deeplab")
FILES = ("--data.images=x", "--data.annotations=x")


class Accepted(BaseException):
    """The command line has taken all arguments, and would now do what they ask for."""

    def __init__(self, options: set[str]) -> None:
        self.options = options


def parse(arguments: Sequence[str], complete: bool = True) -> set[str]:
    """All options of the command that takes these arguments.

    complete: refuse them as the command line does; otherwise only its verb counts.
    """
    really = cli._parse

    def accept(parser, given, **rest):
        if complete:
            really(parser, given, **rest)
        raise Accepted(set(parser._option_string_actions))

    with patch("maskwright.cli._parse", accept):
        try:
            code = cli.main(arguments)
        except Accepted as accepted:
            return accepted.options
        except SystemExit as stopped:  # --help
            code = stopped.code or 0
    assert code == 0, f"refused: maskwright {shlex.join(arguments)}"
    return set()


def train_options(family: str) -> set[str]:
    return {"--resume", *recipe_parser(family)._option_string_actions}


def check_recipe(arguments: Sequence[str]) -> None:
    """`maskwright train`: the recipe is there, and has these keys and takes these values."""
    name, *rest = arguments
    resume, overrides = _split_resume(rest)
    if resume or overrides == ["--help"]:
        return
    if name not in recipe_names():
        assert PLACEHOLDER.fullmatch(name), f"there is no recipe {name}"
        name = "deep_mac/tiny"
    in_shards = any(word.startswith("--data.shards") for word in overrides)
    resolve_recipe(name, [*([] if in_shards else FILES), *overrides])


def check_study(arguments: Sequence[str]) -> None:
    """`maskwright study`: its options, and the values of its recipes."""
    if not arguments or PLACEHOLDER.fullmatch(arguments[0]):
        return
    parse(["study", *arguments])
    values, _ = cli._split_keys(arguments)
    if arguments[0] == leave_classes_out.NAME:
        resolve_recipe(leave_classes_out.OPTIONS().recipe, [f"--{key}={value}" for key, value in values.items()])
        return
    runs_of(read_study(arguments[0]).with_values(values), Path("runs"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_shown_commands_are_taken(page: Path, capsys):
    for words in shown_commands(page):
        check = {"train": check_recipe, "study": check_study}.get(words[0])
        check(words[1:]) if check else parse(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_mentioned_commands_and_options_are_there(page: Path, every_option: set[str]):
    for code in mentioned(page):
        if code.startswith("maskwright "):
            check_mentioned(code.replace("...", "").split()[1:])
        elif code.startswith("--"):
            options = re.findall(r"(?<!\S)--[a-z][\w.-]*", code)
            assert set(options) <= every_option, f"{page.name} names {code}"


def check_mentioned(words: list[str]) -> None:
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    if words[0] == "train":
        assert any(options <= train_options(family) | {"--help"} for family in FAMILIES), words
    elif not words[0].startswith("-") and words != ["study"]:
        verb = words[:2] if words[0] in ("data", "study") else words[:1]
        if not PLACEHOLDER.fullmatch(words[0]):
            assert {option for option in options if "." not in option} <= parse([*verb, "x"], complete=False), words


@pytest.fixture(scope="module")
def every_option() -> set[str]:
    """Of all commands, of the recipes of all families, and of the benchmarks."""
    options = OF_OTHER_TOOLS | parse(["study", leave_classes_out.NAME], complete=False)
    for verb in cli.VERBS:
        if verb != "train":
            options |= parse([*verb.split(), "x"], complete=False)
    for family in FAMILIES:
        options |= train_options(family)
    for script in (ROOT / "benchmarks").glob("*.py"):
        options |= set(re.findall(r"\"(--[a-z-]+)\"", script.read_text()))
    return options


def test_the_options_of_benchmarks_are_there(every_option: set[str]):
    for page in PAGES:
        for script, arguments in re.findall(r"`python (benchmarks/\w+\.py)([^`]*)`", page.read_text()):
            assert (ROOT / script).is_file(), f"{page.name} names {script}"
            options = re.findall(r"(?<!\S)\[?(--[a-z][\w.-]*)", arguments)
            assert set(options) <= every_option, f"{page.name}: {script}{arguments}"


class TestPagesRun:
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("bundled_model"))
        monkeypatch.chdir(tmp_path)
        with patch.dict(MASK_HEADS):  # a page adds one
            yield

    @pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
    def test_blocks_without_needs_run(self, page: Path, capsys):
        names: dict[str, object] = {"__name__": page.stem}
        ran = 0
        for block in blocks(page):
            if block.title.startswith("Needs: ") or (page.stem == "README" and block.language == "bash"):  # .ci/run
                continue
            assert block.language in ("console", "python", "yaml"), f"neither run nor marked: {block.text}"
            if block.language == "python":
                exec(compile(block.text, page.name, "exec"), names)
            for _, *arguments in block.commands:
                assert cli.main(arguments) == 0
            captured = capsys.readouterr()
            printed = [words_of(line) for line in (captured.out + captured.err).splitlines()]
            if block.language == "console":
                assert [line for line in block.output if words_of(line) not in printed] == []
            ran += block.language != "yaml"
        assert ran > 0


def words_of(line: str) -> list[str]:
    """Of a line that is printed, as each processor prints it: not each computes in bfloat16."""
    return line.replace("computed in float32", "computed in bfloat16").split()
