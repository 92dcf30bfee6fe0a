import copy
import json
import random
from pathlib import Path

import faster_coco_eval.core.mask as coco_mask
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.data.normalise import Kind, normalise_instances, normalise_panoptic
from maskwright.errors import UserError

HEIGHT, WIDTH = 90, 120


def instances(annotations: list, *, images: list | None = None, categories: list | None = None, **more) -> dict:
    return {
        "images": [image(1), image(2)] if images is None else images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "crack"}] if categories is None else categories,
        **more,
    }


def image(identity, **changes) -> dict:
    return _changed({"id": identity, "file_name": f"{identity}.png", "height": HEIGHT, "width": WIDTH}, changes)


def annotation(identity, **changes) -> dict:
    entry = {
        "id": identity,
        "image_id": 1,
        "category_id": 1,
        "bbox": [40, 30, 20, 10],
        "segmentation": [[40, 30, 60, 30, 60, 40, 40, 40]],
        "iscrowd": 0,
    }
    return _changed(entry, changes)


def _changed(entry: dict, changes: dict) -> dict:
    return {key: value for key, value in (entry | changes).items() if value is not ...}


def run_lengths() -> dict:
    """Columns 40 to 59 of rows 30 to 39, uncompressed."""
    counts = [40 * HEIGHT + 30, 10, *[HEIGHT - 10, 10] * 19, 60 * HEIGHT + 50]
    return {"size": [HEIGHT, WIDTH], "counts": counts}


CLEAN = instances(
    [annotation(1), annotation(5, image_id=2, category_id=2), annotation(6, segmentation=run_lengths(), iscrowd=1)]
)

# Files that are broken in one way, the kind of the repair, how often it is made, and the first example.
REPAIRED = [
    pytest.param(instances([annotation(1.0)]), Kind.WHOLE_FLOAT, "annotation 1.0: id is 1.0", id="annotation id"),
    pytest.param(
        instances([annotation(1, image_id=7)], images=[image(7.0)]),
        Kind.WHOLE_FLOAT,
        "image 7.0: id is 7.0",
        id="image id",
    ),
    pytest.param(
        instances([annotation(1)], categories=[{"id": 1.0, "name": "cell"}]),
        Kind.WHOLE_FLOAT,
        "category 1.0: id is 1.0",
        id="category id",
    ),
    pytest.param(
        instances([annotation(1, image_id="01")]),
        Kind.ID_AS_LISTED,
        "annotation 1: image_id is the text '01', the file lists the number 1",
        id="padded text",
    ),
    pytest.param(
        instances([annotation(7, category_id="2.0")]),
        Kind.ID_AS_LISTED,
        "annotation 7: category_id is the text '2.0', the file lists the number 2",
        id="text of a float",
    ),
    pytest.param(
        instances([annotation(7, image_id=12)], images=[image("12")]),
        Kind.ID_AS_LISTED,
        "annotation 7: image_id is the number 12, the file lists the text '12'",
        id="number of a text",
    ),
    pytest.param(instances([annotation(1, iscrowd=None)]), Kind.ISCROWD, "annotation 1: iscrowd is null", id="null"),
    pytest.param(
        instances([annotation(1, iscrowd="0")]), Kind.ISCROWD, "annotation 1: iscrowd is the text '0'", id="text 0"
    ),
    pytest.param(instances([annotation(1, iscrowd=False)]), Kind.ISCROWD, "annotation 1: iscrowd is False", id="false"),
    pytest.param(instances([annotation(1, iscrowd=0.0)]), Kind.ISCROWD, "annotation 1: iscrowd is 0.0", id="0.0"),
    pytest.param(
        instances([annotation(1)], images=[image(1, height="90")]),
        Kind.NUMBER_AS_TEXT,
        "image 1: height is the text '90'",
        id="size as text",
    ),
    pytest.param(
        instances([annotation(1)], images=[image(1, width=120.0)]),
        Kind.WHOLE_FLOAT,
        "image 1: width is 120.0",
        id="size as float",
    ),
    pytest.param(
        instances([annotation(1, bbox=["40", "30.0", "20", "1e1"])]),
        Kind.NUMBER_AS_TEXT,
        "annotation 1: bbox is ['40', '30.0', '20', '1e1']",
        id="bbox as texts",
    ),
    pytest.param(
        instances([annotation(1, segmentation=[[], [40, 30, 60, 30, 60, 40, 40, 40]])]),
        Kind.POLYGON_PART,
        "annotation 1: a part is []",
        id="empty part",
    ),
    pytest.param(
        instances([annotation(1, segmentation=[[1, 2, 3, 4], [5, 6], [40, 30, 60, 30, 60, 40, 40, 40]])]),
        Kind.POLYGON_PART,
        "annotation 1: a part is [1, 2, 3, 4]",
        id="parts of two points and of one",
    ),
    pytest.param(
        instances([annotation(1, segmentation=[40, 30, 60, 30, 60, 40, 40, 40])]),
        Kind.POLYGON_FORM,
        "annotation 1: segmentation is [40, 30, 60, 30, 60, 40, 40, 40]",
        id="flat list",
    ),
    pytest.param(
        instances([annotation(1, segmentation=[[40, 30], [60, 30], [60, 40], [40, 40]])]),
        Kind.POLYGON_FORM,
        "annotation 1: segmentation is [[40, 30], [60, 30], [60, 40], [40, 40]]",
        id="points",
    ),
    pytest.param(
        instances([annotation(1, segmentation=[[[40, 30], [60, 30], [60, 40], [40, 40]]])]),
        Kind.POLYGON_FORM,
        "annotation 1: segmentation is [[[40, 30], [60, 30], [60, 40], [40, 40]]]",
        id="lists of points",
    ),
    pytest.param(instances([annotation(1, bbox=...)]), Kind.BOX_OF_MASK, "annotation 1: bbox is missing", id="no bbox"),
    pytest.param(instances([annotation(1, bbox=[])]), Kind.BOX_OF_MASK, "annotation 1: bbox is []", id="empty bbox"),
    pytest.param(
        instances([annotation(1, bbox=[60, 40, -20, -10])]),
        Kind.BOX_OF_MASK,
        "annotation 1: bbox is [60, 40, -20, -10]",
        id="negative size",
    ),
    pytest.param(
        instances([annotation(1, bbox=[40, float("nan"), 20, 10])]),
        Kind.BOX_OF_MASK,
        "annotation 1: bbox is [40, nan, 20, 10]",
        id="not a number",
    ),
]


@pytest.mark.parametrize(("content", "kind", "example"), REPAIRED)
def test_one_repair_gives_the_clean_file(content, kind, example):
    normalised = normalise_instances(content, "a.json")
    assert normalised.repairs.counts == {kind: 1}
    assert normalised.repairs.examples == {kind: example}
    entry = normalised.content["annotations"][0]
    listed = {image["id"] for image in normalised.content["images"]}
    assert entry["image_id"] in listed
    assert type(entry["image_id"]) in set(map(type, listed))
    assert entry["bbox"] == [40, 30, 20, 10]
    assert entry["segmentation"] == [[40, 30, 60, 30, 60, 40, 40, 40]]
    assert type(entry["iscrowd"]) is int
    assert all(type(image[key]) is int for image in normalised.content["images"] for key in ("height", "width"))


def test_a_clean_file_comes_back_itself():
    before = copy.deepcopy(CLEAN)
    normalised = normalise_instances(CLEAN, "a.json", lambda _: (HEIGHT, WIDTH))
    assert normalised.content is CLEAN
    assert before == CLEAN
    assert not normalised.repairs
    assert normalised.annotation_ids is None


@pytest.mark.parametrize("ids", [["a", "b", "c"], [4, 4, 5], [None, 1, 2], [1, 2, 2**70], ["1", 1, 2]])
def test_annotation_ids_are_numbered_inside_and_kept(ids):
    content = instances([annotation(identity) for identity in ids])
    normalised = normalise_instances(content, "a.json")
    assert [entry["id"] for entry in normalised.content["annotations"]] == [1, 2, 3]
    assert normalised.annotation_ids == ids
    assert set(normalised.repairs.counts) == {Kind.ANNOTATION_ID}
    assert [entry["id"] for entry in content["annotations"]] == ids


def test_a_message_names_an_annotation_by_the_id_of_the_file():
    content = instances([annotation("roof-1", image_id=1.0), annotation("roof-2")])
    assert normalise_instances(content, "a.json").repairs.examples == {
        Kind.ANNOTATION_ID: "annotation roof-1 of image 1.0: id is the text 'roof-1'",
        Kind.WHOLE_FLOAT: "annotation roof-1 of image 1.0: image_id is 1.0",
    }


@pytest.mark.parametrize("name", [7, 7.0])
def test_a_category_name_that_is_a_number(name):
    content = instances([annotation(1)], categories=[{"id": 1, "name": name}])
    assert normalise_instances(content, "a.json").content["categories"] == [{"id": 1, "name": "7"}]


def test_a_category_without_a_name_is_named_by_its_id():
    content = instances([annotation(1)], categories=[{"id": 1}, {"id": 2, "name": None}])
    normalised = normalise_instances(content, "a.json")
    assert normalised.content["categories"] == [{"id": 1, "name": "1"}, {"id": 2, "name": "2"}]
    assert normalised.repairs.counts == {Kind.CATEGORY_NAME: 2}


def test_unused_categories_with_a_used_name_are_left_out():
    categories = [
        {"id": 0, "name": "cell"},
        {"id": 1, "name": "cell"},
        {"id": 9, "name": "cell"},
        {"id": 2, "name": "b"},
    ]
    normalised = normalise_instances(instances([annotation(1, category_id="1")], categories=categories), "a.json")
    assert [category["id"] for category in normalised.content["categories"]] == [1, 2]
    assert normalised.repairs.counts[Kind.UNUSED_CATEGORY] == 2


def test_two_used_categories_of_one_name_are_left_as_they_are():
    categories = [{"id": 1, "name": "cell"}, {"id": 2, "name": "cell"}]
    content = instances([annotation(1), annotation(2, category_id=2)], categories=categories)
    assert normalise_instances(content, "a.json").content is content


def test_entries_repeated_word_for_word_are_left_out():
    content = instances([annotation(1)], images=[image(1), image(1)], categories=[{"id": 1, "name": "a"}] * 2)
    normalised = normalise_instances(content, "a.json")
    assert (len(normalised.content["images"]), len(normalised.content["categories"])) == (1, 1)
    assert normalised.repairs.counts == {Kind.REPEATED_ENTRY: 2}


@pytest.mark.parametrize("categories", [[], None, ...])
def test_categories_are_made_up_where_no_class_is_needed(categories):
    content = instances(
        [annotation(1, category_id=7.0), annotation(2, category_id="3"), annotation(3, category_id=...)]
    )
    content = _changed(content, {"categories": categories})
    named = normalise_instances(content, "a.json", needs_classes=False)
    assert named.content["categories"] == [{"id": 7, "name": "7"}, {"id": 3, "name": "3"}]
    assert [entry.get("category_id") for entry in named.content["annotations"]] == [7, 3, None]
    assert "categories" not in normalise_instances(content, "a.json").content or not categories


@pytest.mark.parametrize("given", [{}, {"height": None, "width": None}, {"height": -1, "width": -1}, {"height": 90.5}])
def test_an_impossible_size_is_that_of_the_picture(given):
    sizes = {"height": ..., "width": WIDTH} | given
    content = instances([annotation(1)], images=[image(1, **sizes), image(2)])
    normalised = normalise_instances(content, "a.json", {"1.png": (HEIGHT, WIDTH)}.get)
    assert normalised.content["images"] == [image(1), image(2)]
    assert normalised.repairs.counts == {Kind.SIZE_OF_PICTURE: 1}
    assert normalise_instances(content, "a.json").content is content
    assert normalise_instances(content, "a.json", lambda _: None).content is content


def test_a_size_that_contradicts_the_picture_is_left_for_the_reader():
    content = instances([annotation(1)], images=[image(1, height=None, width=100)])
    assert normalise_instances(content, "a.json", lambda _: (HEIGHT, WIDTH)).content is content


@pytest.mark.parametrize("beside", [True, False])
def test_the_name_of_a_picture_is_the_end_of_its_url(beside):
    urls = ["https://images.example.org/val2017/a%20b.jpg?x=1", "https://images.example.org/val2017/c.jpg"]
    images = [_changed(image(number), {"file_name": ..., "coco_url": url}) for number, url in enumerate(urls)]
    lies_at = {"a b.jpg" if beside else "val2017/a b.jpg": (HEIGHT, WIDTH)}
    normalised = normalise_instances(instances([], images=images), "a.json", lies_at.get)
    names = [entry["file_name"] for entry in normalised.content["images"]]
    assert names == (["a b.jpg", "c.jpg"] if beside else ["val2017/a b.jpg", "val2017/c.jpg"])
    assert normalised.repairs.counts == {Kind.NAME_OF_URL: 2}


def test_names_of_urls_that_differ_in_their_folder_only_keep_it():
    images = [_changed(image(number), {"file_name": None, "coco_url": f"u/{number}/a.jpg"}) for number in (1, 2)]
    normalised = normalise_instances(instances([], images=images), "a.json")
    assert [entry["file_name"] for entry in normalised.content["images"]] == ["1/a.jpg", "2/a.jpg"]


def test_a_picture_listed_twice_is_two_images():
    content = instances([annotation(1)], images=[image(1), image(2), image(9, file_name="1.png")])
    normalised = normalise_instances(content, "a.json")
    assert normalised.content is content
    assert normalised.repairs.examples == {Kind.LISTED_TWICE: "image 9: '1.png' is the picture of image 1, too"}


def test_a_box_is_computed_from_run_lengths():
    lengths = run_lengths()
    compressed = coco_mask.segmToRle(lengths, WIDTH, HEIGHT)["counts"].decode()
    for segmentation in (lengths, lengths | {"counts": compressed}):
        content = instances([annotation(1, bbox=[0, 0, 0, 0], segmentation=segmentation)])
        normalised = normalise_instances(content, "a.json")
        assert normalised.content["annotations"][0]["bbox"] == [40, 30, 20, 10]
        assert normalised.repairs.counts == {Kind.BOX_OF_MASK: 1}


@pytest.mark.parametrize(
    "segmentation",
    [
        ...,
        [],
        [[1, 2, 3, 4]],
        [[40, 30, 60, 30, 60, 30]],
        [[40, 30, 60, 30, 60, "40"]],
        {"size": [WIDTH, HEIGHT], "counts": run_lengths()["counts"]},
        {"size": [HEIGHT, WIDTH], "counts": "zz"},
        {"size": [HEIGHT, WIDTH], "counts": [5]},
    ],
)
def test_no_box_comes_from_a_mask_that_is_none(segmentation):
    content = instances([annotation(1, bbox=..., segmentation=segmentation)])
    assert "bbox" not in normalise_instances(content, "a.json").content["annotations"][0]


@pytest.mark.parametrize("form", ["list", "counts", "size"])
def test_run_lengths_in_other_forms(form):
    lengths = run_lengths()
    broken = {
        "list": [lengths],
        "counts": lengths | {"counts": [float(count) for count in lengths["counts"]]},
        "size": lengths | {"size": [90.0, 120.0]},
    }[form]
    normalised = normalise_instances(instances([annotation(1, segmentation=broken)]), "a.json")
    assert normalised.content["annotations"][0]["segmentation"] == lengths
    assert all(type(count) is int for count in normalised.content["annotations"][0]["segmentation"]["counts"])
    assert list(normalised.repairs.counts) == [Kind.RUN_LENGTHS_IN_LIST if form == "list" else Kind.WHOLE_FLOAT]


def test_parts_that_are_all_too_short_are_left_for_the_reader():
    content = instances([annotation(1, segmentation=[[1, 2, 3, 4], []])])
    assert normalise_instances(content, "a.json").content is content


def test_crowds_are_instances_where_all_are_crowds():
    content = instances([annotation(1, segmentation=run_lengths(), iscrowd=1), annotation(2, iscrowd=True)])
    normalised = normalise_instances(content, "a.json")
    assert [entry["iscrowd"] for entry in normalised.content["annotations"]] == [0, 0]
    assert normalised.repairs.counts == {Kind.ISCROWD: 1, Kind.ALL_CROWDS: 2}
    content["annotations"].append(annotation(3))
    assert [entry["iscrowd"] for entry in normalise_instances(content, "a.json").content["annotations"]] == [1, 1, 0]


def corner_boxes(count: int = 3) -> list:
    return [annotation(number, bbox=[40, 30, 60, 40], image_id=1 + number % 2) for number in range(count)]


def test_corners_are_taken_where_every_mask_shows_them():
    entries = [*corner_boxes(2), annotation(7, bbox=[10, 10, 20, 30], segmentation=[])]
    normalised = normalise_instances(instances(entries), "a.json")
    boxes = [entry["bbox"] for entry in normalised.content["annotations"]]
    assert boxes == [[40, 30, 20, 10], [40, 30, 20, 10], [10, 10, 10, 20]]
    assert normalised.repairs.counts == {Kind.CORNER_BOX: 3}
    assert normalised.repairs.examples == {Kind.CORNER_BOX: "annotation 0: bbox is [40, 30, 60, 40]"}


@pytest.mark.parametrize(
    "entries",
    [
        [annotation(1, bbox=[10, 10, 20, 30], segmentation=[])],  # no mask
        [*corner_boxes(), annotation(7)],  # one that is not given as corners
        [*corner_boxes(), annotation(7, bbox=[10, 10, 30, 30])],  # one that fits in no way
        [annotation(1, bbox=[0, 0, 60, 40], segmentation=[[0, 0, 60, 0, 60, 40, 0, 40]])],  # one that fits both ways
    ],
)
def test_other_boxes_are_not_taken_for_corners(entries):
    content = instances(entries)
    assert normalise_instances(content, "a.json").content is content


def test_normalised_boxes_are_refused():
    content = instances([annotation(4, bbox=[0.1, 0.2, 0.3, 0.4]), annotation(5, bbox=[0, 0, 1, 1])])
    with pytest.raises(UserError, match=r"all of them lie within 0..1 \(annotation 4 has \[0.1, 0.2, 0.3, 0.4\]\)"):
        normalise_instances(content, "a.json")
    content["annotations"].append(annotation(6))
    assert normalise_instances(content, "a.json").content is content
    pixels = instances([annotation(4, bbox=[0, 0, 1, 1])])
    assert normalise_instances(pixels, "a.json").content is pixels


PORTRAIT = (WIDTH, HEIGHT)
LOW = {"bbox": [40, 95, 20, 10], "segmentation": [[40, 95, 60, 95, 60, 105, 40, 105]]}
"""Below the bottom of a picture of 90 rows."""


def sizes_of(normalised) -> list[tuple[int, int]]:
    return [(entry["height"], entry["width"]) for entry in normalised.content["images"]]


def test_sizes_are_swapped_where_boxes_show_it():
    content = instances([annotation(1, **LOW), annotation(2, image_id=2)])
    normalised = normalise_instances(content, "a.json", lambda _: PORTRAIT)
    assert sizes_of(normalised) == [PORTRAIT, PORTRAIT]  # the first image says it of the second
    assert normalised.repairs.counts == {Kind.SWAPPED_SIZE: 2}
    assert normalise_instances(content, "a.json", lambda _: (HEIGHT, WIDTH)).content is content
    assert normalise_instances(content, "a.json").content is content
    wide = annotation(2, image_id=2, bbox=[100, 10, 20, 10], segmentation=[])
    content = instances([annotation(1, **LOW), wide, annotation(3, image_id=3)], images=[image(1), image(2), image(3)])
    normalised = normalise_instances(content, "a.json", lambda _: PORTRAIT)
    assert sizes_of(normalised) == [PORTRAIT, (HEIGHT, WIDTH), (HEIGHT, WIDTH)]  # the second one says the opposite


@pytest.mark.parametrize("said", [{"info": {"contributor": "Label Studio"}}, {"exif": "upright"}, {"exif": "stored"}])
def test_sizes_are_swapped_where_the_file_or_the_user_says_that_pictures_are_right(said):
    content = instances([annotation(1), annotation(2, image_id=2, bbox=[100, 10, 20, 10], segmentation=[])])
    content |= {key: value for key, value in said.items() if key == "info"}
    options = {key: value for key, value in said.items() if key == "exif"}
    normalised = normalise_instances(content, "a.json", lambda _: PORTRAIT, **options)
    sizes = [(entry["height"], entry["width"]) for entry in normalised.content["images"]]
    assert sizes == [PORTRAIT, (HEIGHT, WIDTH)]  # the second one's box fits the size listed only


def panoptic(segments: list, **more) -> dict:
    return {
        "images": [image(1)],
        "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": segments}],
        "categories": [{"id": 1, "name": "road", "isthing": 0}, {"id": 2, "name": "car", "isthing": 1}],
    } | more


SEGMENT = {"id": 5, "category_id": 2, "area": 10, "iscrowd": 0}


@pytest.mark.parametrize(
    ("broken", "kind"),
    [
        ({"id": 5.0}, Kind.WHOLE_FLOAT),
        ({"id": "5"}, Kind.NUMBER_AS_TEXT),
        ({"category_id": 2.0}, Kind.WHOLE_FLOAT),
        ({"category_id": "2"}, Kind.ID_AS_LISTED),
        ({"area": 10.0}, Kind.WHOLE_FLOAT),
        ({"iscrowd": None}, Kind.ISCROWD),
        ({"iscrowd": "0"}, Kind.ISCROWD),
    ],
)
def test_a_segment_in_another_form(broken, kind):
    content = panoptic([SEGMENT, SEGMENT | {"id": 6} | broken | {"id": broken.get("id", 6)}])
    normalised = normalise_panoptic(content, "a.json")
    repaired = normalised.content["annotations"][0]["segments_info"]
    assert repaired == [SEGMENT, SEGMENT | {"id": repaired[1]["id"]}]
    assert [type(value) for value in repaired[1].values()] == [int] * 4
    assert normalised.repairs.counts == {kind: 1}
    assert normalised.repairs.examples[kind].startswith(f"segment {broken.get('id', 6)} of 1.png: ")


@pytest.mark.parametrize("area", [10.5, "10", float("nan"), [10]])
def test_an_area_that_counts_no_pixels_is_left_out(area):
    normalised = normalise_panoptic(panoptic([SEGMENT | {"area": area}]), "a.json")
    assert normalised.content["annotations"][0]["segments_info"] == [SEGMENT | {"area": None}]
    assert normalised.repairs.counts == {Kind.SEGMENT_AREA: 1}


def test_isthing_in_other_forms():
    categories = [
        {"id": number, "name": str(number), "isthing": flag} for number, flag in enumerate([1.0, "0", True, 0])
    ]
    normalised = normalise_panoptic(panoptic([], categories=categories), "a.json")
    assert [category["isthing"] for category in normalised.content["categories"]] == [1, 0, True, 0]
    assert normalised.repairs.counts == {Kind.ISTHING: 2}


@pytest.mark.parametrize("quality", ["Fine", "Coarse"])
def test_the_picture_of_a_cityscapes_file(quality):
    listed = f"bonn_000001_000019_gt{quality}_leftImg8bit.png"
    content = panoptic([SEGMENT], images=[image("bonn_000001_000019", file_name=listed)])
    lies_at = {"bonn/bonn_000001_000019_leftImg8bit.png": (HEIGHT, WIDTH)}
    assert normalise_panoptic(content, "a.json", lies_at.get).content["images"][0]["file_name"] in lies_at
    assert normalise_panoptic(content, "a.json", {listed: (HEIGHT, WIDTH)}.get).content is content
    assert normalise_panoptic(content, "a.json", lambda _: None).content is content


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize(
    "value", [None, 3, "a", {}, [], [None], [3, "a", []], [{}], [{"id": []}], [{"id": {}, "bbox": 1}], ...]
)
def test_files_of_another_form_are_left_for_the_reader(key, value):
    for content, normalise in ((copy.deepcopy(CLEAN), normalise_instances), (panoptic([SEGMENT]), normalise_panoptic)):
        broken = _changed(content, {key: value})
        expected = copy.deepcopy(broken)
        normalise(broken, "a.json", lambda _: (HEIGHT, WIDTH))
        assert json.dumps(broken) == json.dumps(expected)


def test_the_table_of_kinds_has_every_kind():
    table = (Path(__file__).parents[2] / "docs" / "data_formats.md").read_text()
    rows = [line.split(" | ")[0][2:] for line in table.splitlines() if line.startswith("| ")]
    assert sorted(rows) == sorted(["kind", *Kind])


# A clean file of any content, and ways to break all of it that change no meaning.


@st.composite
def clean_files(draw) -> dict:
    generator = random.Random(draw(st.integers(0, 2**32)))
    images = [image(number) for number in range(draw(st.integers(1, 4)))]
    categories = [{"id": number, "name": f"class {number}"} for number in range(draw(st.integers(1, 4)))]
    annotations = []
    for number in range(draw(st.integers(1, 8))):
        x, y, width, height = (generator.randrange(1, 40) for _ in range(4))
        x, y = x + 41, y + 41  # no box is wider than its distance to the left: none can be taken for corners
        annotations.append(
            annotation(
                number,
                image_id=generator.randrange(len(images)),
                category_id=generator.randrange(len(categories)),
                bbox=[x, y, width, height],
                segmentation=[[x, y, x + width, y, x + width, y + height, x, y + height]],
                iscrowd=0,
            )
        )
    return {"images": images, "annotations": annotations, "categories": categories}


def _each(list_name: str, key: str, change):
    def broken(content: dict) -> dict:
        return content | {list_name: [_changed(entry, {key: change(entry[key])}) for entry in content[list_name]]}

    return broken


BREAKAGES = {
    "float image ids": _each("images", "id", float),
    "text image references": _each("annotations", "image_id", str),
    "float image references": _each("annotations", "image_id", float),
    "text category references": _each("annotations", "category_id", str),
    "float category ids": _each("categories", "id", float),
    "text category ids": _each("categories", "id", str),
    "float annotation ids": _each("annotations", "id", float),
    "null crowds": _each("annotations", "iscrowd", lambda _: None),
    "text crowds": _each("annotations", "iscrowd", str),
    "float sizes": _each("images", "height", float),
    "text sizes": _each("images", "width", str),
    "no sizes": _each("images", "width", lambda _: ...),
    "no boxes": _each("annotations", "bbox", lambda _: ...),
    "empty boxes": _each("annotations", "bbox", lambda _: []),
    "boxes of no extent": _each("annotations", "bbox", lambda box: [*box[:2], 0, 0]),
    "corner boxes": _each("annotations", "bbox", lambda box: [*box[:2], box[0] + box[2], box[1] + box[3]]),
    "text boxes": _each("annotations", "bbox", lambda box: list(map(str, box))),
    "flat polygons": _each("annotations", "segmentation", lambda parts: parts[0]),
    "stray points": _each("annotations", "segmentation", lambda parts: [[1, 2], *parts, [], [3, 4, 5, 6]]),
    "all crowds": _each("annotations", "iscrowd", lambda _: 1),
    "a root category": lambda content: (
        content
        | {
            "categories": [
                {"id": 99, "name": content["categories"][content["annotations"][0]["category_id"]]["name"]},
                *content["categories"],
            ]
        }
    ),
}


@settings(max_examples=15, deadline=None)
@given(content=clean_files())
@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_file_broken_in_one_way_becomes_the_clean_file(breakage, content):
    broken = BREAKAGES[breakage](content)
    given_text = json.dumps(broken)
    normalised = normalise_instances(broken, "a.json", lambda _: (HEIGHT, WIDTH))
    assert json.dumps(normalised.content, sort_keys=True).replace(".0", "") == json.dumps(content, sort_keys=True)
    assert normalised.repairs
    assert json.dumps(broken) == given_text


@settings(max_examples=50, deadline=None)
@given(content=clean_files())
def test_any_clean_file_passes_unchanged(content):
    assert normalise_instances(content, "a.json", lambda _: (HEIGHT, WIDTH)).content is content
