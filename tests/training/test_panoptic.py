"""A panoptic model through training: data, rehearsal, validation, resuming, two processes, first weights."""

import json
from dataclasses import replace

import pytest
import torch
from panoptic_folder import PanopticFolder, segment, stripes
from small_max_deeplab import SMALL, small_model

from maskwright.errors import UserError
from maskwright.models.hub import from_pretrained, save_pretrained
from maskwright.training.data_sets import open_data_sets
from maskwright.training.engine import build_model, train_recipe
from maskwright.training.recipes import resolve_recipe
from maskwright.training.rehearsal import rehearse
from maskwright.training.run import main

IMAGES = 6
SIZE = (40, 50)


@pytest.fixture
def panoptic(tmp_path):
    """Six images: the first is wholly void, the second one segment; a crowd in the third."""
    scenes = [(stripes(size=SIZE), []), (stripes(9, size=SIZE), [segment(9, 92)])]
    scenes += [
        (stripes(4, 1, 8, size=SIZE), [segment(4, 7, iscrowd=number == 3), segment(1, 200), segment(8, 3)])
        for number in range(3, IMAGES + 1)
    ]
    return PanopticFolder(tmp_path).write(*scenes)


@pytest.fixture
def arguments(panoptic, tmp_path):
    values = {
        "family": "max_deeplab",
        "model": {**SMALL, "class_threshold": 0.0, "thing_area_limit": 0, "stuff_area_limit": 0},
        "data": {"validation_share": 0.3, "batch_size": 2, "num_workers": 0},
        "optimizer": {"learning_rate": 0.002, "warmup_steps": 2, "schedule": "constant"},
        "trainer": {"steps": 4, "validate_every_steps": 2, "ema_decay": 0.9, "accelerator": "cpu"},
    }
    recipe = tmp_path / "toy.yaml"
    recipe.write_text(json.dumps(values))
    files = [f"--data.images={panoptic.images}", f"--data.annotations={panoptic.annotations}"]
    return [str(recipe), *files, f"--trainer.output={tmp_path / 'run'}"]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_is_validated_by_panoptic_quality_and_resumes_exactly(arguments, tmp_path, capsys):
    recipe = resolve_recipe(arguments[0], arguments[1:])
    unbroken = train_recipe(replace(recipe, trainer=replace(recipe.trainer, output=str(tmp_path / "unbroken"))))
    assert next(iter(unbroken.metrics)) == "pq"
    assert 0 <= unbroken.metrics["pq"] <= 1
    said = capsys.readouterr().err
    assert "training: 4 images" in said
    assert "segments; 4 classes" in said
    assert "step 2: pq" in said

    train_recipe(replace(recipe, trainer=replace(recipe.trainer, steps=2)))
    train_recipe(recipe, resume=True)
    for name in ("losses.jsonl", "validation.jsonl"):
        assert lines(tmp_path / "run" / name) == lines(tmp_path / "unbroken" / name)
    assert len(lines(tmp_path / "run" / "losses.jsonl")) == 4

    model = from_pretrained(tmp_path / "unbroken" / "best")
    assert [category["name"] for category in model.categories] == ["person", "sky", "dog", "grass"]
    assert [category["isthing"] for category in model.categories] == [True, False, True, False]
    assert "pq" in json.loads((tmp_path / "unbroken" / "best.json").read_text())


def test_images_come_as_the_options_say(arguments, panoptic):
    options = resolve_recipe(arguments[0], arguments[1:]).data
    whole = open_data_sets(replace(options, scale=None, flip=0.0), 65, None)
    validation = whole.validation
    assert whole.training.file_names[:2] == ["1.png", "3.png"]
    image, target = whole.training[(1, 1)]
    assert image.shape == (3, 65, 65)
    inside = target["segmentation"] >= 0  # 40 x 50 pixels, nearly all of segments, become 52 x 65, at the top
    assert inside[:52].float().mean() > 0.9
    assert not inside[52:].any()
    assert validation[0][1]["segmentation"].shape == SIZE
    assert not set(whole.training.file_names) & set(validation.file_names)
    moved = panoptic.maps.rename(panoptic.maps.with_name("elsewhere"))
    again = open_data_sets(replace(options, segmentations=str(moved)), 65, None)
    assert len(again.training) == 4


def test_the_rehearsal_has_a_void_crop_and_one_that_is_a_single_segment(arguments):
    recipe = resolve_recipe(arguments[0], arguments[1:])
    seen = []

    class Recorder(torch.nn.Module):
        def forward(self, images, targets):
            seen.extend((target["segmentation"].unique().tolist(), len(target["labels"])) for target in targets)

    rehearse(Recorder(), recipe)
    assert seen == [([0], 1), ([-1], 0)]
    for batch_size in (1, 2):
        changed = replace(recipe, data=replace(recipe.data, batch_size=batch_size))
        rehearse(build_model(changed, open_data_sets(changed.data, 65, None)), changed)


def test_a_file_of_the_other_task_is_refused(arguments, panoptic, tmp_path):
    instances = tmp_path / "instances.json"
    content = json.loads(panoptic.annotations.read_text())
    instances.write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(UserError, match=r"learns from COCO panoptic files, but \S*instances.json has no"):
        main([*arguments, f"--data.annotations={instances}"])
    with pytest.raises(UserError, match=r"or COCO instances files, but \S*panoptic.json is a COCO panoptic"):
        main(["deep_mac/tiny", *arguments[1:]])
    void = [{**entry, "segments_info": []} for entry in content["annotations"]]
    panoptic.annotations.write_text(json.dumps({**content, "annotations": void}))
    with pytest.raises(UserError, match="no image to train on has a usable segment"):
        main(arguments)
    assert not (tmp_path / "run").exists()


def test_a_run_starts_from_the_encoder_and_the_classes_of_other_weights(arguments, tmp_path, capsys):
    """As from a converted ImageNet checkpoint, whose encoder alone was trained."""
    names = [{"id": 1, "name": "dog", "isthing": True}, {"id": 2, "name": "unicorn", "isthing": True}]
    save_pretrained(small_model(categories=names), tmp_path / "imagenet")
    arguments += [f"--trainer.initial_weights={tmp_path / 'imagenet'}", "--optimizer.learning_rate=1e-12"]
    assert main([*arguments, "--trainer.steps=1", "--trainer.ema_decay=null"]) == 0
    assert "the rows of 1 are copied, those of 3 start anew (person, sky, grass)" in capsys.readouterr().err
    first, last = from_pretrained(tmp_path / "imagenet").state_dict(), from_pretrained(tmp_path / "run" / "last")
    for name, weight in last.named_parameters():
        if "encoder" in name:
            torch.testing.assert_close(weight, first[name])
    logits = last.network.class_head.logits
    theirs = first["network.class_head.logits.weight"]
    torch.testing.assert_close(logits.weight[2], theirs[0])  # dog
    torch.testing.assert_close(logits.weight[-1], theirs[-1])  # void
