"""What trainings that left classes out say of each class, on numbers that can be followed by hand."""

import math

import numpy as np
import pytest

from maskwright.evaluation.left_out_classes import MeasuredBoxes, Trial, answer

T_9 = 1.8331  # Student's t of 9 degrees of freedom, which leaves 5 % above
T_1, T_2 = 6.3138, 2.9200


def boxes(*rows: tuple[int, int, float, float]) -> MeasuredBoxes:
    """Of rows of image, label, IoU and score."""
    return MeasuredBoxes(*np.array(rows, dtype=float).T)


def in_ten_images(label: int, mean: float = 0.6, score: float = 0.6) -> list[tuple[int, int, float, float]]:
    """An instance in each of ten images, whose IoUs lie 0.1 above and below the mean in turn."""
    return [(image, label, mean + (0.1 if image % 2 else -0.1), score) for image in range(10)]


def test_the_range_is_that_of_the_spread_between_images():
    (only,) = answer({"a": 5}, [Trial(["a"], 0, boxes(*in_ten_images(0)))]).classes
    # Each image lies 0.1 off: a variance of 10 * 0.01 / 9 between images, a tenth of it of their mean.
    half = T_9 * math.sqrt(10 * 0.01 / 9 / 10)
    assert only.without == pytest.approx((0.6, 0.6 - half, 0.6 + half), abs=1e-4)
    assert (only.instances, only.images, only.few) == (10, 10, False)


def test_more_masks_of_the_same_images_that_are_all_alike_make_no_range_narrower():
    once, thrice = (answer({"a": 5}, [Trial(["a"], 0, boxes(*in_ten_images(0) * times))]) for times in (1, 3))
    assert thrice.classes[0].without == pytest.approx(once.classes[0].without)
    assert thrice.classes[0].instances == 30


def test_a_class_in_one_image_has_the_spread_of_the_others_and_is_named():
    rows = boxes(*in_ten_images(0), (3, 1, 0.5, 0.5))
    _, rare = answer({"a": 5, "rare": 2}, [Trial(["a", "rare"], 0, rows)]).classes
    half = T_9 * math.sqrt(10 * 0.01 / 9)
    assert rare.without == pytest.approx((0.5, 0.5 - half, 0.5 + half), abs=1e-4)
    assert rare.few


def test_a_class_that_is_alone_in_one_image_may_be_anywhere():
    (rare,) = answer({"rare": 2}, [Trial(["rare"], 0, boxes((0, 0, 0.5, 0.5)))]).classes
    assert rare.without == (0.5, 0, 1)


def test_the_spread_between_trainings_widens_the_range():
    def trial(left_out: str, mean: float) -> Trial:
        return Trial([left_out], 0, boxes(*in_ten_images(0, mean), *in_ten_images(1)))

    found = answer({"a": 5, "b": 5}, [trial("a", 0.5), trial("b", 0.6), trial("b", 0.8)])
    a, b = found.classes
    # With all masks of a it is 0.6 and 0.8 in two trainings; those of b were all there once.
    assert found.training_spread == pytest.approx(0.1 * math.sqrt(2))
    assert a.with_all == pytest.approx(0.7)
    half = T_9 * math.sqrt(0.01 / 9 + 0.02)
    assert a.without == pytest.approx((0.5, max(0.5 - half, 0), 0.5 + half), abs=1e-4)
    half = T_9 * math.sqrt(0.01 / 9 + 0.02 / 2)  # left out of two trainings
    assert b.without == pytest.approx((0.6, 0.6 - half, 0.6 + half), abs=1e-4)


def test_gains_are_taken_mask_by_mask_and_say_whether_drawing_pays():
    masks = {"better": 30, "same": 30, "short": 10}

    def trial(number: int, gain: float) -> Trial:
        rows = [*in_ten_images(0, 0.5 + gain), *in_ten_images(1), *in_ten_images(2)]
        return Trial(list(masks), number, boxes(*rows))

    better, same, short = answer(masks, [trial(0, 0), trial(5, 0.01), trial(10, 0.2)]).classes
    # All masks gain alike: there is no spread, though the masks themselves differ.
    assert better.gains == {5: pytest.approx((0.01, 0.01, 0.01)), 10: pytest.approx((0.2, 0.2, 0.2))}
    assert (better.pays, same.pays) == ("10 masks do", "no")
    assert list(short.gains) == [5]  # it has no more than 10 masks


def test_a_gain_that_may_be_chance_is_not_clear():
    def trial(number: int, *ious: float) -> Trial:
        return Trial(["a"], number, boxes(*((image, 0, iou, 0.5) for image, iou in enumerate(ious))))

    (only,) = answer({"a": 30}, [trial(0, *[0.5] * 10), trial(5, *[0.3, 0.8] * 5)]).classes
    assert only.gains[5].low < 0 < only.gains[5].high
    assert only.pays == "not clear"


def test_a_class_without_masks_is_foretold_by_its_scores_and_what_such_scores_stand_for_elsewhere():
    rows = [*in_ten_images(0, 0.6, score=0.5), *in_ten_images(1, 0.8, score=0.7), (0, 2, math.nan, 0.6)]
    found = answer({"a": 5, "b": 5, "new": 0, "absent": 0}, [Trial(["a", "b"], 0, boxes(*rows))])
    a, b, new, absent = found.classes
    # Half way between the other two. a would be foretold 0.5 / 0.7 * 0.8 by b, and b 0.6 by a.
    half = T_2 * math.sqrt(((0.6 - 0.5 / 0.7 * 0.8) ** 2 + (0.8 - 0.6) ** 2) / 2)
    assert new.predicted == pytest.approx((0.7, 0.7 - half, 1), abs=3e-3)
    assert (new.without, new.masks, new.instances, new.with_all) == (None, 0, 0, None)
    assert absent.predicted is absent.without is None
    assert a.predicted is b.predicted is None  # one other class does not say how far off it is
    half = T_1 * 0.1 * math.sqrt(2) * math.sqrt(1.5)
    assert half > 0.7
    assert found.any_class == pytest.approx((0.7, 0, 1))
    assert found.prediction_error is None


def test_predictions_are_checked_on_the_measured_classes_each_foretold_by_the_others():
    rows = [*in_ten_images(0, 0.6, 0.5), *in_ten_images(1, 0.8, 0.7), *in_ten_images(2, 0.5, 0.7)]
    found = answer(dict.fromkeys("abc", 5), [Trial("abc", 0, boxes(*rows))])
    # Scores of 0.7 stand for 0.65 without a; without b the IoU falls with the score, which no curve does.
    foretold = [0.5 / 0.7 * 0.65, 0.55, 0.8]
    assert [each.predicted.mean for each in found.classes] == pytest.approx(foretold, abs=3e-3)
    errors = [abs(one - true) for one, true in zip(foretold, (0.6, 0.8, 0.5), strict=True)]
    assert found.prediction_error == pytest.approx(sum(errors) / 3, abs=3e-3)
    assert found.predictions_in_range == 1


def test_a_class_unlike_the_others_is_out_of_its_range():
    rows = [row for label in range(4) for row in in_ten_images(label, 0.6, 0.6)] + in_ten_images(4, 0.3, 0.6)
    found = answer(dict.fromkeys("abcde", 5), [Trial("abcde", 0, boxes(*rows))])
    assert found.predictions_in_range == pytest.approx(4 / 5)


def test_a_class_that_only_the_measured_images_have_masks_of_is_measured_in_every_training():
    trials = [
        Trial(["a"], 0, boxes(*in_ten_images(0), *in_ten_images(1, 0.3))),
        Trial(["b"], 0, boxes(*in_ten_images(0), *in_ten_images(1, 0.5))),
    ]
    held_back = answer({"a": 5, "held back": 0}, trials).classes[1]
    assert held_back.without.mean == pytest.approx(0.4)
    assert held_back.with_all is None
