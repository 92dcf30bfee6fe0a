"""Pictures of validations: what is on which side, and that each validation of a run has them."""

from __future__ import annotations

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maskwright.structures import InstancePrediction, PanopticPrediction, PanopticTarget, SegmentInfo, Target
from maskwright.training.run import main
from maskwright.training.validation_pictures import draw_beside_truth

GREY = torch.full((3, 40, 60), 90, dtype=torch.uint8)


def painted(picture) -> tuple[np.ndarray, np.ndarray]:
    """Which pixels of the left and of the right half are not grey."""
    changed = (np.asarray(picture) != 90).any(axis=2)
    return changed[:, :60], changed[:, 60:]


def test_instances_without_crowds_and_masks_that_nobody_drew():
    masks = torch.zeros(3, 40, 60, dtype=torch.bool)
    masks[0, 10:20, 10:20] = True
    masks[1] = True
    target = Target(
        boxes=torch.tensor([[10.0, 10, 20, 20], [0, 0, 60, 40], [40, 10, 50, 20]]),
        labels=torch.zeros(3, dtype=torch.int64),
        masks=masks,
        has_mask=torch.tensor([True, True, False]),
        iscrowd=torch.tensor([False, True, False]),
        ids=torch.arange(3),
        image_id=1,
    )
    prediction = InstancePrediction(
        boxes=target["boxes"][[0, 2]],
        labels=torch.zeros(2, dtype=torch.int64),
        scores=torch.ones(2),
        mask_scores=torch.ones(2),
        mask_probabilities=torch.ones(2, 8, 8),
        image_size=(40, 60),
        frame="pixel",
    )
    left, right = painted(draw_beside_truth(GREY, prediction, target))
    assert (left[10:20, 10:20].all(), left[10:20, 40:50].all(), left.sum()) == (True, True, 200)
    assert (right[10:20, 10:20].all(), right.sum()) == (True, 100)


def test_maps_are_compared_by_class():
    categories = [{"id": 3, "name": "dog", "isthing": True}, {"id": 9, "name": "sky", "isthing": False}]
    segmentation = torch.zeros(40, 60, dtype=torch.int32)
    segmentation[:, 30:] = 5
    sky = SegmentInfo(id=5, label=1, category_id=9, isthing=False, score=0.5, area=1200)
    prediction = PanopticPrediction(segmentation, [sky], (40, 60), categories)
    target = PanopticTarget(
        segmentation=(segmentation > 0).int() - 1,
        labels=torch.tensor([1]),
        iscrowd=torch.tensor([False]),
        ids=torch.tensor([70]),
        image_id=1,
    )
    picture = draw_beside_truth(GREY, prediction, target)
    colours = np.asarray(picture)
    assert (colours[35, 40] == colours[35, 100]).all()
    assert (colours[35, 40] != 90).any()
    assert (colours[35, [10, 70]] == 90).all()


def test_every_validation_of_a_run_has_pictures(arguments, tmp_path):
    assert main([*arguments, "--trainer.steps=2", "--trainer.validate_every_steps=1"]) == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"images": 0}).Reload()
    tags = events.Tags()["images"]
    assert "validation/0" in tags
    assert [(image.step, image.width, image.height) for image in events.Images("validation/0")] == [
        (1, 160, 60),
        (2, 160, 60),
    ]
