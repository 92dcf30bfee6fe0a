"""The benchmark of left-out classes: what is kept from the study, and the errors of what it foretells."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

from maskwright.evaluation.left_out_classes import Estimate, MeasuredBoxes, Trial

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "left_out_prediction.py"
CLASSES = ("cat", "dog", "cup", "tree")


@pytest.fixture(scope="module")
def benchmark():
    specification = importlib.util.spec_from_file_location("left_out_prediction", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def content() -> dict:
    """A file of one mask of each class but the last, which has a box."""
    entry = {"image_id": 1, "bbox": [0, 0, 2, 2]}
    mask = {"segmentation": [[0, 0, 2, 0, 2, 2]]}
    return {
        "images": [{"id": 1, "file_name": "1.jpg"}],
        "annotations": [{**entry, **(mask if k < 3 else {}), "id": k, "category_id": k} for k in range(4)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(CLASSES)],
    }


def test_every_class_with_masks_is_held_back_once_and_loses_all_of_them(benchmark):
    parts = benchmark.parts_of(content(), 2)
    assert sorted(name for part in parts for name in part) == ["cat", "cup", "dog"]
    assert {len(part) for part in parts} == {1, 2}
    held_back = benchmark.without_masks(content(), ["dog"])
    assert benchmark.names_without_masks(held_back) == ["dog", "tree"]
    assert [entry["bbox"] for entry in held_back["annotations"]] == [[0, 0, 2, 2]] * 4


def test_a_class_is_foretold_by_the_others_alone(benchmark):
    # Scores are IoUs in all classes but cups, which are worse than they look.
    columns = [np.repeat(np.arange(6.0), 3), np.tile([0.0, 1.0, 2.0], 6), np.empty(18), np.empty(18)]
    columns[3][:] = np.linspace(0.3, 0.9, 18)
    columns[2][:] = np.where(columns[1] == 2, 0.1, columns[3])
    trials = [Trial(CLASSES, 0, MeasuredBoxes(*columns))]
    (found,) = benchmark.foretold(dict.fromkeys(CLASSES[:3], 1), trials, ["cup"])
    assert (found.name, found.instances, found.actual) == ("cup", 6, pytest.approx(0.1))
    assert found.predicted.mean == pytest.approx(columns[3][columns[1] == 2].mean(), abs=0.02)
    assert found.plain == pytest.approx(columns[3][columns[1] < 2].mean())


def test_mean_errors_are_those_of_the_classes(benchmark):
    rows = [
        benchmark.Foretold("cat", 12, 0.5, Estimate(0.6, 0.45, 0.7), 0.8),
        benchmark.Foretold("dog", 3, 0.5, Estimate(0.3, 0.2, 0.4), 0.4),
    ]
    last = benchmark.told(rows).splitlines()[-2:]
    assert last[0] == "2 classes, foretold 0.150 off on average, 1 within their range; the plain mean is 0.200 off"
    assert last[1].startswith("10 masks or more: 1 classes, foretold 0.100 off on average, 1 within")
    assert math.isclose(sum(abs(row.plain - row.actual) for row in rows), 0.4)
