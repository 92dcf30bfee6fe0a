"""A run is resumed with the classes, the model and the recipe that it was begun with, or refused in one sentence."""

import json
from pathlib import Path

import pytest
import torch
from refusals import refused

from maskwright.errors import UserError
from maskwright.models.hub import from_pretrained
from maskwright.training.run import main


def losses(folder):
    return (folder / "losses.jsonl").read_text()


@pytest.fixture
def begun(arguments, tmp_path) -> list[str]:
    """Arguments of a run of 2 steps, which has taken the first; its annotation file may be changed."""
    file = tmp_path / "instances.json"
    file.write_text(Path(arguments[2].partition("=")[2]).read_text())
    arguments = [*arguments, f"--data.annotations={file}", "--data.mask_classes=all", "--optimizer.schedule=constant"]
    assert main([*arguments, "--trainer.steps=1"]) == 0
    return [*arguments, "--trainer.steps=2", "--resume"]


def rewrite(tmp_path, change):
    file = tmp_path / "instances.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def rewrite_checkpoint(tmp_path, change):
    path = tmp_path / "run" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)


def test_classes_in_another_order_are_mapped_by_name(begun, tmp_path):
    def reorder(content):
        content["categories"].reverse()

    rewrite(tmp_path, reorder)
    assert main(begun) == 0
    model = from_pretrained(tmp_path / "run" / "last")
    assert [category["name"] for category in model.categories] == ["person", "dog", "kite"]
    assert model.mask_classes == ["person", "dog"]

    rewrite(tmp_path, reorder)
    assert main([*begun[:-1], f"--trainer.output={tmp_path / 'unbroken'}"]) == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "unbroken")


def test_other_classes_are_refused_with_the_way_out(begun, tmp_path):
    way_out = f"--trainer.initial_weights {tmp_path / 'run' / 'last'}"
    before = losses(tmp_path / "run")

    rewrite(tmp_path, lambda content: content["categories"].append({"id": 9, "name": "horse"}))
    refused(begun, tmp_path / "run", "classes", "horse added", way_out)
    rewrite(tmp_path, lambda content: content["categories"][0].update(name="people"))
    refused(begun, "people, horse added, person removed", way_out)
    assert losses(tmp_path / "run") == before


def test_other_seen_classes_are_refused(begun, tmp_path):
    def drop_dogs(content):
        for entry in content["annotations"]:
            if entry["category_id"] == 2:
                entry.pop("segmentation", None)

    rewrite(tmp_path, drop_dogs)
    refused(begun, "model.mask_classes is person, dog in this run, but person with these data")


def test_checkpoints_of_earlier_versions_are_resumed_and_their_classes_compared(begun, tmp_path):
    rewrite_checkpoint(tmp_path, lambda checkpoint: checkpoint.pop("model_values"))
    config = tmp_path / "run" / "last" / "config.json"  # which listed all classes as seen
    config.write_text(config.read_text().replace('"mask_classes": [', '"mask_classes": ["kite",'))
    file = (tmp_path / "instances.json").read_text()
    rewrite(tmp_path, lambda content: content["categories"].append({"id": 9, "name": "horse"}))
    refused(begun, "horse added")
    (tmp_path / "instances.json").write_text(file)
    assert main(begun) == 0


def test_tensors_of_another_shape_are_refused(begun, tmp_path):
    def shorten(checkpoint):
        name = next(name for name, tensor in checkpoint["state_dict"].items() if tensor.ndim == 4)
        checkpoint["state_dict"][name] = checkpoint["state_dict"][name][1:].clone()

    rewrite_checkpoint(tmp_path, shorten)
    refused(begun, tmp_path / "run", "shape of 'network.", "in its checkpoint")


def test_the_folder_of_a_run_stands_for_its_recipe(begun, tmp_path):
    run = tmp_path / "run"
    refused([str(run)], run, "--resume last", run / "recipe.yaml")
    refused([str(tmp_path / "rum"), "--resume"], tmp_path / "rum", f"did you mean {run}?")
    refused([*begun, f"--trainer.output={tmp_path / 'rum'}"], "no run to resume", "did you mean run?")
    refused(
        [begun[0], f"--trainer.output={run}", "--resume"], "data.annotations", f"maskwright train {run} --resume last"
    )
    assert main([str(run), "--resume", "last", "--trainer.steps=2"]) == 0
    assert len(losses(run).splitlines()) == 2


def test_a_recipe_that_was_edited_in_the_folder_is_compared_with_the_checkpoint(begun, tmp_path):
    recipe = tmp_path / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("seed: 0", "seed: 1"))
    refused([str(recipe.parent), "--resume", "--trainer.steps=2"], "trainer.seed is 0 in this run", "1")


def test_runs_and_recipes_are_no_models(begun, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(UserError, match="folder of a training run") as caught:
        from_pretrained(run)
    assert f"{run / 'best'} and {run / 'last'}" in str(caught.value)
    with pytest.raises(UserError, match=r"deep_mac/tiny is the name of a recipe.*bundled: .*deep-mac-tiny"):
        from_pretrained("deep_mac/tiny")
