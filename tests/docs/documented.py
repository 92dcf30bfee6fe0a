"""What the README and the site's pages show: fenced blocks, the commands in them, and commands in running text."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted(DOCS.glob("notebooks/*.ipynb"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]

_BLOCK = re.compile(r'^( *)```(\w+)(?: title="([^"]*)")?\n(.*?)^\1```$', re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^ {4}.*\n)+", re.MULTILINE)
_CODE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its title (`Needs: ...` says what it takes to run it), and its text."""

    language: str
    title: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command line: those behind `$` of a console, all of a shell script."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        elif self.language != "bash":
            return []
        parts = [shlex.split(part, comments=True) for line in lines for part in line.split(" && ")]
        return [words for words in parts if words]

    @property
    def output(self) -> list[str]:
        """The lines that a console shows, without the commands and what is left out."""
        lines = [line for line in self.text.splitlines() if not line.startswith("$ ")]
        return [line for line in lines if line.strip() not in ("", "...")]


def blocks(page: Path) -> Iterator[Block]:
    for indent, language, title, text in _BLOCK.findall(page.read_text()):
        yield Block(language, title, re.sub(f"^{indent}", "", text, flags=re.MULTILINE))


def shown_commands(page: Path) -> Iterator[list[str]]:
    """The words behind `maskwright` of every command in a block, fenced or indented."""
    text = _BLOCK.sub("", page.read_text())
    indented = [Block("bash", "", re.sub("^ {4}", "", block, flags=re.MULTILINE)) for block in _INDENTED.findall(text)]
    for block in [*blocks(page), *indented]:
        for words in block.commands if "maskwright" in block.text else []:
            if Path(words[0]).name == "maskwright":
                yield words[1:]


def mentioned(page: Path) -> Iterator[str]:
    """Every piece of code in running text, on one line."""
    for code in _CODE.findall(_INDENTED.sub("", _BLOCK.sub("", page.read_text()))):
        yield " ".join(code.split())
