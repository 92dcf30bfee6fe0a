import json
import os
import signal
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NAMES = ("person", "dog", "kite")


def _annotation(identity: int, image: int, category: int, box: tuple[int, int, int, int], *, mask: bool) -> dict:
    left, top, width, height = box
    polygon = [left, top + height, left + width / 2, top, left + width, top + height]
    entry = {"id": identity, "image_id": image, "category_id": category, "bbox": list(box), "iscrowd": 0}
    entry["area"] = width * height / 2
    return {**entry, "segmentation": [polygon]} if mask else entry


@pytest.fixture(scope="session")
def coco(tmp_path_factory) -> tuple[Path, Path]:
    """A folder of 12 photographs of 80 x 60 pixels and their file; image 6 is empty, kites have boxes only."""
    root = tmp_path_factory.mktemp("coco")
    (root / "images").mkdir()
    generator = np.random.default_rng(0)
    images, annotations = [], []
    for image in range(12):
        name = f"{image:03d}.png"
        Image.fromarray(generator.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(root / "images" / name)
        images.append({"id": image, "file_name": name, "width": 80, "height": 60})
        for category in range(3 if image != 6 else 0):
            box = (5 + 20 * category, 5 + image, 18 + image, 30)
            annotations.append(_annotation(len(annotations) + 1, image, category + 1, box, mask=category != 2))
    file = root / "instances.json"
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(NAMES)]
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return root / "images", file


RECIPE = """
family: deep_mac
model:
  image_size: 64
  backbone: resnet18_fpn
  mask_head: resnet4
  mask_head_width: 8
  mask_size: 16
  embedding_width: 64
  box_jitter_ratio: 0.1
  width: 0.0625
data: {validation_share: 0.25, mask_classes: person, batch_size: 2, num_workers: 0, scale: [0.5, 1.2]}
optimizer: {learning_rate: 0.002, warmup_steps: 2}
trainer: {steps: 6, validate_every_steps: 4, ema_decay: 0.9, accelerator: cpu}
"""


@pytest.fixture
def arguments(coco, tmp_path) -> list[str]:
    """`train` arguments for a model of a few thousand weights on the `coco` files, into `tmp_path / "run"`."""
    recipe = tmp_path / "toy.yaml"
    recipe.write_text(RECIPE)
    images, file = coco
    run = tmp_path / "run"
    return [str(recipe), f"--data.images={images}", f"--data.annotations={file}", f"--trainer.output={run}"]


@pytest.fixture
def stop_after(monkeypatch):
    """`with stop_after(STEP, signal=Ctrl-C's)`: sent while the losses of that optimizer step are computed."""
    from maskwright.training.task import TrainingTask

    original = TrainingTask.training_step

    @contextmanager
    def sending(step, number=signal.SIGINT):
        def training_step(self, batch, batch_idx):
            if self.global_step == step - 1 and batch_idx % self.trainer.accumulate_grad_batches == 0:
                os.kill(os.getpid(), number)
            return original(self, batch, batch_idx)

        with monkeypatch.context() as patch:
            patch.setattr(TrainingTask, "training_step", training_step)
            yield

    return sending
