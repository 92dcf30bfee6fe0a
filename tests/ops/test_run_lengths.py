"""Run lengths against planes: reading, extents, sampling, writing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as reference_mask

from maskwright.ops.run_lengths import (
    code_of_runs,
    compress_counts,
    extent_of_runs,
    runs_of_code,
    runs_of_plane,
    sample_runs,
)

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@st.composite
def planes(draw) -> np.ndarray:
    """Noise, or a rectangle, which may be as high as the image: then its columns are one run."""
    height, width = draw(sizes)
    if draw(st.booleans()):
        return np.array(draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))).reshape(
            height, width
        )
    plane = np.zeros((height, width), dtype=bool)
    top, left = draw(st.integers(0, height)), draw(st.integers(0, width))
    plane[top : draw(st.integers(0, height)), left : draw(st.integers(0, width))] = True
    return plane


def test_runs_by_hand():
    plane = np.zeros((3, 4), dtype=bool)
    plane[1:, 0] = plane[:, 1] = plane[0, 2] = plane[2, 3] = True
    runs = runs_of_plane(plane)
    assert runs.tolist() == [[1, 7], [11, 12]]
    assert extent_of_runs(runs, 3) == (0, 0, 4, 3)
    assert extent_of_runs(runs[1:], 3) == (3, 2, 4, 3)
    assert extent_of_runs(runs[:0], 3) == (0, 0, 0, 0)


@given(planes())
@settings(max_examples=100, deadline=None)
def test_codes_are_those_of_pycocotools(plane):
    expected = reference_mask.encode(np.asfortranarray(plane.astype(np.uint8)))
    runs = runs_of_plane(plane)
    assert code_of_runs(runs, plane.shape) == {"size": list(plane.shape), "counts": expected["counts"].decode()}
    assert runs_of_code(expected).tolist() == runs.tolist()
    x, y, width, height = reference_mask.toBbox(expected)
    assert extent_of_runs(runs, len(plane)) == (x, y, x + width, y + height)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
@settings(max_examples=100, deadline=None)
def test_counts_of_zero_separate_nothing(counts):
    plane = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    if plane.size:
        code = compress_counts(counts, (plane.size, 1))
        assert runs_of_code(code).tolist() == runs_of_plane(plane[:, None]).tolist()


@pytest.mark.parametrize("counts", [b"", b"61", b"7", b"!!", b"\xff", b"m"])
def test_counts_that_do_not_fill_the_plane_are_refused(counts):
    with pytest.raises(ValueError, match="counts"):
        runs_of_code({"size": [3, 4], "counts": counts})


@given(planes(), st.lists(st.integers(-3, 12), max_size=12), st.lists(st.integers(-3, 12), max_size=12))
@settings(max_examples=300, deadline=None)
def test_samples_are_the_pixels_of_the_plane(plane, rows, columns):
    """At repeated rows and columns, at skipped ones, and outside of the image."""
    rows, columns = np.sort(np.array(rows, dtype=np.int64)), np.sort(np.array(columns, dtype=np.int64))
    out = np.zeros((len(rows), len(columns)), dtype=bool)
    sample_runs(runs_of_plane(plane), len(plane), rows, columns, out)
    padded = np.pad(plane, ((3, 12), (3, 12)))
    assert (out == padded[rows[:, None] + 3, columns + 3]).all()
