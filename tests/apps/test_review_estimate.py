"""What the reviewed masks say of the rest: by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskwright.apps.review_page.estimate import estimate, wilson_interval


@pytest.mark.parametrize(
    ("accepted", "reviewed", "low", "high"),
    [
        # z = 1.959964, z^2 = 3.841459: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
        (8, 10, 0.49016, 0.94332),
        (0, 10, 0.0, 0.27753),
        (10, 10, 0.72247, 1.0),
        (1, 2, 0.09453, 0.90547),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_interval(accepted: int, reviewed: int, low: float, high: float):
    assert wilson_interval(accepted, reviewed) == pytest.approx((low, high), abs=1e-5)


def test_bins_and_rest():
    masks = [
        *[(0.2, "accepted"), (0.3, "rejected"), (0.4, None)],
        *[(0.9, "accepted"), (0.95, "redrawn"), (0.95, "accepted"), (1.0, "accepted")],
        *[(0.92, None), (0.94, None), (0.99, None)],
    ]
    bins, rest = estimate(masks)
    assert [(row.low, row.high, row.masks, row.reviewed, row.accepted) for row in bins] == [
        (0.0, 0.5, 3, 2, 1),
        (0.9, 1.0, 7, 4, 3),
    ]
    assert [row.share for row in bins] == [0.5, 0.75]
    assert [row.mean_quality for row in bins] == pytest.approx([0.4, 0.95])
    assert rest.masks == 4
    assert rest.share == pytest.approx((1 * 0.5 + 3 * 0.75) / 4)
    assert rest.mean_quality == pytest.approx((0.4 + 3 * 0.95) / 4)
    low = (wilson_interval(1, 2)[0] + 3 * wilson_interval(3, 4)[0]) / 4
    assert rest.interval[0] == pytest.approx(low)


def test_a_bin_that_nobody_has_looked_at_leaves_the_share_open():
    _, rest = estimate([(0.2, "accepted"), (0.7, None)])
    assert (rest.masks, rest.share, rest.interval) == (1, None, (0.0, 1.0))


def test_nothing_is_left():
    bins, rest = estimate([(0.2, "accepted")])
    assert bins[0].mean_quality is None
    assert (rest.masks, rest.share, rest.mean_quality) == (0, None, None)


@given(st.integers(0, 50), st.integers(0, 50))
def test_an_interval_holds_its_share(accepted: int, others: int):
    low, high = wilson_interval(accepted, accepted + others)
    if accepted + others:
        assert 0 <= low <= accepted / (accepted + others) + 1e-12
        assert accepted / (accepted + others) - 1e-12 <= high <= 1
