import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from maskwright.data.dataset import SegmentationDataset
from maskwright.errors import UserError
from maskwright.models.hub import from_pretrained
from maskwright.structures import Target
from maskwright.training.data_sets import DataSets, open_data_sets
from maskwright.training.engine import train
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


class Squares(SegmentationDataset):
    """Images of 80 x 80 pixels with one square each; what a person writes to train on data of their own."""

    task = "instance"

    def __init__(self, count: int, masks: bool = True) -> None:
        self.categories = [{"id": 4, "name": "square"}]
        self._count = count
        self._masks = masks

    def __len__(self) -> int:
        return self._count

    def read_sample(self, index: int) -> tuple[torch.Tensor, Target]:
        inside = slice(20, 50 + index)
        image, masks = torch.zeros(3, 80, 80, dtype=torch.uint8), torch.zeros(1, 80, 80, dtype=torch.bool)
        image[:, inside, inside] = 200
        masks[:, inside, inside] = self._masks
        return image, Target(
            boxes=torch.tensor([[20.0, 20, 50 + index, 50 + index]]),
            labels=torch.tensor([0]),
            masks=masks,
            has_mask=torch.tensor([self._masks]),
            iscrowd=torch.tensor([False]),
            ids=torch.tensor([index]),
            image_id=index,
        )


@pytest.fixture
def recipe(arguments):
    kept = [argument for argument in arguments[1:] if not argument.startswith("--data.")]
    return resolve_recipe(arguments[0], [*kept, "--trainer.steps=2"])


def test_a_data_set_of_ones_own_is_trained_and_validated_on(recipe, capsys):
    result = train(recipe, data_sets=DataSets(Squares(4), Squares(2)))
    assert result.step == 2
    assert 0 <= result.metrics["mask_iou"] <= 1
    assert "training: 4 images, 4 instances with masks" in capsys.readouterr().err
    model = from_pretrained(result.folder / "last")
    assert (model.categories, model.mask_classes) == ([{"id": 4, "name": "square"}], ["square"])


def test_data_sets_that_do_not_fit_are_refused(recipe):
    other = Squares(2)
    other.categories = [{"id": 4, "name": "circle"}]
    with pytest.raises(UserError, match="the same categories"):
        train(recipe, data_sets=DataSets(Squares(4), other))
    with pytest.raises(UserError, match="Squares: no image to train on has an instance with a usable mask"):
        train(recipe, data_sets=DataSets(Squares(4, masks=False), Squares(2)))
    other = Squares(2)
    other.task = "panoptic"
    with pytest.raises(UserError, match=r"of the tasks 'instance' \(training\) and 'panoptic' \(validation\)"):
        train(recipe, data_sets=DataSets(Squares(4), other))
