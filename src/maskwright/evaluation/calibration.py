"""How far a mask's score can be taken for its IoU, and the monotone curve that makes it one.

Everywhere `scores` are the scores of some masks and `ious` their IoU with the truth, both in 0..1 and in one order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.optimize import isotonic_regression
from scipy.stats import spearmanr

BINS = 10
"""Of equal width, in the expected calibration error and the reliability picture."""

THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""Scores at which the accept table asks what is accepted."""

MARGIN = 1e-3
"""The curve's rise after its last run of masks: different scores stay different there, too."""

DECIMALS = 6
"""Of the curve's knots."""

Scores = Float64[np.ndarray, " n"]


@dataclass(frozen=True)
class ReliabilityBin:
    """The masks with a score in `low` <= score < `high` (the last bin has 1, too); means are NaN without any."""

    low: float
    high: float
    masks: int
    mean_score: float
    mean_iou: float


@dataclass(frozen=True)
class Accepted:
    """The masks with a score of `threshold` or more.

    Attributes:
        threshold: the smallest score accepted.
        masks: how many are accepted.
        share: of all masks.
        mean_iou: of those accepted; NaN without any.
        share_below_half: of those accepted, the share with an IoU under 0.5; NaN without any.
    """

    threshold: float
    masks: int
    share: float
    mean_iou: float
    share_below_half: float


def reliability(scores: Scores, ious: Scores) -> list[ReliabilityBin]:
    """Mean score and mean IoU in each of `BINS` bins of the score, the lowest first."""
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    rows = []
    for index in range(BINS):
        inside = bins == index
        low, high = index / BINS, (index + 1) / BINS
        rows.append(ReliabilityBin(low, high, int(inside.sum()), _mean(scores[inside]), _mean(ious[inside])))
    return rows


def expected_calibration_error(scores: Scores, ious: Scores) -> float:
    """The distance of mean score and mean IoU in a bin, averaged over all masks; NaN without any.

    Source: Guo et al., arXiv 1706.04599, equation 3, with the IoU in place of being right.
    """
    if not len(scores):
        return math.nan
    rows = [row for row in reliability(scores, ious) if row.masks]
    return math.fsum(row.masks * abs(row.mean_score - row.mean_iou) for row in rows) / len(scores)


def rank_correlation(scores: Scores, ious: Scores) -> float:
    """Spearman's rank correlation; NaN where all scores or all IoUs are equal."""
    if len(scores) < 2 or np.ptp(scores) == 0 or np.ptp(ious) == 0:
        return math.nan
    return float(spearmanr(scores, ious).statistic)  # pyright: ignore[reportAttributeAccessIssue]


def accept_table(scores: Scores, ious: Scores, thresholds: Sequence[float] = THRESHOLDS) -> list[Accepted]:
    """What is accepted at each threshold."""
    rows = []
    for threshold in thresholds:
        accepted = ious[scores >= threshold]
        share = len(accepted) / len(ious) if len(ious) else math.nan
        rows.append(Accepted(threshold, len(accepted), share, _mean(accepted), _mean(accepted < 0.5)))
    return rows


def fit_monotone(scores: Scores, ious: Scores) -> tuple[list[float], list[float]]:
    """The knots (score, IoU) of a rising curve through the masks, both strictly increasing.

    Isotonic regression finds the runs of masks between whose means the IoU rises. Each run is one knot, at its mean
    score and mean IoU; all IoUs are then moved by at most `MARGIN`, so that the curve rises at the ends, too. It starts
    at (0, 0), which is an empty mask, and ends at a score of 1.

    Raises:
        ValueError: there is no mask.
    """
    if not len(scores):
        raise ValueError("a calibration needs masks, but there is none")
    distinct, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=ious) / counts
    fitted = isotonic_regression(means, weights=counts)
    weights = np.add.reduceat(counts, fitted.blocks[:-1])
    xs = np.round(np.add.reduceat(counts * distinct, fitted.blocks[:-1]) / weights, DECIMALS)
    ys = np.round(MARGIN + (1 - 2 * MARGIN) * fitted.x[fitted.blocks[:-1]], DECIMALS)
    rises = (np.diff(xs, prepend=-1) > 0) & (np.diff(ys, prepend=-1) > 0)
    xs, ys = xs[rises].tolist(), ys[rises].tolist()
    if xs[0] > 0:
        xs, ys = [0.0, *xs], [0.0, *ys]
    if xs[-1] < 1:
        xs, ys = [*xs, 1.0], [*ys, round(ys[-1] + MARGIN, DECIMALS)]
    return xs, ys


def cross_validated(scores: Scores, ious: Scores, halves: np.ndarray) -> Scores:
    """Calibrated scores, those of each half by the curve that was fitted on the other.

    Args:
        scores: of the masks.
        ious: of the masks.
        halves: bool [n], the half that each mask belongs to.

    Raises:
        ValueError: a half is empty.
    """
    calibrated = np.empty_like(scores)
    for half in (halves, ~halves):
        calibrated[half] = np.interp(scores[half], *fit_monotone(scores[~half], ious[~half]))
    return calibrated


def _mean(values: np.ndarray) -> float:
    return math.fsum(values.tolist()) / len(values) if len(values) else math.nan
