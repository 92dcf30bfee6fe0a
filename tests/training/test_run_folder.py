"""Whose folder a run may write into, and what it says of a folder that is damaged."""

import json
import zipfile
from pathlib import Path

import pytest
from refusals import refused

from maskwright.training import run_folder
from maskwright.training.run import main


@pytest.fixture
def own_recipe(arguments, tmp_path) -> list[str]:
    """Arguments that train a recipe into the folder where somebody keeps it."""
    (tmp_path / "run").mkdir()
    recipe = tmp_path / "run" / "recipe.yaml"
    recipe.write_text("# what I tried in May\n" + Path(arguments[0]).read_text())
    return [str(recipe), *arguments[1:]]


def test_a_recipe_that_somebody_wrote_is_not_written_over(own_recipe, tmp_path):
    before = Path(own_recipe[0]).read_bytes()
    refused(own_recipe, tmp_path / "run", "not an empty folder", "--trainer.output")
    refused([*own_recipe, "--resume", "last"], tmp_path / "run", "no run to resume", "empty folder")
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["recipe.yaml"]
    assert Path(own_recipe[0]).read_bytes() == before


def test_a_run_that_broke_off_before_its_first_step_starts_again_on_resume(arguments, tmp_path, monkeypatch):
    from lightning.pytorch import Trainer

    def break_off(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "fit", break_off)
    with pytest.raises(KeyboardInterrupt):
        main(arguments)
    monkeypatch.undo()
    refused(arguments, "already holds a run", "--resume last")
    assert main([*arguments, "--trainer.steps=1", "--resume", "last"]) == 0
    assert len((tmp_path / "run" / "losses.jsonl").read_text().splitlines()) == 1


def test_a_recipe_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    run_folder.take(tmp_path, "steps: 1\n")

    def break_off(self, text):
        with self.open("w") as file:
            file.write(text[:3])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", break_off)
    with pytest.raises(KeyboardInterrupt):
        run_folder.take(tmp_path, "steps: 2\n")
    assert (tmp_path / "recipe.yaml").read_text() == "steps: 1\n"


def test_a_folder_that_cannot_be_made_is_named(arguments, tmp_path):
    (tmp_path / "file").write_text("")
    refused(
        [*arguments, f"--trainer.output={tmp_path / 'file' / 'run'}"], tmp_path / "file" / "run", "cannot be written"
    )


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flip_in_the_middle(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


def test_a_damaged_checkpoint_is_named(arguments, tmp_path):
    assert main([*arguments, "--trainer.steps=1"]) == 0
    checkpoint = tmp_path / "run" / "last.ckpt"
    whole = checkpoint.read_bytes()
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme", "no checkpoint")
    for content in (b"", b"junk", _cut(whole), _flip_in_the_middle(whole), (tmp_path / "other.zip").read_bytes()):
        checkpoint.write_bytes(content)
        refused([*arguments, "--resume", "last"], checkpoint, "damaged", "--trainer.output")
    checkpoint.write_bytes(whole)
    assert main([*arguments, "--trainer.steps=2", "--resume", "last"]) == 0


def _with_annotations(options: list[str], path: Path, change) -> str:
    content = json.loads(Path(options[2].partition("=")[2]).read_text())
    for entry in content["annotations"]:
        change(entry)
    path.write_text(json.dumps(content))
    return f"--data.validation_annotations={path}"


def test_a_validation_file_without_masks_is_blamed_itself(arguments, tmp_path):
    file = _with_annotations(arguments, tmp_path / "boxes.json", lambda entry: entry.pop("segmentation", None))
    refused([*arguments, file], tmp_path / "boxes.json", "no image to validate on", "see data.validation_annotations")


def test_what_is_skipped_in_the_validation_file_is_said(arguments, tmp_path, capsys):
    def spoil(entry):
        if entry["id"] == 1:
            entry["category_id"] = 999
        if entry["id"] == 2:
            entry["bbox"] = [0, 0, 0, 0]

    file = _with_annotations(arguments, tmp_path / "spoilt.json", spoil)
    assert main([*arguments, "--trainer.steps=1", file]) == 0
    said = capsys.readouterr().err.splitlines()
    skipped, repaired = ([line for line in said if line.startswith(word)] for word in ("skipped", "repaired"))
    assert [line.partition(" (")[0] for line in skipped] == ["skipped in the validation file: 1 unknown category_id"]
    assert [line.partition(": ")[0] for line in repaired] == ["repaired in the validation file"]
