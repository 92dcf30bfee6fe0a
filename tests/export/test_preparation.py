"""Pre-processing as a graph: what `ImageBatch` does, for pictures of every size."""

from __future__ import annotations

import pytest
import torch

from maskwright.export.preparation import Preparation
from maskwright.nn.image_batch import ImageBatch

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("resize", "channel_order", "size_rule"),
    [
        ("antialias", "rgb", "round"),
        ("half_pixel", "bgr", "round"),
        ("tf1", "rgb", "round"),
        ("align_corners", "rgb", "floor_twice"),
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (5, 300), (48, 64), (200, 333), (65, 65), (333, 500)])
def test_it_does_what_the_model_s_own_does(resize, channel_order, size_rule, size):
    batch = ImageBatch(65, resize, MEAN, STD, channel_order, size_rule, padding=(0.1, 0.2, 0.3))
    picture = torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected, (geometry,) = batch([picture.permute(2, 0, 1).contiguous()])
    image, scale, resized_size = Preparation(batch)(picture)
    torch.testing.assert_close(image, expected, rtol=0, atol=2e-4)
    assert tuple(resized_size[0].tolist()) == geometry.resized_size
    assert scale.tolist() == pytest.approx(geometry.scale)
