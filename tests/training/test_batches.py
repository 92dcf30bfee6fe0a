import json
from dataclasses import replace
from pathlib import Path

import pytest

from maskwright.training.batches import open_data_sets
from maskwright.training.recipes import resolve_recipe


@pytest.fixture
def options(arguments):
    return resolve_recipe(arguments[0], arguments[1:]).data


def test_the_share_for_validation_is_never_trained_on(options):
    sets = open_data_sets(options, 64, None)
    training, validation = set(sets.training.file_names), set(sets.validation.file_names)
    assert not training & validation
    assert len(training | validation) == 12


def test_a_validation_file_replaces_the_share_and_keeps_all_masks(options):
    sets = open_data_sets(replace(options, validation_annotations=options.annotations), 64, None)
    assert (len(sets.training), len(sets.validation)) == (12, 12)
    assert sets.validation.mask_classes == ["person", "dog", "kite"]
    assert sets.training.mask_classes == ["person"]


def test_training_crops_have_the_models_size_or_the_one_asked_for(options):
    image, target = open_data_sets(options, 64, None).training[(0, 1)]
    assert image.shape == (3, 64, 64)
    assert target["masks"].shape[1:] == (64, 64)
    image, _ = open_data_sets(replace(options, crop_size=32), 64, None).training[(0, 1)]
    assert image.shape == (3, 32, 32)


def test_crowds_are_no_instances(options, tmp_path):
    content = json.loads(Path(options.annotations).read_text())
    first = next(entry for entry in content["annotations"] if entry["category_id"] == 1)
    first["iscrowd"] = 1
    (tmp_path / "crowd.json").write_text(json.dumps(content))
    counts = [
        open_data_sets(replace(options, validation_annotations=str(file)), 64, None).validation.count_instances()
        for file in (options.annotations, tmp_path / "crowd.json")
    ]
    assert counts == [(22, 11), (21, 11)]
