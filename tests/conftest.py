"""What several test folders share: a model that needs no weights."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from torch import Tensor, nn

from maskwright.structures import ImageFeatures, ImageGeometry, InstancePrediction

# Of this process and of those that tests start. The networks of the tests are small, and threads that wait for each
# other on a busy machine cost minutes.
THREADS = os.environ.get("MASKWRIGHT_TEST_THREADS", "1")
os.environ["OMP_NUM_THREADS"] = THREADS

# A shell starts background jobs with Ctrl-C ignored, which they pass on to all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _threads() -> None:
    """As many for each test, also after one of a benchmark, which sets its own."""
    torch.set_num_threads(int(THREADS))


class EllipseModel(nn.Module):
    """Box-prompted, without a detector: the mask of a box is the ellipse inscribed in it.

    encoded: how many images it has seen.
    told: the labels of every image that it was prompted on, or None.
    """

    task = "instance"
    needs_boxes = True
    categories = ()
    mask_classes = ()

    def __init__(self, mask_size: int = 32) -> None:
        super().__init__()
        self.mask_size = mask_size
        self.encoded = 0
        self.told: list[list[int] | None] = []

    def encode(self, images: list[Tensor]) -> ImageFeatures:
        self.encoded += len(images)
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        return ImageFeatures({}, tuple(ImageGeometry(size, size, size) for size in sizes), tuple(images))

    def masks_from_boxes(
        self, features: ImageFeatures, boxes: list[Tensor], labels: list[Tensor] | None = None
    ) -> list[InstancePrediction]:
        self.told += [None] * len(boxes) if labels is None else [rows.tolist() for rows in labels]
        steps = (torch.arange(self.mask_size) + 0.5) / self.mask_size * 2 - 1
        ellipse = (steps[:, None] ** 2 + steps[None] ** 2 <= 1).float()
        return [
            InstancePrediction(
                boxes=rows,
                labels=torch.full((len(rows),), -1),
                scores=torch.ones(len(rows)),
                mask_scores=torch.full((len(rows),), 0.75),
                mask_probabilities=ellipse.repeat(len(rows), 1, 1),
                image_size=geometry.original_size,
                frame="pixel",
            )
            for rows, geometry in zip(boxes, features.geometry, strict=True)
        ]


@pytest.fixture
def ellipse_model() -> EllipseModel:
    return EllipseModel()
