"""`maskwright data check`: what is counted, what is named as broken, and that training agrees."""

import json
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from coco_folder import HEIGHT, WIDTH, CocoFolder, annotation
from panoptic_folder import PanopticFolder, segment, stripes

from maskwright.apps.check_data import DataReport, check_data
from maskwright.data.coco import CocoInstances
from maskwright.data.normalise import Kind, Repairs
from maskwright.errors import UserError
from maskwright.training.data_sets import open_data_sets
from maskwright.training.options import InstanceDataOptions

RUN_LENGTHS = {"size": [HEIGHT, WIDTH], "counts": [12, 5, HEIGHT * WIDTH - 17]}


@pytest.fixture
def coco(tmp_path: Path) -> CocoFolder:
    return CocoFolder(tmp_path)


@pytest.fixture
def panoptic(tmp_path: Path) -> PanopticFolder:
    return PanopticFolder(tmp_path)


def numbers(report: DataReport) -> list[list[int]]:
    """Those of each line of the summary."""
    return [[int(number) for number in re.findall(r"\d+", line)] for line in report.summary]


def test_counts_of_everything(coco):
    coco.write(
        [
            annotation(1),
            annotation(2, bbox=[1, 0, 1, 5], segmentation=RUN_LENGTHS, iscrowd=1),
            annotation(3, segmentation=...),
            annotation(4, category_id=90, segmentation=[[300, 300, 310, 300, 310, 310]]),
            annotation(5, bbox=..., segmentation=...),
            annotation(6, image_id=2),
        ],
        images=3,
    )
    report = check_data(coco.annotations, coco.images)
    assert report.summary == [
        "images: 3, of these without annotations: 1",
        "annotations: 5 (masks: 3, boxes without masks: 2, crowds among them: 1), dropped: 1",
    ]
    heads = ["class", "boxes", "masks", "boxes without masks", "crowds"]
    rows = (["person", "4", "3", "1", "1"], ["traffic light", "0", "0", "0", "0"], ["window", "1", "0", "1", "0"])
    assert report.classes == [dict(zip(heads, row, strict=True)) for row in rows]
    assert report.usable
    assert [(problem.subject, problem.id) for problem in report.problems] == [("annotation", 5), ("annotation", 4)]
    text = str(report)
    assert "annotation 5: bbox is missing, and there is no mask to compute it from [dropped]" in text
    assert "annotation 4: polygon holds NaN or lies far outside of the image [box only]" in text
    assert "usable for training: yes" in text
    assert next(line.split() for line in text.splitlines() if line.startswith("person")) == [
        "person",
        "4",
        "3",
        "1",
        "1",
    ]


# Each broken annotation, the reason that must be named, and what becomes of it.
BROKEN = [
    (annotation(9, image_id=77), "image_id is 77", "dropped"),
    (annotation(9, image_id=[1]), r"image_id is [1]", "dropped"),
    (annotation(9, image_id=...), "image_id is missing", "dropped"),
    (annotation(9, image_id="b"), "image_id is the text 'b', the file lists the numbers 1, 2", "dropped"),
    (annotation(9, category_id=1), "category_id is 1", "dropped"),
    (annotation(9, bbox=..., segmentation=[]), "bbox is missing", "dropped"),
    (annotation(9, bbox=[1, 2, 3], segmentation=[]), "bbox must be 4 finite numbers", "dropped"),
    (annotation(9, bbox=[1, 2, "3x", 4], segmentation=[]), "bbox must be 4 finite numbers", "dropped"),
    (annotation(9, bbox=[1, 2, float("nan"), 4], segmentation=[]), "bbox must be 4 finite numbers", "dropped"),
    (annotation(9, bbox=[1, 2, 0, 4], segmentation=[]), "bbox has no extent", "dropped"),
    (annotation(9, bbox=[1, 2, 5, -4], segmentation=[]), "bbox has no extent", "dropped"),
    (annotation(9, bbox=[100, 2, 5, 4]), "bbox has no extent inside the image", "dropped"),
    (annotation(9, iscrowd="no"), "iscrowd must be 0 or 1, but is the text 'no'", "dropped"),
    (annotation(9, iscrowd=2), "iscrowd must be 0 or 1, but is 2", "dropped"),
    (annotation(9, iscrowd=[]), "iscrowd must be 0 or 1, but is []", "dropped"),
    (annotation(9, segmentation=[[1, 1, 2, 2]]), "at least 6 numbers, but has 4", "box only"),
    (annotation(9, segmentation=[[1, 1, 2, 2, 3, 3, 4]]), "even count", "box only"),
    (annotation(9, segmentation=[[0, 0, 0, 0, 0, 0]]), "covers no pixel", "box only"),
    (annotation(9, segmentation={"size": [WIDTH, HEIGHT], "counts": [240]}), "run-length size", "box only"),
    (annotation(9, segmentation={"size": [HEIGHT, WIDTH], "counts": [5]}), "add up to 5", "box only"),
    (annotation(9, segmentation={"size": [HEIGHT, WIDTH], "counts": "zz"}), "malformed", "box only"),
    (annotation(9, segmentation={"size": [HEIGHT, WIDTH], "counts": [240]}), "covers no pixel", "box only"),
    (annotation(9, segmentation=7), "is a int", "box only"),
    (annotation(9, bbox=[3, 4, 50, 4], segmentation=[]), "bbox reaches beyond the image", "kept"),
    (annotation(9, bbox=[15, 9, 4, 3]), "bbox has the corners", "kept"),
    (None, "annotation must be an object", "dropped"),
    ([annotation(9)], "annotation must be an object", "dropped"),
]


@pytest.mark.parametrize(("broken", "reason", "effect"), BROKEN)
def test_each_broken_annotation_is_named_and_treated_alike_by_the_data_set(coco, broken, reason, effect):
    coco.write([annotation(8), broken, annotation(10, image_id=2)], images=2)
    report = check_data(coco.annotations)
    assert len(report.problems) == 1
    assert reason in report.problems[0].reason
    assert report.problems[0].effect == effect
    assert str(report.problems[0].id) in ("8", "9", "#1")
    (_, masks, _, _, dropped) = numbers(report)[1]
    assert dropped == (effect == "dropped")
    agrees_with_data_set(coco, report)
    if effect != "refused":
        target = CocoInstances(coco.images, coco.annotations)[0][1]
        assert target["ids"].tolist() == ([8] if effect == "dropped" else [8, 9])
        assert int(target["has_mask"].sum()) == masks - 1


def agrees_with_data_set(coco, report) -> None:
    """`usable` means: the data set can be built and read to its end."""
    if report.usable:
        dataset = CocoInstances(coco.images, coco.annotations)
        targets = [dataset[index][1] for index in range(len(dataset))]
        annotations, masks = numbers(report)[1][:2]
        assert sum(len(target["boxes"]) for target in targets) == annotations
        assert sum(int(target["has_mask"].sum()) for target in targets) == masks
    else:
        with pytest.raises(UserError):
            read_to_the_end(CocoInstances(coco.images, coco.annotations))


def read_to_the_end(dataset: CocoInstances) -> None:
    for index in range(len(dataset)):
        dataset[index]


def image(**changes) -> dict:
    entry = {"id": 2, "file_name": "2.png", "height": HEIGHT, "width": WIDTH} | changes
    return {key: value for key, value in entry.items() if value is not ...}


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (image(id=None), "image id must be"),
        (image(id=[3]), "image id must be"),
        (image(file_name=...), "'file_name' must be a text"),
        (image(file_name="\ud800.png"), "'file_name' must be a text"),
        (image(id="\udfff"), "image id must be"),
        (image(sampling_weight=10**400), "'sampling_weight' must be"),
        (image(id=2**63), "image id is too large"),
        (image(file_name="3.png", width=0), "'width' must be a positive integer, but is 0"),
        (image(file_name="3.png", height="low"), "'height' must be a positive integer"),
        (image(file_name="3.png", height=...), "'height' must be a positive integer"),
        (image(sampling_weight=-1), "'sampling_weight' must be"),
        (image(sampling_weight="a"), "'sampling_weight' must be"),
        (None, "must be an object"),
    ],
)
def test_a_broken_image_entry_costs_itself_and_its_annotations(coco, entry, reason):
    good = [coco.picture("1.png", 1), coco.picture("4.png", 4)]
    coco.write([annotation(1), annotation(2, image_id=4), annotation(3, image_id=2)], images=[*good, entry])
    report = check_data(coco.annotations)
    assert [problem.effect for problem in report.problems] == ["dropped", "dropped"]
    assert any(reason in problem.reason for problem in report.problems)
    assert report.usable
    agrees_with_data_set(coco, report)


def test_a_repeated_image_id_refuses_the_file(coco):
    coco.write([annotation(1)], images=[coco.picture("1.png", 1), image(id=1)])
    report = check_data(coco.annotations)
    assert [(problem.reason, problem.effect) for problem in report.problems] == [("image id is not unique", "refused")]
    agrees_with_data_set(coco, report)


def test_a_file_of_broken_images_alone_is_refused_with_the_commonest_cause(coco):
    coco.write([annotation(1)], images=[image(id=1, width=0), image(width=0)])
    assert "none of its 2 images can be used; the commonest cause, in 2 of 2: " in str(check_data(coco.annotations))


@pytest.mark.parametrize(
    ("annotations", "images", "reason"),
    [
        ([], [], "lists no images"),
        ([annotation(1, bbox=None, segmentation=[])] * 2, 1, "in 2 of 2: no bbox; the first: annotation 1 of image 1"),
        ([annotation(1)], [image(id=1, sampling_weight=0)], "'sampling_weight' is 0"),
    ],
)
def test_file_that_nothing_can_be_learned_from(coco, annotations, images, reason):
    coco.write(annotations, images=images)
    report = check_data(coco.annotations)
    assert any(reason in problem.reason and problem.effect == "refused" for problem in report.problems)
    agrees_with_data_set(coco, report)


def test_images_are_checked_when_the_folder_is_given(coco, tmp_path):
    coco.write([annotation(1), annotation(2, image_id=2)], images=3)
    assert check_data(coco.annotations, coco.images).problems == []
    (coco.images / "2.png").write_bytes(b"no picture")
    coco.picture("3.png", 3, (5, 5))
    report = check_data(coco.annotations, coco.images)
    assert [(problem.subject, problem.id) for problem in report.problems] == [("image", 2), ("image", 3)]
    assert "says 12 x 20" in report.problems[1].reason
    agrees_with_data_set(coco, report)
    (coco.images / "2.png").unlink()
    assert "does not exist" in check_data(coco.annotations, coco.images).problems[0].reason
    with pytest.raises(UserError, match="image folder"):
        check_data(coco.annotations, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("annotations", "images", "words", "boxes"),
    [
        ([], 2, "none of its images (2) has", 0),
        ([annotation(1, segmentation=[]), annotation(2, image_id=2, segmentation=[[1, 1, 2, 2]])], 2, "none of its", 2),
        (
            [annotation(1, iscrowd=1), annotation(2, image_id=2, segmentation=[])],
            2,
            "none of its images (2) has",
            1,
        ),
        ([annotation(1), annotation(2)], 1, "only 1 of its images (1) has", 0),
        ([annotation(1), annotation(2, image_id=2, segmentation=[])], 2, "only 1 of its images (2)", 1),
    ],
)
def test_file_with_too_few_masks_is_for_prediction_and_evaluation_only(coco, annotations, images, words, boxes):
    coco.write(annotations, images=images)
    report = check_data(coco.annotations)
    (problem,) = (problem for problem in report.problems if problem.subject == "file")
    assert words in problem.reason
    assert problem.effect == "not for training"
    assert not report.usable
    assert report.boxes_without_masks == boxes
    assert report.completable == (boxes > 0)
    assert str(report).endswith("not before it has masks, which `maskwright complete` makes" if boxes else ": no")
    read_to_the_end(CocoInstances(coco.images, coco.annotations))
    with pytest.raises(UserError):
        open_data_sets(InstanceDataOptions(images=str(coco.images), annotations=str(coco.annotations)), 64, None)


@pytest.mark.parametrize("flag", [0, False, ..., 1, True])
def test_every_usual_form_of_the_crowd_flag(coco, flag):
    coco.write([annotation(1, iscrowd=flag), annotation(2)])
    dataset = CocoInstances(coco.images, coco.annotations)
    assert dataset.skipped == {}
    assert dataset[0][1]["iscrowd"].tolist() == [flag in (1, True), False]


def test_a_text_that_is_none_can_be_printed(coco):
    broken = [annotation(9, image_id="\ud800"), annotation("\ud800")]
    coco.write([annotation(1), *broken], images=[coco.picture("1.png", 1), image(id="\ud800")])
    assert str(check_data(coco.annotations)).encode()
    coco.write([annotation(1)], categories=[{"id": 7, "name": "per\ud800son"}])
    with pytest.raises(UserError, match="category 0 must have") as caught:
        check_data(coco.annotations)
    assert str(caught.value).encode()


@pytest.mark.parametrize("content", [[], {}, 5, {"images": [], "annotations": []}])
def test_no_coco_file_is_one_sentence(coco, content):
    coco.annotations.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        check_data(coco.annotations)
    assert "\n" not in str(caught.value)
    assert str(coco.annotations) in str(caught.value)


def test_a_good_panoptic_file(panoptic: PanopticFolder):
    panoptic.write(
        (stripes(1, 2), [segment(1, area=24), segment(2, 200)]),
        (stripes(5, 6, 7, 0), [segment(5, iscrowd=1), segment(6, 3), segment(7, 92)]),
        (stripes(), []),
    )
    report = check_data(panoptic.annotations, panoptic.images)
    assert report.problems == []
    assert str(report).splitlines()[1:] == [
        "images: 3, of these without segments: 1",
        "segments: 5 (things: 3, stuff: 2, crowds among them: 1), dropped: 0",
        "void: 41.7% of all pixels",
        "",
        "class          segments    crowds    pixels",
        "person  thing         2         1     25.0%",
        "sky     stuff         1         0     16.7%",
        "dog     thing         1         0      8.3%",
        "grass   stuff         1         0      8.3%",
        "",
        "repaired: 0",
        "problems: 0",
        "usable for training: yes",
    ]


def test_every_flaw_of_a_panoptic_file_is_named(panoptic: PanopticFolder):
    segments = [segment(1, area=5), segment(2, 55), segment(3, area=12), segment(9)]
    good = (stripes(1), [segment(1)])
    panoptic.write((stripes(1, 2, 3, 4), segments), good, good, good)
    (panoptic.maps / "2.png").unlink()
    (panoptic.maps / "3.png").write_bytes(b"no picture")
    report = check_data(panoptic.annotations)
    text = [f"{problem} [{problem.effect}]" for problem in report.problems]
    assert text[:5] == [
        "segment 2 of 1.png: unknown category, category_id is 55, which the file does not list [dropped]",
        "segment 1 of 1.png: area is 5, but 12 pixels have this id [kept]",
        "segment 9 of 1.png: no pixel has this id [dropped]",
        "segment 2 of 1.png: 12 pixels have this id, but no usable segment has it [void]",
        "segment 4 of 1.png: 12 pixels have this id, but no usable segment has it [void]",
    ]
    assert "2.png, listed in" in text[5]
    assert "cannot read the segmentation" in text[6]
    assert [line.rpartition(" ")[2] for line in text[5:]] == ["[refused]"] * 2
    assert len(text) == 7
    assert not report.usable
    assert "usable for training: no" in str(report)


def test_a_category_that_does_not_say_whether_it_is_a_thing(panoptic: PanopticFolder):
    panoptic.write((stripes(1), [segment(1)]), categories=[{"id": 7, "name": "person"}])
    with pytest.raises(UserError, match=r"category 7 \(person\) has no 'isthing'"):
        check_data(panoptic.annotations)


def test_sizes_and_images_of_a_panoptic_file(panoptic: PanopticFolder):
    panoptic.write((stripes(1), [segment(1)]), (stripes(1), [segment(1)]))
    content = json.loads(panoptic.annotations.read_text())
    content["images"][0]["height"] = 7
    panoptic.annotations.write_text(json.dumps(content))
    (panoptic.images / "2.png").unlink()
    report = check_data(panoptic.annotations, panoptic.images)
    kinds = [(problem.kind, problem.id) for problem in report.problems]
    assert kinds == [("unusable segmentation", 1), ("unusable image", 1), ("unusable image", 2)]


@pytest.mark.parametrize(
    ("segments", "words"),
    [([segment(1)], "only 1 of its images (2) has a segment"), ([segment(1, iscrowd=1)], "none of its images (2)")],
)
def test_too_few_segments_to_train_on(panoptic: PanopticFolder, segments: list, words: str):
    panoptic.write((stripes(1), segments), (stripes(), []))
    report = check_data(panoptic.annotations)
    assert not report.usable
    assert words in str(report)


def test_the_content_tells_the_format(panoptic: PanopticFolder, tmp_path):
    instances = tmp_path / "instances.json"
    instances.write_text(json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}))
    assert "boxes without masks" in str(check_data(instances))
    with pytest.raises(UserError, match="--segmentations has no use"):
        check_data(instances, segmentations=tmp_path)
    with pytest.raises(UserError, match="cannot read the annotation file"):
        check_data(tmp_path / "missing.json")
    panoptic.write((np.zeros((2, 2), dtype=int), []))
    assert "void: 100.0%" in str(check_data(panoptic.annotations))


def test_repairs_are_told_by_kind_apart_from_problems(coco):
    coco.write([annotation(1, iscrowd="0"), annotation(2, iscrowd=None), annotation("c", image_id=2)], images=2)
    report = check_data(coco.annotations, coco.images)
    assert report.problems == []
    text = str(report).splitlines()
    start = text.index("repaired: 3")
    assert text[start + 1 :] == [
        f"  {Kind.ANNOTATION_ID}: 1, the first: annotation c of image 2: id is the text 'c'",
        f"  {Kind.ISCROWD}: 2, the first: annotation 1 of image 1: iscrowd is the text '0'",
        "problems: 0",
        "usable for training: yes",
    ]


def test_boxes_that_look_like_corners_are_named(coco):
    corners = [annotation(number, bbox=[9, 5, 15, 9], segmentation=[]) for number in (1, 2)]
    coco.write([*corners, annotation(3, image_id=2)], images=2)
    problems = check_data(coco.annotations).problems
    told = [problem.reason for problem in problems if problem.kind == "boxes that look like corners"]
    assert told == []  # a mask is evidence enough that they are none
    coco.write([*corners, annotation(3, image_id=2, segmentation=[])], images=2)
    problems = [problem for problem in check_data(coco.annotations).problems if problem.subject == "file"]
    assert [problem.effect for problem in problems] == ["kept", "not for training"]
    assert "2 of 3 reach beyond their images: they look like corners [x1, y1, x2, y2] (annotation 1 has" in str(
        problems[0]
    )


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_images_whose_frame_is_not_certain_are_named(coco, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    PIL.Image.new("RGB", (WIDTH, HEIGHT)).save(coco.images / "1.jpg", exif=exif)
    turned = {"id": 1, "file_name": "1.jpg", "height": HEIGHT, "width": WIDTH}
    coco.write([annotation(1), annotation(2, image_id=2)], images=[turned, coco.picture("2.png", 2)])
    report = check_data(coco.annotations, coco.images)
    assert [(problem.id, problem.effect) for problem in report.problems] == [(1, "kept")]
    assert f"1.jpg is taken upright, which is not certain: it has the EXIF orientation {orientation}" in str(report)
    for rule in ("upright", "stored"):
        assert check_data(coco.annotations, coco.images, exif=rule).problems == []
    with pytest.warns(UserWarning, match="are taken upright"):
        CocoInstances(coco.images, coco.annotations)[0]


def test_a_report_without_classes_has_no_table():
    assert str(DataReport("a.json", ["images: 0"], [], Repairs(), [])).splitlines()[:4] == [
        "a.json",
        "images: 0",
        "",
        "",
    ]


def test_classes_without_annotations_are_counted():
    rows = [{"class": "cat 2", "boxes": "0", "masks": "0"}, {"class": "dog", "boxes": "10", "masks": "0"}]
    assert str(DataReport("a.json", [], rows, Repairs(), [])).splitlines()[2:5] == [
        "class     boxes     masks",
        "dog          10         0",
        "classes without annotations: 1",
    ]


def test_a_name_too_long_for_a_file_costs_its_own_image(coco):
    coco.write([annotation(1), annotation(2)], images=2)
    content = json.loads(coco.annotations.read_text())
    content["images"][1]["file_name"] = "a" * 4000
    coco.annotations.write_text(json.dumps(content))
    (problem,) = [
        problem for problem in check_data(coco.annotations, coco.images).problems if problem.subject == "image"
    ]
    assert "does not exist" in problem.reason
