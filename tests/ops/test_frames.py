import inspect

import pytest
import torch

from maskwright.ops.frames import cells_in_box, map_indices, sample_positions


def test_samples_of_a_box_edge_pair_by_hand():
    low, high = torch.tensor([2.0, 8.0]), torch.tensor([8.0, 2.0])
    corner = sample_positions(low, high, 4, "corner")
    assert corner.tolist() == [[2, 4, 6, 8], [8, 6, 4, 2]]
    pixel = sample_positions(low, high, 3, "pixel")
    assert pixel.tolist() == [[3, 5, 7], [7, 5, 3]]


def test_corner_puts_the_frame_edges_on_the_first_and_last_cell():
    indices = map_indices(torch.tensor([0.0, 32.0, 64.0]), 64, 16, "corner")
    assert indices.tolist() == [0, 7.5, 15]


def test_pixel_puts_integer_indices_on_cell_centers():
    indices = map_indices(torch.tensor([2.0, 6.0, 62.0]), 64, 16, "pixel")
    assert indices.tolist() == [0, 1, 15]


def test_unknown_frame_is_refused_by_name():
    with pytest.raises(ValueError, match=r"corner, pixel, but got 'center'"):
        inspect.unwrap(map_indices)(torch.zeros(1), 8, 8, "center")


@pytest.mark.parametrize(("frame", "size"), [("corner", 1), ("pixel", 0)])
def test_too_small_a_grid_is_refused(frame, size):
    with pytest.raises(ValueError, match=f"{frame} grid must have at least {size + 1} samples"):
        sample_positions(torch.zeros(1), torch.ones(1), size, frame)


def test_cells_of_a_widened_box_that_lie_inside_the_box():
    assert cells_in_box(6, 0.25, "pixel")[0].any().item() is False
    assert cells_in_box(6, 0.25, "pixel")[1].tolist() == [False, True, True, True, True, False]
    # -0.5, 0, 0.5, 1, 1.5: the edges are in
    assert cells_in_box(5, 0.5, "corner").nonzero().tolist() == [[y, x] for y in (1, 2, 3) for x in (1, 2, 3)]
    assert cells_in_box(4, 0.0, "corner").all()
