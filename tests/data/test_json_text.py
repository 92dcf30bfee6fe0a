"""Raw JSON text: what is changed is what was asked for, and every other byte stays."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.data.json_text import Edit, ObjectText, edited, element_spans, json_text
from maskwright.errors import UserError

ODD = (
    '\ufeff \r\n{ "info" : {"annotations": [1], "big": 123456789012345678901234567890, "}": "]{" },\n'
    '"annotations":[0], "\\u0061nnotations"\t: [ {"name": "Zoë 猫 \\ud800 \\" }", "id" :1.0} ,[] , -0.0\n, null],'
    '"x": {}}\n\n'
).encode()


def test_elements_of_the_last_list_of_this_name_are_found_by_their_bytes():
    text = json_text(ODD, "odd")
    parts = [ODD[start:end] for start, end in element_spans(text, "annotations").tolist()]
    assert parts == ['{"name": "Zoë 猫 \\ud800 \\" }", "id" :1.0}'.encode(), b"[]", b"-0.0", b"null"]
    assert [json.loads(part) for part in parts] == json.loads(ODD)["annotations"]


def test_a_list_that_is_not_there_has_no_elements():
    assert element_spans('{ "b": [1] }', "a").tolist() == []
    assert element_spans("{ \n}", "a").tolist() == []
    assert element_spans('{"a": [ ]}', "a").tolist() == []


def test_bytes_that_are_not_edited_stay():
    text = json_text(ODD, "odd")
    assert b"".join(edited(text, [])) == ODD
    ((start, end), *_) = element_spans(text, "annotations").tolist()
    assert b"".join(edited(text, [Edit(start, end, "7")])) == ODD[:start] + b"7" + ODD[end:]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32-be"])
def test_other_encodings_are_refused(encoding: str):
    with pytest.raises(UserError, match=r"a\.json: expected a text in UTF-8, but it is in utf-(16|32)"):
        json_text('{"a": [1]}'.encode(encoding), "a.json")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", '{"new": [1, 2]}'),
        ("{ }", '{"new": [1, 2] }'),
        ('{"a": 1}', '{"a": 1,"new": [1, 2]}'),
        ('{"a":1,"b":2}', '{"a":1,"b":2,"new":[1,2]}'),
        ('{"a" : 1 , "b" : 2 }', '{"a" : 1 , "b" : 2 , "new" : [1, 2] }'),
        ('{\n  "a": 1,\n  "b": 2\n}', '{\n  "a": 1,\n  "b": 2,\n  "new": [1, 2]\n}'),
        ('{"a":1,"new":null,"\\u006eew":null}', '{"a":1,"new":null,"\\u006eew":[1,2]}'),
    ],
)
def test_a_new_value_stands_at_the_end_in_the_style_of_the_object(text: str, expected: str):
    read = ObjectText.read(text, 0)
    changed = read.with_value("new", [1, 2])
    assert str(changed) == expected
    if read.get("new") is None:
        assert str(ObjectText.read(expected, 0).without("new")) == text


def test_values_are_those_of_the_file():
    read = ObjectText.read('{"é": "猫"}'.encode().decode("latin-1"), 0)
    assert read.members[0].value == "猫"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(
    st.dictionaries(st.text(max_size=4), values, max_size=6),
    st.sampled_from([None, 0, 3]),
    st.sampled_from([(", ", ": "), (",", ":"), (" ,\t", " :\r\n")]),
    st.booleans(),
    st.data(),
)
def test_objects_change_where_asked_only(
    content: dict[str, Any], indent: int | None, separators: tuple[str, str], ascii_only: bool, data: st.DataObject
):
    spelled = json.dumps(content, indent=indent, separators=separators, ensure_ascii=ascii_only)
    text = spelled.encode(errors="surrogatepass").decode("latin-1")
    read = ObjectText.read(text, 0)
    assert str(read) == text
    assert [member.value for member in read.members] == list(content.values())
    name = data.draw(st.sampled_from([*(key for key in content if key.isascii()), "new"]))

    def parsed(changed: ObjectText) -> Any:
        return json.loads(str(changed).encode("latin-1"))

    assert parsed(read.with_value(name, [1])) == {**content, name: [1]}
    rest = {key: value for key, value in content.items() if key != name}
    assert parsed(read.without(name)) == rest
    if name not in content:
        assert str(read.with_value(name, [1]).without(name)) == text
