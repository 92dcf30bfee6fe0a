import itertools
from collections import Counter
from functools import partial

import pytest
import torch
from coco_folder import annotation
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.data.coco import CocoInstances
from maskwright.data.copy_paste import copy_paste
from maskwright.data.loaders import EndlessSampler, evaluation_loader, training_loader
from maskwright.data.transforms import training_transforms
from maskwright.errors import UserError


def first(iterable, count):
    return list(itertools.islice(iter(iterable), count))


@given(
    size=st.integers(1, 12),
    batch_size=st.integers(1, 5),
    seed=st.integers(-5, 2**40),
    world_size=st.integers(1, 3),
    start=st.integers(0, 30),
    weighted=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_order_is_a_function_of_seed_step_and_rank(size, batch_size, seed, world_size, start, weighted):
    weights = torch.arange(1.0, size + 1) if weighted else None
    for rank in range(world_size):
        options = {"batch_size": batch_size, "seed": seed, "rank": rank, "world_size": world_size, "weights": weights}
        unbroken = first(EndlessSampler(size, **options), start + 3)
        resumed = first(EndlessSampler(size, start_step=start, **options), 3)
        assert resumed == unbroken[start:]
        assert all(len(batch) == batch_size for batch in resumed)


@pytest.mark.parametrize(("size", "batch_size", "world_size"), [(7, 2, 1), (12, 2, 3), (5, 4, 2)])
def test_every_image_once_per_epoch_over_all_ranks(size, batch_size, world_size):
    steps = size * 3
    ranks = [
        first(EndlessSampler(size, batch_size=batch_size, seed=1, rank=rank, world_size=world_size), steps)
        for rank in range(world_size)
    ]
    draws = [draw for step in zip(*ranks, strict=True) for batch in step for draw in batch]
    orders = [tuple(index for index, _ in draws[start : start + size]) for start in range(0, len(draws) - size, size)]
    assert all(sorted(order) == list(range(size)) for order in orders)
    assert len(set(orders)) > 1
    assert len({seed for _, seed in draws}) == len(draws)


def test_seeds_give_different_orders():
    orders = [tuple(first(EndlessSampler(50, batch_size=50, seed=seed), 1)[0]) for seed in (0, 1)]
    assert orders[0] != orders[1]


def test_weighted_draws_follow_the_weights():
    sampler = EndlessSampler(4, batch_size=100, seed=3, weights=torch.tensor([0.0, 1.0, 0.0, 3.0]))
    counts = Counter(index for batch in first(sampler, 40) for index, _ in batch)
    assert set(counts) == {1, 3}
    assert 0.72 < counts[3] / 4000 < 0.78


def test_numbers_written_down():
    """A change of the order would make every resumed training run differ from its unbroken one."""
    assert first(EndlessSampler(5, batch_size=3, seed=0), 2) == EXPECTED


EXPECTED = [
    [(3, 2775484790780771856), (0, 4032269933351459298), (1, 8883225343223118711)],
    [(4, 1541419191542436386), (2, 2934711467775078447), (1, 8077141699526479820)],
]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"rank": 1}, "rank 1"),
        ({"start_step": -1}, "start_step -1"),
        ({"weights": torch.zeros(3)}, "not all 0"),
        ({"weights": torch.ones(4)}, "must be 3 numbers"),
        ({"weights": torch.tensor([1.0, -1.0, 1.0])}, "at least 0"),
        ({"weights": torch.tensor([1.0, torch.nan, 1.0])}, "must be 3 numbers"),
    ],
)
def test_bad_numbers(changes, message):
    with pytest.raises(ValueError, match=message):
        EndlessSampler(3, **({"batch_size": 2, "seed": 0} | changes))


def open_folder(coco, count=7, *, weighted=False, **options) -> CocoInstances:
    annotations = [annotation(number, image_id=number) for number in range(1, count + 1)]
    images = [coco.picture(f"{number}.png", number) for number in range(1, count + 1)]
    if weighted:
        images = [entry | {"sampling_weight": entry["id"]} for entry in images]
    coco.write(annotations, images=images)
    return CocoInstances(coco.images, coco.annotations, **options)


def same(batch, other) -> bool:
    (images, targets), (other_images, other_targets) = batch, other
    return all(map(torch.equal, images, other_images)) and all(
        target["image_id"] == other_target["image_id"]
        and all(torch.equal(target[key], other_target[key]) for key in target if key != "image_id")
        for target, other_target in zip(targets, other_targets, strict=True)
    )


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_resumed_loader_gives_the_very_batches_of_the_unbroken_one(coco, num_workers, weighted):
    dataset = open_folder(coco, weighted=weighted, transforms=training_transforms(16))
    dataset.mix = partial(copy_paste, share=0.5)
    options = {"batch_size": 3, "seed": 9, "rank": 1, "world_size": 2}
    unbroken = first(training_loader(dataset, **options), 6)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    resumed = first(training_loader(dataset, start_step=4, num_workers=num_workers, **options), 2)
    assert all(same(batch, other) for batch, other in zip(resumed, unbroken[4:], strict=True))
    assert not same(resumed[0], resumed[1])
    assert torch.equal(torch.get_rng_state(), state)
    images, targets = resumed[0]
    assert [image.shape for image in images] == [(3, 16, 16)] * 3
    assert len(targets) == 3


def test_only_training_batches_are_mixed(coco):
    dataset = open_folder(coco, transforms=training_transforms(16))
    plain = first(training_loader(dataset, batch_size=4, seed=9), 3)
    dataset.mix = lambda images, targets: ([image + 1 for image in images], targets[::-1])
    for (images, targets), (mixed, reversed_targets) in zip(
        plain, first(training_loader(dataset, batch_size=4, seed=9), 3), strict=True
    ):
        assert same((mixed, reversed_targets), ([image + 1 for image in images], targets[::-1]))
    dataset.transforms = None
    samples = [sample for images, _ in evaluation_loader(dataset, batch_size=4) for sample in images]
    assert all(torch.equal(sample, dataset[index][0]) for index, sample in enumerate(samples))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_sees_every_image_once(coco, num_workers):
    dataset = open_folder(coco)
    seen = []
    for rank in range(3):
        loader = evaluation_loader(dataset, batch_size=2, rank=rank, world_size=3, num_workers=num_workers)
        batches = list(loader)
        assert len(loader) == len(batches)
        own = [target["image_id"] for _, targets in batches for target in targets]
        assert own == list(range(rank + 1, 8, 3))
        seen += own
    assert sorted(seen) == list(range(1, 8))


def test_rank_without_images(coco):
    dataset = open_folder(coco, 2)
    assert list(evaluation_loader(dataset, batch_size=4, rank=2, world_size=3)) == []


@pytest.mark.parametrize("num_workers", [0, 1])
def test_error_of_a_user_is_one_sentence_from_a_worker_too(coco, num_workers):
    dataset = open_folder(coco)
    (coco.images / "5.png").unlink()
    with pytest.raises(UserError) as caught:
        list(evaluation_loader(dataset, batch_size=2, num_workers=num_workers))
    expected = f"the image {coco.images / '5.png'}, listed in {coco.annotations}, does not exist"
    assert str(caught.value) == expected
