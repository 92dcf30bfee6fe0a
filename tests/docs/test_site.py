"""The site builds strictly, asks nobody for anything, and leads nowhere that is not there; its tables are true."""

from __future__ import annotations

import importlib
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from documented import DOCS, NOTEBOOKS, ROOT

from maskwright.training.recipes import recipe_names

LOADING = {"audio", "embed", "iframe", "img", "input", "link", "object", "script", "source", "use", "video"}
WITHOUT_LOADING = {"canonical", "next", "prev"}  # kinds of <link> that only name a page


class PageReader(HTMLParser):
    """What a page loads, where its links lead, and the anchors that it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors.add(values.get("id", values.get("name", "")))
        target = values.get("src") or values.get("href") or values.get("data")
        if target is not None and (tag == "a" or (tag == "link" and values.get("rel") in WITHOUT_LOADING)):
            self.links.append(target)
        elif target is not None and tag in LOADING:
            self.loads.append(target)
        self.loads += re.findall(r"url\(([^)]+)\)", values.get("style", ""))


def test_the_site_is_whole_and_loads_nothing_from_elsewhere(tmp_path: Path):
    """One test, since the site is built once."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path: PageReader(path) for path in tmp_path.rglob("*.html")}
    assert {path.stem for path in pages} == {"404", *(path.stem for path in [*DOCS.glob("*.md"), *NOTEBOOKS])}
    assert [(path.name, load) for path, page in pages.items() for load in page.loads if is_elsewhere(load)] == []
    for sheet in tmp_path.rglob("*.css"):
        loads = re.findall(r"url\(([^)]+)\)|@import\s+[\"']([^\"']+)", sheet.read_text())
        assert [load for pair in loads for load in pair if is_elsewhere(load.strip("\"'"))] == [], sheet.name
    assert broken_links(pages) == []


def is_elsewhere(address: str) -> bool:
    return urlsplit(address).scheme in ("http", "https") or address.startswith("//")


def broken_links(pages: dict[Path, PageReader]) -> list[tuple[str, str]]:
    broken = []
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":  # its links are those of any other page
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
            target = target / "index.html" if target.is_dir() else target
            known = pages[target].anchors if target in pages else {unquote(parts.fragment)}
            if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in known):
                broken.append((path.name, link))
    return broken


def rows(page: str) -> list[list[str]]:
    """The cells of all tables of a page."""
    lines = [line for line in (DOCS / page).read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("row", [row for row in rows("papers.md") if row[1].startswith("`")], ids=lambda row: row[0])
def test_each_part_of_the_papers_is_where_the_page_says(row: list[str]):
    _, path, names = row
    assert (ROOT / "src" / "maskwright" / path.strip("`")).is_file()
    module = importlib.import_module("maskwright." + path.strip("`").removesuffix(".py").replace("/", "."))
    for name in re.findall(r"`(\w+)`", names):
        assert hasattr(module, name), f"{path} has no {name}"


def test_the_page_of_recipes_has_them_all_with_the_numbers_of_their_files():
    listed = {row[0].strip("`"): row[1:] for row in rows("recipes.md") if "/" in row[0]}
    assert sorted(listed) == recipe_names()
    folder = ROOT / "src" / "maskwright" / "training" / "recipes"
    for name, cells in listed.items():
        words = (folder / f"{name}.yaml").read_text().split("Published result", 1)
        if len(words) == 2:
            published = re.findall(r"\d+\.\d", words[1][:400])
            assert [cell for cell in cells[1:] if re.fullmatch(r"\d+\.\d", cell) and cell not in published] == []


def test_the_figures_are_what_their_script_draws():
    figures = runpy.run_path(str(DOCS / "figures" / "draw.py"))["FIGURES"]
    for name, draw in figures.items():
        assert (DOCS / "figures" / f"{name}.svg").read_text() == draw()


def test_names_with_hyphens_are_whole():
    mark = runpy.run_path(str(DOCS / "whole_names.py"))["on_page_content"]
    page = '<p id="a-b">not-code <code class="c-d">x --out a-b.json, 3 - 1</code></p>'
    whole = '<span class="whole">--out</span>', '<span class="whole">a-b.json</span>'
    assert mark(page) == '<p id="a-b">not-code <code class="c-d">x {} {}, 3 - 1</code></p>'.format(*whole)
