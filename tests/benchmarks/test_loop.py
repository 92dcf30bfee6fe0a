"""The loop at tiny size: its real commands, and a table whose numbers can be counted by hand."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from coco_folder import CocoFolder, annotation, polygon

from maskwright.cli import main

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "loop.py"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):
    """The script, whose commands run in this process."""
    specification = importlib.util.spec_from_file_location("loop", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "loop", module)  # dataclasses look their module up
    specification.loader.exec_module(module)

    def maskwright(*arguments) -> float:
        assert main([str(argument) for argument in arguments]) == 0
        return 1.5

    monkeypatch.setattr(module, "maskwright", maskwright)
    return module


@pytest.fixture
def truth(tmp_path: Path) -> CocoFolder:
    """Eight pictures with three boxes each; a true mask is its whole box."""
    boxes = [(4, 6), (30, 12), (40, 20)]
    entries = [
        annotation(
            10 * image + row, image, bbox=[left, top, 20, 24], segmentation=polygon(left, top, left + 20, top + 24)
        )
        for image in range(1, 9) for row, (left, top) in enumerate(boxes)
    ]  # fmt: skip
    return CocoFolder(tmp_path).write(entries, images=8, size=(48, 64))


def annotations(file: Path) -> list[dict]:
    return json.loads(file.read_text())["annotations"]


def test_all_steps_run_and_the_table_counts_what_the_files_hold(
    benchmark, truth: CocoFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ellipse_model
):
    def train(*arguments) -> float:
        assert [str(argument) for argument in arguments[:2]] == ["train", "deep_mac/fine_tune"]
        assert f"--trainer.output={out / 'run'}" in arguments
        assert "--trainer.steps=3" in arguments
        ellipse_model.mask_size = 16  # other masks than before
        return 4.0

    command = benchmark.maskwright
    monkeypatch.setattr(benchmark, "maskwright", lambda *given: (train if given[0] == "train" else command)(*given))
    monkeypatch.setattr("maskwright.apps.weights.from_pretrained", lambda _: ellipse_model)
    out = tmp_path / "out"
    files = ["--images", str(truth.images), "--annotations", str(truth.annotations), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["loop.py", *files, "--every", "4", "--trainer.steps=3"])
    benchmark.main()

    assert [entry["image_id"] for entry in annotations(out / "boxes.json") if "segmentation" in entry] == [1] * 3 + [
        5
    ] * 3
    rows = [line.strip("| \n").split(" | ") for line in (out / "table.md").read_text().splitlines()[2:]]
    assert [row[0] for row in rows] == [
        "completed with deep-mac-tiny",
        "fine-tuned, completed again",
        "the 1 worst reviewed",
    ]
    assert [row[1] for row in rows] == ["18", "18", "17" if float(rows[1][2]) < 0.7 else "18"]
    assert all(float(row[2]) == pytest.approx(3.14159 / 4, abs=0.06) for row in rows)  # an ellipse in its box
    assert [row[5] for row in rows] == ["1.5", "5.5", "1.5"]
    assert rows[0][6] == "0.4"  # 18 * 80 s
    models = {Path(entry["maskwright"]["model"]).name for entry in annotations(out / "second.json") if
              "maskwright" in entry}  # fmt: skip
    assert models == {"last"}
    before, after = (annotations(out / f"{name}.json") for name in ("second", "reviewed"))
    assert sum(one != other for one, other in zip(before, after, strict=True)) == 1


def test_poor_masks_are_rejected_and_good_ones_accepted(
    benchmark, truth: CocoFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ellipse_model
):
    monkeypatch.setattr("maskwright.apps.weights.from_pretrained", lambda _: ellipse_model)
    monkeypatch.setattr(benchmark, "REVIEWED_SHARE", 1)
    content = json.loads(truth.annotations.read_text())
    for entry in content["annotations"][:6]:
        entry["segmentation"] = polygon(0, 0, 5, 5)
    known = benchmark.Truth(truth.images, content)
    (tmp_path / "boxes.json").write_text(json.dumps(known.boxes(100)))
    done, reviewed = tmp_path / "done.json", tmp_path / "reviewed.json"
    benchmark.maskwright("complete", tmp_path / "boxes.json", "--images", truth.images, "--out", done)
    assert benchmark.answer(known, done) == 21  # the first picture keeps its masks
    benchmark.maskwright("review", done, "--apply", "--out", reviewed)
    verdicts = [entry.get("maskwright", {}).get("review") for entry in annotations(reviewed)]
    assert verdicts == [None] * 3 + ["rejected"] * 3 + ["accepted"] * 18
    assert set(known.ious(reviewed)) == set(range(6, 24))


def test_objects_without_a_true_mask_are_left_out(benchmark, truth: CocoFolder, capsys: pytest.CaptureFixture[str]):
    content = json.loads(truth.annotations.read_text())
    absent, null, empty = content["annotations"][:3]
    del absent["segmentation"]
    null["segmentation"], empty["segmentation"] = None, []
    truth.annotations.write_text(json.dumps(content))
    known = benchmark.Truth.read(truth.images, truth.annotations)
    assert known.content["annotations"] == content["annotations"][3:]
    assert "3 objects without a mask are left out" in capsys.readouterr().err


def test_a_file_without_any_mask_is_refused_with_a_sentence(
    benchmark, truth: CocoFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    content = json.loads(truth.annotations.read_text())
    for entry in content["annotations"]:
        del entry["segmentation"]
    truth.annotations.write_text(json.dumps(content))
    files = ["--images", str(truth.images), "--annotations", str(truth.annotations), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["loop.py", *files])
    with pytest.raises(SystemExit) as stopped:
        benchmark.main()
    assert stopped.value.code == 2
    assert f"{truth.annotations} has no masks to compare with" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_table_has_the_shares_of_good_and_poor_masks(benchmark):
    cells = benchmark.row("step", dict(enumerate([0.9, 0.86, 0.85, 0.4])), 2.0)
    assert cells == ["step", "4", "0.752", "50.0%", "25.0%", "2.0", "0.1"]


@pytest.mark.slow
def test_the_commands_are_those_that_a_person_gives(truth: CocoFolder, tmp_path: Path, monkeypatch):
    """Every step in a process of its own, with the bundled model and one step of training."""
    specification = importlib.util.spec_from_file_location("loop", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "loop", module)
    specification.loader.exec_module(module)
    files = ["--images", str(truth.images), "--annotations", str(truth.annotations), "--out", str(tmp_path / "out")]
    small = ["--trainer.steps=1", "--data.batch_size=1", "--data.num_workers=0"]
    monkeypatch.setattr(sys, "argv", ["loop.py", *files, "--every", "2", *small])
    module.main()
    assert len((tmp_path / "out" / "table.md").read_text().splitlines()) == 5
