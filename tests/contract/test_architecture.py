"""The rules of the house: imports point one way, a name means one thing, Lightning stays in training."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import maskwright.onnx

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "maskwright"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Each of these is imported inside of the functions that need it, so that the rest works without it and starts fast.
OPTIONAL = {
    "cv2",
    "cvat_sdk",
    "gradio",
    "huggingface_hub",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "ray",
    "supervision",
    "webdataset",
}


def imports_on_loading(tree: ast.Module) -> Iterator[str]:
    """Top-level names of the modules that are imported when the module is; `if TYPE_CHECKING:` is not."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def test_imports_point_one_way():
    command = [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 kept, 0 broken" in done.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
class TestSource:
    def test_optional_libraries_are_imported_where_needed(self, path: Path):
        allowed = {"lightning"} if path.parent.name == "training" else set()
        forbidden = (OPTIONAL | {"lightning"}) - allowed
        assert not forbidden & set(imports_on_loading(ast.parse(path.read_text())))

    def test_no_assert_and_no_stub(self, path: Path):
        text = path.read_text()
        assert not [node.lineno for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Assert)]
        assert not [word for word in ("TODO", "FIXME", "XXX") if word in text]


def test_no_two_public_classes_or_functions_share_a_name():
    homes: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    entry_points = {"main", "run"}  # of the modules behind the command line
    without_torch = set(maskwright.onnx.__all__)  # the same things, and so the same names
    homes = {name: paths for name, paths in homes.items() if name not in entry_points | without_torch}
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def test_nothing_is_called_utils():
    vague = {"utils", "util", "misc", "helpers", "helper", "common", "manager"}
    assert not [path for path in PACKAGE.rglob("*") if path.stem in vague]
