"""A predicted map as COCO's PNG and JSON, and its things as instances."""

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask

from maskwright.structures import Category, PanopticPrediction, SegmentInfo

CATEGORIES = [
    Category(id=44, name="sky", isthing=False),
    Category(id=7, name="dog", isthing=True),
    Category(id=9, name="cat", isthing=True),
]


def prediction(ids: torch.Tensor, labels: dict[int, int]) -> PanopticPrediction:
    infos = [
        SegmentInfo(
            id=identity,
            label=label,
            category_id=CATEGORIES[label]["id"],
            isthing=label > 0,
            score=0.5 + label / 10,
            area=int((ids == identity).sum()),
        )
        for identity, label in labels.items()
    ]
    height, width = ids.shape
    return PanopticPrediction(ids.int(), infos, (height, width), CATEGORIES)


def test_to_coco():
    ids = torch.tensor([[0, 300, 300, 9], [0, 300, 0, 9]])
    colours, annotation = prediction(ids, {9: 0, 300: 2}).to_coco(17, "a/17.png")
    assert colours.dtype == np.uint8
    assert colours[0].tolist() == [[0, 0, 0], [44, 1, 0], [44, 1, 0], [9, 0, 0]]
    assert annotation == {
        "image_id": 17,
        "file_name": "a/17.png",
        "segments_info": [
            {"id": 9, "category_id": 44, "area": 2, "bbox": [3, 0, 1, 2], "iscrowd": 0, "score": 0.5},
            {"id": 300, "category_id": 9, "area": 3, "bbox": [1, 0, 2, 2], "iscrowd": 0, "score": 0.7},
        ],
    }


def test_nothing_found():
    empty = prediction(torch.zeros(2, 3), {})
    colours, annotation = empty.to_coco("x", "x.png")
    assert (len(empty), colours.any(), annotation["segments_info"]) == (0, False, [])
    things = empty.things()
    assert len(things) == 0
    assert things.masks.shape == (0, 2, 3)


@pytest.mark.parametrize("seed", range(5))
def test_things_are_exactly_the_segments(seed):
    """Ragged segments of all shapes: the masks pasted from the boxes' grids are those of the map."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 6, (9, 13), generator=generator)
    ids = coarse.repeat_interleave(3, 0).repeat_interleave(2, 1)[: 20 + seed]
    ids[torch.rand(ids.shape, generator=generator) < 0.2] = 3
    found = prediction(ids * 1000, {1000: 1, 2000: 0, 3000: 2, 4000: 1, 5000: 0})
    things = found.things()
    assert things.labels.tolist() == [1, 2, 1]
    assert things.scores.tolist() == pytest.approx([0.6, 0.7, 0.6])
    for mask, box, identity in zip(things.masks, things.boxes.tolist(), (1000, 3000, 4000), strict=True):
        expected = found.segmentation == identity
        assert torch.equal(mask, expected)
        rows, columns = expected.nonzero(as_tuple=True)
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    for entry, identity in zip(things.to_coco(1), (1000, 3000, 4000), strict=True):
        assert coco_mask.area(entry["segmentation"]) == (found.segmentation == identity).sum()
        assert entry["category_id"] in (7, 9)


@pytest.mark.parametrize("seed", range(3))
def test_noise_in_boxes_of_different_sizes_is_exact(seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(20, 40, dtype=torch.int64)
    for identity, (top, left, height, width) in {5: (1, 0, 18, 18), 6: (3, 18, 7, 2), 7: (0, 20, 20, 19)}.items():
        noise = torch.rand(height, width, generator=generator) < 0.5
        ids[top : top + height, left : left + width] = identity * noise
    found = prediction(ids, {5: 1, 6: 1, 7: 2})
    for mask, identity in zip(found.things().masks, (5, 6, 7), strict=True):
        assert torch.equal(mask, ids == identity)


def test_a_smaller_grid_is_coarser():
    ids = torch.zeros(40, 40)
    ids[5:25, 10:30] = 4
    things = prediction(ids, {4: 1}).things(mask_size=8)
    assert things.mask_probabilities.shape == (1, 8, 8)
    assert torch.equal(things.masks[0], ids == 4)  # a full box is exact in any grid
