"""The notebooks run from their first cell to the last, and show what their text says."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import nbformat
import pytest
from documented import DOCS, NOTEBOOKS, ROOT
from nbclient import NotebookClient


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a notebook in a folder with the examples, some of its text replaced: what it prints, and its pictures."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("bundled_model"))
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))

    def run(name: str, replaced: dict[str, str]) -> tuple[str, int]:
        text = (DOCS / "notebooks" / f"{name}.ipynb").read_text()
        for before, after in replaced.items():
            assert before in text
            text = text.replace(before, after)
        notebook = nbformat.reads(text, as_version=4)
        client = NotebookClient(
            notebook, timeout=600, startup_timeout=300, resources={"metadata": {"path": str(tmp_path)}}
        )
        client.execute()
        shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
        printed = "".join(output.text for output in shown if output.get("name") == "stdout")
        return printed, sum("image/png" in output.get("data", {}) for output in shown)

    return run


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_holds_no_outputs(path: Path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert [cell.id for cell in notebook.cells if cell.cell_type == "code" and cell.outputs] == []


def test_box_to_mask(outputs, tmp_path: Path):
    printed, pictures = outputs("box_to_mask", {})
    assert "6 masks on 640 x 522" in printed
    assert len(re.findall(r"^\[.*pixels, expected IoU 0\.\d\d$", printed, re.MULTILINE)) == 6
    assert (tmp_path / "cat_results.json").is_file()
    first, second = map(int, re.findall(r"(\d+) pixels, then (\d+)", printed)[0])
    assert 0 < second < first / 2
    assert pictures == 2


def test_partial_supervision(outputs):
    printed, pictures = outputs("partial_supervision", {"STEPS = 60": "STEPS = 2"})
    assert "2 steps" in printed
    found = dict(re.findall(r"(\w+): mean mask IoU 0\.\d+ of (\d+) masks", printed))
    assert found == {"seen": "16", "unseen": "8"}
    assert pictures == 2
