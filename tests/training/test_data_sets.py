import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from maskwright.apps.check_data import check_data
from maskwright.data.dataset import SegmentationDataset
from maskwright.errors import UserError
from maskwright.models.hub import from_pretrained
from maskwright.structures import PanopticTarget, Target
from maskwright.training.data_sets import DataSets, drawn_images, open_data_sets
from maskwright.training.engine import train_recipe
from maskwright.training.recipes import resolve_recipe
from maskwright.training.run import main


@pytest.fixture
def options(arguments):
    return resolve_recipe(arguments[0], arguments[1:]).data


def test_the_share_for_validation_is_never_trained_on(options):
    sets = open_data_sets(options, 64, None)
    training, validation = set(sets.training.file_names), set(sets.validation.file_names)
    assert not training & validation
    assert len(training | validation) == 12


def test_a_validation_file_replaces_the_share_and_keeps_all_masks(options):
    sets = open_data_sets(replace(options, validation_annotations=options.annotations), 64, None)
    assert (len(sets.training), len(sets.validation)) == (12, 12)
    assert sets.validation.mask_classes == ["person", "dog", "kite"]
    assert sets.training.mask_classes == ["person"]


def _file(options, path, change):
    """The options with another file: `change` gets the entries of each image's annotations by class name."""
    content = json.loads(Path(options.annotations).read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    for entry in content["annotations"]:
        change(entry, content["images"][entry["image_id"]]["file_name"], names[entry["category_id"]])
    path.write_text(json.dumps(content))
    return replace(options, annotations=str(path))


def _masks_in(options, path, *images, classes=("person", "dog")):
    """Masks of these images and classes alone; other instances keep their boxes."""

    def change(entry, name, class_name):
        if name not in images or class_name not in classes:
            entry.pop("segmentation", None)

    return _file(options, path, change)


def test_the_seen_classes_have_a_mask_among_the_training_images(options, tmp_path):
    options = replace(options, mask_classes="all")
    sets = open_data_sets(options, 64, None)
    assert sets.training.find_mask_classes() == ["person", "dog"]  # kites have boxes only

    aside = set(sets.validation.file_names)

    def dogs_in_the_validation_share_alone(entry, name, class_name):
        if class_name == "dog" and name not in aside:
            entry.pop("segmentation")

    sets = open_data_sets(_file(options, tmp_path / "dogs.json", dogs_in_the_validation_share_alone), 64, None)
    assert sets.training.find_mask_classes() == ["person"]
    assert sets.validation.find_mask_classes() == ["person", "dog"]
    assert set(sets.validation.file_names) == aside


def test_masks_without_a_pixel_make_no_class_seen(options, tmp_path):
    def spoil(entry, name, class_name):
        if class_name == "dog":  # a line
            entry["segmentation"] = [[10, 10, 20, 10, 30, 10]]

    sets = open_data_sets(_file(replace(options, mask_classes="all"), tmp_path / "lines.json", spoil), 64, None)
    assert sets.training.find_mask_classes() == ["person"]


def test_both_sides_have_masks_wherever_two_images_do(options, tmp_path):
    names = [f"{image:03d}.png" for image in range(12)]
    unmoved = set(open_data_sets(options, 64, None).validation.file_names)
    for number, pair in enumerate(itertools.combinations(names[:6], 2)):
        sets = open_data_sets(_masks_in(options, tmp_path / f"{number}.json", *pair), 64, None)
        training, validation = set(sets.training.file_names), set(sets.validation.file_names)
        assert len(training & set(pair)) == len(validation & set(pair)) == 1
        assert not training & validation
        assert training | validation == set(names)
        # Only as many images move as have to.
        assert len(validation ^ unmoved) == (0 if len(unmoved & set(pair)) == 1 else 1)


def test_the_last_image_that_can_be_learnt_from_is_not_set_aside(options, tmp_path):
    def change(entry, name, class_name):
        if not (class_name == "person" and name == "001.png") and not (class_name == "dog" and name < "006.png"):
            entry.pop("segmentation", None)

    sets = open_data_sets(_file(options, tmp_path / "one.json", change), 64, None)
    assert "001.png" in sets.training.file_names
    assert sets.training.find_mask_classes() == ["person"]
    assert sets.validation.find_mask_classes() == ["dog"]


@pytest.mark.parametrize("usable", [0, 1, 2])
def test_data_check_and_training_agree_on_what_is_usable(options, tmp_path, usable):
    """Images 0 to 3 have segmentations; of `usable` of them they cover a pixel."""

    def change(entry, name, class_name):
        if name > "003.png" or class_name == "kite":
            entry.pop("segmentation", None)
        elif int(name[:3]) >= usable:
            entry["segmentation"] = [[10, 10, 20, 10, 30, 10]]

    options = _file(replace(options, mask_classes="all"), tmp_path / "few.json", change)
    assert check_data(options.annotations).usable == (usable == 2)
    if usable == 2:
        open_data_sets(options, 64, None)
    else:
        with pytest.raises(UserError, match=r"no image to (train|validate) on has an instance with a usable mask"):
            open_data_sets(options, 64, None)


def test_images_without_a_mask_are_drawn_only_where_there_is_something_to_learn_in_them(options, tmp_path):
    assert options.draw == "all"  # a run of an earlier version, whose recipe lacks the key, goes on as it began
    options = _masks_in(replace(options, draw="learnable"), tmp_path / "few.json", "003.png", "008.png")
    training = open_data_sets(replace(options, validation_annotations=options.annotations), 64, None).training
    drawn = drawn_images(training, options, learns_from_boxes=False)
    assert drawn.file_names == ["003.png", "008.png"]
    assert drawn[(1, 5)][1]["image_id"] == 8
    assert drawn[(1, 5)][0].shape == (3, 64, 64)
    assert drawn_images(training, options, learns_from_boxes=True) is training
    assert drawn_images(training, replace(options, draw="all"), learns_from_boxes=False) is training
    assert drawn_images(drawn, options, learns_from_boxes=False) is drawn  # their order stays as it is


def test_a_run_says_how_many_images_it_leaves_out(arguments, capsys):
    assert main([*arguments, "--data.draw=learnable", "--trainer.steps=1"]) == 0
    assert "images without a mask are not drawn: 1\n" in capsys.readouterr().err  # image 6 is empty


def test_a_run_whose_recipe_lacks_the_key_goes_on_with_all_images(arguments, tmp_path, capsys):
    assert main([*arguments, "--trainer.steps=2"]) == 0
    path = tmp_path / "run" / "recipe.yaml"
    path.write_text(path.read_text().replace("  draw: all\n", ""))
    with pytest.raises(UserError, match=r"data\.draw is 'all' in this run and cannot become 'learnable'"):
        main([*arguments, "--data.draw=learnable", "--trainer.steps=3", "--resume"])
    capsys.readouterr()
    assert main([str(tmp_path / "run"), "--trainer.steps=3", "--resume"]) == 0
    assert "not drawn" not in capsys.readouterr().err


def test_training_crops_have_the_models_size_or_the_one_asked_for(options):
    image, target = open_data_sets(options, 64, None).training[(0, 1)]
    assert image.shape == (3, 64, 64)
    assert target["masks"].shape[1:] == (64, 64)
    image, _ = open_data_sets(replace(options, crop_size=32), 64, None).training[(0, 1)]
    assert image.shape == (3, 32, 32)


def test_crowds_are_no_instances(options, tmp_path):
    content = json.loads(Path(options.annotations).read_text())
    first = next(entry for entry in content["annotations"] if entry["category_id"] == 1)
    first["iscrowd"] = 1
    (tmp_path / "crowd.json").write_text(json.dumps(content))
    counts = [
        open_data_sets(replace(options, validation_annotations=str(file)), 64, None).validation.count_instances()
        for file in (options.annotations, tmp_path / "crowd.json")
    ]
    assert counts == [(22, 11), (21, 11)]


class Squares(SegmentationDataset):
    """Images of 80 x 80 pixels with one square each; what a person writes to train on data of their own."""

    task = "instance"

    def __init__(self, count: int, masks: bool = True) -> None:
        self.categories = [{"id": 4, "name": "square"}]
        self._count = count
        self._masks = masks

    def __len__(self) -> int:
        return self._count

    def read_sample(self, index: int) -> tuple[torch.Tensor, Target]:
        inside = slice(20, 50 + index)
        image, masks = torch.zeros(3, 80, 80, dtype=torch.uint8), torch.zeros(1, 80, 80, dtype=torch.bool)
        image[:, inside, inside] = 200
        masks[:, inside, inside] = self._masks
        return image, Target(
            boxes=torch.tensor([[20.0, 20, 50 + index, 50 + index]]),
            labels=torch.tensor([0]),
            masks=masks,
            has_mask=torch.tensor([self._masks]),
            iscrowd=torch.tensor([False]),
            ids=torch.tensor([index]),
            image_id=index,
        )


@pytest.fixture
def recipe(arguments):
    kept = [argument for argument in arguments[1:] if not argument.startswith("--data.")]
    return resolve_recipe(arguments[0], [*kept, "--trainer.steps=2"])


def test_a_data_set_of_ones_own_is_trained_and_validated_on(recipe, capsys):
    result = train_recipe(recipe, data_sets=DataSets(Squares(4), Squares(2)))
    assert result.step == 2
    assert 0 <= result.metrics["mask_iou"] <= 1
    assert "training: 4 images, 4 instances with masks" in capsys.readouterr().err
    model = from_pretrained(result.folder / "last")
    assert (model.categories, model.mask_classes) == ([{"id": 4, "name": "square"}], ["square"])


def test_data_sets_that_do_not_fit_are_refused(recipe):
    other = Squares(2)
    other.categories = [{"id": 4, "name": "circle"}]
    with pytest.raises(UserError, match="the same categories"):
        train_recipe(recipe, data_sets=DataSets(Squares(4), other))
    with pytest.raises(UserError, match="Squares: no image to train on has an instance with a usable mask"):
        train_recipe(recipe, data_sets=DataSets(Squares(4, masks=False), Squares(2)))
    other = Squares(2)
    other.task = "panoptic"
    with pytest.raises(UserError, match=r"of the tasks 'instance' \(training\) and 'panoptic' \(validation\)"):
        train_recipe(recipe, data_sets=DataSets(Squares(4), other))


class Segments(SegmentationDataset):
    """An image of three segments: one with pixels, one without, and a crowd."""

    task = "panoptic"

    def __init__(self) -> None:
        self.categories = [{"id": number, "name": name} for number, name in enumerate(("sky", "bird", "flock"))]

    def __len__(self) -> int:
        return 1

    def read_sample(self, index: int) -> tuple[torch.Tensor, PanopticTarget]:
        segmentation = torch.tensor([[0, 0], [2, -1]], dtype=torch.int32)
        return torch.zeros(3, 2, 2, dtype=torch.uint8), PanopticTarget(
            segmentation=segmentation,
            labels=torch.tensor([0, 1, 2]),
            iscrowd=torch.tensor([False, False, True]),
            ids=torch.tensor([1, 2, 3]),
            image_id=0,
        )


def test_segments_without_a_pixel_and_crowds_are_no_masks():
    assert Segments().mask_labels(0) == {0}
    assert Segments().find_mask_classes() == ["sky"]
    assert Segments().count_instances() == (1, 1)


def test_data_sets_of_ones_own_with_classes_in_another_order_are_not_resumed(recipe):
    first, other = Squares(4), Squares(4)
    first.categories = [{"id": 4, "name": "square"}, {"id": 5, "name": "disc"}]
    train_recipe(recipe, data_sets=DataSets(first, first))
    other.categories = first.categories[::-1]
    longer = replace(recipe, trainer=replace(recipe.trainer, steps=3))
    with pytest.raises(UserError, match=r"another order now \(disc, square; in this run square, disc\)"):
        train_recipe(longer, resume=True, data_sets=DataSets(other, other))
