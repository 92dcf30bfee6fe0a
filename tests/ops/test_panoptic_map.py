"""Maps of segments: colours, rows, areas, boxes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from maskwright.ops.panoptic_map import (
    decode_ids,
    encode_ids,
    rows_of_ids,
    segment_areas,
    segment_boxes,
)


def test_colours_of_ids():
    ids = np.array([[0, 255, 256], [65536, 3 + 256 * 5 + 65536 * 7, 256**3 - 1]])
    expected = [[[0, 0, 0], [255, 0, 0], [0, 1, 0]], [[0, 0, 1], [3, 5, 7], [255, 255, 255]]]
    assert encode_ids(ids).tolist() == expected
    assert np.array_equal(decode_ids(encode_ids(ids)), ids)


@pytest.mark.parametrize("wrong", [-1, 256**3])
def test_an_id_that_has_no_colour(wrong: int):
    with pytest.raises(ValueError, match=r"segment ids must be in 0\.\.16777215"):
        encode_ids(np.array([[1, wrong]]))


@given(arrays(np.int64, (4, 5), elements=st.sampled_from([0, 3, 9, 10, 70000])), st.permutations([3, 9, 70000]))
def test_rows_of_ids(ids: np.ndarray, listed: list[int]):
    rows = rows_of_ids(ids, np.array(listed))
    for identity in (0, 3, 9, 10, 70000):
        expected = listed.index(identity) if identity in listed else -1
        assert (rows[ids == identity] == expected).all()


def test_rows_of_no_segment():
    assert (rows_of_ids(np.array([[0, 4]]), np.zeros(0, dtype=np.int64)) == -1).all()


def test_areas_and_boxes():
    segmentation = np.array([[-1, 0, 0, 2], [-1, -1, 0, 2], [3, -1, -1, -1]], dtype=np.int32)
    assert segment_areas(segmentation, 5).tolist() == [3, 0, 2, 1, 0]
    assert segment_boxes(segmentation, 5).tolist() == [[1, 0, 3, 2], [0] * 4, [3, 0, 4, 2], [0, 2, 1, 3], [0] * 4]


def test_areas_and_boxes_of_no_segment():
    void = np.full((2, 3), -1, dtype=np.int32)
    assert segment_areas(void, 0).shape == (0,)
    assert segment_boxes(void, 0).shape == (0, 4)
