"""The contract of data sets, over every row of the registry and for a data set of one's own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_folder import CocoFolder, annotation
from panoptic_folder import PanopticFolder, segment, stripes

from maskwright.data.dataset import DataSource, FileDataset, SegmentationDataset
from maskwright.data.formats import FORMATS, format_of, open_data_set
from maskwright.data.loaders import evaluation_loader, training_loader
from maskwright.data.picture_folder import PictureFolder
from maskwright.data.shard_writer import write_shards
from maskwright.errors import UserError
from maskwright.structures import Target, check_panoptic_targets, check_targets

CHECKS = {"instance": check_targets, "panoptic": check_panoptic_targets}


def instances(folder: Path) -> DataSource:
    coco = CocoFolder(folder)
    images = [coco.picture(f"{n}.png", n) | {"sampling_weight": n} for n in (1, 2, 3)]
    annotations = [annotation(1), annotation(2, 2, 90, segmentation=...), annotation(3, 2), annotation(4, 3, iscrowd=1)]
    coco.write([*annotations, annotation(5, bbox=None, segmentation=[])], images=images)
    return DataSource(coco.images, coco.annotations)


def panoptic(folder: Path) -> DataSource:
    scenes = [(stripes(1), [segment(1)]), (stripes(4, 5), [segment(4, 92), segment(5)])]
    files = PanopticFolder(folder).write(*scenes, (stripes(6), [segment(6, iscrowd=1)]))
    content = json.loads(files.annotations.read_text())
    for entry in content["images"]:
        entry["sampling_weight"] = entry["id"]
    content["annotations"][0]["segments_info"].append({"id": "x"})
    files.annotations.write_text(json.dumps(content))
    return DataSource(files.images, files.annotations)


def shards(folder: Path) -> DataSource:
    files = instances(folder)
    (folder / "shards").mkdir()
    write_shards(files.annotations, PictureFolder(files.images), folder / "shards", shard_bytes=10_000)
    return DataSource(folder / "shards", folder / "shards")


SOURCES = {
    "COCO instances files": instances,
    "COCO panoptic files": panoptic,
    "shards of COCO instances": shards,
}
"""Three images of weights 1, 2, 3: one instance in the first, two in the second, a crowd in the third; one entry is
broken."""


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.__name__)
class TestEveryFormat:
    @pytest.fixture
    def source(self, row: type[FileDataset], tmp_path: Path) -> DataSource:
        return SOURCES[row.format_name](tmp_path)

    def test_a_file_finds_its_format(self, row, source):
        assert format_of(source.annotations) is row
        assert type(open_data_set(source, row.task)) is row
        others = set(CHECKS) - {row.task}
        for task in others:
            with pytest.raises(UserError, match="this recipe learns from"):
                format_of(source.annotations, task)

    def test_samples_are_targets_of_its_task(self, row, source):
        data = open_data_set(source)
        samples = [data[index] for index in range(len(data))]
        images, targets = (list(column) for column in zip(*samples, strict=True))
        if data.task == "instance":
            targets = [Target(**{**target, "masks": target["masks"].planes()}) for target in targets]
        CHECKS[data.task](images, targets, len(data.categories))
        assert all(image.dtype == torch.uint8 for image in images)
        assert [target["image_id"] for target in targets] == [1, 2, 3]
        assert data[-1][1]["image_id"] == 3
        with pytest.raises(IndexError):
            data[3]

    def test_what_it_knows_without_reading_is_what_the_samples_hold(self, row, source):
        data = open_data_set(source)
        found = SegmentationDataset.instances.func(data)
        for name in ("images", "labels", "has_mask"):
            assert np.array_equal(getattr(data.instances, name), getattr(found, name))
        assert sum(data.count_instances()) == 3
        assert data.contents().startswith("3 images, ")
        assert sum(data.skipped.values()) == 1
        assert data.repaired == {}
        assert data.sampling_weights is not None
        assert data.sampling_weights.tolist() == [1, 2, 3]

    def test_a_subset_keeps_everything_of_its_images(self, row, source):
        data = open_data_set(source)
        part = data.subset([2, 1])
        assert (part.task, part.categories, part.mask_classes) == (data.task, data.categories, data.mask_classes)
        assert part.file_names == ["3.png", "2.png"]
        assert part.sampling_weights is not None
        assert part.sampling_weights.tolist() == [3, 2]
        assert part.instances.images.tolist() == [1, 1]
        assert sum(part.count_instances()) == 2
        batches = list(evaluation_loader(part, batch_size=2))
        assert [target["image_id"] for _, targets in batches for target in targets] == [3, 2]

    def test_the_seed_decides_and_the_random_state_stays(self, row, source):
        data = open_data_set(source)
        data.transforms = lambda image, target: (image + torch.randint(9, image.shape), target)
        state = torch.get_rng_state()
        assert torch.equal(data[(1, 7)][0], data[(1, 7)][0])
        assert not torch.equal(data[(1, 7)][0], data[(1, 8)][0])
        assert torch.equal(torch.get_rng_state(), state)
        images, _ = next(iter(training_loader(data, batch_size=2, seed=0)))
        assert len(images) == 2

    def test_inspection_counts_what_can_be_learnt_from(self, row, source):
        found = row.inspect(source.annotations)
        assert [image.file_name for image in found.images] == ["1.png", "2.png", "3.png"]
        assert found.learnable_images == 2
        assert [category["class"] for category in found.classes] == [
            c["name"] for c in open_data_set(source).categories
        ]
        assert [problem.effect for problem in found.problems] == ["dropped"]


class Squares(SegmentationDataset):
    """Four images of 40 x 40 pixels with one square each, drawn when they are asked for; the last has no mask."""

    task = "instance"

    def __init__(self) -> None:
        self.categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}, {"id": 3, "name": "blue"}]

    def __len__(self) -> int:
        return 4

    def read_sample(self, index: int) -> tuple[torch.Tensor, Target]:
        label, has_mask = index % 2, index < 3
        masks = torch.zeros(1, 40, 40, dtype=torch.bool)
        masks[0, 10:30, 5 : 25 + index] = has_mask
        image = torch.full((3, 40, 40), 90, dtype=torch.uint8)
        image[label, 10:30, 5 : 25 + index] = 250
        target = Target(
            boxes=torch.tensor([[5.0, 10, 25 + index, 30]]),
            labels=torch.tensor([label]),
            masks=masks,
            has_mask=torch.tensor([has_mask]),
            iscrowd=torch.tensor([False]),
            ids=torch.tensor([index]),
            image_id=index,
        )
        return image, target


def test_a_data_set_of_ones_own_has_defaults_for_the_rest():
    data = Squares()
    assert data.count_instances() == (3, 1)
    assert data.mask_classes == ["red", "green"]
    assert data.file_names == ["0", "1", "2", "3"]
    assert data.contents() == "4 images, 3 instances with masks, 1 with boxes only; masks of 2 of 3 classes"
    assert data.subset([3]).count_instances() == (0, 1)
    ids = [target["image_id"] for _, targets in evaluation_loader(data, batch_size=3) for target in targets]
    assert ids == [0, 1, 2, 3]
