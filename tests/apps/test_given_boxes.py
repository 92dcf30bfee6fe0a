"""Which boxes belong to which picture, in every form of a box file; what does not fit is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from maskwright.apps.given_boxes import boxes_of_pictures
from maskwright.apps.run_summary import RunSummary
from maskwright.data.normalise import Kind
from maskwright.errors import UserError

BOX = [1, 2, 3, 4]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def summary() -> RunSummary:
    return RunSummary()


def given(content: Any, *images: str, summary: RunSummary | None = None) -> dict[str, list[list[float]]]:
    """The boxes of each picture that has some."""
    Path("boxes.json").write_text(json.dumps(content))
    jobs = boxes_of_pictures("boxes.json", [Path(image) for image in images], summary or RunSummary())
    return {path.as_posix(): boxes.boxes.tolist() for path, boxes in jobs if boxes is not None}


def rounded(boxes: list[list[float]]) -> list[list[float]]:
    return [[round(value, 4) for value in box] for box in boxes]


class TestNames:
    def test_a_key_means_the_pictures_whose_path_ends_with_it(self):
        content = {"1.jpg": [[0, 0, 9, 9]], "val/1.jpg": [BOX], "train/1.jpg": [[0, 0, 8, 8]]}
        assert given(content, "val/1.jpg") == {"val/1.jpg": [BOX]}

    def test_names_of_another_machine_are_taken_and_told_once_with_their_number(self, summary: RunSummary):
        content = {f"/home/ann/p/{name}": [BOX] for name in ("a.jpg", "b.jpg")} | {"x\\c.jpg": [BOX]}
        assert len(given(content, "q/a.jpg", "q/b.jpg", "x/c.jpg", summary=summary)) == 3
        count, example = summary.causes["repaired", "name with the folders of another machine"]
        assert (count, example) == (2, "/home/ann/p/a.jpg is taken for q/a.jpg")
        assert summary.causes["repaired", "name in another spelling than the picture's"][0] == 1
        assert summary.exit_code == 0

    def test_unlisted_pictures_and_entries_without_a_picture_are_counted(self, summary: RunSummary):
        content = {"a.jpg": [BOX], "gone.jpg": [BOX], "lost.jpg": []}
        assert list(given(content, "a.jpg", "b.jpg", summary=summary)) == ["a.jpg"]
        assert summary.causes == {
            ("left out", "entry of boxes.json without a picture among those given"): (2, "gone.jpg"),
            ("left out", "picture that boxes.json does not list"): (1, "b.jpg"),
        }

    def test_what_may_mean_several_pictures_fails_and_the_others_are_taken(self, summary: RunSummary):
        images = ("train/1.jpg", "val/1.jpg", "val/2.jpg")
        assert list(given({"1.jpg": [BOX], "2.jpg": [BOX]}, *images, summary=summary)) == ["val/2.jpg"]
        assert summary.exit_code == 3
        ((count, example),) = (told for (section, _), told in summary.causes.items() if section == "failed")
        assert count == 1
        assert (
            example == "boxes.json: '1.jpg' may mean train/1.jpg or val/1.jpg; name each of them with its folder there"
        )

    @pytest.mark.parametrize(
        ("content", "images", "words"),
        [
            ({"2.jpg": [BOX]}, ["1.jpg"], r"no entry for the image 1\.jpg \(it has 1: 2\.jpg\)"),
            ({"2.jpg": [BOX]}, ["1.jpg", "3.jpg"], r"no entry for any of the 2 images \(1\.jpg, \.\.\.\)"),
            ({"1.jpg": [BOX]}, ["a/1.jpg", "b/1.jpg"], r"'1\.jpg' may mean a/1\.jpg or b/1\.jpg"),
            ({"x/1.jpg": [], "y/1.jpg": []}, ["1.jpg"], r"'x/1\.jpg' is not the only name there that may mean 1\.jpg"),
        ],
    )
    def test_nothing_that_fits(self, content: dict, images: list[str], words: str):
        with pytest.raises(UserError, match=words):
            given(content, *images)


class TestInline:
    def test_more_boxes_than_a_file_name_has_letters(self, summary: RunSummary):
        ((_, found),) = boxes_of_pictures(";".join(["1,2,3,4"] * 1000), [Path("a.png")], summary)
        assert found is not None
        assert found.boxes.tolist() == [BOX] * 1000

    def test_fractions_are_refused(self, summary: RunSummary):
        with pytest.raises(UserError, match=r"--boxes 0\.1,0\.2,0\.5,1: all of its boxes lie within 0\.\.1"):
            boxes_of_pictures("0.1,0.2,0.5,1", [Path("a.png")], summary)


class TestByName:
    def test_scores_and_labels_in_every_form(self):
        content = {
            "rows.jpg": [[1, 2, 3, 4, 0.5], [5, 6, 7, 8]],
            "objects.jpg": [{"box": BOX, "label": "cat", "score": 0.25}, {"box": BOX, "label": 7}],
            "pipeline.jpg": [{"box": {"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}, "label": "kite", "score": 1}],
            "columns.jpg": {"boxes": [BOX, [5, 6, 7, 8]], "labels": [3, 4], "scores": [0.5, 0.75]},
        }
        Path("boxes.json").write_text(json.dumps(content))
        jobs = boxes_of_pictures("boxes.json", [Path(name) for name in content], RunSummary())
        rows, objects, pipeline, columns = (boxes for _, boxes in jobs if boxes is not None)
        assert (rows.boxes.tolist(), rows.scores, rows.class_names) == ([BOX, [5, 6, 7, 8]], [0.5, None], None)
        assert (objects.class_names, objects.category_ids, objects.scores) == (["cat", None], [None, 7], [0.25, None])
        assert (pipeline.boxes.tolist(), pipeline.class_names) == ([BOX], ["kite"])
        assert (columns.category_ids, columns.scores) == ([3, 4], [0.5, 0.75])

    @pytest.mark.parametrize(
        ("box", "words"),
        [
            ([5, 5, 5, 9], "expected corners"),
            ([1, 2, 3], "expected four numbers"),
            ([1, 2, 3, 4, 1.5], "expected a score in 0..1, but got 1.5"),
            ([1, 2, None, 4], "expected four numbers"),
            ([1, 2, "3", 4], "expected four numbers"),
            ({"box": BOX, "label": ["cat"]}, "expected a label as a text or a whole number"),
            ({"bbox": BOX}, "'bbox' may be corners or x, y, width, height"),
            ({}, "expected four numbers"),
            (None, "expected four numbers"),
        ],
    )
    def test_a_bad_box_costs_itself_and_is_refused_alone(self, box: Any, words: str):
        Path("boxes.json").write_text(json.dumps({"a.jpg": [BOX, box, [5, 6, 7, 8]]}))
        ((_, found),) = boxes_of_pictures("boxes.json", [Path("a.jpg")], RunSummary())
        assert found is not None
        assert list(found.problems) == [1]
        assert words in found.problems[1]
        assert found.boxes[[0, 2]].tolist() == [BOX, [5, 6, 7, 8]]
        with pytest.raises(UserError, match=r"boxes\.json: at 'a\.jpg', box 0: "):
            given({"a.jpg": [box]}, "a.jpg")

    @pytest.mark.parametrize("number", ["1" + "0" * 308, "1" + "0" * 400])
    def test_a_number_too_large_for_a_box(self, number: str, summary: RunSummary):
        Path("boxes.json").write_text(f'{{"a.jpg": [[0, 0, {number}, 5]]}}')
        with pytest.raises(UserError, match=r"at 'a\.jpg', box 0: expected finite numbers"):
            boxes_of_pictures("boxes.json", [Path("a.jpg")], summary)

    def test_an_entry_that_is_no_list_costs_itself(self, summary: RunSummary):
        assert list(given({"a.jpg": [BOX], "b.jpg": "none"}, "a.jpg", "b.jpg", summary=summary)) == ["a.jpg"]
        assert summary.exit_code == 3

    def test_boxes_of_one_picture_without_its_name(self):
        assert given([BOX, [5, 6, 7, 8, 0.5]], "a.jpg") == {"a.jpg": [BOX, [5, 6, 7, 8]]}
        with pytest.raises(UserError, match="without the name of a picture are for one image, but there are 2"):
            given([BOX], "a.jpg", "b.jpg")

    def test_fractions_are_refused_unless_one_box_shows_that_they_are_pixels(self):
        with pytest.raises(UserError, match=r"boxes\.json: all of its boxes lie within 0\.\.1"):
            given({"a.jpg": [[0.1, 0.2, 0.3, 0.4]], "b.jpg": [[0, 0, 1, 1]]}, "a.jpg", "b.jpg")
        assert len(given({"a.jpg": [[0.1, 0.2, 0.3, 0.4]], "b.jpg": [[0, 0, 2, 1]]}, "a.jpg", "b.jpg")) == 2


def coco(*file_names: str, **changes: Any) -> dict:
    images = [{"id": i, "file_name": name, "width": 9, "height": 9} for i, name in enumerate(file_names)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [i, 0, 1, 2]} for i in range(len(images))]
    return {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]} | changes


class TestCoco:
    def test_it_is_matched_alike(self):
        found = given(coco("train/1.jpg", "val/1.jpg"), "deep/val/1.jpg", "train/1.jpg")
        assert found == {"deep/val/1.jpg": [[1, 0, 2, 2]], "train/1.jpg": [[0, 0, 1, 2]]}

    def test_dropped_annotations_fail_and_crowds_are_left_out(self, summary: RunSummary):
        content = coco("a.jpg", "b.jpg")
        content["annotations"][0]["iscrowd"] = 1
        content["annotations"].append({"id": 9, "image_id": 1, "category_id": 1, "bbox": [1, 1, 0, 4]})
        assert given(content, "a.jpg", "b.jpg", summary=summary) == {"a.jpg": [], "b.jpg": [[1, 0, 2, 2]]}
        told = {section: example for (section, _), (_, example) in summary.causes.items()}
        assert told["left out"] == "boxes.json, annotation 0"
        assert told["failed"].startswith("boxes.json, annotation 9: bbox has no extent")
        assert summary.exit_code == 3

    def test_crowds_alone_are_instances(self, summary: RunSummary):
        content = coco("a.jpg", "b.jpg")
        for annotation in content["annotations"]:
            annotation["iscrowd"] = 1
        assert given(content, "a.jpg", "b.jpg", summary=summary) == {"a.jpg": [[0, 0, 1, 2]], "b.jpg": [[1, 0, 2, 2]]}
        assert "CVAT" in summary.causes["repaired", Kind.ALL_CROWDS][1]

    @pytest.mark.parametrize("categories", [[], None])
    def test_boxes_need_no_classes(self, summary: RunSummary, categories: Any):
        content = coco("a.jpg") | {"categories": categories}
        del content["annotations"][0]["category_id"]
        content["annotations"].append({"id": 9, "image_id": 0, "category_id": 5, "bbox": [1, 1, 4, 4]})
        Path("boxes.json").write_text(json.dumps(content))
        ((_, found),) = boxes_of_pictures("boxes.json", [Path("a.jpg")], summary)
        assert found is not None
        assert (found.category_ids, found.class_names) == ([None, 5], None)
        assert summary.exit_code == 0

    def test_sizes_come_from_the_pictures(self, summary: RunSummary):
        Image.new("RGB", (9, 7)).save("a.jpg")
        content = coco("a.jpg")
        del content["images"][0]["width"], content["images"][0]["height"]
        Path("boxes.json").write_text(json.dumps(content))
        ((_, found),) = boxes_of_pictures("boxes.json", [Path("a.jpg")], summary)
        assert found is not None
        assert found.image_size == (7, 9)
        assert ("repaired", Kind.SIZE_OF_PICTURE) in summary.causes

    def test_boxes_that_look_wrong_are_noticed(self, summary: RunSummary):
        content = coco("a.jpg")
        content["annotations"][0]["bbox"] = [3, 3, 20, 4]
        assert given(content, "a.jpg", summary=summary) == {"a.jpg": [[3, 3, 9, 7]]}
        assert ("noticed", "bbox beyond the image") in summary.causes
        assert summary.exit_code == 0

    @pytest.mark.parametrize("content", [{"images": []}, {"images": [{"id": 1, "file_name": "a.jpg"}], "info": {}}])
    def test_a_file_without_annotations(self, content: dict):
        with pytest.raises(UserError, match="a COCO file without annotations has no boxes"):
            given(content, "a.jpg")


class TestCocoResults:
    RESULTS = ({"category_id": 3, "bbox": [1, 2, 2, 2], "score": 0.5}, {"category_id": 4, "bbox": [5, 6, 2, 2]})

    def results(self, *ids: int | str) -> list[dict]:
        return [{"image_id": identity, **entry} for identity in ids for entry in self.RESULTS]

    @pytest.mark.parametrize(
        ("identity", "picture"),
        [("im0", "p/im0.jpg"), (139, "p/000000000139.jpg"), ("7", "p/007.png"), ("b.png", "p/b.png")],
    )
    def test_ids_that_are_stems_or_names(self, identity: int | str, picture: str):
        other = 1 if identity == "7" else "other"
        Path("boxes.json").write_text(json.dumps(self.results(identity, other)))
        jobs = boxes_of_pictures("boxes.json", [Path(picture), Path("p/x.jpg")], RunSummary())
        ((path, found),) = jobs
        assert found is not None
        assert path == Path(picture)
        assert found.boxes.tolist() == [BOX, [5, 6, 7, 8]]
        assert (found.image_id, found.category_ids, found.scores) == (identity, [3, 4], [0.5, None])

    def test_ids_of_a_coco_file(self):
        Path("boxes.json").write_text(json.dumps(self.results(1)))
        Path("names.json").write_text(
            json.dumps({**coco("x/a.jpg", "x/b.jpg"), "categories": [{"id": 3, "name": "cat"}]})
        )
        jobs = boxes_of_pictures("boxes.json", [Path("b.jpg")], RunSummary(), "names.json")
        ((_, found),) = jobs
        assert found is not None
        assert (found.image_id, found.image_size, found.class_names) == (1, (9, 9), ["cat", None])
        Path("boxes.json").write_text(json.dumps(self.results(1, 5)))
        with pytest.raises(UserError, match=r"expected an image of names\.json as the image_id of entry 2, but got 5"):
            boxes_of_pictures("boxes.json", [Path("b.jpg")], RunSummary(), "names.json")

    def test_numbers_that_no_picture_is_called(self):
        with pytest.raises(UserError, match=r"no entry for the image a\.jpg .* give --annotations FILE"):
            given(self.results(5, 6), "a.jpg")

    @pytest.mark.parametrize(
        "bad", [{"bbox": [1, 2, 3]}, {"bbox": [1, 2, "3", 4]}, {"bbox": [1, 2, 0, 4]}, {"score": 7}]
    )
    def test_a_bad_entry_costs_itself(self, bad: dict):
        content = self.results("a")
        Path("boxes.json").write_text(json.dumps([content[0], {**content[1], **bad}]))
        ((_, found),) = boxes_of_pictures("boxes.json", [Path("a.jpg")], RunSummary())
        assert found is not None
        assert list(found.problems) == [1]


MEGADETECTOR = {
    "images": [
        {
            "file": "cam1\\a.jpg",
            "detections": [
                {"category": "1", "conf": 0.9, "bbox": [0.25, 0.5, 0.5, 0.25]},
                {"category": "3", "conf": 0.2, "bbox": [0, 0, 1]},
            ],
        },
        {"file": "cam1/b.jpg", "failure": "Failure image access", "detections": None},
        {"file": "cam1/c.jpg", "detections": []},
    ],
    "detection_categories": {"1": "animal", "2": "person", "3": "vehicle"},
    "info": {"format_version": "1.3"},
}


class TestMegaDetector:
    def test_fractions_classes_and_scores(self, summary: RunSummary):
        Path("boxes.json").write_text(json.dumps(MEGADETECTOR))
        images = [Path(f"cam1/{name}.jpg") for name in "abc"]
        (_, a), (_, c) = boxes_of_pictures("boxes.json", images, summary)
        assert a is not None
        assert a.fractions
        assert a.boxes[0].tolist() == [0.25, 0.5, 0.75, 0.75]
        assert list(a.problems) == [1]
        assert (a.category_ids, a.class_names, a.scores) == ([1, None], ["animal", None], [0.9, None])
        assert c is not None
        assert len(c) == 0
        told = "cam1/b.jpg: Failure image access"
        assert summary.causes["left out", "picture that the detector could not read"] == (1, told)


class TestYolo:
    def write(self, **files: str) -> None:
        for name, text in files.items():
            path = Path(name.replace("__", "/") + ".txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    @pytest.mark.parametrize("names", ["3", "person"])
    def test_names_that_are_no_list_are_refused(self, names: str):
        self.write(d__labels__a="0 0.5 0.5 0.5 0.25\n")
        Path("d/data.yaml").write_text(f"names: {names}")
        with pytest.raises(UserError, match=r"d/data\.yaml: names must be a list of class names"):
            boxes_of_pictures("d", [Path("d/images/a.png")], RunSummary())

    @pytest.mark.parametrize(
        ("file", "text"),
        [
            ("d/data.yaml", "names: [fig, date]"),
            ("d/data.yaml", "names:\n  0: fig\n  1: date\ntrain: images"),
            ("d/labels/classes.txt", "fig\ndate\n"),
            ("d/classes.txt", "fig\r\ndate"),
        ],
    )
    def test_labels_with_names(self, file: str, text: str):
        self.write(d__labels__train__a="1 0.5 0.5 0.5 0.25\n0 0.1 0.1 0.1 0.2 0.75\n", d__labels__train__b="")
        Path(file).write_text(text)
        for spec in ("d/labels", "d/labels/train", "d"):
            images = [Path("d/images/train/a.png"), Path("d/images/train/b.jpg"), Path("d/images/train/c.jpg")]
            summary = RunSummary()
            (_, a), (_, b) = boxes_of_pictures(spec, images, summary)
            assert a is not None
            assert a.fractions
            assert rounded(a.boxes.tolist()) == [[0.25, 0.375, 0.75, 0.625], [0.05, 0.0, 0.15, 0.2]]
            assert (a.category_ids, a.class_names, a.scores) == ([1, 0], ["date", "fig"], [None, 0.75])
            assert b is not None
            assert len(b) == 0
            assert list(summary.causes) == [("left out", f"picture that {spec} does not list")]

    def test_polygons_become_boxes_and_bad_lines_cost_themselves(self):
        self.write(labels__a="0 0.1 0.2 0.5 0.2 0.5 0.6\nx\n0 1 2 3 4\n-1 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.2\n")
        ((_, found),) = boxes_of_pictures("labels", [Path("a.jpg")], RunSummary())
        assert found is not None
        assert rounded(found.boxes[:1].tolist()) == [[0.1, 0.2, 0.5, 0.6]]
        assert list(found.problems) == [1, 2, 3, 4]
        assert found.class_names is None

    def test_a_folder_without_labels(self, summary: RunSummary):
        Path("empty").mkdir()
        with pytest.raises(UserError, match=r"--boxes empty: the folder has no label files \(\.txt\)"):
            boxes_of_pictures("empty", [Path("a.jpg")], summary)


def test_annotations_are_for_results_lists():
    Path("boxes.json").write_text(json.dumps({"a.jpg": [BOX]}))
    with pytest.raises(UserError, match="--annotations is for a COCO results list"):
        boxes_of_pictures("boxes.json", [Path("a.jpg")], RunSummary(), "names.json")
