"""`maskwright review` without its page: what is read, decided, kept and written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from completed_file import HOSTILE, ReviewFolder, completed, rectangle
from maskwright.apps.review import run
from maskwright.apps.review_page.apply import apply_decisions
from maskwright.apps.review_page.completed import CompletedFile, read_completed
from maskwright.apps.review_page.decisions import (
    Decision,
    RedrawnMask,
    Review,
    journal_path,
    open_journal,
    read_decisions,
)
from maskwright.apps.run_summary import RunSummary
from maskwright.cli import main
from maskwright.errors import UserError

REDRAWN = RedrawnMask([5.0, 5.0, 20.0, 10.0], rectangle(5, 5, 20, 10), 200, 0.9, "other", "def")


@pytest.fixture
def folder(tmp_path: Path) -> ReviewFolder:
    return ReviewFolder(tmp_path)


FOREIGN = [{"inserted": 3}, {"inserted": [["area"]]}, {"replaced": [1]}, {"replaced_text": {"segmentation": 1}}]
"""What another program could have put into a provenance."""


def read(folder: ReviewFolder, classes: tuple[str, ...] = ()) -> CompletedFile:
    return read_completed(folder.path, folder.images, RunSummary(), classes)


class TestReading:
    def test_the_worst_come_first_and_only_what_a_model_made(self, folder: ReviewFolder):
        drawn = completed(2, 0.1)
        del drawn["maskwright"]
        folder.write([completed(1, 0.8), drawn, completed(3, 0.3, category_id=2), completed(4, 0.8, segmentation=None)])
        file = read(folder)
        assert [(mask.position, mask.id, mask.quality) for mask in file.masks] == [(2, 3, 0.3), (0, 1, 0.8)]
        assert file.categories == [HOSTILE, "cat"]
        assert file.masks[0].box == (10, 10, 50, 40)

    @pytest.mark.parametrize("ids", [("seven", "eight"), (7, 7)])
    def test_ids_are_the_files_own(self, folder: ReviewFolder, ids: tuple[Any, Any]):
        folder.write([completed(ids[0], 0.3), completed(ids[1], 0.8)])
        assert [mask.id for mask in read(folder).masks] == list(ids)

    def test_one_class(self, folder: ReviewFolder):
        folder.write([completed(1, 0.8), completed(3, 0.3, category_id=2)])
        assert [mask.id for mask in read(folder, ("cat",)).masks] == [1]
        with pytest.raises(UserError, match=r"no completed mask is of the class 'dog'; expected .*cat"):
            read(folder, ("dog",))

    def test_missing_pictures_are_counted(self, folder: ReviewFolder):
        annotations = [completed(1, 0.8), completed(2, 0.5, image_id=2), completed(3, 0.4, image_id=2)]
        folder.write(annotations, names=("1.png", "missing.png"))
        summary = RunSummary()
        file = read_completed(folder.path, folder.images, summary)
        assert [mask.id for mask in file.masks] == [1]
        assert summary.causes == {("failed", "picture that is missing"): (1, "missing.png")}
        assert summary.exit_code == 3

    def test_all_pictures_missing(self, folder: ReviewFolder):
        folder.write([completed(1, 0.8)], names=("missing.png",))
        with pytest.raises(UserError, match="has none of the pictures"):
            read(folder)

    def test_a_file_that_was_not_completed(self, folder: ReviewFolder):
        entry = completed(1, 0.8)
        del entry["maskwright"]
        folder.write([entry])
        with pytest.raises(UserError, match="none of its 1 annotations has a mask that a model made"):
            read(folder)

    @pytest.mark.parametrize("quality", [None, "0.5", 2, True])
    def test_a_quality_that_is_none_is_counted(self, folder: ReviewFolder, quality: Any):
        folder.write([completed(1, 0.8), completed(2, quality)])
        summary = RunSummary()
        assert len(read_completed(folder.path, folder.images, summary).masks) == 1
        assert summary.failed == 1

    @pytest.mark.parametrize("wrong", FOREIGN)
    def test_a_provenance_that_is_none_is_counted(self, folder: ReviewFolder, wrong: dict[str, Any]):
        folder.write([completed(1, 0.8), completed(2, 0.3, maskwright={"quality": 0.3, **wrong})])
        summary = RunSummary()
        assert [mask.id for mask in read_completed(folder.path, folder.images, summary).masks] == [1]
        assert summary.failed == 1


def test_categories_without_ids_are_one_sentence(folder: ReviewFolder):
    file = folder.write([completed(1, 0.8)])
    content = json.loads(file.path.read_text())
    content["categories"] = [{"name": "cat"}]
    file.path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="categories"):
        read(file)


class TestDecisions:
    @pytest.fixture
    def file(self, folder: ReviewFolder) -> CompletedFile:
        return read(folder.write([completed(1, 0.8), completed(2, 0.3), completed(3, 0.5, category_id=2)]))

    def test_last_decision_wins_and_an_undo_is_one(self, file: CompletedFile):
        with open_journal(journal_path(file.path), file.path) as journal:
            review = Review(file, journal)
            review.decide(0, Decision("accepted"))
            review.decide(0, Decision("rejected"))
            review.decide(1, Decision("accepted"))
            review.decide(1, None)
            review.decide(2, Decision("redrawn", REDRAWN))
            expected = {0: Decision("rejected"), 2: Decision("redrawn", REDRAWN)}
            assert review.decisions == expected
        with open_journal(journal_path(file.path), file.path) as journal:
            assert Review(file, journal).decisions == expected

    def test_what_comes_next(self, file: CompletedFile):
        with open_journal(journal_path(file.path), file.path) as journal:
            review = Review(file, journal)

            def after(position: int | None, category: str | None = None) -> int | None:
                mask = review.next(category, position)
                return None if mask is None else mask.position

            assert after(None) == 1
            assert [after(1), after(2), after(0)] == [2, 0, 1]  # and from the start again
            assert after(None, "cat") == 1
            assert after(None, HOSTILE) == 2
            review.decide(1, Decision("accepted"))
            assert after(None) == 2
            for position in (0, 2):
                review.decide(position, Decision("rejected"))
            assert after(None) is None
            assert review.counts() == {"accepted": 1, "rejected": 2}

    def test_no_second_writer(self, file: CompletedFile):
        with open_journal(journal_path(file.path), file.path), pytest.raises(UserError, match="another process"):
            open_journal(journal_path(file.path), file.path)

    def test_a_journal_of_another_file_is_refused(self, file: CompletedFile):
        with open_journal(journal_path(file.path), file.path) as journal:
            Review(file, journal).decide(0, Decision("accepted"))
        file.path.write_text(file.path.read_text() + " ")
        with pytest.raises(UserError, match=r"another file: its decisions are on another version .* give another --j"):
            open_journal(journal_path(file.path), file.path)

    def test_decisions_of_a_killed_process_are_there(self, file: CompletedFile):
        code = (
            "import os, sys; from pathlib import Path\n"
            "from maskwright.apps.review_page.decisions import *\n"
            "journal = open_journal(Path(sys.argv[1] + '.review'), Path(sys.argv[1]))\n"
            "journal.append(0, {'verdict': 'accepted'}); journal.append(0, None)\n"
            "journal.append(1, {'verdict': 'rejected'}); os.kill(os.getpid(), 9)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(file.path)], check=False, capture_output=True)
        assert done.returncode == -9
        with open_journal(journal_path(file.path), file.path) as journal:
            assert read_decisions(journal) == {1: Decision("rejected")}

    def test_verdicts_of_an_earlier_review_count(self, folder: ReviewFolder):
        entry = completed(1, 0.8)
        entry["maskwright"]["review"] = "accepted"
        file = read(folder.write([entry, completed(2, 0.9)]))
        with open_journal(journal_path(file.path), file.path) as journal:
            review = Review(file, journal)
            assert review.counts() == {"accepted": 1, None: 1}
            assert review.next() is file.masks[1]


PROVENANCE = '{"model": "m",  "weights": "w", "quality": 0.30, "inserted": ["segmentation", "area"]}'
ODD = (
    '\ufeff{ "info" : {"big": 123456789012345678901234567890, "float": 1.0, "exp":1E+2},\r\n'
    '\t"images":[], "annotations" : [\n'
    ' {"id":1 , "bbox": [1.0, 2.00,3,4], "name": "Zoë \\u00e9 \\ud800"'
    ' , "segmentation": {"size": [4, 4], "counts": "0"} , "area": 7, "maskwright": ' + PROVENANCE + ' ,"last":-0.0},\n'
    ' {"id": 2,"bbox":[1,2,3,4],"segmentation":[[1,2,3]],"area":5, "maskwright":' + PROVENANCE + "}   ,\n"
    ' {"id": 3, "segmentation": [[1.50]], "note": "drawn by hand"}\n'
    ' ] , "tail": [ ]}\n\n'
)


class TestApplying:
    def apply(self, tmp_path: Path, text: str, decisions: dict[int, Decision]) -> str:
        source, out = tmp_path / "odd.json", tmp_path / "out.json"
        source.write_bytes(text.encode())
        apply_decisions(source, decisions, out)
        assert source.read_bytes() == text.encode()
        return out.read_bytes().decode()

    def test_no_decision_changes_no_byte(self, tmp_path: Path):
        assert self.apply(tmp_path, ODD, {}) == ODD

    def test_accepted_changes_the_provenance_alone(self, tmp_path: Path):
        new = (
            '{"model": "m", "weights": "w", "quality": 0.3, "inserted": ["segmentation", "area"], "review": "accepted"}'
        )
        assert self.apply(tmp_path, ODD, {0: Decision("accepted")}) == ODD.replace(PROVENANCE, new, 1)

    def test_rejected_takes_out_what_was_inserted(self, tmp_path: Path):
        new = '{"model": "m", "weights": "w", "quality": 0.3, "review": "rejected"}'
        expected = ODD.replace(' , "segmentation": {"size": [4, 4], "counts": "0"} , "area": 7', "", 1)
        assert self.apply(tmp_path, ODD, {0: Decision("rejected")}) == expected.replace(PROVENANCE, new, 1)

    def test_what_was_replaced_comes_back(self, tmp_path: Path):
        provenance = '{"quality": 0.5, "inserted": ["area"], "replaced": {"segmentation": []}}'
        text = '{"annotations": [{"segmentation": [[1]], "area": 3, "maskwright": ' + provenance + "}]}"
        expected = '{"annotations": [{"segmentation": [], "maskwright": {"quality": 0.5, "review": "rejected"}}]}'
        assert self.apply(tmp_path, text, {0: Decision("rejected")}) == expected

    @pytest.mark.parametrize("wrong", [*FOREIGN, None])
    def test_a_decision_on_what_no_model_completed_is_refused(
        self, folder: ReviewFolder, wrong: dict[str, Any] | None, capsys
    ):
        entry = completed(2, 0.3, maskwright=wrong and {"quality": 0.3, **wrong})
        folder.write([completed(1, 0.8), entry])
        with open_journal(journal_path(folder.path), folder.path) as journal:
            journal.append(1, {"verdict": "rejected", "redrawn": None})
        before = folder.path.read_bytes()
        assert main(["review", str(folder.path), "--apply", "--out", str(folder.out)]) == 2
        said = capsys.readouterr().err
        assert f"{folder.path}, annotation #1: there is a decision on it, but its 'maskwright' is not what" in said
        assert not folder.out.exists()
        assert folder.path.read_bytes() == before

    def test_redrawn_keeps_the_bbox(self, folder: ReviewFolder):
        folder.write([completed(1, 0.3), completed(2, 0.9)])
        counts = apply_decisions(folder.path, {0: Decision("redrawn", REDRAWN)}, folder.out)
        assert counts == {"redrawn": 1}
        before = json.loads(folder.path.read_text())["annotations"]
        first, second = folder.reviewed()
        assert second == before[1]
        assert first == {
            **before[0],
            "segmentation": rectangle(5, 5, 20, 10),
            "area": 200,
            "maskwright": {
                **before[0]["maskwright"],
                "model": "other",
                "weights": "def",
                "quality": 0.9,
                "prompt_box": [5, 5, 20, 10],
                "review": "redrawn",
            },
        }

    def test_an_area_that_was_there_stays(self, folder: ReviewFolder):
        entry = completed(1, 0.3, area=77.5)
        entry["maskwright"]["inserted"] = ["segmentation"]
        folder.write([entry])
        apply_decisions(folder.path, {0: Decision("redrawn", REDRAWN)}, folder.out)
        assert folder.reviewed()[0]["area"] == 77.5

    def test_the_input_is_never_written(self, folder: ReviewFolder):
        folder.write([completed(1, 0.3)])
        link = folder.path.with_name("link.json")
        link.symlink_to(folder.path)
        for out in (folder.path, link):
            with pytest.raises(UserError, match="stays as it is"):
                apply_decisions(folder.path, {0: Decision("accepted")}, out)


class TestCommand:
    def test_apply_writes_what_was_decided(self, folder: ReviewFolder, capsys):
        file = read(folder.write([completed(1, 0.3), completed(2, 0.9)]))
        with open_journal(journal_path(file.path), file.path) as journal:
            Review(file, journal).decide(1, Decision("accepted"))
        assert main(["review", str(folder.path), "--apply", "--out", str(folder.out)]) == 0
        assert [entry["maskwright"].get("review") for entry in folder.reviewed()] == [None, "accepted"]
        assert "1 accepted, 0 rejected, 0 redrawn" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], "expected --images DIR"),
            (["--apply"], "--apply and --out FILE go together"),
            (["--images", ".", "--out", "x.json"], "--apply and --out FILE go together"),
            (["--apply", "--out", "x.json"], "no such file, so that there is no decision"),
            (["--apply", "--out", "x.json", "--sheet", "x.html"], "one of --apply and --sheet"),
            (["--images", "nowhere"], "the image folder nowhere does not exist"),
            (["--images", ".", "--port", "70000"], "port in 0..65535"),
            (["--images", ".", "--exif", "sideways"], "exif must be one of"),
        ],
    )
    def test_mistakes(self, folder: ReviewFolder, capsys, arguments: list[str], words: str):
        folder.write([completed(1, 0.3)])
        assert main(["review", str(folder.path), *arguments]) == 2
        assert words in capsys.readouterr().err

    def test_a_contact_sheet_stands_alone_and_names_are_text(self, folder: ReviewFolder, capsys):
        names = ("<script>alert(1)<script>.png", "2.png")
        annotations = [completed(1, 0.8), completed(2, 0.3, category_id=2), completed(3, 0.9, image_id=2)]
        folder.write(annotations, names=names)
        sheet = folder.path.with_name("sheet.html")
        assert run(completed=str(folder.path), images=str(folder.images), sheet=str(sheet), limit=2) == 0
        text = sheet.read_text()
        assert text.index("0.300") < text.index("0.800")
        assert "0.900" not in text
        assert "<script" not in text
        assert "<img src=x" not in text
        assert "&lt;img src=x" in text
        assert "http:" not in text
        assert "https:" not in text
        assert text.count('src="data:image/jpeg;base64,') == 2
        assert "2 masks" in capsys.readouterr().out
