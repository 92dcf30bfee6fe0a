"""Panoptic quality by hand: matches, void, crowds, groups without a class, several processes."""

import inspect
import json
import math

import pytest
import torch

from maskwright.evaluation.panoptic_quality import PanopticQuality
from maskwright.evaluation.report import summarize, tables_of
from maskwright.structures import Category, PanopticPrediction, PanopticTarget, SegmentInfo

CATEGORIES = [
    Category(id=5, name="dog", isthing=True),
    Category(id=1, name="cat", isthing=True),
    Category(id=9, name="sky", isthing=False),
]


def scene(text: str) -> torch.Tensor:
    """One line of digits: the segment of each pixel, `.` where it has none."""
    return torch.tensor([[-1 if letter == "." else int(letter) for letter in text]])


def target(text: str, labels: list[int], crowds: str = "", image_id: int = 1) -> PanopticTarget:
    return PanopticTarget(
        segmentation=scene(text).int(),
        labels=torch.tensor(labels, dtype=torch.int64),
        iscrowd=torch.tensor([str(row) in crowds for row in range(len(labels))], dtype=torch.bool),
        ids=torch.arange(len(labels)) + 1,
        image_id=image_id,
    )


def prediction(text: str, labels: list[int]) -> PanopticPrediction:
    ids = (scene(text) + 1) * 7  # any ids will do
    infos = [
        SegmentInfo(id=7 * (row + 1), label=label, category_id=0, isthing=label < 2, score=1.0, area=0)
        for row, label in enumerate(labels)
    ]
    return PanopticPrediction(ids.int(), infos, (1, len(text)), CATEGORIES)


def metric_of(*pairs: tuple[PanopticPrediction, PanopticTarget], variant="official") -> PanopticQuality:
    metric = PanopticQuality(CATEGORIES, variant)
    for found, truth in pairs:
        metric.update([found], [truth])
    return metric


def counts(metric: PanopticQuality, label: int) -> tuple[float, int, int, int]:
    row = metric.per_class()[label]
    return round(row.iou, 9), row.true_positives, row.false_positives, row.false_negatives


def test_by_hand():
    """dog: IoU 4/5 and a false alarm; cat: IoU of exactly 0.5 is no match; sky: exact."""
    truth = target("0000011112222333", [0, 1, 2, 1])
    found = prediction("0000111122223333", [0, 1, 2, 0])
    metric = metric_of((found, truth))
    assert counts(metric, 0) == (0.8, 1, 1, 0)
    assert counts(metric, 1) == (0.6, 1, 0, 1)  # 3 common of 5; the cat at the end is called a dog
    assert counts(metric, 2) == (0.6, 1, 0, 0)
    numbers = metric.compute()
    dog, cat, sky = 0.8 / 1.5, 0.6 / 1.5, 0.6
    assert numbers["pq"] == pytest.approx((dog + cat + sky) / 3)
    assert numbers["pq_things"] == pytest.approx((dog + cat) / 2)
    assert numbers["pq_stuff"] == pytest.approx(sky)
    assert numbers["sq_things"] == pytest.approx(0.7)
    assert numbers["rq_things"] == pytest.approx(1 / 1.5)
    assert (numbers["classes"], numbers["classes_things"], numbers["classes_stuff"]) == (3, 2, 1)
    assert numbers["images"] == 1


@pytest.mark.parametrize("variant", ["official", "in_house"])
def test_half_is_no_match(variant):
    truth = target("00001111", [0, 1])
    assert counts(metric_of((prediction("00......", [0]), truth), variant=variant), 0) == (0, 0, 1, 1)
    assert counts(metric_of((prediction("000.....", [0]), truth), variant=variant), 0) == (0.75, 1, 0, 0)


@pytest.mark.parametrize("variant", ["official", "in_house"])
def test_void_counts_for_nothing(variant):
    """Void pixels leave the union; a prediction more than half on void is forgiven, at half it is not."""
    matched = metric_of((prediction("0000000", [0]), target("0000...", [0])), variant=variant)
    assert counts(matched, 0) == (1.0, 1, 0, 0)
    forgiven = metric_of((prediction("..00000.", [0]), target("111.....", [0, 1])), variant=variant)
    assert counts(forgiven, 0)[2] == 0
    half = metric_of((prediction("..0000..", [0]), target("1111....", [0, 1])), variant=variant)
    assert counts(half, 0)[2] == 1


def test_crowds():
    """A crowd is not missed and matches nothing; what lies on it is forgiven in its own class only."""
    truth = target("0000000011", [0, 1], crowds="0")
    assert counts(metric_of((prediction("..........", []), truth)), 0) == (0, 0, 0, 0)
    assert counts(metric_of((prediction("00000000..", [0]), truth)), 0) == (0, 0, 0, 0)
    assert counts(metric_of((prediction("00000000..", [1]), truth)), 1) == (0, 0, 1, 1)


def test_of_two_crowds_the_last_one_counts():
    truth = target("000011112", [0, 0, 1], crowds="01")
    assert counts(metric_of((prediction("0000.....", [0]), truth)), 0)[2] == 1
    assert counts(metric_of((prediction("....0000.", [0]), truth)), 0)[2] == 0


def test_in_house_takes_crowds_and_stuff_together():
    truth = target("00112233", [0, 0, 2, 2], crowds="01")
    found = prediction("00001111", [0, 2])
    official = metric_of((found, truth))
    assert counts(official, 0) == (0, 0, 1, 0)  # half on the last crowd is not more than half
    assert counts(official, 2) == (0, 0, 1, 2)
    in_house = metric_of((found, truth), variant="in_house")
    assert counts(in_house, 0) == (1.0, 1, 0, 0)
    assert counts(in_house, 2) == (1.0, 1, 0, 0)


def test_groups_without_a_class_are_nan():
    numbers = metric_of((prediction("00", [0]), target("00", [0]))).compute()
    assert numbers["pq"] == numbers["pq_things"] == 1.0
    assert all(math.isnan(numbers[key]) for key in ("pq_stuff", "sq_stuff", "rq_stuff"))
    assert numbers["classes_stuff"] == 0
    assert math.isnan(metric_of().compute()["pq"])
    nothing = metric_of((prediction("..", []), target("..", [])))
    assert nothing.compute()["images"] == 1
    assert math.isnan(nothing.compute()["pq"])


def random_pair(seed: int) -> tuple[PanopticPrediction, PanopticTarget]:
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randint(-1, 2, (1, 60), generator=generator)
    segmentation = torch.randint(0, 5, (1, 20), generator=generator).repeat_interleave(3, 1) - 1
    truth = target("".join("." if value < 0 else str(int(value)) for value in segmentation[0]), [0, 1, 1, 2], "2", seed)
    moved = torch.where(shift > 0, -1, segmentation)
    infos = [
        SegmentInfo(id=row + 1, label=label, category_id=0, isthing=True, score=1.0, area=0)
        for row, label in enumerate([0, 1, 1, 2])
        if (moved == row).any()
    ]
    return PanopticPrediction((moved + 1).int(), infos, (1, 60), CATEGORIES), truth


@pytest.mark.parametrize("variant", ["official", "in_house"])
def test_processes_add_up(variant):
    pairs = [random_pair(seed) for seed in range(12)]
    whole = metric_of(*pairs, variant=variant)
    first, second = metric_of(*pairs[::2], variant=variant), metric_of(*pairs[1::2], variant=variant)
    first.merge(json.loads(json.dumps(second.state())))
    assert first.compute() == pytest.approx(whole.compute(), nan_ok=True)
    assert 0 < whole.compute()["pq"] < 1
    with pytest.raises(ValueError, match="counted twice"):
        first.merge(second.state())
    first.reset()
    assert math.isnan(first.compute()["pq"])
    with pytest.raises(ValueError, match="a state of 3 classes, but got one of 1"):
        first.merge(PanopticQuality(CATEGORIES[:1]).state())


def test_the_order_of_segments_does_not_matter():
    """Nor do the ids: permuted rows of the same maps give the same numbers (of crowds, but for the last one)."""
    found, truth = random_pair(3)
    order = torch.tensor([2, 0, 3, 1])
    permuted = PanopticTarget(
        segmentation=torch.where(truth["segmentation"] < 0, -1, order.argsort()[truth["segmentation"].long()]).int(),
        labels=truth["labels"][order],
        iscrowd=truth["iscrowd"][order],
        ids=truth["ids"][order],
        image_id=1,
    )
    assert metric_of((found, permuted)).per_class() == metric_of((found, truth)).per_class()


@pytest.mark.parametrize(
    ("found", "truth", "words"),
    [
        (prediction("000", [0]), target("00", [0]), r"of \(1, 3\) \(height, width\), targets of \(1, 2\)"),
        (prediction("00", [3]), target("00", [0]), r"labels must lie in 0\.\.2, but got \[3\]"),
        (prediction("00", [0, 1]), target("00", [0]), "1 predicted segments have no pixel"),
        (prediction("01", [0]), target("00", [0]), "ids that are not in its list of segments"),
    ],
)
def test_what_does_not_fit(found, truth, words):
    with pytest.raises(ValueError, match=f"image 1: .*{words}"):
        metric_of((found, truth))


def test_other_mistakes():
    with pytest.raises(ValueError, match="it was counted already"):
        metric_of(*[(prediction("0", [0]), target("0", [0]))] * 2)
    with pytest.raises(ValueError, match="variant must be one of official, in_house"):
        inspect.unwrap(PanopticQuality.__init__)(PanopticQuality(CATEGORIES), CATEGORIES, "published")
    with pytest.raises(ValueError, match="got 1 and 0"):
        PanopticQuality(CATEGORIES).update([prediction("0", [0])], [])


def test_summary_and_tables():
    metric = metric_of((prediction("0000111122223333", [0, 1, 0, 0]), target("0000011112222333", [0, 1, 1, 1])))
    summary = summarize(metric)
    assert json.loads(json.dumps(summary)) == summary
    assert (summary["pq_stuff"], summary["classes"], summary["images"]) == (None, 2, 1)
    assert [row["name"] for row in summary["per_class"]] == ["dog", "cat"]
    groups, classes, end = tables_of(metric).split("\n\n")
    assert groups.split("\n")[0].split() == ["PQ", "SQ", "RQ", "classes"]
    assert groups.split("\n")[4].split() == ["stuff", "-", "-", "-", "0"]
    assert classes.split("\n")[2].split()[0] == "cat"  # the worst first
    assert classes.split("\n")[3].split() == ["dog", "0.400", "0.800", "0.500", "1", "2", "0"]
    assert end == "1 images, official evaluation"
