"""CenterNet's targets and decoding, by hand and as each other's inverse."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.ops.heatmap import (
    center_cells,
    center_heatmap,
    decode_boxes,
    gaussian_radius,
    keep_peaks,
    size_and_offset_targets,
    top_k_cells,
)


def test_radius_by_hand():
    # A 10 x 10 box at overlap 0.5, the three roots over 2 (not over 2a):
    cases = [
        (20 + math.sqrt(400 - 4 * 100 / 3)) / 2,
        (40 + math.sqrt(1600 - 16 * 50)) / 2,
        (-20 + math.sqrt(400 + 8 * 50)) / 2,
    ]
    assert gaussian_radius(torch.tensor([[10.0, 10.0]]), 0.5).item() == pytest.approx(min(cases))
    assert min(cases) == cases[2]


def test_radius_grows_with_the_box_and_shrinks_with_the_overlap():
    sizes = torch.tensor([[2.0, 3.0], [4.0, 6.0], [40.0, 60.0]])
    radius = gaussian_radius(sizes)
    torch.testing.assert_close(radius[1:], radius[:1] * torch.tensor([2.0, 20.0]))
    assert (gaussian_radius(sizes, 0.9) < radius).all()
    assert gaussian_radius(torch.zeros(1, 2)).tolist() == [0.0]


def test_heatmap_by_hand():
    # One cell: radius below 1, sigma 1/6. The centre (2.9, 1.4) lies in the cell in column 2, row 1.
    heatmap = center_heatmap(torch.tensor([[2.4, 0.9, 3.4, 1.9]]), torch.tensor([1]), 3, (4, 5))
    assert heatmap.shape == (3, 4, 5)
    assert heatmap[[0, 2]].abs().max() == 0
    assert heatmap[1, 1, 2] == 1
    assert heatmap[1, 1, 1].item() == pytest.approx(math.exp(-18), rel=1e-4)
    assert heatmap[1, 3, 3].item() == pytest.approx(math.exp(-18 * 5), rel=1e-4)


def test_a_wide_gaussian_has_the_radius_s_sigma():
    box = torch.tensor([[1.0, 1.0, 41.0, 31.0]])
    radius = math.floor(gaussian_radius(torch.tensor([[30.0, 40.0]])).item())
    assert radius > 2
    heatmap = center_heatmap(box, torch.tensor([0]), 1, (48, 48))[0]
    sigma = (2 * radius + 1) / 6
    assert heatmap[16, 21] == 1
    assert heatmap[16, 21 + 3].item() == pytest.approx(math.exp(-9 / (2 * sigma**2)), rel=1e-5)
    assert heatmap[16 - 2, 21 - 3].item() == pytest.approx(math.exp(-13 / (2 * sigma**2)), rel=1e-5)


def test_of_two_boxes_of_a_class_the_larger_value_counts():
    boxes = torch.tensor([[2.0, 2.0, 14.0, 12.0], [6.0, 3.0, 20.0, 16.0]])
    alone = [center_heatmap(box[None], torch.tensor([0]), 1, (20, 24)) for box in boxes]
    together = center_heatmap(boxes, torch.tensor([0, 0]), 1, (20, 24))
    torch.testing.assert_close(together, torch.maximum(*alone))
    assert (together == 1).sum() == 2


def test_no_box_is_an_empty_heatmap():
    heatmap = center_heatmap(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 2, (3, 4))
    assert heatmap.tolist() == torch.zeros(2, 3, 4).tolist()


def test_cells_sizes_and_offsets():
    boxes = torch.tensor([[1.0, 2.0, 4.0, 8.5], [9.0, 9.0, 12.0, 12.0], [-3.0, -9.0, 1.0, 1.0]])
    cells = center_cells(boxes, (10, 10))
    assert cells.tolist() == [[5, 2], [9, 9], [0, 0]]
    sizes, offsets = size_and_offset_targets(boxes, cells)
    assert sizes.tolist() == [[6.5, 3.0], [3.0, 3.0], [10.0, 4.0]]
    assert offsets.tolist() == [[0.25, 0.5], [1.5, 1.5], [-4.0, -1.0]]


def test_peaks_keep_what_no_neighbour_exceeds():
    scores = torch.tensor([[0.1, 0.2, 0.1, 0.0], [0.1, 0.3, 0.3, 0.0], [0.0, 0.1, 0.0, 0.5]])
    kept = keep_peaks(scores[None, None])[0, 0]
    # 0.3 beside 0.3 is a plateau, but the second one has 0.5 as a diagonal neighbour.
    assert kept.nonzero().tolist() == [[1, 1], [2, 3]]


def test_a_plateau_keeps_all_cells_and_planes_do_not_see_each_other():
    scores = torch.stack([torch.full((3, 3), 0.25), torch.full((3, 3), 0.5)])[None]
    assert torch.equal(keep_peaks(scores), scores)
    almost = torch.tensor([[[[0.5, 0.5 + 5e-7, 0.5 + 2e-5]]]])
    assert keep_peaks(almost)[0, 0, 0].nonzero().flatten().tolist() == [0, 2]


def test_top_k_takes_ties_by_row_column_and_class():
    scores = torch.zeros(2, 2, 2, 3)
    scores[0, 1, 1, 2] = 0.9
    scores[0, 0, 1, 0] = 0.5
    scores[0, 1, 0, 2] = 0.5
    scores[1, 0, 0, 1] = 0.1
    values, labels, cells = top_k_cells(scores, 5)
    torch.testing.assert_close(values, torch.tensor([[0.9, 0.5, 0.5, 0.0, 0.0], [0.1, 0.0, 0.0, 0.0, 0.0]]))
    assert labels.tolist() == [[1, 1, 0, 0, 1], [0, 0, 1, 1, 0]]
    assert cells.tolist() == [
        [[1, 2], [0, 2], [1, 0], [0, 0], [0, 0]],
        [[0, 1], [0, 0], [0, 0], [0, 1], [0, 2]],
    ]


@given(seed=st.integers(0, 1000), k=st.integers(1, 30), levels=st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_top_k_is_a_stable_sort(seed, k, levels):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (2, 3, 2, 4), generator=generator) / levels
    values, labels, cells = top_k_cells(scores, k)
    flat = scores.permute(0, 2, 3, 1).flatten(1)
    expected, order = flat.sort(dim=1, descending=True, stable=True)
    k = min(k, 24)
    assert torch.equal(values, expected[:, :k])
    assert torch.equal((cells[..., 0] * 4 + cells[..., 1]) * 3 + labels, order[:, :k])


def test_decoding_by_hand():
    sizes, offsets = torch.zeros(1, 2, 6, 8), torch.zeros(1, 2, 6, 8)
    sizes[0, :, 2, 3] = torch.tensor([2.0, 4.0])  # height, width
    offsets[0, :, 2, 3] = torch.tensor([0.5, 0.25])  # y, x
    sizes[0, :, 5, 7] = torch.tensor([20.0, 1.0])  # beyond both borders
    sizes[0, :, 1, 1] = torch.tensor([-3.0, 2.0])  # a negative height
    boxes = decode_boxes(torch.tensor([[[2, 3], [5, 7], [1, 1]]]), sizes, offsets)
    assert boxes.tolist() == [[[1.25, 1.5, 5.25, 3.5], [6.5, 0.0, 7.5, 6.0], [0.0, 1.0, 2.0, 1.0]]]


@st.composite
def boxes_in_cells_of_their_own(draw):
    """Boxes inside a 24 x 32 map, one per block of 8 x 8 cells, so that no two peaks touch."""
    blocks = draw(st.lists(st.integers(0, 11), min_size=0, max_size=6, unique=True))
    rows = []
    for block in blocks:
        y = 8 * (block // 4) + draw(st.floats(2, 5, width=32))
        x = 8 * (block % 4) + draw(st.floats(2, 5, width=32))
        half_y, half_x = draw(st.floats(0.5, 2, width=32)), draw(st.floats(0.5, 2, width=32))
        rows.append([x - half_x, y - half_y, x + half_x, y + half_y])
    return torch.tensor(rows).reshape(-1, 4), torch.tensor([block % 3 for block in blocks], dtype=torch.int64)


@given(boxes_in_cells_of_their_own())
@settings(max_examples=30, deadline=None)
def test_decoding_the_targets_gives_the_boxes_back(boxes_and_labels):
    boxes, labels = boxes_and_labels
    map_size = (24, 32)
    cells = center_cells(boxes, map_size)
    sizes, offsets = size_and_offset_targets(boxes, cells)
    size_map, offset_map = torch.zeros(1, 2, *map_size), torch.zeros(1, 2, *map_size)
    size_map[0, :, cells[:, 0], cells[:, 1]] = sizes.T
    offset_map[0, :, cells[:, 0], cells[:, 1]] = offsets.T
    heatmap = center_heatmap(boxes, labels, 3, map_size)[None]
    scores, found, where = top_k_cells(keep_peaks(heatmap), max(len(boxes), 1))
    decoded = decode_boxes(where, size_map, offset_map)[0][scores[0] == 1]
    order = (cells[:, 0] * map_size[1] + cells[:, 1]).argsort()
    torch.testing.assert_close(decoded, boxes[order], rtol=0, atol=1e-5)
    assert found[0][scores[0] == 1].tolist() == labels[order].tolist()
