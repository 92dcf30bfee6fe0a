import pytest

from maskwright.data.categories import (
    NON_VOC,
    VOC,
    labels_of_categories,
    labels_of_names,
    parse_categories,
    read_categories,
    resolve_mask_classes,
)
from maskwright.errors import UserError


def categories(*names: str):
    return [{"id": 10 + position, "name": name} for position, name in enumerate(names)]


def test_presets_are_the_80_classes_of_coco():
    assert len(VOC) == 20
    assert len(NON_VOC) == 60
    assert not set(VOC) & set(NON_VOC)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("all", ["zebra", "TV-monitor", "aeroplane", "sofa", "potted_plant", "window"]),
        ("voc", ["TV-monitor", "aeroplane", "sofa", "potted_plant"]),
        ("non_voc", ["zebra"]),
        (["window", "zebra"], ["zebra", "window"]),
        (["airplane", "couch", "tv"], ["TV-monitor", "aeroplane", "sofa"]),
        ("zebra, window", ["zebra", "window"]),
        ([], []),
    ],
)
def test_spec_means_names_of_the_file_in_its_order(spec, expected):
    known = categories("zebra", "TV-monitor", "aeroplane", "sofa", "potted_plant", "window")
    assert resolve_mask_classes(spec, known) == expected


def test_unknown_names_are_listed_with_the_known_ones():
    with pytest.raises(UserError, match="dragon, elf; known are: zebra, window"):
        resolve_mask_classes(["zebra", "dragon", "elf"], categories("zebra", "window"))


def test_of_many_known_names_the_close_ones_are_listed_else_the_first():
    many = categories(*VOC, *NON_VOC)
    with pytest.raises(UserError, match=r"zebar; known are: zebra, bear, keyboard, \.\.\. \(80 in all\)$"):
        resolve_mask_classes("zebar", many)
    with pytest.raises(UserError, match=r"qqq; known are: person, (\w+, ){7}\.\.\. \(80 in all\)$"):
        resolve_mask_classes("qqq", many)
    with pytest.raises(
        UserError, match=r"does not know: zebar; it knows: zebra, bear, keyboard, \.\.\. \(80 in all\)$"
    ):
        labels_of_categories(categories("zebar"), {0}, many, "a.json")


def test_preset_without_a_class_is_refused():
    with pytest.raises(UserError, match="'voc' has no class"):
        resolve_mask_classes("voc", categories("window"))


def test_labels_of_names_are_positions_by_any_usual_spelling():
    categories = [{"id": 9, "name": "dog"}, {"id": 4, "name": "airplane"}]
    assert labels_of_names(["unicorn", "aeroplane", "dog", "dog"], categories) == [-1, 1, 0, 0]


def test_same_spelling_wins_over_synonym():
    assert resolve_mask_classes(["tv"], categories("television", "tv")) == ["tv"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "non-empty list"),
        ({}, "non-empty list"),
        ([{"id": "1", "name": "a"}], "category 0 must have an integer 'id'"),
        ([{"id": 1}], "category 0"),
        (["a"], "category 0"),
        *[
            (
                [{"id": 4, "name": "a", "isthing": value}],
                rf"'isthing' of category 4 \(a\) must be 1 .* but is {value!r}",
            )
            for value in (2, "1", "false", None, -1, 0.5)
        ],
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], r"own id, but these repeat: \[1\]"),
        ([{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], r"own name, but these repeat: \['a'\]"),
    ],
)
def test_broken_categories(entries, message):
    with pytest.raises(UserError, match=message):
        parse_categories(entries, "file.json")


def test_read_categories_keeps_order_ids_and_isthing(coco):
    coco.write([], categories=[{"id": 5, "name": "b", "isthing": 1, "color": [1, 2, 3]}, {"id": 2, "name": "a"}])
    assert read_categories(coco.annotations) == [{"id": 5, "name": "b", "isthing": True}, {"id": 2, "name": "a"}]
