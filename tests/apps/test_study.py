"""`maskwright study`: what a study file stands for, its runs and their resumption, and the table."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from coco_folder import CocoFolder, annotation, polygon
from PIL import Image

from maskwright.apps import study, study_training
from maskwright.apps.study_file import read_study, runs_of, study_names
from maskwright.apps.study_table import cells_of, markdown_table, text_table
from maskwright.cli import main
from maskwright.errors import UserError
from maskwright.training.recipes import recipe_yaml, resolve_recipe
from maskwright.training.run_folder import take

RECIPE = """
family: deep_mac
model: {image_size: 64, backbone: resnet18_fpn, mask_head: resnet4, mask_head_width: 8, mask_size: 16, width: 0.0625}
data: {validation_share: 0.25, mask_classes: person, batch_size: 2, num_workers: 0, scale: [0.5, 1.2]}
optimizer: {learning_rate: 0.002, warmup_steps: 2}
trainer: {steps: 6, validate_every_steps: 1000, accelerator: cpu}
"""
STUDY = """
recipe: toy.yaml
set: {data.images: images, data.annotations: instances.json}
rows:
  shallow: {model.mask_head: resnet4}
  deep: {model.mask_head: resnet8}
seeds: [0, 1]
measure: [mask_iou_seen, mask_iou_unseen, mask_iou_gap]
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """The folder of the test, with a recipe, a study of it, and the data of both."""
    monkeypatch.chdir(tmp_path)
    Path("toy.yaml").write_text(RECIPE)
    Path("toy_study.yaml").write_text(STUDY)
    boxes = [(7, 4, 6), (3, 30, 12)]  # persons and traffic lights; the masks of the first are learnt
    CocoFolder(tmp_path).write(
        [
            annotation(
                10 * image + category, image, category, bbox=[left, top, 20, 24],
                segmentation=polygon(left, top, left + 20, top + 24),
            )
            for image in range(1, 9) for category, left, top in boxes
        ],
        images=8, size=(48, 64),
    )  # fmt: skip
    return tmp_path


def study_of(text: str):
    Path("changed.yaml").write_text(text)
    return read_study("changed.yaml")


class FakeTraining:
    """In place of the processes that train: each ends at once, with what a training leaves behind.

    commands: that were started.
    numbers: of the validation of a run by row and seed; 0.5 for those that are not there.
    codes: exit codes by row.
    """

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.numbers: dict[tuple[str, int], dict[str, float | None]] = {}
        self.codes: dict[str, int] = {}

    def start(self, command: list[str], **_: object) -> subprocess.Popen[bytes]:
        assert command[1:4] == ["-m", "maskwright", "train"]
        self.commands.append(command[4:])
        options = [part for part in command[5:] if part not in ("--resume", "last")]
        recipe = resolve_recipe(command[4], options)
        folder = Path(recipe.trainer.output or "")
        code = self.codes.get(folder.parent.name, 0)
        if not code:
            self.leave(folder, recipe, self.numbers.get((folder.parent.name, recipe.trainer.seed), {}))
        return subprocess.Popen([sys.executable, "-ISc", f"raise SystemExit({code})"])

    def leave(self, folder, recipe, numbers, step=None) -> None:
        step = step or recipe.trainer.steps
        take(folder, recipe_yaml(recipe))
        saved = {"global_step": step, "recipe": recipe_yaml(recipe), "state_dict": {"model.weight": torch.zeros(1)}}
        torch.save({**saved, "model_values": {"categories": []}}, folder / "last.ckpt")
        line = {"step": step, "mask_iou_seen": 0.5, "mask_iou_unseen": 0.5, **numbers}
        (folder / "validation.jsonl").write_text(json.dumps(line) + "\n")


@pytest.fixture
def training(monkeypatch) -> FakeTraining:
    training = FakeTraining()
    processes = SimpleNamespace(Popen=training.start, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr(study_training, "subprocess", processes)
    monkeypatch.setattr(study_training, "_POLL_SECONDS", 0)
    return training


def summary(name: str = "toy_study") -> dict:
    return json.loads(Path(f"runs/studies/{name}/table.json").read_text())


class TestTable:
    def test_mean_spread_and_gap_are_those_of_the_seeds(self):
        study = study_of(STUDY + "published: {deep: {mask_iou_unseen: 0.325}}")
        cells = cells_of(
            study,
            {
                ("shallow", 0): {"validation": {"mask_iou_seen": 0.6, "mask_iou_unseen": 0.5}},
                ("shallow", 1): {"validation": {"mask_iou_seen": 0.8, "mask_iou_unseen": 0.3}},
                ("deep", 0): {"validation": {"mask_iou_seen": 0.7, "mask_iou_unseen": math.nan}},
            },
        )
        # Of two numbers, the sample standard deviation is their difference over the square root of 2.
        assert [cell.mean for cell in cells] == pytest.approx([0.7, 0.4, 0.3, 0.7, None, None])
        expected = [0.2 / math.sqrt(2), 0.2 / math.sqrt(2), 0.4 / math.sqrt(2), None, None, None]
        assert [cell.spread for cell in cells] == pytest.approx(expected)
        assert markdown_table(study, cells).splitlines()[2:] == [
            "|  | mask_iou_seen | mask_iou_unseen | mask_iou_unseen, published | mask_iou_gap |",
            "| --- | --- | --- | --- | --- |",
            "| shallow | 0.7000 ± 0.1414 | 0.4000 ± 0.1414 | - | 0.3000 ± 0.2828 |",
            "| deep | 0.7000 | - | 0.325 | - |",
        ]
        assert text_table(study, cells).splitlines()[4].split() == [
            "shallow", "0.7000", "±", "0.1414", "0.4000", "±", "0.1414", "-", "0.3000", "±", "0.2828",
        ]  # fmt: skip

    def test_it_is_printed_and_written_as_markdown_json_and_picture(self, training, capsys):
        training.numbers = {("deep", 0): {"mask_iou_seen": 0.75}, ("deep", 1): {"mask_iou_seen": None}}
        assert main(["study", "toy_study.yaml"]) == 0
        printed = capsys.readouterr().out
        folder = Path("runs/studies/toy_study")
        for text in (printed, (folder / "table.md").read_text()):
            assert [line for line in text.splitlines() if "0.5000 ± 0.0000" in line and "shallow" in line]
        cells = {(cell["row"], cell["measure"]): cell for cell in summary()["cells"]}
        assert cells["deep", "mask_iou_gap"]["by_seed"] == {"0": 0.25}
        assert cells["deep", "mask_iou_gap"]["spread"] is None
        assert summary()["common"]["data.images"] == "images"
        with Image.open(folder / "chart.png") as picture:
            colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 16) or []}
        assert len(colours) > 2


class TestSmall:
    SMALL = STUDY.replace("rows:", "published: {deep: {mask_iou_seen: 0.4, mask_iou_unseen: 0.3}, shallow: {}}\nrows:")

    def test_each_of_its_keys_is_in_place_of_the_study_s(self, training):
        Path("two.yaml").write_text(
            self.SMALL + "small: {vary: {model.mask_size: [8]}, seeds: [5], set: {data.images: images}}"
        )
        full, small = read_study("two.yaml"), read_study("two.yaml", "small")
        assert (full.name, list(full.rows), full.seeds) == ("two", ["shallow", "deep"], [0, 1])
        assert (small.name, small.rows, small.seeds) == ("two_small", {"mask_size=8": {"model.mask_size": 8}}, [5])
        assert small.common == {"data.images": "images"}
        assert (small.recipe, small.measure) == (full.recipe, full.measure)
        assert small.published == {}
        assert main(["study", "two.yaml", "--size", "small", "--data.annotations", "instances.json"]) == 0
        assert list(summary("two_small")["rows"]) == ["mask_size=8"]

    def test_published_numbers_stay_where_it_has_their_row_and_measure(self):
        Path("two.yaml").write_text(
            self.SMALL + "small: {rows: {deep: {}, other: {model.mask_size: 8}}, measure: [mask_iou_unseen]}"
        )
        assert read_study("two.yaml", "small").published == {"deep": {"mask_iou_unseen": 0.3}}

    def test_a_size_that_there_is_not_is_refused(self, capsys):
        assert main(["study", "paper_table_4", "--size", "medium"]) == 2
        assert "size must be one of full, small, but got 'medium'" in capsys.readouterr().err

    def test_it_may_have_published_numbers_of_its_own(self):
        Path("two.yaml").write_text(self.SMALL + "small: {published: {shallow: {mask_iou_seen: 0.2}}}")
        assert read_study("two.yaml", "small").published == {"shallow": {"mask_iou_seen": 0.2}}

    @pytest.mark.parametrize(
        ("small", "words"),
        [
            ("", "toy_study.yaml: it has no small size"),
            ("small: {row: {}}", "toy_study.yaml: small: unknown key 'row' (did you mean rows?)"),
            ("small: {about: x}", "small: unknown key 'about'"),
            ("small: 3", "expected keys and values under 'small'"),
        ],
    )
    def test_a_mistake_is_refused_with_one_sentence(self, capsys, small, words):
        Path("toy_study.yaml").write_text(STUDY + small)
        assert main(["study", "toy_study.yaml", "--size", "small"]) == 2
        said = capsys.readouterr().err
        assert words in said
        assert len(said.splitlines()) == 1


class TestRuns:
    def test_each_row_is_trained_with_each_seed(self, training):
        assert main(["study", "toy_study.yaml", "--out", "out", "--model.mask_size", "8"]) == 0
        recipes = [resolve_recipe(command[0], command[1:]) for command in training.commands]
        assert [(recipe.model["mask_head"], recipe.trainer.seed) for recipe in recipes] == [
            ("resnet4", 0), ("resnet8", 0), ("resnet4", 1), ("resnet8", 1),
        ]  # fmt: skip
        assert {recipe.model["mask_size"] for recipe in recipes} == {8}
        assert recipes[3].trainer.output == str(Path("out/deep/seed_1"))

    def test_a_grid_is_the_rows_of_all_combinations(self):
        study = study_of(
            "recipe: deep_mac/tiny\nmeasure: [mask_iou]\n"
            "vary: {model.mask_head: [resnet4, hourglass20], model.use_image_crop: [true, false]}"
        )
        assert list(study.rows) == [
            "mask_head=resnet4,use_image_crop=true", "mask_head=resnet4,use_image_crop=false",
            "mask_head=hourglass20,use_image_crop=true", "mask_head=hourglass20,use_image_crop=false",
        ]  # fmt: skip
        models = [run.recipe.model for run in runs_of(study, Path("out"))]
        assert [(model["mask_head"], model["use_image_crop"]) for model in models[1:3]] == [
            ("resnet4", False), ("hourglass20", True),
        ]  # fmt: skip

    def test_what_is_done_is_only_read_and_what_was_stopped_is_resumed(self, training, capsys):
        study = read_study("toy_study.yaml")
        done, stopped, *_ = runs_of(study, Path("runs/studies/toy_study"))
        training.leave(done.folder, done.recipe, {"mask_iou_seen": 0.25})
        training.leave(stopped.folder, stopped.recipe, {}, step=4)
        assert main(["study", "toy_study.yaml", "--dry-run"]) == 0
        told = capsys.readouterr().out.splitlines()
        assert told[-8:] == [
            "shallow", "  model.mask_head: resnet4", "  seed 0: done", "  seed 1: missing",
            "deep", "  model.mask_head: resnet8", "  seed 0: step 4 of 6", "  seed 1: missing",
        ]  # fmt: skip
        assert training.commands == []
        assert main(["study", "toy_study.yaml"]) == 0
        assert [command[-2:] == ["--resume", "last"] for command in training.commands] == [True, False, False]
        assert summary()["cells"][0]["by_seed"] == {"0": 0.25, "1": 0.5}
        assert main(["study", "toy_study.yaml", "--seeds", "1"]) == 0
        assert len(training.commands) == 3

    def test_a_failed_row_is_named_and_the_rest_runs(self, training, capsys):
        training.codes = {"shallow": 2}
        assert main(["study", "toy_study.yaml"]) == 3
        said = capsys.readouterr()
        assert said.err.splitlines()[-2:] == [
            "failed: shallow, seed 0: its training ended with exit code 2",
            "failed: shallow, seed 1: its training ended with exit code 2",
        ]
        assert [cell["mean"] for cell in summary()["cells"]] == [None, None, None, 0.5, 0.5, 0]

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--model.mask_size", "8"], "model.mask_size is 16 in this run and cannot become 8"),
            (["--trainer.steps=9"], "trainer.steps is 6 in this run and cannot become 9"),
        ],
    )
    def test_a_run_with_other_values_is_refused_before_anything_is_trained(self, training, capsys, options, words):
        assert main(["study", "toy_study.yaml", "--seeds", "1"]) == 0
        training.commands.clear()
        assert main(["study", "toy_study.yaml", *options]) == 2
        assert words in capsys.readouterr().err
        assert training.commands == []

    def test_two_studies_in_one_folder_are_refused(self, training, capsys):
        with study_training.alone_in(Path("runs/studies/toy_study")):
            assert main(["study", "toy_study.yaml"]) == 2
        assert "another `maskwright study`" in capsys.readouterr().err


def test_a_stopped_study_goes_on_with_the_same_command_and_measures_named_sets(capfd):
    named = STUDY + "evaluate: {all: {images: images, annotations: instances.json}, validation: {batch_size: 2}}"
    Path("toy_study.yaml").write_text(named.replace("set: {", "set: {data.validation_annotations: instances.json, "))
    command = ["study", "toy_study.yaml", "--seeds", "1", "--trainer.steps", "40"]
    study = subprocess.Popen([sys.executable, "-m", "maskwright", *command], stdout=subprocess.PIPE)
    out = Path("runs/studies/toy_study")
    losses = out / "shallow/seed_0/losses.jsonl"
    while study.poll() is None and not (losses.is_file() and losses.stat().st_size):
        time.sleep(0.02)
    study.terminate()
    assert study.communicate(timeout=600) == (b"", None)
    assert study.returncode == 128 + signal.SIGTERM
    assert "checkpoint of step" in capfd.readouterr().err
    stopped, other = runs_of(replace(read_study(command[1]).with_values({"trainer.steps": 40}), seeds=[0]), out)
    assert 0 < (study_training.step_of(stopped) or 0) < 40
    assert study_training.step_of(other) is None

    assert main([*command, "--processes", "2"]) == 0
    assert "shallow " in capfd.readouterr().out
    for run in (stopped, other):
        lines = (run.folder / "losses.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, 41))
        measured = json.loads((run.folder / "evaluated" / "all.json").read_text())
        assert measured["step"] == 40
        assert [measured["numbers"][f"instances{group}"] for group in ("", "_seen", "_unseen")] == [16, 8, 8]
        assert "finished 40 steps" in run.log.read_text()
        own = json.loads((run.folder / "evaluated" / "validation.json").read_text())
        assert own["options"] == {"batch_size": 2, "images": "images", "annotations": "instances.json"}
        assert own["numbers"] == pytest.approx(measured["numbers"], abs=1e-6, nan_ok=True)
    cells = [(cell["data_set"], list(cell["by_seed"])) for cell in summary()["cells"]]
    assert cells == [*[("all", ["0"])] * 3, *[("validation", ["0"])] * 3] * 2

    file = stopped.folder / "evaluated" / "all.json"
    before = file.stat().st_mtime_ns
    assert main(command) == 0
    assert file.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("recipe: toy.yaml", "recipe: toys.yaml", "row shallow: toys.yaml: neither the name of a recipe nor a file"),
        ("rows:", "row:", "unknown key 'row' (did you mean rows?)"),
        ("rows:", "vary: {model.mask_size: [8]}\nrows:", "expected one of the keys rows and vary"),
        ("resnet8", "resnet5", "row deep: mask_head must be one of"),
        ("model.mask_head: resnet8", "model.mask_haed: resnet8", "did you mean --model.mask_head?"),
        ("mask_iou_gap", "mask_iuo_gap", "'mask_iuo_gap' is no number that evaluation gives (did you mean"),
        ("seeds: [0, 1]", "seeds: 2", "seeds must be a list of whole numbers, but got 2"),
        ("seeds: [0, 1]", "seeds: [1, 1]", "seeds has a value twice"),
        ("  deep:", "  ../deep:", "the name of a row must be of letters"),
        ("set: {", "set: {trainer.seed: 3, ", "trainer.seed is given by the study itself"),
        ("seeds:", "published: {deep: {mask_iou_seen: .nan}}\nseeds:", "mask_iou_seen must be a number, but got nan"),
        ("seeds:", "published: {deeep: {mask_iou_seen: 1}}\nseeds:", "'deeep' is no row of this study (did you"),
        ("seeds:", "evaluate: {a: {images: x}}\nseeds:", "evaluate: a: expected both images and annotations"),
        ("seeds:", "evaluate: {a: {seen: voc}}\nseeds:", "a: no annotations are given, and the recipe leaves data.val"),
        (
            "set: {data.images: images, data.annotations: instances.json}",
            "set: {data.shards: images, data.validation_annotations: instances.json}\nevaluate: {a: {seen: voc}}",
            "a: no annotations are given, and the recipe leaves data.validation_annotations or data.images open",
        ),
        ("seeds:", "evaluate: {a: {image: x}}\nseeds:", "did you mean images?"),
        ("seeds:", "evaluate: {a: {images: 5, annotations: y}}\nseeds:", "evaluate: a: images cannot be 5"),
        ("seeds:", "evaluate: {a: {images: x, annotations: y, boxes: z}}\nseeds:", "a: boxes must be one of"),
        ("seeds:", "evaluate: {a: {images: x, annotations: y, batch_size: b}}\nseeds:", "batch_size cannot be 'b'"),
        ("seeds:", "evaluate: {a: {images: x, annotations: y, json: b}}\nseeds:", "'json' is no option of"),
        ("seeds:", "evaluate: {a: {images: x, annotations: y}}\nseeds:", "evaluate: a: images x does not exist"),
        ("data.images: images, ", "", "data.images open: give it with --data.images"),
    ],
)  # fmt: skip
def test_mistakes_in_a_study_are_refused_with_one_sentence(training, capsys, before, after, words):
    assert before in STUDY
    Path("toy_study.yaml").write_text(STUDY.replace(before, after))
    assert main(["study", "toy_study.yaml"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1
    assert training.commands == []
    assert not Path("runs").exists()


def test_mistakes_on_the_command_line_are_refused(capsys):
    for arguments, words in (
        (["toy_stduy.yaml"], "toy_stduy.yaml: neither the name of a study nor a file"),
        (["mask_haeds"], "did you mean mask_heads?"),
        (["toy_study.yaml", "--model.mask_head", "resnet4"], "--model.mask_head is a value that study toy_study gives"),
        (["toy_study.yaml", "--sedes", "1"], "did you mean --seeds?"),
        (["toy_study.yaml", "--processes", "0"], "processes >= 1"),
    ):
        assert main(["study", *arguments]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", study_names())
def test_every_study_that_ships_lacks_only_the_data(name, training, capsys):
    study = read_study(name)
    assert study.about
    assert len(runs_of(study, Path("out"))) == len(study.rows) * len(study.seeds)
    assert main(["study", name]) == 2
    assert "--data.images" in capsys.readouterr().err


def test_the_ablation_of_the_bundled_model_is_one_of_keys_that_exist():
    study = read_study(str(Path(__file__).parents[2] / "examples" / "bundled_model" / "ablation.yaml"))
    assert len(runs_of(study, Path("out"))) == len(study.rows)


def test_without_a_name_the_studies_are_listed(capsys):
    assert main(["study"]) == 0
    told = capsys.readouterr().out
    assert all(f"{name}: " in told for name in study_names())


def test_a_study_file_that_is_no_yaml_is_refused():
    with pytest.raises(UserError, match="not valid YAML"):
        study_of("recipe: [")
    with pytest.raises(UserError, match="expected a study"):
        study_of("- a")


def test_results_are_measured_in_the_frame_of_the_recipe_and_anew_when_the_file_has_changed(training, monkeypatch):
    measured = []

    def evaluate(weights, **options):
        measured.append(options)
        return SimpleNamespace(compute=lambda: {"mask_iou_seen": 0.5, "mask_iou_unseen": 0.5})

    monkeypatch.setattr(study, "evaluate", evaluate)
    own = "{data.exif: stored, data.validation_annotations: instances.json, "
    Path("toy_study.yaml").write_text(STUDY.replace("set: {", f"set: {own}") + "evaluate: {validation: {seen: person}}")
    command = ["study", "toy_study.yaml", "--seeds", "1"]
    assert main(command) == 0
    expected = {"seen": "person", "images": "images", "annotations": "instances.json", "exif": "stored"}
    assert measured == [expected] * 2
    assert main(command) == 0
    assert len(measured) == 2
    Path("instances.json").write_text(Path("instances.json").read_text() + " ")
    assert main(command) == 0
    assert len(measured) == 4
