"""Values that do not fit are found before a run has a folder, and finding them changes nothing."""

import copy
from dataclasses import replace

import pytest
import torch

from maskwright.errors import UserError
from maskwright.training import engine
from maskwright.training.data_sets import open_data_sets
from maskwright.training.engine import build_model
from maskwright.training.recipes import resolve_recipe
from maskwright.training.rehearsal import rehearse
from maskwright.training.run import main


@pytest.mark.parametrize(
    ("extra", "parts"),
    [
        (["--data.crop_size=80"], ["80 x 80", "data.crop_size 80", "model.image_size 64", "32"]),
        # The coarsest maps of the only image are 1 x 1 pixel: no batch norm can be trained on them.
        (["--model.image_size=32", "--data.batch_size=1"], ["32 x 32", "data.batch_size 1", "more than 1 value"]),
        (["--model.image_size=0"], ["model.image_size 0", "at least 1"]),
        (["--model.image_mean=[0]"], ["model", "mean", "[0"]),
        (["--model.pixel_embedding_dim=-1"], ["model", "-1"]),
        (["--trainer.seed=99999999999999999999"], ["trainer.seed", "2**64", "99999999999999999999"]),
    ],
)
def test_values_that_do_not_fit_are_named_before_anything_is_written(arguments, tmp_path, extra, parts):
    with pytest.raises(UserError) as caught:
        main([*arguments, *extra])
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def recipe(arguments):
    return resolve_recipe(arguments[0], [*arguments[1:], "--model.detector=centernet"])


def with_batch_size(recipe, batch_size):
    return replace(recipe, data=replace(recipe.data, batch_size=batch_size))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_model_and_the_random_state_stay_as_they_were(recipe, batch_size):
    model = build_model(recipe, open_data_sets(recipe.data, 64, None))
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    rehearse(model, with_batch_size(recipe, batch_size))
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_one_crop_has_an_object_and_one_has_none(recipe):
    batches = []

    class Recorder(torch.nn.Module):
        def forward(self, images, targets):
            batches.append(
                [(tuple(image.shape), len(target["boxes"])) for image, target in zip(images, targets, strict=True)]
            )

    rehearse(Recorder(), recipe)
    assert batches == [[((3, 64, 64), 1), ((3, 64, 64), 0)]]
    rehearse(Recorder(), with_batch_size(recipe, 1))
    assert batches[1:] == [[((3, 64, 64), 1)], [((3, 64, 64), 0)]]


def test_only_a_new_run_is_rehearsed(arguments, monkeypatch):
    rehearsed = []
    monkeypatch.setattr(engine, "rehearse", lambda model, recipe: rehearsed.append(recipe.trainer.steps))
    main([*arguments, "--trainer.steps=1"])
    main([*arguments, "--trainer.steps=2", "--resume", "last"])
    assert rehearsed == [1]
