"""What the reviewed masks say of those that nobody has looked at."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

EDGES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Of the bins of quality; the last one holds 1, too."""

_Z = 1.959964  # of a two-sided interval of 95 %


@dataclass(frozen=True)
class QualityBin:
    """The masks of one range of quality.

    low, high: the range.
    masks: how many there are; reviewed, accepted: of these. A mask that was rejected or redrawn is not accepted.
    mean_quality: of those that nobody has looked at; None where there are none.
    """

    low: float
    high: float
    masks: int
    reviewed: int
    accepted: int
    mean_quality: float | None

    @property
    def share(self) -> float | None:
        """Of the reviewed masks, those that were accepted; None where none was reviewed."""
        return self.accepted / self.reviewed if self.reviewed else None

    @property
    def interval(self) -> tuple[float, float]:
        """In which the share of all masks like these lies with a certainty of 95 %."""
        return wilson_interval(self.accepted, self.reviewed)


@dataclass(frozen=True)
class Rest:
    """The masks that nobody has looked at.

    masks: how many.
    mean_quality: None where there are none.
    share: that would be accepted, if each bin went on as it began; None where a bin of them has no reviewed mask.
    interval: the lower and the upper ends of the bins' intervals, weighted by their unreviewed masks: at least as wide
        as one of 95 %. (0, 1) where no mask is left.
    """

    masks: int
    mean_quality: float | None
    share: float | None
    interval: tuple[float, float]


def wilson_interval(accepted: int, reviewed: int) -> tuple[float, float]:
    """The interval of 95 % for a share of which `accepted` out of `reviewed` were seen; (0, 1) where none were.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference (1927).
    """
    if reviewed == 0:
        return 0.0, 1.0
    share, unit = accepted / reviewed, _Z**2 / reviewed
    middle = (share + unit / 2) / (1 + unit)
    reach = _Z * math.sqrt(share * (1 - share) / reviewed + unit / (4 * reviewed)) / (1 + unit)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def estimate(masks: Iterable[tuple[float, str | None]]) -> tuple[list[QualityBin], Rest]:
    """What is known of each range of quality that has masks, and of all that nobody has looked at.

    The estimate is on the safe side while masks are reviewed worst first: within a bin, too, the worst come first.

    Args:
        masks: the quality (0..1) and the verdict (`accepted`, `rejected`, `redrawn` or None) of each.
    """
    rows: list[list[tuple[float, str | None]]] = [[] for _ in EDGES[:-1]]
    for quality, verdict in masks:
        rows[_bin(quality)].append((quality, verdict))
    bins = [_summed(low, high, row) for low, high, row in zip(EDGES, EDGES[1:], rows, strict=False) if row]
    return bins, _rest(bins)


def _bin(quality: float) -> int:
    return max(place for place, edge in enumerate(EDGES[:-1]) if quality >= edge)


def _summed(low: float, high: float, row: list[tuple[float, str | None]]) -> QualityBin:
    unseen = [quality for quality, verdict in row if verdict is None]
    accepted = sum(verdict == "accepted" for _, verdict in row)
    mean = sum(unseen) / len(unseen) if unseen else None
    return QualityBin(low, high, len(row), len(row) - len(unseen), accepted, mean)


def _rest(bins: list[QualityBin]) -> Rest:
    weights = [row.masks - row.reviewed for row in bins]
    total = sum(weights)
    if total == 0:
        return Rest(0, None, None, (0.0, 1.0))

    def mean(values: Iterable[float]) -> float:
        return sum(weight * value for weight, value in zip(weights, values, strict=True)) / total

    unknown = any(weight and row.share is None for weight, row in zip(weights, bins, strict=True))
    return Rest(
        masks=total,
        mean_quality=mean(row.mean_quality or 0 for row in bins),
        share=None if unknown else mean(row.share or 0 for row in bins),
        interval=(mean(row.interval[0] for row in bins), mean(row.interval[1] for row in bins)),
    )
