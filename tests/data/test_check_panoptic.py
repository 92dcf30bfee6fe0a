"""`maskwright data check` on panoptic files: everything broken is named, by PNG and id."""

import json

import numpy as np
import pytest
from panoptic_folder import PanopticFolder, segment, stripes

from maskwright.data.check import check_file
from maskwright.data.check_panoptic import PanopticReport
from maskwright.errors import UserError


def test_a_good_file(panoptic: PanopticFolder):
    panoptic.write(
        (stripes(1, 2), [segment(1, area=24), segment(2, 200)]),
        (stripes(5, 6, 7, 0), [segment(5, iscrowd=1), segment(6, 3), segment(7, 92)]),
        (stripes(), []),
    )
    report = check_file(panoptic.annotations, panoptic.images)
    assert isinstance(report, PanopticReport)
    assert (report.images, report.images_without_segments, report.segments, report.things) == (3, 1, 5, 3)
    assert (report.crowds, report.dropped, report.problems, report.usable) == (1, 0, [], True)
    assert report.void == pytest.approx((48 + 12) / 144)
    rows = {row.name: (row.isthing, row.segments, row.crowds, round(row.pixels * 144)) for row in report.classes}
    assert rows == {
        "person": (True, 2, 1, 36),
        "sky": (False, 1, 0, 24),
        "dog": (True, 1, 0, 12),
        "grass": (False, 1, 0, 12),
    }
    text = str(report)
    assert "segments: 5 (things: 3, stuff: 2, crowds among them: 1), dropped: 0" in text
    assert "void: 41.7% of all pixels" in text
    assert "usable for training: yes" in text


def test_every_flaw_is_named(panoptic: PanopticFolder):
    segments = [segment(1, area=5), segment(2, 55), segment(3, area=12), segment(9)]
    good = (stripes(1), [segment(1)])
    panoptic.write((stripes(1, 2, 3, 4), segments), good, good, good)
    (panoptic.maps / "2.png").unlink()
    (panoptic.maps / "3.png").write_bytes(b"no picture")
    report = check_file(panoptic.annotations)
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
        check_file(panoptic.annotations)


def test_sizes_and_images(panoptic: PanopticFolder):
    panoptic.write((stripes(1), [segment(1)]), (stripes(1), [segment(1)]))
    content = json.loads(panoptic.annotations.read_text())
    content["images"][0]["height"] = 7
    panoptic.annotations.write_text(json.dumps(content))
    (panoptic.images / "2.png").unlink()
    report = check_file(panoptic.annotations, panoptic.images)
    kinds = [(problem.kind, problem.id) for problem in report.problems]
    assert kinds == [("unusable segmentation", 1), ("unusable image", 1), ("unusable image", 2)]


@pytest.mark.parametrize(
    ("segments", "words"),
    [([segment(1)], "only 1 of its images (2) has a segment"), ([segment(1, iscrowd=1)], "none of its images (2)")],
)
def test_too_little_to_train_on(panoptic: PanopticFolder, segments: list, words: str):
    panoptic.write((stripes(1), segments), (stripes(), []))
    report = check_file(panoptic.annotations)
    assert not report.usable
    assert words in str(report)


def test_the_content_tells_the_format(panoptic: PanopticFolder, tmp_path):
    instances = tmp_path / "instances.json"
    instances.write_text(json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}))
    assert "boxes without masks" in str(check_file(instances))
    with pytest.raises(UserError, match="--segmentations has no use"):
        check_file(instances, segmentations=tmp_path)
    with pytest.raises(UserError, match="cannot read the annotation file"):
        check_file(tmp_path / "missing.json")
    panoptic.write((np.zeros((2, 2), dtype=int), []))
    assert "void: 100.0%" in str(check_file(panoptic.annotations))
