"""`data.sets`: several sets in one recipe, what is learnt of each, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from refusals import refused

from maskwright.errors import UserError
from maskwright.models.hub import from_pretrained
from maskwright.training.data_sets import drawn_images, open_data_sets
from maskwright.training.options import InstanceDataOptions, SetOptions
from maskwright.training.recipes import parse_recipe, recipe_yaml, resolve_recipe
from maskwright.training.run import main

ALL_CLASSES = [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "kite"}]


@pytest.fixture
def sets(coco, tmp_path) -> list[dict]:
    """Images 0 to 7 with masks of persons; 6 to 11 with kites and with dogs that are learnt, by other ids."""
    images, file = coco
    content = json.loads(file.read_text())
    people, others = tmp_path / "people.json", tmp_path / "others.json"
    people.write_text(json.dumps(part(content, range(8), {"person": "person"})))
    others.write_text(json.dumps(part(content, range(6, 12), {"dog": "Dog", "kite": "kite"})))
    return [
        {"images": str(images), "annotations": str(people), "share": 0.25},
        {"images": str(images), "annotations": str(others), "share": 0.75, "mask_classes": ["dog"]},
    ]


def part(content: dict, images: range, names: dict[str, str]) -> dict:
    """Some images and classes; the classes in the order of `names`, renamed and numbered from 1."""
    own = {category["id"]: category["name"] for category in content["categories"]}
    numbers = {name: number for number, name in enumerate(names, 1)}
    return {
        "images": [image for image in content["images"] if image["id"] in images],
        "annotations": [
            {**entry, "category_id": numbers[own[entry["category_id"]]]}
            for entry in content["annotations"]
            if entry["image_id"] in images and own[entry["category_id"]] in names
        ],
        "categories": [{"id": number, "name": names[name]} for name, number in numbers.items()],
    }


@pytest.fixture
def write(arguments, tmp_path):
    """Write the toy recipe with these sets (and other values of `data`); `train` arguments for it."""

    def write(sets: object, **data: object) -> list[str]:
        path = tmp_path / "sets.yaml"
        recipe = yaml.safe_load(Path(arguments[0]).read_text())
        recipe["data"] = {key: value for key, value in recipe["data"].items() if key != "mask_classes"}
        recipe["data"] |= {"sets": sets} | data
        path.write_text(yaml.safe_dump(recipe))
        return [str(path), arguments[-1]]

    return write


def losses(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "losses.jsonl").read_text().splitlines()]


def test_a_model_learns_masks_of_one_set_and_boxes_of_another(write, sets, tmp_path, capsys):
    assert main(write(sets)) == 0
    model = from_pretrained(tmp_path / "run" / "last")
    assert model.categories == [{"id": 1, "name": "person"}, {"id": 3, "name": "Dog"}, {"id": 2, "name": "kite"}]
    assert model.mask_classes == ["person", "Dog"]
    assert "masks of 2 of 3 classes" in capsys.readouterr().err


def test_a_resumed_run_has_the_same_losses(write, sets, stop_after, tmp_path):
    once = [*write(sets)[:1], "--trainer.log_every_steps=1"]
    assert main([*once, f"--trainer.output={tmp_path / 'whole'}"]) == 0
    broken = [*once, f"--trainer.output={tmp_path / 'broken'}"]
    with stop_after(3):
        assert main(broken) == 130
    assert main([*broken, "--resume", "last"]) == 0
    whole = losses(tmp_path / "whole")
    assert len(whole) == 6
    assert losses(tmp_path / "broken") == whole


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda sets: sets[0].update(share=0.5), ("data.sets[people].share is 0.25", "cannot become 0.5")),
        (lambda sets: sets[1].update(mask_classes="all"), ("data.sets[others].mask_classes is ['dog']", "'all'")),
        (lambda sets: sets[1].update(exif="stored"), ("data.sets[others].exif is 'auto'",)),
        (lambda sets: sets.reverse(), ("data.sets is ['people', 'others']", "['others', 'people']")),
        (lambda sets: sets.pop() and sets[0].pop("share"), ("data.sets is ['people', 'others']", "['people']")),
    ],
)
def test_other_sets_are_another_run(write, sets, change, parts):
    assert main([*write(sets), "--trainer.steps=1"]) == 0
    change(sets)
    refused([*write(sets), "--trainer.steps=2", "--resume", "last"], *parts)


def test_images_may_lie_elsewhere_on_resume(write, sets, tmp_path):
    assert main([*write(sets), "--trainer.steps=1"]) == 0
    (tmp_path / "moved").symlink_to(sets[0]["images"])
    sets[0]["images"] = str(tmp_path / "moved")
    assert main([*write(sets), "--trainer.steps=2", "--resume", "last"]) == 0


def test_a_file_that_has_other_classes_now_is_named_on_resume(write, sets):
    assert main([*write(sets), "--trainer.steps=1"]) == 0
    content = json.loads(Path(sets[1]["annotations"]).read_text())
    content["categories"].append({"id": 3, "name": "cup"})
    Path(sets[1]["annotations"]).write_text(json.dumps(content))
    refused([*write(sets), "--trainer.steps=2", "--resume", "last"], "its classes are others now (cup added)")


@pytest.fixture
def options(sets) -> InstanceDataOptions:
    return InstanceDataOptions(sets=[SetOptions(**one) for one in sets], validation_share=0.4)


def test_pictures_of_one_name_are_on_one_side(options):
    both = open_data_sets(options, 64, None)
    training, validation = (
        {name.rpartition("/")[2] for name in side.file_names} for side in (both.training, both.validation)
    )
    assert len(both.training) + len(both.validation) == 8 + 6
    assert not training & validation
    assert len(training | validation) == 12
    for name in ("006.png", "007.png"):
        side = both.training if name in training else both.validation
        assert {f"people/{name}", f"others/{name}"} <= set(side.file_names)


def test_sets_with_validation_files_are_validated_on_with_all_masks(options, sets):
    first, second = options.sets
    options = replace(options, sets=[first, replace(second, validation_annotations=first.annotations)])
    both = open_data_sets(options, 64, None)
    assert len(both.training) == 14
    assert both.validation.file_names == [f"others/{image:03d}.png" for image in range(8)]
    assert both.validation.mask_classes == ["person", "Dog", "kite"]
    assert both.training.mask_classes == ["person", "Dog"]


def test_shares_hold_among_the_images_that_are_drawn(options):
    options = replace(options, draw="learnable")
    training = open_data_sets(options, 64, None).training
    drawn = drawn_images(training, options, learns_from_boxes=False)
    assert len(drawn) < len(training) or "people/006.png" not in training.file_names
    for dataset in (training, drawn):
        weights = dataset.sampling_weights
        people = torch.tensor([name.startswith("people/") for name in dataset.file_names])
        assert float(weights[people].sum() / weights.sum()) == pytest.approx(0.25)


def test_a_label_space_of_the_recipe_maps_all_sets(options):
    both = open_data_sets(options, 64, ALL_CLASSES)
    assert both.training.categories == ALL_CLASSES
    with pytest.raises(UserError, match=r"others\.json: classes that the model does not know: kite"):
        open_data_sets(options, 64, ALL_CLASSES[:2])


def test_sets_are_called_by_as_much_of_the_path_as_it_takes():
    def names(*sets: SetOptions) -> list[str]:
        return list(InstanceDataOptions(sets=list(sets)).named_sets)

    assert names(SetOptions("i", "a/x.json"), SetOptions("i", "b/y.json")) == ["x", "y"]
    assert names(SetOptions("i", "a/x.json"), SetOptions("i", "b/x.json")) == ["a/x", "b/x"]
    assert names(SetOptions("i", "x.json", name="z"), SetOptions("i", "y.json")) == ["z", "y"]
    with pytest.raises(UserError, match=r"two sets are called a/x; give each a name"):
        names(SetOptions("i", "a/x.json"), SetOptions("i", "a/x.json"))


def test_a_recipe_with_sets_is_written_and_read_back(write, sets):
    recipe = resolve_recipe(write(sets)[0])
    assert recipe.data.sets == [SetOptions(**one) for one in sets]
    assert parse_recipe(recipe_yaml(recipe), "x").data == recipe.data


FILES = {"images": "i", "annotations": "a.json"}


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ([{"images": "i"}], ("each set needs images and annotations, or else shards alone, but one has images",)),
        ([FILES | {"shards": "s"}], ("or else shards alone, but one has images and annotations and shards",)),
        ([{"shards": "s", "exif": "stored"}], ("exif has no use beside shards (s): give --exif to `maskwright data",)),
        ([FILES, FILES | {"shar": 1}], ("data.sets, set 2 of 2: shar is no key of a set (did you mean share?)",)),
        ([FILES | {"share": "much"}], ("set 1 of 1: share: expected float or null, but got much",)),
        ([FILES | {"exif": "no"}], ("set 1 of 1: exif: expected one of auto, upright, stored, but got no",)),
        (["a.json"], ("set 1 of 1: each set must have keys and values; the keys are images, annotations, name",)),
        ([{}], ("each set must have keys and values",)),
        (FILES, ("data.sets: expected list, but got {'annotations'",)),
        ([FILES | {"share": 0}], ("the share of a must be > 0, but is 0",)),
        ([FILES | {"share": float("inf")}], ("the share of a must be > 0",)),
        ([FILES | {"share": 1}, FILES | {"name": "b"}], ("all sets have a share, or none; it is missing in b",)),
        ([FILES, FILES], ("two sets are called a; give each a name of its own",)),
    ],
)
def test_sets_that_cannot_be_used_are_refused_with_one_sentence(write, given, parts):
    refused(write(given), *parts)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"annotations": "b.json"}, ("data.sets, or else data.images and data.annotations: not data.annotations too",)),
        ({"validation_images": "b"}, ("not data.validation_images too",)),
        ({"mask_classes": "voc"}, ("data.mask_classes has no use beside data.sets: give mask_classes to each",)),
        ({"exif": "stored"}, ("data.exif has no use beside data.sets",)),
    ],
)
def test_sets_and_files_exclude_each_other(write, values, parts):
    refused(write([FILES], **values), *parts)


def test_a_missing_file_and_a_set_without_masks_anywhere_are_named(write, sets, tmp_path):
    sets[1]["annotations"] = str(tmp_path / "missing.json")
    refused(write(sets), tmp_path / "missing.json")
    only_kites = [sets[0] | {"mask_classes": []}]
    refused(write(only_kites), "the sets people: no image to train on has an instance with a usable mask")


def test_the_command_line_takes_sets_too(arguments, sets):
    toy = [arguments[0], arguments[-1], "--data.mask_classes=all"]
    assert resolve_recipe(toy[0], [*toy[1:], f"--data.sets={json.dumps(sets)}"]).data.sets[1].share == 0.75
    refused([*toy, "--data.sets", '[{"images": "i", "annotation": "a"}]'], "data.sets: annotation is no key of a set")
