"""Two processes on a CPU: different images, the same weights after every step."""

import json
import subprocess
import sys

import pytest
import torch

from maskwright.data.dataset import split_by_hash
from maskwright.training.data_sets import open_data_sets
from maskwright.training.engine import build_model
from maskwright.training.recipes import resolve_recipe

SCRIPT = """
import sys
from pathlib import Path
import torch
from maskwright.training.run import main
from maskwright.training.task import TrainingTask

def on_train_end(self):
    weights = dict(self.model.named_parameters())
    torch.save({"weights": weights, "seen": seen}, Path(sys.argv[0]).parent / f"rank{self.global_rank}.pt")

def training_step(self, batch, batch_idx):
    seen.append([(target["image_id"], int(target["has_mask"].sum())) for target in batch[1]])
    return original(self, batch, batch_idx)

seen, original = [], TrainingTask.training_step
TrainingTask.training_step, TrainingTask.on_train_end = training_step, on_train_end
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="gloo over localhost")
def test_two_processes_see_different_images_and_keep_the_same_weights(arguments, tmp_path):
    training, validation = split_by_hash([f"{image:03d}.png" for image in range(12)], 0.25)
    assert 6 in training, "the image without boxes is to be trained on"
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    steps = len(training) // 2
    values = {"devices": 2, "steps": steps, "validate_every_steps": steps, "ema_decay": "null"}
    arguments = [*arguments, "--model.detector=centernet", "--data.batch_size=1"]
    arguments += [f"--trainer.{key}={value}" for key, value in values.items()]
    recipe = resolve_recipe(arguments[0], arguments[1:])
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), *arguments],
        check=False, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr

    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    seen = [dict(image for batch in rank["seen"] for image in batch) for rank in (first, second)]
    assert sorted([*seen[0], *seen[1]]) == training
    assert {**seen[0], **seen[1]}[6] == 0
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name]), name
    untrained = build_model(recipe, open_data_sets(recipe.data, 64, None)).state_dict()
    assert not any(torch.equal(weight, untrained[name]) for name, weight in first["weights"].items())
    validated = json.loads((tmp_path / "run" / "validation.jsonl").read_text().splitlines()[-1])
    assert validated["instances"] == 2 * len(validation)
    assert 0 <= validated["box_ap"] <= 1  # a metric that counted an image twice would refuse it
    assert run.stdout.strip() == str(tmp_path / "run" / "best")
