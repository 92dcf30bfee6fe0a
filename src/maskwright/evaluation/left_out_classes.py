"""How good masks are of classes whose masks were left out of training, and what some of their masks would add.

Every range is one of 90 %. A class's range comes from the spread between its images (masks of one image are alike, so
images are the sample, not masks) and between trainings. It says how far the mean may lie from the one over more images
like these; single masks spread much further. The ranges of several classes are not corrected for their number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.stats import t as student

from maskwright.evaluation.calibration import fit_monotone

CONFIDENCE = 0.9
FEW_IMAGES = 10
"""Of fewer, a class's own spread is not trusted where that of the other classes is larger."""

WORTH = 0.02
"""A gain in mean IoU for which masks are worth drawing."""


class MeasuredBoxes(NamedTuple):
    """The boxes of the measured images, crowds left out: one and the same for all trainings.

    images: which image each is in. labels: its class. ious: of its mask with the true one; NaN where there is none.
    scores: of its mask.
    """

    images: Float64[np.ndarray, " n"]
    labels: Float64[np.ndarray, " n"]
    ious: Float64[np.ndarray, " n"]
    scores: Float64[np.ndarray, " n"]


class Trial(NamedTuple):
    """One training: the classes that it left out, how many masks it kept of each of them, and what it reached."""

    classes: Sequence[str]
    masks: int
    boxes: MeasuredBoxes


class Estimate(NamedTuple):
    """A mean and its range."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassAnswer:
    """What the trainings say of one class.

    Attributes:
        name: of the class.
        masks: how many the training images have.
        instances: with a mask among the measured ones.
        images: that those are in.
        without: mean mask IoU where none of its masks were trained on; None where it has not been measured.
        predicted: the same without a look at its true masks, from the scores of its masks and what such scores stand
            for in the other classes; None where it has no boxes, or fewer than 2 other classes have been measured.
        gains: of the mean mask IoU by some of its masks, by their number.
        with_all: mean mask IoU where all of its masks were trained on.
    """

    name: str
    masks: int
    instances: int
    images: int
    without: Estimate | None
    predicted: Estimate | None
    gains: Mapping[int, Estimate] = field(default_factory=dict)
    with_all: float | None = None

    @property
    def few(self) -> bool:
        """Whether it has been measured in a few images only."""
        return self.without is not None and self.images < FEW_IMAGES

    @property
    def pays(self) -> str:
        """Whether masks of it are worth drawing: the smallest number that surely is, `no`, or `not clear`."""
        sure = [number for number, gain in self.gains.items() if gain.low > 0 and gain.mean >= WORTH]
        if sure:
            return f"{min(sure)} masks do"
        if not self.gains:
            return "-"
        return "no" if all(gain.high < WORTH for gain in self.gains.values()) else "not clear"


@dataclass(frozen=True)
class LeftOutAnswer:
    """What a study of left-out classes says.

    Attributes:
        classes: in the order of the file.
        any_class: the mean mask IoU to be expected of some other class, of which not even boxes are known; None if
            fewer than 2 have been measured.
        prediction_error: mean distance of `predicted` and `without` over the classes that have both; None without any.
        predictions_in_range: the share of these classes whose `without` lies in the range of `predicted`.
        training_spread: standard deviation of a class's mean between trainings that had all of its masks; None where
            fewer than two had.
    """

    classes: Sequence[ClassAnswer]
    any_class: Estimate | None
    prediction_error: float | None
    predictions_in_range: float | None
    training_spread: float | None


def answer(masks: Mapping[str, int], trials: Sequence[Trial]) -> LeftOutAnswer:
    """Put together what the trainings say.

    Args:
        masks: of each class among the training images, by name, in label order.
        trials: one or more; some may be missing.
    """
    names = list(masks)
    spread = _training_spread(names, masks, trials)
    bare = {name: [t for t in trials if t.masks == 0 and (name in t.classes or not masks[name])] for name in names}
    bare = {name: own for name, own in bare.items() if own}
    measured = {name: _column(names.index(name), own) for name, own in bare.items()}
    without = _estimates(measured, {name: spread**2 / len(own) for name, own in bare.items()}, low=0.0)
    gains = _gains(names, masks, trials, spread)
    predicted = _predictions(names, bare)
    answers = [
        ClassAnswer(
            name,
            masks[name],
            *_counts(trials[0].boxes, label),
            without.get(name),
            predicted.get(name),
            {number: found[name] for number, found in gains.items() if name in found},
            _mean_or_none([_mean(trial, label) for trial in _with_all(name, masks, trials)]),
        )
        for label, name in enumerate(names)
    ]
    checked = [(each.predicted, each.without.mean) for each in answers if each.predicted and each.without]
    other = _next_one([estimate.mean for estimate in without.values()])
    return LeftOutAnswer(
        answers,
        None if other is None else _clipped(other),
        _mean_or_none([abs(one.mean - true) for one, true in checked]),
        _mean_or_none([float(one.low <= true <= one.high) for one, true in checked]),
        spread or None,
    )


class _Column(NamedTuple):
    """A number of each instance of a class, and the image that it is in."""

    values: Float64[np.ndarray, " n"]
    images: Float64[np.ndarray, " n"]


def _column(label: int, trials: Sequence[Trial]) -> _Column:
    """The IoU of each instance of a class with a mask, the mean over trainings."""
    boxes = trials[0].boxes
    rows = (boxes.labels == label) & ~np.isnan(boxes.ious)
    return _Column(np.mean([trial.boxes.ious[rows] for trial in trials], axis=0), boxes.images[rows])


def _estimates(
    columns: Mapping[str, _Column], between_trainings: Mapping[str, float], low: float
) -> dict[str, Estimate]:
    """The mean of each class that has instances; `between_trainings` is a variance, `low` the least possible."""
    columns = {name: column for name, column in columns.items() if len(column.values)}
    images = {name: len(np.unique(column.images)) for name, column in columns.items()}
    own = {name: _variance_of_mean(column) for name, column in columns.items()}
    # Times the images it is the variance of one image.
    pooled = np.mean([own[name] * images[name] for name in columns if images[name] > 1] or [math.inf])
    found = {}
    for name, (values, _) in columns.items():
        variance = own[name]
        if images[name] < FEW_IMAGES:
            variance = max(variance, pooled / images[name])
        half = _quantile(max(images[name], FEW_IMAGES) - 1) * math.sqrt(variance + between_trainings[name])
        mean = float(values.mean())
        found[name] = _clipped(Estimate(mean, mean - half, mean + half), low)
    return found


def _variance_of_mean(column: _Column) -> float:
    """Of the mean over all instances, where images are drawn and an image's instances belong together; 0 of one."""
    _, image = np.unique(column.images, return_inverse=True)
    sums = np.bincount(image, column.values - column.values.mean())
    return float((sums**2).sum()) / len(column.values) ** 2 * len(sums) / max(len(sums) - 1, 1)


def _gains(
    names: Sequence[str], masks: Mapping[str, int], trials: Sequence[Trial], spread: float
) -> dict[int, dict[str, Estimate]]:
    """By the number of masks, then by class: what they add, instance by instance."""
    found = {}
    for number in sorted({trial.masks for trial in trials} - {0}):
        columns, between = {}, {}
        for label, name in enumerate(names):
            few, none = ([t for t in trials if t.masks == m and name in t.classes] for m in (number, 0))
            if few and none and masks[name] > number:
                after, before = _column(label, few), _column(label, none)
                columns[name] = _Column(after.values - before.values, after.images)
                between[name] = spread**2 * (1 / len(few) + 1 / len(none))
        found[number] = _estimates(columns, between, low=-1.0)
    return found


class _Boxes(NamedTuple):
    """Scores and IoUs of the boxes of a class; NaN where there is no true mask."""

    scores: Float64[np.ndarray, " n"]
    ious: Float64[np.ndarray, " n"]


def _boxes(label: int, trials: Sequence[Trial]) -> _Boxes:
    """Of all boxes of a class, the mean over trainings."""
    rows = trials[0].boxes.labels == label
    return _Boxes(*(np.mean([getattr(t.boxes, name)[rows] for t in trials], axis=0) for name in _Boxes._fields))


def _predictions(names: Sequence[str], bare: Mapping[str, Sequence[Trial]]) -> dict[str, Estimate]:
    """Of each class the mean IoU that its scores stand for, by the curve through the masks of the other classes.

    The range is that of the errors for the other classes, which are foretold in the same way.
    """
    boxes = {name: _boxes(names.index(name), own) for name, own in bare.items()}
    boxes = {name: own for name, own in boxes.items() if len(own.scores)}

    def foretold(name: str) -> float:
        others = [own for other, own in boxes.items() if other != name]
        scores, ious = (np.concatenate(column) for column in zip(*others, strict=True))
        known = ~np.isnan(ious)
        return float(np.interp(boxes[name].scores, *fit_monotone(scores[known], ious[known])).mean())

    measured = {name: np.nanmean(own.ious) for name, own in boxes.items() if not np.isnan(own.ious).all()}
    if len(measured) < 2:
        return {}
    errors = {name: mean - foretold(name) for name, mean in measured.items()}
    found = {}
    for name in boxes:
        others = [error for other, error in errors.items() if other != name]
        if len(others) > 1:
            mean, half = foretold(name), _quantile(len(others)) * float(np.sqrt(np.mean(np.square(others))))
            found[name] = _clipped(Estimate(mean, mean - half, mean + half))
    return found


def _next_one(values: Sequence[float]) -> Estimate | None:
    """Where the next of such values may lie; None of fewer than 2."""
    if len(values) < 2:
        return None
    mean = float(np.mean(values))
    half = _quantile(len(values) - 1) * float(np.std(values, ddof=1)) * math.sqrt(1 + 1 / len(values))
    return Estimate(mean, mean - half, mean + half)


def _clipped(estimate: Estimate, low: float = 0.0) -> Estimate:
    return Estimate(*(min(max(value, low), 1.0) for value in estimate))


def _quantile(degrees: int) -> float:
    return float(student.ppf((1 + CONFIDENCE) / 2, degrees))


def _with_all(name: str, masks: Mapping[str, int], trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if name not in trial.classes and masks[name]]


def _training_spread(names: Sequence[str], masks: Mapping[str, int], trials: Sequence[Trial]) -> float:
    """See `LeftOutAnswer.training_spread`; 0 where it is not known."""
    by_class = [[_mean(t, label) for t in _with_all(name, masks, trials)] for label, name in enumerate(names)]
    variances = [np.var(means, ddof=1) for means in by_class if len(means) > 1 and not math.isnan(means[0])]
    return math.sqrt(np.mean(variances)) if variances else 0.0


def _counts(boxes: MeasuredBoxes, label: int) -> tuple[int, int]:
    rows = (boxes.labels == label) & ~np.isnan(boxes.ious)
    return int(rows.sum()), len(np.unique(boxes.images[rows]))


def _mean(trial: Trial, label: int) -> float:
    values = _column(label, [trial]).values
    return float(values.mean()) if len(values) else math.nan


def _mean_or_none(values: Sequence[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else None
