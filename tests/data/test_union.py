"""Several data sets as one: classes by name, ids, shares of the draws."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from coco_folder import CocoFolder, annotation

from maskwright.data.categories import unite_categories
from maskwright.data.dataset import DataSource, SegmentationDataset
from maskwright.data.loaders import EndlessSampler
from maskwright.data.union import UnionDataset, UnionSource, open_union
from maskwright.errors import UserError
from maskwright.structures import Target


def classes(*pairs: tuple[int, str]) -> list[dict]:
    return [{"id": identity, "name": name} for identity, name in pairs]


def test_classes_are_united_by_name_with_synonyms_and_keep_their_ids_where_these_are_free():
    united = unite_categories(
        [
            classes((7, "person"), (3, "TV")),
            classes((1, "tvmonitor"), (7, "aeroplane"), (2, "Person")),
            classes((3, "airplane"), (1, "kite"), (9, "sofa")),
        ]
    )
    # aeroplane's 7 is person's: it gets the first above 9. kite's 1 is free, since tvmonitor is TV.
    assert united == classes((7, "person"), (3, "TV"), (10, "aeroplane"), (1, "kite"), (9, "sofa"))


def test_names_that_one_file_tells_apart_stay_apart():
    assert unite_categories([classes((1, "tv"), (2, "television"))]) == classes((1, "tv"), (2, "television"))


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, DataSource]:
    """Two images with masks of persons and TVs; three with boxes of kites and monitors, and persons with masks."""
    one, two = CocoFolder(_new(tmp_path / "one")), CocoFolder(_new(tmp_path / "two"))
    one.write(
        [annotation(5, 1, 7), annotation(6, 2, 3)], images=2, categories=classes((7, "person"), (3, "TV"), (4, "cup"))
    )
    two.write(
        [
            annotation(5, 1, 2, segmentation=...),
            annotation(8, 1, 1),
            annotation(9, 3, 5),
            annotation(10, 3, 5, iscrowd=1),
        ],
        images=3,
        categories=classes((1, "tvmonitor"), (2, "kite"), (5, "Person")),
    )
    return {
        "one": DataSource(one.images, one.annotations),
        "two": DataSource(two.images, two.annotations, mask_classes=["person"]),
    }


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.fixture
def union(sources) -> UnionDataset:
    return open_union(UnionSource(sources))


def test_a_sample_has_the_label_of_the_union_and_the_ids_of_its_set(union):
    assert union.categories == classes((7, "person"), (3, "TV"), (4, "cup"), (2, "kite"))
    assert union.task == "instance"
    seen = []
    for index in range(len(union)):
        _, target = union[index]
        seen.append((target["image_id"], target["labels"].tolist(), target["ids"].tolist()))
    assert seen == [
        ("one/1", [0], [5]),
        ("one/2", [1], [6]),
        ("two/1", [3, 1], [5, 8]),
        ("two/2", [], []),
        ("two/3", [0, 0], [9, 10]),
    ]
    assert union.file_names == ["one/1.png", "one/2.png", "two/1.png", "two/2.png", "two/3.png"]
    assert union.split_keys == ["1.png", "2.png", "1.png", "2.png", "3.png"]


def test_one_set_has_masks_of_a_class_of_which_another_has_boxes_alone(union):
    assert [union[index][1]["has_mask"].tolist() for index in (1, 2, 4)] == [[True], [False, False], [True, True]]
    assert union.instances.images.tolist() == [0, 1, 2, 2, 4]
    assert union.instances.labels.tolist() == [0, 1, 3, 1, 0]
    assert union.instances.has_mask.tolist() == [True, True, False, False, True]
    assert union.mask_classes == ["person", "TV", "cup"]
    assert union.find_mask_classes() == ["person", "TV"]
    assert [union.mask_labels(index) for index in range(5)] == [{0}, {1}, set(), set(), {0}]


def test_a_sample_is_that_of_its_set(union):
    image, target = union[4]
    own_image, own_target = union.sets["two"][2]
    assert torch.equal(image, own_image)
    assert torch.equal(target["boxes"], own_target["boxes"])
    assert target["masks"] is not None
    assert torch.equal(target["iscrowd"], torch.tensor([False, True]))


def test_a_given_label_space_takes_the_place_of_the_united_one(sources):
    space = classes((50, "kite"), (51, "television"), (52, "person"), (53, "cup"))
    union = open_union(UnionSource(sources, categories=space))
    assert union.categories == space
    assert union[2][1]["labels"].tolist() == [0, 1]
    with pytest.raises(UserError, match="classes that the model does not know: kite"):
        open_union(UnionSource(sources, categories=space[1:]))


def test_mask_classes_are_those_of_the_own_file(sources):
    sources["one"] = DataSource(sources["one"].images, sources["one"].annotations, mask_classes=["kite"])
    with pytest.raises(UserError, match="unknown class names: kite"):
        open_union(UnionSource(sources))


def test_what_was_skipped_and_repaired_is_added_up(sources):
    for source in sources.values():
        content = json.loads(Path(source.annotations).read_text())
        content["annotations"] += [annotation(70, 99), annotation(71, iscrowd="0", category_id=5)]
        Path(source.annotations).write_text(json.dumps(content))
    union = open_union(UnionSource(sources))
    assert sum(union.skipped.values()) == 3  # image 99 twice, and class 5, which the first file does not list
    assert sum(union.repaired.values()) == sum(sum(part.repaired.values()) for part in union.sets.values()) >= 1


class Blank(SegmentationDataset):
    """Empty images of one class."""

    task = "instance"
    categories = classes((1, "thing"))  # pyright: ignore[reportAssignmentType]

    def __init__(self, count: int, weights: list[float] | None = None) -> None:
        self._count = count
        self.sampling_weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)

    def __len__(self) -> int:
        return self._count

    def read_sample(self, index: int) -> tuple[torch.Tensor, Target]:
        raise AssertionError("weights are told without reading an image")


def test_without_shares_and_weights_every_image_is_drawn_alike():
    assert UnionDataset({"a": Blank(2), "b": Blank(3)}).sampling_weights is None


def test_a_share_is_divided_among_the_images_by_their_own_weights():
    union = UnionDataset({"a": Blank(2), "b": Blank(3, [1, 0, 3])}, {"a": 3.0, "b": 1.0})
    assert union.sampling_weights is not None
    probabilities = union.sampling_weights / union.sampling_weights.sum()
    assert probabilities.tolist() == pytest.approx([3 / 8, 3 / 8, 1 / 16, 0, 3 / 16])


def test_own_weights_alone_leave_each_set_the_share_of_its_images():
    union = UnionDataset({"a": Blank(2), "b": Blank(3, [100, 0, 300])})
    assert union.sampling_weights is not None
    probabilities = union.sampling_weights / union.sampling_weights.sum()
    assert probabilities.tolist() == pytest.approx([1 / 5, 1 / 5, 3 / 20, 0, 9 / 20])


def test_a_part_of_the_union_keeps_the_shares():
    union = UnionDataset({"a": Blank(4), "b": Blank(3, [1, 0, 3]), "c": Blank(1)}, {"a": 0.5, "b": 0.3, "c": 0.2})
    part = union.subset([0, 1, 2, 4, 6])  # nothing of c: its share goes to the others
    assert part.sampling_weights is not None
    assert part.sampling_weights.tolist() == pytest.approx([0.5 / 3] * 3 + [0.3 / 4, 0.9 / 4])
    of_part = part.subset([4, 0])
    assert of_part.sampling_weights is not None
    assert of_part.sampling_weights.tolist() == pytest.approx([0.3, 0.5])
    assert of_part.file_names == ["b/2", "a/0"]
    assert of_part.split_keys == ["2", "0"]


def test_draws_come_from_the_sets_by_their_shares():
    union = UnionDataset({"a": Blank(50), "b": Blank(2), "c": Blank(8)}, {"a": 0.1, "b": 0.6, "c": 0.3})
    sampler = EndlessSampler(len(union), batch_size=100, seed=3, weights=union.sampling_weights)
    draws = Counter(union.file_names[index][0] for batch in islice(sampler, 40) for index, _ in batch)
    for name, share in (("a", 0.1), ("b", 0.6), ("c", 0.3)):
        deviation = (4000 * share * (1 - share)) ** 0.5
        assert abs(draws[name] - 4000 * share) < 3.5 * deviation


def test_data_sets_of_different_tasks_are_refused():
    other = Blank(1)
    other.task = "panoptic"
    with pytest.raises(UserError, match=r"these have the tasks \['instance', 'panoptic'\]"):
        UnionDataset({"a": Blank(1), "b": other})
