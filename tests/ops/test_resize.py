"""The originals' sizes and nearest pixels."""

import pytest
import torch

from maskwright.ops.resize import fitted_size, resize_nearest


@pytest.mark.parametrize(
    ("size", "target", "expected"),
    [
        ((480, 640), (641, 641), (481, 641)),  # 480 * 641 / 640 = 480.75 would be 480: first it grows to 641 x 854
        ((333, 500), (1025, 1025), (682, 1025)),  # 682.65: rounded down
        ((30, 45), (65, 97), (65, 97)),
        ((1, 5000), (100, 100), (1, 100)),  # never without a row
    ],
)
def test_fitted_size(size, target, expected):
    assert fitted_size(size, target) == expected


def test_nearest_pixels_with_the_corners_on_one_another():
    row = torch.tensor([[0, 1, 2, 3, 4]])
    assert resize_nearest(row, (1, 9)).tolist() == [[0, 1, 1, 2, 2, 3, 3, 4, 4]]  # halves away from 0
    assert resize_nearest(row, (1, 3)).tolist() == [[0, 2, 4]]
    assert resize_nearest(row, (1, 1)).tolist() == [[0]]
    assert torch.equal(resize_nearest(row.T, (9, 1)), resize_nearest(row, (1, 9)).T)


def test_a_map_keeps_its_values_and_its_type():
    segmentation = torch.randint(-1, 5, (7, 9), dtype=torch.int32)
    resized = resize_nearest(segmentation, (23, 4))
    assert resized.dtype == torch.int32
    assert set(resized.unique().tolist()) <= set(segmentation.unique().tolist())
    assert torch.equal(resize_nearest(segmentation, (7, 9)), segmentation)
