"""The comparison of an export at full size: which detections are the same one."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "export_full_size.py"


def test_detections_in_another_order():
    box, other = [10.0, 10.0, 40.0, 40.0], [20.0, 20.0, 50.0, 50.0]
    expected = {"boxes": np.array([[box, other, box]]), "labels": np.array([[1, 1, 2]])}
    found = {"boxes": np.array([[other, box, [10.5, 10.0, 40.0, 40.0]]]), "labels": np.array([[1, 3, 1]])}
    ours, theirs = runpy.run_path(str(SCRIPT))["partners"](expected, found)
    pairs = zip(*(place.tolist() for place in (*ours, *theirs)), strict=True)
    assert sorted(pairs) == [(0, 0, 0, 2), (0, 1, 0, 0)]  # (image, row) of ours, and of theirs
