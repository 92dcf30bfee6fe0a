"""`data.shards`: the losses are those of the files that the shards were made of, to the bit, also when resumed."""

import json
from pathlib import Path

import pytest
import yaml
from refusals import refused

from maskwright.apps.shards import shard_data
from maskwright.training.options import SetOptions
from maskwright.training.run import main


@pytest.fixture
def shards(coco, tmp_path) -> Path:
    images, file = coco
    out = tmp_path / "shards"
    shard_data(file, images, out)
    return out


def losses(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "losses.jsonl").read_text().splitlines()]


def test_losses_are_those_of_the_files_also_when_resumed(arguments, shards, stop_after, tmp_path):
    recipe, *files, _ = arguments
    options = ["--trainer.log_every_steps=1", "--data.num_workers=1"]
    assert main([recipe, *files, *options, f"--trainer.output={tmp_path / 'files'}"]) == 0
    broken = [recipe, f"--data.shards={shards}", *options, f"--trainer.output={tmp_path / 'broken'}"]
    with stop_after(3):
        assert main(broken) == 130
    moved = shards.rename(tmp_path / "moved")
    assert main([argument.replace(str(shards), str(moved)) for argument in broken] + ["--resume", "last"]) == 0
    whole = losses(tmp_path / "files")
    assert len(whole) == 6
    assert losses(tmp_path / "broken") == whole
    metrics = [(tmp_path / run / "validation.jsonl").read_text() for run in ("files", "broken")]
    assert metrics[0] == metrics[1]


def test_losses_of_a_union_are_those_of_the_files(arguments, coco, shards, tmp_path):
    recipe = yaml.safe_load(Path(arguments[0]).read_text())
    files = {"images": str(coco[0]), "annotations": str(coco[1])}
    del recipe["data"]["mask_classes"]
    results = []
    for name, second in (("files", files), ("shards", {"shards": str(shards)})):
        sets = [{**files, "name": "a", "share": 0.3}, {**second, "name": "b", "share": 0.7, "mask_classes": ["dog"]}]
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**recipe, "data": recipe["data"] | {"sets": sets}}))
        output = tmp_path / f"run_{name}"
        assert main([str(path), f"--trainer.output={output}", "--trainer.log_every_steps=1"]) == 0
        results.append(losses(output))
    assert len(results[0]) == 6
    assert results[0] == results[1]


def test_shards_are_validated_on_too(arguments, shards, capsys):
    recipe, *_, output = arguments
    given = [recipe, output, f"--data.shards={shards}", f"--data.validation_annotations={shards}", "--trainer.steps=1"]
    assert main(given) == 0
    assert "12 images" in capsys.readouterr().err


def test_a_set_of_shards_is_called_by_its_folder():
    assert SetOptions(shards="a/b").path.name == "b"
    assert SetOptions(shards="a/b/index.npz").path.name == "b"


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (
            ("--data.images=i", "--data.shards=s"),
            "a recipe has data.shards, or else data.images and data.annotations",
        ),
        (("--data.shards=s", "--data.exif=stored"), "exif has no use beside shards (s)"),
        (("--data.shards=nowhere",), "cannot read the index of shards nowhere/index.npz"),
        (("--data.shards=s", '--data.sets=[{"shards": "t"}]', "--data.mask_classes=all"), "not data.shards too"),
    ],
)
def test_what_has_no_use_beside_shards_is_refused(arguments, given, part):
    refused([arguments[0], arguments[-1], *given], part)


def test_a_coco_file_is_no_folder_of_shards(arguments, coco):
    refused([arguments[0], arguments[-1], f"--data.shards={coco[1]}"], "instances.json/index.npz", "data shards` wrote")
