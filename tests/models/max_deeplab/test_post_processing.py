"""Slots to segments: scenes whose map is known, thresholds, areas, the way back to the image's frame."""

from __future__ import annotations

import math

import pytest
import torch

from maskwright.models.max_deeplab import MaXDeepLabConfig
from maskwright.models.max_deeplab.post_processing import PanopticMerging, assign_masks, assign_pixels, enlarged_strips
from maskwright.structures import Category, ImageGeometry

CATEGORIES: list[Category] = [
    {"id": 7, "name": "sky", "isthing": False},
    {"id": 3, "name": "cat", "isthing": True},
    {"id": 9, "name": "grass", "isthing": False},
]
SKY, CAT, GRASS, VOID = range(4)
SIZE = (17, 17)
WHOLE = ImageGeometry(SIZE, SIZE, SIZE)


def create(**values):
    values = {"thing_area_limit": 0, "stuff_area_limit": 0, **values}
    return PanopticMerging(MaXDeepLabConfig(categories=CATEGORIES, **values))


def logits_of(masks, strength=20.0):
    """[n, 5, 5] logits that are large where a slot's mask is."""
    return torch.stack([torch.where(mask, strength, 0.0) for mask in masks])


def classes_of(*labels, strength=20.0):
    return torch.nn.functional.one_hot(torch.tensor(labels), VOID + 1) * strength


def halves():
    """Masks on the [5, 5] grid of logits: its left two columns, and the others."""
    left = torch.zeros(5, 5, dtype=torch.bool)
    left[:, :2] = True
    return left, ~left


def test_segments_are_numbered_in_the_order_of_their_slots_and_described():
    left, right = halves()
    prediction = create()(logits_of([right, left]), classes_of(CAT, SKY), WHOLE)
    assert prediction.segmentation[:, 0].unique().tolist() == [2]
    assert prediction.segmentation[:, -1].unique().tolist() == [1]
    cat, sky = prediction.segments_info
    assert (cat["id"], cat["label"], cat["category_id"], cat["isthing"]) == (1, CAT, 3, True)
    assert (sky["id"], sky["label"], sky["category_id"], sky["isthing"]) == (2, SKY, 7, False)
    assert cat["area"] == (prediction.segmentation == 1).sum()
    assert 0.9 < cat["score"] <= 1


def test_slots_of_one_stuff_are_one_segment_and_of_one_thing_two():
    left, right = halves()
    for label, count in ((GRASS, 1), (CAT, 2)):
        prediction = create()(logits_of([left, right]), classes_of(label, label), WHOLE)
        assert len(prediction) == count


def test_what_a_slot_without_a_class_has_won_is_void():
    left, right = halves()
    prediction = create()(logits_of([left, right]), classes_of(CAT, VOID), WHOLE)
    assert prediction.segmentation[:, 0].unique().tolist() == [1]
    assert prediction.segmentation[:, -1].unique().tolist() == [0]


def test_nothing_detected_is_an_empty_map():
    prediction = create()(torch.randn(3, 5, 5), classes_of(VOID, VOID, VOID), WHOLE)
    assert len(prediction) == 0
    assert prediction.segmentation.unique().tolist() == [0]


@pytest.mark.parametrize(("label", "limit"), [(CAT, "thing_area_limit"), (SKY, "stuff_area_limit")])
def test_segments_below_their_area_limit_are_void(label, limit):
    left, right = halves()
    logits, classes = logits_of([left, right]), classes_of(label, GRASS if label != GRASS else SKY)
    area = int((create()(logits, classes, WHOLE).segmentation == 1).sum())
    for value, kept in ((area, True), (area + 1, False)):
        labels = {info["label"] for info in create(**{limit: value})(logits, classes, WHOLE).segments_info}
        assert (label in labels) == kept


def test_stuff_may_have_a_class_threshold_of_its_own():
    classes = torch.tensor([[2.0, 0, 0, 0], [0, 2.0, 0, 0]])  # a probability of 0.71 each
    masks = logits_of(halves())
    assert len(create()(masks, classes, WHOLE)) == 2
    (cat,) = create(stuff_class_threshold=0.8)(masks, classes, WHOLE).segments_info
    assert cat["label"] == CAT
    assert len(create(class_threshold=0.8)(masks, classes, WHOLE)) == 0


def test_pixels_between_two_slots_are_void():
    """Both slots have a logit of 0 everywhere: probabilities of one half."""
    logits, classes = torch.zeros(2, 5, 5), classes_of(CAT, CAT)
    assert len(create()(logits, classes, WHOLE)) == 1
    assert len(create(pixel_threshold=0.5)(logits, classes, WHOLE)) == 0


def test_segments_below_the_score_threshold_are_void():
    classes = torch.tensor([[0.0, 20.0, 0, 0], [0, 2.0, 0, 0]])
    merging, masks = create(), logits_of(halves())
    sure, unsure = (info["score"] for info in merging(masks, classes, WHOLE).segments_info)
    assert sure > 0.8 > unsure
    for threshold, count in ((unsure, 2), (unsure + 1e-4, 1), (sure + 1e-4, 0)):
        assert len(merging(masks, classes, WHOLE, score_threshold=threshold)) == count


def test_a_score_is_the_mean_probability_of_the_pixels_times_that_of_the_class():
    """Two slots, of class probabilities 0.8 and 0.9; the first has 0.75 of its pixels everywhere."""
    masks = torch.stack([torch.full((5, 5), math.log(3)), torch.zeros(5, 5)])
    classes = torch.tensor([[0.02, 0.8, 0.08, 0.1], [0.9, 0.04, 0.03, 0.03]]).log()
    (info,) = create()(masks, classes, WHOLE).segments_info
    assert info["score"] == pytest.approx(0.75 * 0.8, rel=1e-5)


def test_a_slot_at_the_class_threshold_is_detected():
    classes = torch.tensor([[1.0, 2.0, 0.5, 1.2]])
    exactly = create().classify(classes).confidence.item()
    assert create(class_threshold=exactly).classify(classes).detected.all()
    assert not create(class_threshold=exactly + 1e-6).classify(classes).detected.any()


def test_a_pixel_that_a_slot_without_a_class_wins_by_nothing_stays():
    masks = torch.stack([torch.ones(5, 5), torch.ones(5, 5)])
    assert len(create()(masks, classes_of(VOID, CAT), WHOLE)) == 1
    masks[0] += 1e-3
    assert len(create()(masks, classes_of(VOID, CAT), WHOLE)) == 0


def test_the_map_lies_in_the_frame_of_the_original_image():
    """The image fills the left half of the input; what is found in the padding alone is not told."""
    left, right = halves()
    geometry = ImageGeometry((34, 12), (17, 5), SIZE)
    prediction = create()(logits_of([left, right]), classes_of(CAT, SKY), geometry)
    assert prediction.segmentation.shape == (34, 12)
    assert [info["label"] for info in prediction.segments_info] == [CAT]
    assert prediction.segments_info[0]["area"] == 34 * 12


def test_masks_are_laid_in_order_and_left_out_where_little_of_them_is_free():
    whole, left = torch.ones(5, 5, dtype=torch.bool), halves()[0]
    logits = torch.stack([torch.where(whole, 2.0, 0.0), torch.where(left, 2.0, -20.0), torch.full((5, 5), -20.0)])

    def assign(order, overlap):
        return assign_masks(logits, torch.tensor(order), SIZE, 0.4, overlap)

    first = assign([0, 1], 0.5)
    assert first.slot.unique().tolist() == [0]
    other = assign([1, 0], 0.5)
    assert other.slot[:, 0].unique().tolist() == [1]
    assert other.slot[:, -1].unique().tolist() == [0]
    assert not assign([1, 0], 0.9).confident[:, -1].any()


def test_maskwise_merging_takes_the_better_class_first():
    whole = torch.ones(5, 5, dtype=torch.bool)
    classes = torch.tensor([[3.0, 0, 0, 0], [0, 6.0, 0, 0]])
    prediction = create(merging="maskwise")(logits_of([whole, whole]), classes, WHOLE)
    assert [info["label"] for info in prediction.segments_info] == [CAT]


@pytest.mark.parametrize(
    ("exponents", "first"),
    [((1.0, 1.0), SKY), ((1.0, 0.0), CAT), ((0.0, 1.0), SKY), ((3.0, 1.0), CAT)],
)
def test_maskwise_merging_orders_by_powers_of_the_class_and_of_the_mask(exponents, first):
    """Slots of one mask: a cat, 0.9 sure, with a third of the pixels' probability; sky, 0.72 sure, with half of it."""
    inside = halves()[0]
    masks = torch.stack([torch.where(inside, p, other) for p, other in ((0.33, 0.001), (0.5, 0.001), (0.17, 0.998))])
    classes = torch.tensor([[0.03, 0.9, 0.03, 0.04], [0.72, 0.1, 0.08, 0.1], [0.01, 0.01, 0.01, 0.97]])
    of_class, of_mask = exponents
    merging = create(merging="maskwise", pixel_threshold=0.2, class_exponent=of_class, mask_exponent=of_mask)
    (info,) = merging(masks.log(), classes.log(), WHOLE).segments_info
    assert info["label"] == first


@pytest.mark.parametrize(("most", "first"), [(0.5, 1), (0.9, 0)])
def test_maskwise_merging_takes_the_mean_over_a_mask_s_own_pixels(most, first):
    """Slot 0 is in rows 0 and 1, slot 1 in rows 1 to 4; means (most + 0.3) / 2 and (0.3 + 3 * 0.6) / 4 = 0.525."""
    rows = torch.tensor([[most, 0.3, 0.19, 0.19, 0.19], [0.05, 0.3, 0.6, 0.6, 0.6]])
    probabilities = torch.cat([rows, 1 - rows.sum(dim=0, keepdim=True)])[:, :, None].expand(-1, -1, 5)
    merging = create(merging="maskwise", pixel_threshold=0.2, overlap_threshold=0.0)
    slots = merging.assign(probabilities.log(), merging.classify(classes_of(CAT, SKY, VOID)), (5, 5))
    assert slots.slot[:, 0].tolist() == [0, first, 1, 1, 1]
    assert slots.confident.all()


def test_a_mask_needs_more_than_the_thresholds():
    """Two slots of one half everywhere, then a mask over the half of another."""
    whole = torch.zeros(2, 3, 4)
    for threshold, covered in ((0.5, False), (0.49, True)):
        assert assign_masks(whole, torch.tensor([0]), (3, 4), threshold, 0.0).confident.all() == covered
    left = torch.tensor([20.0, 20.0, -20.0, -20.0]).expand(3, 4)
    logits = torch.stack([left, torch.zeros(3, 4) + 20, torch.full((3, 4), -40.0)])
    for overlap, covered in ((0.5, False), (0.49, True)):
        assert assign_masks(logits, torch.tensor([0, 1]), (3, 4), 0.4, overlap).confident.all() == covered


def test_maskwise_merging_lays_detected_slots_alone():
    left, right = halves()
    masks, classes = logits_of([left, right, right]), classes_of(CAT, VOID, SKY)
    masks[2] -= 1  # the slot of void has the larger logits
    prediction = create(merging="maskwise", pixel_threshold=0.2)(masks, classes, WHOLE)
    assert [info["label"] for info in prediction.segments_info] == [CAT, SKY]


@pytest.mark.parametrize("spread", [4, 30])
def test_leaving_out_slots_that_cannot_win_changes_nothing(spread):
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(12, 6, 5, generator=generator)
    detected = torch.arange(12) % 3 > 0
    found = assign_pixels(logits, detected, (81, 65), 0.4)
    whole = torch.nn.functional.interpolate(logits[None], (81, 65), mode="bilinear", align_corners=True)[0]
    probability, slot = whole.masked_fill(~detected[:, None, None], -torch.inf).softmax(dim=0).max(dim=0)
    torch.testing.assert_close(found.probability, probability)
    assert torch.equal(found.confident, (whole.argmax(dim=0) == slot) & (probability > 0.4))
    assert torch.equal(found.slot, slot)


def test_a_slot_far_below_another_still_has_its_share():
    """exp(-15) is 3e-7, which float32 tells from nothing."""
    logits = torch.tensor([0.0, -15.0])[:, None, None].expand(2, 5, 5)
    assert (assign_pixels(logits, torch.ones(2).bool(), SIZE, 0.4).probability < 1).all()


def test_strips_are_the_whole_map():
    logits = torch.randn(3, 20, 6)
    every = torch.arange(len(logits))
    strips = torch.cat([strip for _, strip in enlarged_strips(logits, (77, 21), lambda *_: every)], dim=1)
    whole = torch.nn.functional.interpolate(logits[None], (77, 21), mode="bilinear", align_corners=True)[0]
    torch.testing.assert_close(strips, whole)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"class_threshold": 1.5}, "class_threshold must be at least 0 and at most 1, but got 1.5"),
        ({"thing_area_limit": -1}, "thing_area_limit must be at least 0 and a whole number, but got -1"),
    ],
)
def test_values_without_a_meaning_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        create(**values)
