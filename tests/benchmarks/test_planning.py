"""`benchmarks/planning.py` plans all boxes that it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "planning.py"


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_all_boxes_are_planned(tmp_path: Path):
    given = [sys.executable, SCRIPT, tmp_path, "--pictures", "3", "--boxes", "7"]
    ran = subprocess.run(given, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "7 masks to make" in ran.stdout
    assert "planned in " in ran.stdout
    content = json.loads((tmp_path / "boxes.json").read_text())
    assert [len(content[key]) for key in ("images", "annotations")] == [3, 7]
    assert not (tmp_path / "completed.json").exists()
