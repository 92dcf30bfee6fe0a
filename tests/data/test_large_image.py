"""A picture of 12,000 x 12,000 pixels with 400 masks: nothing as large as one plane is made between file and crop."""

import tracemalloc

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from maskwright.data.segmentations import SegmentationPacker
from maskwright.data.transforms import Square
from maskwright.evaluation.mask_iou import MaskIoU
from maskwright.structures import EncodedMasks, InstancePrediction, Target

SIZE, COUNT = 12_000, 400
LIMIT = 20e6  # bytes; a plane has 144e6


class LargestTensor(TorchDispatchMode):
    """Watches the size in bytes of all tensors that are made."""

    bytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return result


@pytest.fixture
def small_allocations():
    tracemalloc.start()
    with LargestTensor() as largest:
        yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < LIMIT
    assert largest.bytes < LIMIT


def roofs() -> Target:
    """Polygons, compressed and uncompressed run lengths in turn, each 40 x 30 pixels; the last one fills the image."""
    packer, boxes = SegmentationPacker(), []
    for number in range(COUNT - 1):
        x, y = 580 * (number % 20) + 20, 580 * (number // 20) + 20
        boxes.append([x, y, x + 40, y + 30])
        polygon = [x, y, x + 40, y, x + 40, y + 30, x, y + 30]
        gaps = [x * SIZE + y, *[30, SIZE - 30] * 39, 30]
        counts = [*gaps, SIZE * SIZE - sum(gaps)]
        reason = packer.add({"size": [SIZE, SIZE], "counts": counts} if number % 2 else [polygon], (SIZE, SIZE))
        assert reason is None
    packer.add([[0, 0, SIZE, 0, SIZE, SIZE, 0, SIZE]], (SIZE, SIZE))
    masks = EncodedMasks(packer.pack().encode(range(COUNT), (SIZE, SIZE)), (SIZE, SIZE))
    return Target(
        boxes=torch.tensor([*boxes, [0, 0, SIZE, SIZE]], dtype=torch.float32),
        labels=torch.zeros(COUNT, dtype=torch.int64),
        masks=masks,
        has_mask=masks.areas() > 0,
        iscrowd=torch.zeros(COUNT, dtype=torch.bool),
        ids=torch.arange(COUNT),
        image_id=1,
    )


@pytest.mark.usefixtures("small_allocations")
def test_masks_are_cropped_without_planes():
    target = roofs()
    assert target["masks"].areas().tolist() == [1200] * (COUNT - 1) + [SIZE * SIZE]
    whole = Square.whole(SIZE, SIZE, 128).crop_target(target, min_box_size=0.1)
    assert whole["masks"].shape[1:] == (128, 128)
    assert whole["masks"][-1].all()
    near = Square(0, 0, 600, SIZE, SIZE, 600).crop_target(target)
    assert near["boxes"].tolist() == [[20, 20, 60, 50], [0, 0, 600, 600]]
    assert near["masks"].flatten(1).sum(1).tolist() == [1200, 600 * 600]


@pytest.mark.usefixtures("small_allocations")
def test_masks_are_measured_without_planes():
    target = roofs()
    boxes = target["boxes"][:-1]
    count = len(boxes)
    prediction = InstancePrediction(
        boxes=boxes + torch.tensor([0.0, 0.0, 0.0, 30.0]),  # twice as high
        labels=torch.zeros(count, dtype=torch.int64),
        scores=torch.ones(count),
        mask_scores=torch.ones(count),
        mask_probabilities=torch.ones(count, 4, 4),
        image_size=(SIZE, SIZE),
        frame="pixel",
    )
    metric = MaskIoU([{"id": 1, "name": "roof"}], seen=[])
    roofs_alone = {key: value if key == "image_id" else value[torch.arange(count)] for key, value in target.items()}
    metric.update([prediction], [roofs_alone])
    assert metric.compute()["mask_iou"] == pytest.approx(0.5)
    assert np.array_equal(metric.state()[:, 2].numpy(), [1200] * count)
