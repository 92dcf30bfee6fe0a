import json
import os
import signal
from dataclasses import replace

import pytest
import torch

from maskwright.models.hub import from_pretrained
from maskwright.training.recipes import resolve_recipe
from maskwright.training.run import train


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(directory):
    return [tuple(line.items()) for line in lines(directory / "losses.jsonl")]


def changed(recipe, **trainer):
    return replace(recipe, trainer=replace(recipe.trainer, **trainer))


@pytest.fixture
def recipe(arguments):
    return resolve_recipe(arguments[0], arguments[1:])


def test_a_run_leaves_its_recipe_records_checkpoint_and_weights(recipe, tmp_path):
    result = train(recipe)

    run = tmp_path / "run"
    assert (result.folder, result.step, result.signal_number) == (run, 6, None)
    assert resolve_recipe(run / "recipe.yaml").model == recipe.model
    assert [line["step"] for line in lines(run / "losses.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines(run / "validation.jsonl")] == [4, 6]
    model = from_pretrained(run / "last")
    assert [category["name"] for category in model.categories] == ["person", "dog", "kite"]
    assert model.mask_classes == ["person"]
    assert any(entry.name.startswith("events") for entry in (run / "tensorboard").iterdir())


def test_saved_weights_are_the_averaged_ones_and_the_checkpoint_is_plain_data(recipe, tmp_path):
    train(recipe)
    checkpoint = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    saved = from_pretrained(tmp_path / "run" / "last").state_dict()
    name = "network.pixel_embedding.0.0.weight"
    name = next(key for key in saved if key.endswith("weight"))

    assert torch.equal(saved[name], checkpoint["state_dict"][f"model.{name}"])
    assert not torch.equal(saved[name], checkpoint["current_model_state"][f"model.{name}"])
    assert "mask_classes: person" in checkpoint["recipe"]


def test_seen_and_unseen_classes_are_told_apart_and_box_only_classes_do_not_count(recipe, tmp_path):
    metrics = train(recipe).metrics
    assert metrics["instances_seen"] == metrics["instances_unseen"] > 0


def test_best_is_the_validation_with_the_highest_mask_iou(recipe, tmp_path):
    train(changed(recipe, steps=8, validate_every_steps=2))
    scores = {line["step"]: line["mask_iou"] for line in lines(tmp_path / "run" / "validation.jsonl")}
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    assert best["mask_iou"] == max(scores.values())
    assert scores[best["step"]] == best["mask_iou"]


@pytest.mark.parametrize(("accumulate", "ema_decay"), [(1, None), (2, 0.9)])
def test_a_stopped_and_resumed_run_has_the_losses_of_an_unbroken_one(
    recipe, tmp_path, monkeypatch, accumulate, ema_decay
):
    recipe = changed(recipe, accumulate=accumulate, ema_decay=ema_decay, steps=9, validate_every_steps=3)
    train(changed(recipe, output=str(tmp_path / "unbroken")))
    for stop_at in (3, 5):
        _stop_after(monkeypatch, stop_at)
        stopped = train(recipe, resume=stop_at > 3)
        # Step 3 is to be validated: stopped there, the run goes back by one step, so that nothing is left out.
        assert (stopped.step, stopped.signal_number) == (2 if stop_at == 3 else stop_at, signal.SIGINT)
    monkeypatch.undo()
    train(recipe, resume=True)

    assert losses(tmp_path / "run") == losses(tmp_path / "unbroken")
    assert lines(tmp_path / "run" / "validation.jsonl") == lines(tmp_path / "unbroken" / "validation.jsonl")


def _stop_after(monkeypatch, step):
    """Press Ctrl-C while the losses of optimizer step `step` are computed."""
    from maskwright.training.task import TrainingTask

    def training_step(self, batch, batch_idx):
        if self.global_step == step - 1 and batch_idx % self.trainer.accumulate_grad_batches == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch, batch_idx)

    monkeypatch.undo()
    original = TrainingTask.training_step
    monkeypatch.setattr(TrainingTask, "training_step", training_step)
