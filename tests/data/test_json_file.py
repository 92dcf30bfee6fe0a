"""Parts of JSON files, and what kind of file their content makes them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskwright.data.json_file import list_elements
from maskwright.data.panoptic_annotations import is_panoptic
from maskwright.errors import UserError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.sampled_from(["[1]", '"annotations": [{}]']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(st.text(max_size=2), VALUES, max_size=3), st.lists(VALUES, max_size=4), st.sampled_from([None, 1])
)
def test_elements_are_those_of_the_list(others: dict, elements: list, indent: int | None):
    content = json.dumps({**others, "annotations": elements, **others}, indent=indent).encode()
    assert list(list_elements(content, "annotations")) == elements


@pytest.mark.parametrize(
    ("text", "elements"),
    [
        ('{"a": [1, {"b": 2}, 3', [1, {"b": 2}, 3]),
        ('{"a": [1, oops', [1]),
        ('\ufeff{ "b" : [ 7 ] , "a" : [ 1 , 2 ] }', [1, 2]),
        ('{"a": 5}', []),
        ('{"a": {"a": [1]}}', []),
        ('[{"a": [1]}]', []),
        ("[" * 100_000, []),
        ('{"b": ' + "[" * 100_000, []),
        ("", []),
    ],
)
def test_elements_end_with_the_json(text: str, elements: list):
    assert list(list_elements(text.encode(), "a")) == elements


def test_what_is_not_text_has_no_elements():
    assert list(list_elements(b'{"a": [1, "\xff"]}', "a")) == []


ENTRY = {"image_id": 1, "file_name": "1.png", "segments_info": []}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"annotations": [ENTRY]}, True),
        ({"annotations": [{}, 3, ENTRY]}, True),
        ({"images": [{"file_name": "segments_info"}], "annotations": [{"id": 1, "bbox": []}]}, False),
        ({"info": {"description": 'see "segments_info": []', "segments_info": [ENTRY]}, "annotations": [{}]}, False),
        ({"annotations": [{"attributes": {"segments_info": []}}]}, False),
        ({"segments_info": [], "annotations": []}, False),
        ([ENTRY], False),
    ],
)
def test_a_panoptic_file_has_annotations_with_segments(tmp_path, content, expected):
    path = tmp_path / "file.json"
    path.write_text(json.dumps(content))
    assert is_panoptic(path) is expected


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="cannot read the annotation file"):
        is_panoptic(tmp_path)
