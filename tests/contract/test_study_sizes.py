"""Each of the paper's studies, as published and for a laptop: its recipes resolve, and its first row learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from coco_folder import CocoFolder, annotation, polygon

from maskwright.apps.study_file import Size, read_study, runs_of, study_names, study_sizes
from maskwright.cli import main
from maskwright.models.hub import family_class
from maskwright.training.options import Recipe

STUDIES = [name for name in study_names() if name.startswith("paper_")]
QUICK = ("paper_table_1", "paper_table_4")  # one of each family; all of them take a minute and a half
LITTLE = {
    "model.image_size": 64, "model.mask_size": 16, "data.crop_size": 64, "data.batch_size": 2, "data.num_workers": 0,
    "trainer.steps": 1, "trainer.validate_every_steps": 1, "trainer.accelerator": "cpu",
}  # fmt: skip


def build(recipe: Recipe) -> None:
    """Its network without memory: that its parts fit together."""
    categories = [{"id": 1, "name": "person", "isthing": True}, {"id": 2, "name": "kite", "isthing": True}]
    with torch.device("meta"):
        values = {**recipe.model, "pretrained_backbone": False, "categories": categories, "mask_classes": []}
        family_class(recipe.family)(**values)


@pytest.mark.parametrize("size", ["full", "small"])
@pytest.mark.parametrize("name", STUDIES)
def test_each_study_of_the_paper_resolves_in_both_sizes(name: str, size: Size):
    assert study_sizes(name) == ["full", "small"]
    study = read_study(name, size)
    runs = runs_of(study, Path("out"))
    assert len(runs) == len(study.rows) * len(study.seeds)
    assert len({json.dumps(run.recipe.model, default=str) for run in runs}) == len(study.rows)
    if size == "small":
        for run in runs[: len(study.rows)]:
            build(run.recipe)
    steps = {run.recipe.trainer.steps for run in runs}
    assert max(steps) <= 4000 if size == "small" else min(steps) > 20_000


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """A folder with eight images, each with a person and a traffic light; the former is one of VOC's classes."""
    folder = tmp_path_factory.mktemp("photographs")
    CocoFolder(folder).write(
        [
            annotation(
                10 * image + category, image, category, bbox=[left, top, 20, 24],
                segmentation=polygon(left, top, left + 20, top + 24),
            )
            for image in range(1, 9) for category, left, top in [(7, 4, 6), (3, 30, 12)]
        ],
        images=8, size=(48, 64),
    )  # fmt: skip
    return folder


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in STUDIES]
)
def test_the_first_row_of_each_small_study_takes_a_step(name: str, photographs: Path, monkeypatch, capsys):
    monkeypatch.chdir(photographs)
    study = read_study(name, "small")
    varied = {key for row in study.rows.values() for key in row}
    values = {key: value for key, value in LITTLE.items() if key not in varied}
    data = {"data.images": "images", "data.annotations": "instances.json"}
    run = runs_of(study.with_values({**study.common, **values, **data}), photographs / name)[0]
    assert main(["train", *run.arguments]) == 0, capsys.readouterr().err
    (step,) = (run.folder / "losses.jsonl").read_text().splitlines()
    losses = {key: value for key, value in json.loads(step).items() if "mask" in key}
    assert losses
    assert all(value > 0 for value in losses.values())
    validation = json.loads((run.folder / "validation.jsonl").read_text())
    assert {measure for measure in study.measure if not measure.endswith("_gap")} <= validation.keys()
