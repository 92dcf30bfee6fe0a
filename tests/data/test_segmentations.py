import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as pycocotools_mask

from maskwright.data.segmentations import SegmentationPacker
from maskwright.structures import EncodedMasks

HEIGHT, WIDTH = 9, 14


def decode(*segmentations, size=(HEIGHT, WIDTH)):
    packer = SegmentationPacker()
    reasons = [packer.add(segmentation, size) for segmentation in segmentations]
    masks = EncodedMasks(packer.pack().encode(range(len(segmentations)), size), size)
    return masks.planes().numpy(), (masks.areas() > 0).tolist(), reasons


def test_uncompressed_run_lengths_by_hand():
    # Column by column: 10 background pixels are column 0 and the first row of column 1, then 3 of the mask.
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[1:4, 1] = True
    masks, has_mask, reasons = decode({"size": [HEIGHT, WIDTH], "counts": [10, 3, HEIGHT * WIDTH - 13]})
    assert (masks[0] == mask).all()
    assert has_mask == [True]
    assert reasons == [None]


def test_box_polygon_by_hand():
    masks, _, _ = decode([[2, 3, 8, 3, 8, 7, 2, 7]])
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[3:7, 2:8] = True
    assert (masks[0] == mask).all()


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_polygons_are_those_of_pycocotools(data):
    tenths = st.integers(-20, 160).map(lambda number: number / 10)
    polygon = st.integers(3, 7).flatmap(lambda points: st.lists(tenths, min_size=2 * points, max_size=2 * points))
    polygons = data.draw(st.lists(polygon, min_size=1, max_size=3))
    expected = pycocotools_mask.decode(
        pycocotools_mask.merge(pycocotools_mask.frPyObjects(polygons, HEIGHT, WIDTH))
    ).astype(bool)
    masks, has_mask, _ = decode(polygons)
    assert (masks[0] == expected).all()
    assert has_mask == [expected.any()]


@given(st.lists(st.booleans(), min_size=HEIGHT * WIDTH, max_size=HEIGHT * WIDTH))
@settings(max_examples=40, deadline=None)
def test_compressed_run_lengths_are_those_of_pycocotools(pixels):
    mask = np.array(pixels).reshape(HEIGHT, WIDTH)
    code = pycocotools_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    as_text = {"size": code["size"], "counts": code["counts"].decode()}
    masks, has_mask, reasons = decode(code, as_text)
    assert (masks == mask).all()
    assert has_mask == [mask.any()] * 2
    assert reasons == [None, None]


@pytest.mark.parametrize("empty", [None, [], {}, ""])
def test_empty_segmentation_is_no_mask_and_no_fault(empty):
    masks, has_mask, reasons = decode(empty)
    assert not masks.any()
    assert has_mask == [False]
    assert reasons == [None]


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[1, 1, 5, 1]], "at least 6 numbers, but has 4"),
        ([[1, 1, 5, 1, 5, 5, 2]], "even count"),
        ([[]], "has 0"),
        ([1, 1, 5, 1, 5, 5], "list of polygons"),
        ([[1, 1, 5, 1, 5, "5"]], "not a number"),
        ([[1, 1, 5, 1, 5, None]], "not a number"),
        ([[1, 1, 5, 1, 5, 10**400]], "not a number"),
        ([[1, 1, 5, 1, 5, float("nan")]], "NaN"),
        ([[1, 1, 5, 1, 5, 1e12]], "far outside"),
        ("abc", "is a str"),
        ({"size": [WIDTH, HEIGHT], "counts": "abc"}, "run-length size"),
        ({"counts": "abc"}, "run-length size is None"),
        ({"size": [HEIGHT, WIDTH]}, "must be a list or a text"),
        ({"size": [HEIGHT, WIDTH], "counts": [5, -5, HEIGHT * WIDTH]}, "at least 0"),
        ({"size": [HEIGHT, WIDTH], "counts": [5.5]}, "integers"),
        ({"size": [HEIGHT, WIDTH], "counts": [5, 6]}, "add up to 11 pixels instead of 126"),
    ],
)
def test_unusable_segmentation_has_a_reason_and_no_mask(segmentation, reason):
    sound = [[2, 3, 8, 3, 8, 7, 2, 7]]
    masks, has_mask, reasons = decode(sound, segmentation, sound)
    assert reason in reasons[1]
    assert has_mask == [True, False, True]
    assert not masks[1].any()
    assert (masks[0] == masks[2]).all()


@given(st.text(st.characters(min_codepoint=33, max_codepoint=200), max_size=12))
@settings(max_examples=100, deadline=None)
def test_any_text_as_counts_gives_a_mask_or_none(counts):
    segmentation = {"size": [HEIGHT, WIDTH], "counts": counts}
    masks, has_mask, reasons = decode(segmentation, [[2, 3, 8, 3, 8, 7, 2, 7]])
    assert masks.shape == (2, HEIGHT, WIDTH)
    assert has_mask == [masks[0].any(), True]
    assert reasons == [None, None]


def test_no_rows_and_a_negative_row():
    segmentations = SegmentationPacker().pack()
    assert EncodedMasks(segmentations.encode([], (4, 5)), (4, 5)).planes().shape == (0, 4, 5)
    masks = EncodedMasks(segmentations.encode([-1], (4, 5)), (4, 5))
    assert masks.shape == (1, 4, 5)
    assert masks.areas().tolist() == [0]
