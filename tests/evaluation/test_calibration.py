"""Calibration of mask scores: numbers computed by hand, and what holds for any masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.evaluation.calibration import (
    accept_table,
    cross_validated,
    expected_calibration_error,
    fit_monotone,
    rank_correlation,
    reliability,
)

SCORES = np.array([0.55, 0.85, 0.89, 1.0])
IOUS = np.array([0.45, 0.67, 0.77, 1.0])

masks = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=60)


def test_the_error_is_the_mean_distance_in_bins():
    # bins 0.5: one mask, 0.1 apart; 0.8: two, mean 0.87 against 0.72; 0.9 (with 1.0): one, 0 apart
    assert expected_calibration_error(SCORES, IOUS) == pytest.approx((0.1 + 2 * 0.15 + 0) / 4)
    rows = reliability(SCORES, IOUS)
    assert [row.masks for row in rows] == [0, 0, 0, 0, 0, 1, 0, 0, 2, 1]
    assert (rows[8].low, rows[8].high) == (0.8, 0.9)
    assert (rows[8].mean_score, rows[8].mean_iou) == pytest.approx((0.87, 0.72))
    assert math.isnan(rows[0].mean_iou)


def test_errors_of_both_signs_in_one_bin_cancel_and_in_two_bins_add():
    ious = np.array([0.2, 0.4])
    assert expected_calibration_error(np.array([0.31, 0.29]), ious) == pytest.approx(0.11)
    assert expected_calibration_error(np.array([0.31, 0.31]), ious) == pytest.approx(0.01)


def test_the_accept_table_counts_from_the_threshold_up():
    rows = accept_table(SCORES, IOUS, [0.0, 0.85, 0.9, 1.1])
    assert [row.masks for row in rows] == [4, 3, 1, 0]
    assert rows[0].mean_iou == pytest.approx(2.89 / 4)
    assert [row.share for row in rows] == [1, 0.75, 0.25, 0]
    assert [row.share_below_half for row in rows[:3]] == [0.25, 0, 0]
    assert math.isnan(rows[3].mean_iou)


def test_rank_correlation_of_known_orders():
    assert rank_correlation(SCORES, IOUS) == pytest.approx(1)
    # ranks 1 2 3 4 against 1 3 2 4: 1 - 6 * 2 / (4 * 15)
    assert rank_correlation(SCORES, np.array([0.1, 0.3, 0.2, 0.4])) == pytest.approx(0.8)
    assert math.isnan(rank_correlation(SCORES, np.ones(4)))


def test_the_curve_goes_through_the_means_of_the_runs():
    # 0.7 and 0.8 fall in IoU and are pooled: score 0.75, IoU 0.5; two masks of 0.6 are one point of weight 2.
    scores, ious = np.array([0.6, 0.6, 0.7, 0.8, 0.9]), np.array([0.1, 0.3, 0.6, 0.4, 0.8])
    xs, ys = fit_monotone(scores, ious)
    assert xs == pytest.approx([0, 0.6, 0.75, 0.9, 1])
    assert ys == pytest.approx([0, *(0.001 + 0.998 * iou for iou in (0.2, 0.5, 0.8)), 0.7994 + 0.001])


def test_no_masks_have_no_curve_and_no_error():
    nothing = np.zeros(0)
    assert math.isnan(expected_calibration_error(nothing, nothing))
    assert math.isnan(rank_correlation(nothing, nothing))
    with pytest.raises(ValueError, match="needs masks"):
        fit_monotone(nothing, nothing)


@settings(max_examples=60, deadline=None)
@given(masks)
def test_the_curve_rises_strictly_within_0_and_1(pairs: list[tuple[float, float]]):
    xs, ys = fit_monotone(*np.array(pairs).T)
    for values in (xs, ys):
        assert (np.diff(values) > 0).all()
        assert 0 <= values[0] <= values[-1] <= 1
    assert (xs[0], xs[-1]) == (0, 1)


def test_a_curve_makes_the_scores_of_new_masks_right():
    generator = np.random.default_rng(0)
    scores = generator.uniform(0.5, 1, 2000)
    ious = (scores**3 + generator.normal(0, 0.05, 2000)).clip(0, 1)
    halves = generator.random(2000) < 0.5
    calibrated = cross_validated(scores, ious, halves)
    assert expected_calibration_error(scores, ious) > 0.1
    assert expected_calibration_error(calibrated, ious) < 0.01
    assert rank_correlation(calibrated, ious) == pytest.approx(rank_correlation(scores, ious), abs=0.01)


def test_each_half_is_measured_with_the_curve_of_the_other():
    scores, halves = np.array([0.5, 0.5]), np.array([True, False])
    calibrated = cross_validated(scores, np.array([0.2, 0.7]), halves)
    assert calibrated == pytest.approx([0.001 + 0.998 * 0.7, 0.001 + 0.998 * 0.2])
