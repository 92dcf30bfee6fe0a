"""Run lengths stand for planes: crops, flips, selection, areas, extents."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as reference_mask

from maskwright.structures import EncodedMasks, Target, check_targets, encoded_masks, select_rows

HEIGHT, WIDTH = 11, 13


def planes_of(seed: int, count: int = 3) -> torch.Tensor:
    """Noise, an empty mask, and a full one."""
    noise = torch.rand(count - 2, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed)) < 0.6
    return torch.cat([noise, torch.zeros(1, HEIGHT, WIDTH).bool(), torch.ones(1, HEIGHT, WIDTH).bool()])


def target_of(masks) -> Target:
    count = len(masks)
    return Target(
        boxes=torch.tensor([[0.0, 0.0, 5.0, 5.0]]).repeat(count, 1),
        labels=torch.zeros(count, dtype=torch.int64),
        masks=masks,
        has_mask=torch.ones(count, dtype=torch.bool),
        iscrowd=torch.zeros(count, dtype=torch.bool),
        ids=torch.arange(count),
        image_id=5,
    )


@given(st.integers(0, 999), *[st.integers(-4, 16)] * 4)
@settings(max_examples=100, deadline=None)
def test_a_crop_is_the_crop_of_the_planes(seed, a, b, c, d):
    (x1, x2), (y1, y2) = sorted((a, b)), sorted((c, d))
    planes = planes_of(seed)
    padded = torch.nn.functional.pad(planes, (4, 4, 4, 6))
    crop = EncodedMasks.from_planes(planes).crop(x1, y1, x2, y2)
    assert torch.equal(crop, padded[:, y1 + 4 : y2 + 4, x1 + 4 : x2 + 4])
    # Of a flipped image the crop at the mirrored columns is the flipped crop.
    flipped = EncodedMasks.from_planes(planes.flip(-1)).crop(WIDTH - x2, y1, WIDTH - x1, y2)
    assert torch.equal(flipped, crop.flip(-1))


def test_it_stands_for_the_planes():
    planes = planes_of(0)
    masks = EncodedMasks.from_planes(planes)
    assert len(masks) == 3
    assert masks.shape == tuple(planes.shape)
    assert torch.equal(masks.planes(), planes)
    assert torch.equal(masks.areas(), planes.flatten(1).sum(1))
    assert masks.extents()[1:].tolist() == [[0, 0, 0, 0], [0, 0, WIDTH, HEIGHT]]
    for rows in (torch.tensor([2, 0]), torch.tensor([False, True, True]), torch.zeros(0, dtype=torch.int64)):
        assert torch.equal(masks[rows].planes(), planes[rows])
    decoded = [reference_mask.decode(code) for code in masks.to_coco()]
    assert np.array_equal(np.stack(decoded), planes.numpy())
    # Loader workers hand it over.
    assert torch.equal(pickle.loads(pickle.dumps(masks)).planes(), planes)


def test_no_masks():
    masks = EncodedMasks([], (HEIGHT, WIDTH))
    assert masks.planes().shape == masks.shape == (0, HEIGHT, WIDTH)
    assert masks.extents().shape == (0, 4)
    assert masks.areas().tolist() == masks.to_coco() == []


def test_rows_of_a_target_are_selected_in_either_form():
    planes = planes_of(1)
    keep = torch.tensor([True, False, True])
    for masks in (planes, EncodedMasks.from_planes(planes)):
        selected = select_rows(target_of(masks), keep)
        assert selected["ids"].tolist() == [0, 2]
        assert torch.equal(encoded_masks(selected).planes(), planes[keep])


def test_a_model_learns_from_planes_only():
    image, planes = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8), planes_of(2)
    check_targets([image], [target_of(planes)])
    with pytest.raises(TypeError, match=r"image_id 5.*'masks' holds run lengths.*planes of the crop"):
        check_targets([image], [target_of(EncodedMasks.from_planes(planes))])
