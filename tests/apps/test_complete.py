"""`maskwright complete`: what is completed, what stays, and the way back."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskwright.apps.complete import CompleteOptions, run
from maskwright.apps.completion.plan import is_box_outline
from maskwright.apps.predict import PredictOptions, predict_files
from maskwright.apps.provenance import MaskSource, NewMask, completed, undone
from maskwright.apps.review_page.apply import apply_decisions
from maskwright.apps.review_page.completed import read_completed
from maskwright.apps.review_page.decisions import Decision, RedrawnMask
from maskwright.apps.run_summary import RunSummary
from maskwright.cli import main
from maskwright.data.json_text import ObjectText
from maskwright.errors import UserError
from maskwright.files import parse_json_object

BOX = [4, 5, 20, 10]
CORNERS = [4, 5, 24, 5, 24, 15, 4, 15]
HUMAN = [[5.0, 6, 20, 6, 20, 14.50]]
CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ellipse_model) -> Path:
    """A working folder with two pictures, and the ellipse model for every model name."""
    monkeypatch.setattr("maskwright.apps.weights.from_pretrained", lambda _: ellipse_model)
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    for number in (1, 2):
        pixels = np.random.default_rng(number).integers(0, 255, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"images/{number}.png")
    return tmp_path


def box(identity: int, image_id: int = 1, **values: Any) -> dict[str, Any]:
    return {"id": identity, "image_id": image_id, "category_id": 1, "bbox": BOX, "iscrowd": 0, **values}


def write(annotations: list[Any], names: tuple[str, ...] = ("1.png", "2.png")) -> None:
    images = [{"id": row + 1, "file_name": name, "height": 30, "width": 40} for row, name in enumerate(names)]
    Path("boxes.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))


def complete(**options: Any) -> int:
    return run(**{"annotations": "boxes.json", "images": "images", "out": "done.json", **options})


def annotations(path: str = "done.json") -> list[Any]:
    return json.loads(Path(path).read_bytes())["annotations"]


def undo() -> bytes:
    assert main(["complete", "--undo", "done.json", "--out", "undone.json"]) == 0
    return Path("undone.json").read_bytes()


ODD = (
    '\ufeff{ "annotations" : [\r\n'
    '\t{"id":1 , "image_id": 1, "note": "Zoë 猫 \\u00e9 \\ud83d", "bbox": [4.0, 5.00,20,1e1],'
    ' "big": 123456789012345678901234567890 },\n'
    '{"id":2,"image_id":2,"bbox":[4,5,20,10],"segmentation":[ ],"area":7.50,"\\u0061ttributes":{"x":[{}]}}, \n'
    ' {"id": 3, "image_id": 1, "bbox": [4, 5, 20, 10], "segmentation": null, "segmentation": null},\n'
    '  {\n    "id": 4,\n    "image_id": 1,\n    "bbox": [\n 4, 5, 20, 10],'
    ' "segmentation":\n[[4,5.0, 24,5,24,15, 4,15]]\n  },\n'
    ' {"id": 5, "image_id": 2, "bbox": [1, 1, 9, 9], "segmentation": [[1.50, 1, 9, 1, 9, 9]], "iscrowd": 0},\n'
    ' {"id": 6, "image_id": 2, "bbox": [1, 1, 9, 9], "iscrowd": 1},\n'
    ' {"id": 7, "image_id": 2, "bbox": [1, 1, 0, 9]}, "no object"\n'
    ' ] , "info" : {"version":1.0, "annotations": [3]}, "images":[\n'
    '{"file_name":"1.png","id":1,"height":30,"width":40 ,"weight":-0.0},\r\n'
    '{"id":2,"file_name":"2.png","height":30,"width":40}]\n'
    "}\n\n"
)


class TestBytes:
    def test_only_what_is_missing_is_inserted_and_undo_gives_the_input_back(self):
        Path("boxes.json").write_bytes(ODD.encode(errors="surrogatepass"))
        assert complete(replace="rectangles") == 3
        first, second, third, fourth, *rest = annotations()
        before = json.loads(ODD.encode())["annotations"]
        assert rest == before[4:]
        mask = first["segmentation"]
        assert {"segmentation", "area", "maskwright"} & before[0].keys() == set()
        assert [entry["segmentation"] for entry in (second, third, fourth)] == [mask] * 3
        assert [entry["area"] for entry in (first, second, third, fourth)] == [int(coco_mask.area(mask)), 7.5] + [
            int(coco_mask.area(mask))
        ] * 2
        assert first["maskwright"]["inserted"] == ["segmentation", "area"]
        assert (second["maskwright"]["inserted"], second["maskwright"]["replaced"]) == ([], {"segmentation": []})
        assert third["maskwright"]["replaced"] == {"segmentation": None}
        assert "replaced_text" not in third["maskwright"]
        assert fourth["maskwright"]["replaced"] == {"segmentation": [[4, 5.0, 24, 5, 24, 15, 4, 15]]}
        assert undo() == Path("boxes.json").read_bytes()

    def test_a_compact_file_stays_compact_and_one_with_lines_has_lines(self):
        mask = NewMask(0.5, 4, {"size": [4, 4], "counts": "0"})
        source = MaskSource("m", "w", "0")
        compact = '{"id":1,"bbox":[1,2,3,4]}'
        told = '{"model":"m","weights":"w","version":"0","quality":0.5,"inserted":["segmentation","area"]}'
        expected = compact[:-1] + ',"area":4,"segmentation":{"size":[4,4],"counts":"0"},"maskwright":' + told + "}"
        assert str(completed(ObjectText.read(compact, 0), mask, source)) == expected
        lines = '{\n  "id": 1,\n  "area": 3\n }'
        changed = str(completed(ObjectText.read(lines, 0), mask, source))
        assert [line.split(":")[0].strip() for line in changed.splitlines()[1:-1]] == [
            '"id"',
            '"area"',
            '"segmentation"',
            '"maskwright"',
        ]

    @settings(deadline=None)
    @given(
        st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=3),
        st.dictionaries(
            st.sampled_from(["area", "segmentation"]), st.sampled_from([None, [], [[]], {}, "", 0, 1.0, [[1, 2.50]]])
        ),
        st.sampled_from([None, 0, 2]),
        st.sampled_from([(", ", ": "), (",", ":"), (" ,\t", " :\r\n")]),
        st.booleans(),
    )
    def test_undone_gives_any_annotation_back(self, content, slots, indent, separators, ascii_only):
        spelled = json.dumps(
            {"id": 1, **content, **slots}, indent=indent, separators=separators, ensure_ascii=ascii_only
        )
        text = spelled.encode(errors="surrogatepass").decode("latin-1")
        source = MaskSource('modèle "x"', "w", "0")
        done = completed(ObjectText.read(text, 0), NewMask(0.5, 4, {"size": [4, 4], "counts": "0"}), source)
        json.loads(str(done).encode("latin-1"))
        assert str(undone(ObjectText.read(str(done), 0))) == text
        assert str(completed(done, NewMask(0.6, 5, [[1, 2]]), source)) == str(
            completed(ObjectText.read(text, 0), NewMask(0.6, 5, [[1, 2]]), source)
        )

    def test_reviewed_files_can_be_undone_too(self):
        Path("boxes.json").write_bytes(ODD.encode())
        complete(replace="rectangles")
        redrawn = RedrawnMask([1.0, 2.0, 3.0, 4.0], {"size": [30, 40], "counts": "0"}, 3, 0.9, "other", "def")
        decisions = {
            0: Decision("accepted"),
            1: Decision("rejected"),
            2: Decision("redrawn", redrawn),
            3: Decision("rejected"),
        }
        apply_decisions(Path("done.json"), decisions, Path("reviewed.json"))
        reviewed = annotations("reviewed.json")
        assert reviewed[1]["segmentation"] == []
        assert "[[4,5.0, 24,5,24,15, 4,15]]" in Path("reviewed.json").read_text(encoding="utf-8-sig")
        Path("reviewed.json").rename("done.json")
        assert undo() == ODD.encode()

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (
                '{"annotations": [{"id": 1, "maskwright": {"quality": 1}} {"id": 2}]}',
                "not a JSON file: Expecting ','",
            ),
            ('{"annotations": [{"id": 1, "maskwright": {"quality": 1}}]} {}', "is not a JSON file: Extra data"),
            ('{"annotations": [{"id": 1, "maskwright": {"quality": 1}}], "info": {"x": nul}}', "is not a JSON file"),
            (b'{"annotations": [{"id": 1, "maskwright": {"quality": 1}}], "info": "\xff"}', "is not a JSON file"),
            ('{"annotations": {"maskwright": {"quality": 1}}}', "expected 'annotations' to be a list"),
            ('[{"annotations": []}]', "expected a JSON object with the keys 'annotations', but got a list"),
            ('{"images": [], "info": {"annotations": []}}', "lacks 'annotations' (keys found: 'images', 'info')"),
            ('{"annotations": [{"maskwright": {"quality": 1, "inserted": 3}}]}', "nothing to undo"),
            ('{"annotations": [{"maskwright": {"quality": 1, "inserted": null}}]}', "nothing to undo"),
            ('{"annotations": [{"maskwright": {"quality": 1, "replaced_text": {"area": 3}}}]}', "nothing to undo"),
        ],
    )
    def test_what_cannot_be_undone_is_refused(self, content: str | bytes, words: str, capsys):
        Path("done.json").write_bytes(content if isinstance(content, bytes) else content.encode())
        assert main(["complete", "--undo", "done.json", "--out", "undone.json"]) == 2
        assert words in capsys.readouterr().err
        assert not Path("undone.json").exists()

    def test_undo_keeps_no_mask_in_memory_while_it_reads_the_file(self):
        mask = {"size": [40, 30], "counts": "0" * 1000}
        entry = {"id": 1, "segmentation": mask, "maskwright": {"quality": 0.5, "inserted": ["segmentation"]}}
        parsed = parse_json_object(
            json.dumps({"annotations": [entry], "info": {}}).encode(), "f", ("annotations",), only=("annotations",)
        )
        assert parsed == {"annotations": [dict.fromkeys(entry)], "info": None}


class TestChoice:
    def ids(self, **options: Any) -> list[int]:
        complete(**options)
        return [entry["id"] for entry in annotations() if isinstance(entry.get("maskwright"), dict)]

    def test_masks_crowds_and_rectangles_stay(self):
        write(
            [
                box(1),
                box(2, segmentation=None),
                box(3, segmentation=[]),
                box(4, segmentation=[[]]),
                box(5, segmentation=HUMAN),
                box(6, segmentation=[CORNERS]),
                box(7, iscrowd=1),
                box(8, segmentation=[[1, 2, 3]]),
            ]
        )
        assert self.ids() == [1, 2, 3, 4]
        assert annotations()[4:] == annotations("boxes.json")[4:]
        assert self.ids(replace="rectangles") == [1, 2, 3, 4, 6]

    def test_crowds_stay_where_all_are_crowds(self):
        write([box(1, iscrowd=1), box(2, iscrowd=True)])
        complete()
        assert Path("done.json").read_bytes() == Path("boxes.json").read_bytes()

    def test_classes(self):
        write([box(1), box(2, category_id=2), box(3, category_id=2, image_id=2)])
        assert self.ids(classes="dog") == [2, 3]
        with pytest.raises(UserError, match="unknown class names: bird; known are: cat, dog"):
            complete(classes="bird")

    def test_what_a_review_saw_stays_unless_it_is_asked_for(self):
        write([box(identity) for identity in range(1, 5)])
        complete()
        redrawn = RedrawnMask([1.0, 2.0, 3.0, 4.0], {"size": [30, 40], "counts": "0"}, 3, 0.9, "other", "def")
        decisions = {0: Decision("accepted"), 1: Decision("rejected"), 2: Decision("redrawn", redrawn)}
        apply_decisions(Path("done.json"), decisions, Path("reviewed.json"))
        before = annotations("reviewed.json")
        run(annotations="reviewed.json", images="images", out="again.json")
        assert annotations("again.json") == before
        run(annotations="reviewed.json", images="images", out="again.json", replace="rejected")
        again = annotations("again.json")
        assert [entry["maskwright"].get("review") for entry in again] == ["accepted", None, "redrawn", None]
        assert again[1] == annotations()[1]
        assert [again[row] for row in (0, 2, 3)] == [before[row] for row in (0, 2, 3)]

    def test_a_mask_that_was_drawn_after_a_review_stays(self):
        provenance = {"quality": 0.5, "review": "rejected"}
        write([box(1, segmentation=HUMAN, maskwright=provenance), box(2, maskwright=provenance)])
        complete(replace="rejected")
        first, second = annotations()
        assert first == annotations("boxes.json")[0]
        assert second["maskwright"].get("review") is None

    def test_masks_that_no_review_saw_are_made_again_and_undo_still_leads_to_the_input(self, ellipse_model):
        write([box(1, segmentation=None), box(2, area=3)])
        complete(model="first")
        Path("done.json").rename("first.json")
        ellipse_model.mask_size = 8
        complete(annotations="first.json", model="second", replace="unreviewed")
        assert {entry["maskwright"]["model"] for entry in annotations()} == {"second"}
        assert undo() == Path("boxes.json").read_bytes()

    def test_a_key_of_the_same_name_that_is_none_of_ours(self, capsys):
        write([box(1, maskwright="mine"), box(2)])
        assert complete() == 3
        assert annotations()[0] == box(1, maskwright="mine")
        assert "failed: 1 x annotation with a key 'maskwright' that is no provenance" in capsys.readouterr().err
        assert undo() == Path("boxes.json").read_bytes()

    @pytest.mark.parametrize(
        ("points", "expected"),
        [
            ([4, 5, 24, 5, 24, 15, 4, 15], True),
            ([24, 15, 24, 5, 4, 5, 4, 15], True),
            ([4, 5, 24, 5, 24, 15, 4, 15, 4, 5], True),
            ([4.3, 5, 23.6, 5, 24, 15, 4, 15], True),
            ([4, 5, 24, 5, 4, 15, 24, 15], False),
            ([4, 5, 24, 5, 24, 15, 4, 15, 24, 5], False),
            ([4, 5, 22, 5, 24, 15, 4, 15], False),
            ([4, 5, 4, 5, 24, 15, 4, 15], False),
        ],
    )
    def test_outlines_of_boxes(self, points: list[float], expected: bool):
        corners = np.array(points, dtype=np.float64).reshape(-1, 2)
        assert is_box_outline(corners, np.array([4, 5, 24, 15], dtype=np.float32)) is expected


class TestMasks:
    def test_masks_are_those_of_predict(self):
        boxes = [box(row, image_id, bbox=[row, 2, 9 + row, 11]) for row in range(1, 5) for image_id in (1, 2)]
        write(boxes)
        complete()
        predict_files(["images"], PredictOptions(boxes="boxes.json", overlays=False))
        results = json.loads(Path("masks/predictions.json").read_text())
        by_image = sorted(annotations(), key=lambda entry: entry["image_id"])
        assert [entry["segmentation"] for entry in by_image] == [entry["segmentation"] for entry in results]
        assert [entry["maskwright"]["quality"] for entry in by_image] == [entry["score"] for entry in results]

    def test_polygons_hold_the_pixels_of_the_run_lengths(self):
        write([box(1), box(2, bbox=[3, 4, 1, 1]), box(3, 2, bbox=[-5, 20, 30, 30])])
        complete(out="lengths.json")
        complete(polygons=True)
        for entry, expected in zip(annotations(), annotations("lengths.json"), strict=True):
            code = coco_mask.segmToRle([[float(x) for x in part] for part in entry["segmentation"]], 40, 30)
            assert coco_mask.decode(code).tolist() == coco_mask.decode(expected["segmentation"]).tolist()
            assert entry["area"] == expected["area"] > 0
            assert entry["maskwright"] == expected["maskwright"]
        assert undo() == Path("boxes.json").read_bytes()

    def test_classes_reach_the_model(self, ellipse_model):
        ellipse_model.categories = ({"id": 7, "name": "dog"},)
        write([box(1), box(2, category_id=2), {**box(3), "category_id": None}])
        complete()
        assert ellipse_model.told == [[-1, 0, -1]]

    def test_poor_masks_are_left_out_and_listed(self, ellipse_model, monkeypatch: pytest.MonkeyPatch, capsys):
        prompt = ellipse_model.masks_from_boxes

        def by_width(*given):
            return [
                replace(found, mask_scores=(found.boxes[:, 2] - found.boxes[:, 0]) / 40) for found in prompt(*given)
            ]

        monkeypatch.setattr(ellipse_model, "masks_from_boxes", by_width)
        write([box(1), box(2, bbox=[0, 0, 30, 20], category_id=2), box(3, bbox=[0, 0, 0.2, 0.2])])
        assert complete(min_quality=0.6) == 3
        assert [entry.get("maskwright", {}).get("quality") for entry in annotations()] == [None, 0.75, None]
        first, second = json.loads(Path("done_left_out.json").read_text())
        told = {"id": 1, "file_name": "1.png", "category": "cat", "bbox": [4, 5, 20, 10], "quality": 0.5}
        assert {key: first[key] for key in told} == told
        assert second["id"] == 3
        captured = capsys.readouterr()
        assert "left out: 1 x mask of a quality below 0.6, namely boxes.json, annotation 1" in captured.err
        assert captured.out.splitlines()[2].split() == ["dog", "1", "0.750", "0.750", "0.750"]
        assert undo() == Path("boxes.json").read_bytes()


class TestRuns:
    def test_dry_run_counts_and_writes_nothing(self, capsys):
        write([box(1), box(2, category_id=2), box(3, segmentation=HUMAN), *(box(row) for row in range(4, 48))])
        assert main(["complete", "boxes.json", "--images", "images", "--dry-run"]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert lines[2:5] == [["cat", "46", "1", "45"], ["dog", "1", "0", "1"], ["all", "classes", "47", "1", "46"]]
        assert " ".join(lines[5]) == "46 masks to make: 1.0 hours of drawing at 80 s each"
        assert sorted(path.name for path in Path().iterdir()) == ["boxes.json", "images"]

    def test_nothing_to_complete_gives_the_same_file_without_a_model(self, ellipse_model):
        write([box(1, segmentation=HUMAN)])
        assert complete() == 0
        assert Path("done.json").read_bytes() == Path("boxes.json").read_bytes()
        assert ellipse_model.encoded == 0

    def test_missing_and_unreadable_pictures_are_counted_and_their_annotations_stay(self, capsys):
        Path("images/3.png").write_bytes(b"no picture")
        write([box(row, row) for row in range(1, 5)], names=("1.png", "2.png", "3.png", "missing.png"))
        before = Path("boxes.json").read_bytes()
        assert complete() == 3
        assert annotations()[2:] == annotations("boxes.json")[2:]
        assert all("segmentation" in entry for entry in annotations()[:2])
        captured = capsys.readouterr().err
        assert "failed: 1 x picture that is missing, namely images/missing.png" in captured
        assert "failed: 1 x picture that cannot be read, namely" in captured
        assert Path("boxes.json").read_bytes() == before
        assert undo() == before

    def test_no_picture_at_all_is_refused(self):
        write([box(1)], names=("missing.png",))
        with pytest.raises(UserError, match=r"images has none of the pictures of boxes\.json that need masks, such as"):
            complete()
        Path("images/broken.png").write_bytes(b"no picture")
        write([box(1)], names=("broken.png",))
        with pytest.raises(UserError, match=r"cannot read the image images/broken\.png"):
            complete()
        assert sorted(path.name for path in Path().iterdir()) == ["boxes.json", "images"]

    def test_broken_boxes_are_counted_and_stay(self, capsys):
        write([box(1), box(2, bbox=[1, 2, 3]), box(3, bbox=None), box(4, image_id=9), box(5, bbox=[100, 100, 5, 5])])
        assert complete() == 3
        assert annotations()[1:] == annotations("boxes.json")[1:]
        assert capsys.readouterr().err.count("failed: 1 x annotation left out") == 4

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["boxes.json", "--images", "images"], "expected --out FILE"),
            (["boxes.json", "--out", "x.json"], "expected --images DIR"),
            (["boxes.json", "--images", "images", "--out", "boxes.json"], "it is an input or another output"),
            (["boxes.json", "--images", "images", "--out", "no/x.json"], "the folder no does not exist"),
            (["none.json", "--images", "images", "--out", "x.json"], "cannot read the annotation file none.json"),
            (["boxes.json", "--images", "none", "--out", "x.json"], "the image folder none does not exist"),
            (["boxes.json", "--images", "images", "--out", "x.json", "--replace", "all"], "replace must be some of"),
            (["boxes.json", "--images", "images", "--out", "x.json", "--min-quality", "2"], "min-quality in 0..1"),
            (["boxes.json", "--undo", "--out", "x.json"], "nothing to undo"),
            (["boxes.json", "--undo"], "expected --out FILE"),
            (["boxes.json", "--undo", "--dry-run"], "expected --out FILE"),
        ],
    )
    def test_mistakes(self, capsys, arguments: list[str], words: str):
        write([box(1)])
        assert main(["complete", *arguments]) == 2
        assert words in capsys.readouterr().err
        assert sorted(path.name for path in Path().iterdir()) == ["boxes.json", "images"]

    @pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"images": 1, "annotations": []}', b'{"a', b"\xff\xfe"])
    def test_what_is_no_coco_file_is_refused(self, content: bytes, capsys):
        Path("boxes.json").write_bytes(content)
        assert main(["complete", "boxes.json", "--images", "images", "--out", "x.json"]) == 2
        assert "boxes.json" in capsys.readouterr().err
        assert main(["complete", "boxes.json", "--undo", "--out", "x.json"]) == 2
        assert not Path("x.json").exists()

    def test_a_model_that_takes_no_boxes_is_refused(self, monkeypatch: pytest.MonkeyPatch):
        finder = torch.nn.Linear(1, 1)
        finder.task, finder.needs_boxes, finder.categories = "instance", False, ()
        monkeypatch.setattr("maskwright.apps.weights.from_pretrained", lambda _: finder)
        write([box(1)])
        with pytest.raises(UserError, match="--model m: expected a model that takes boxes"):
            complete(model="m")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_that_is_read_only(self, folder: Path):
        write([box(1)])
        (folder / "locked").mkdir(mode=0o555)
        with pytest.raises(UserError, match="cannot write locked/x"):
            complete(out="locked/x.json")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_a_full_disk_leaves_the_input_and_no_output(self, monkeypatch: pytest.MonkeyPatch, capsys):
        write([box(1), box(2, 2)])
        opened = Path.open

        def full(path: Path, *given: Any, **named: Any) -> Any:
            return opened(Path("/dev/full") if path.name.startswith(".done.json") else path, *given, **named)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", full)
            assert main(["complete", "boxes.json", "--images", "images", "--out", "done.json"]) == 2
        assert "cannot write done.json: No space left on device" in capsys.readouterr().err
        assert sorted(path.name for path in Path().iterdir()) == ["boxes.json", "done.json.journal", "images"]
        assert complete() == 0
        assert sorted(path.name for path in Path().iterdir()) == ["boxes.json", "done.json", "images"]

    def test_a_completed_file_can_be_reviewed(self):
        write([box(1), box(2, 2)])
        complete()
        masks = read_completed(Path("done.json"), "images", RunSummary()).masks
        assert [mask.id for mask in masks] == [1, 2]

    def test_options_of_the_command_are_those_of_the_dataclass(self):
        assert CompleteOptions("a", images="b", out="c").choice.replace == frozenset()
