import dataclasses
import json
from importlib.resources import files
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from small_max_deeplab import WITHOUT_GRADIENT
from torch import nn

from maskwright.errors import UserError
from maskwright.models.hub import family_class, from_pretrained
from maskwright.structures import Category, SegmentationModel
from maskwright.training.optimizers import create_optimizer, create_schedule, learning_rate_factor
from maskwright.training.options import PanopticDataOptions
from maskwright.training.recipes import recipe_names, recipe_parser, recipe_yaml, resolve_recipe
from maskwright.training.run import main


def test_command_line_values_win_over_the_file_and_leave_the_rest():
    plain = resolve_recipe("deep_mac/tiny")
    changed = resolve_recipe("deep_mac/tiny", ["--trainer.steps", "7", "--model.mask_head=fcn", "--trainer.steps=300"])
    assert changed.trainer == dataclasses.replace(plain.trainer, steps=300)
    assert changed.model == {**plain.model, "mask_head": "fcn"}
    assert (changed.data, changed.optimizer) == (plain.data, plain.optimizer)


@pytest.mark.parametrize(
    ("text", "expected"), [("voc", "voc"), ("[person, dog]", ["person", "dog"]), ("person,dog", "person,dog")]
)
def test_mask_classes_are_a_preset_or_names(text, expected):
    assert resolve_recipe("deep_mac/tiny", ["--data.mask_classes", text]).data.mask_classes == expected


def test_a_resolved_recipe_is_read_back_to_the_same_values(tmp_path):
    overrides = ["--trainer.ema_decay=null", "--trainer.precision=bf16-mixed", "--data.scale=[0.8, 1.2]"]
    recipe = resolve_recipe("deep_mac/tiny", overrides)
    (tmp_path / "again.yaml").write_text(recipe_yaml(recipe))
    again = resolve_recipe(tmp_path / "again.yaml")
    assert again == dataclasses.replace(recipe, name="again")
    assert again.trainer.ema_decay is None
    assert again.data.scale == (0.8, 1.2)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--trainer.steps", "many"], ["trainer.steps", "expected int", "many"]),
        (["--trainer.steps", "0"], ["trainer.steps", "> 0", "0"]),
        (["--trainer.step", "3"], ["--trainer.step"]),
        (["--trainer.steps"], ["--trainer.steps"]),
        (["--optimizer.name=lion"], ["optimizer.name", "adamw", "lion"]),
        (["--model.mask_hed", "fcn"], ["--model.mask_hed"]),
        (["--model.image_size=3.5"], ["model.image_size", "expected int", "3.5"]),
        (["--model.mask_classes=[dog]"], ["--model.mask_classes"]),
        (["--data.scale=[1.2, 0.8]"], ["data.scale", "smallest", "1.2"]),
        (["--optimizer.warmup_start_factor=2"], ["optimizer.warmup_start_factor", "0..1", "2"]),
        (["--optimizer.schedule=step"], ["optimizer.step_boundaries", "step"]),
        (["--optimizer.step_boundaries=[20, 10]"], ["optimizer.step_boundaries", "rising", "[20, 10]"]),
        (["--optimizer.polynomial_power=0"], ["optimizer.polynomial_power", "> 0"]),
        (["--data.flip=2"], ["data.flip", "0..1", "2"]),
        (["--trainer.ema_decay=1"], ["trainer.ema_decay", "1"]),
        (["--family=deep_marc"], ["family", "deep_mac"]),
        (["stray"], ["stray"]),
    ],
)
def test_a_wrong_value_is_answered_with_one_sentence(arguments, parts):
    with pytest.raises(UserError) as caught:
        resolve_recipe("deep_mac/tiny", arguments)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("family: deep_mac\nmodel: {mask_hed: fcn}", ["model", "mask_hed"]),
        ("family: deep_mac\nmodle: {}", ["modle"]),
        ("family: deep_mac\ntrainer: 3", ["trainer", "3"]),
        ("family: deep_mac\ntrainer: {steps: many}", ["trainer.steps", "int", "many"]),
        ("family: deep_mcc", ["deep_mcc", "deep_mac"]),
        ("model: {}", ["family"]),
        ("- family", ["family", "model", "data"]),
        ("family: [", ["not valid YAML"]),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path, text, parts):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        resolve_recipe(path)
    assert "\n" not in str(caught.value)
    for part in (str(path), *parts):
        assert part in str(caught.value)


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match=r"deep_mac/tini: .* deep_mac/tiny"):
        resolve_recipe("deep_mac/tini")


def test_help_shows_the_recipes_own_values(capsys):
    with pytest.raises(SystemExit) as caught:
        resolve_recipe("deep_mac/tiny", ["--model.mask_head=resnet4", "--help"])
    assert caught.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    steps = resolve_recipe("deep_mac/tiny").trainer.steps
    assert f"optimizer steps of the whole run. (type: int, default: {steps})" in said
    assert "--model.pixel_embedding_dim" in said


def test_help_without_a_recipe_explains_the_keys_of_all_families(capsys):
    assert main(["--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "optimizer steps of the whole run. (type: int, default: 1000)" in said
    for part in ("deep_mac/tiny", "--data.images", "--optimizer.learning_rate", "--resume last"):
        assert part in said


# Recipes with a base.


def write(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_a_recipe_says_what_it_changes_of_its_base(tmp_path):
    mine = write(tmp_path / "mine.yaml", "base: deep_mac/tiny\ndata: {batch_size: 3}\noptimizer: {name: sgd}\nmodel:\n")
    recipe, base = resolve_recipe(mine, ["--optimizer.momentum=0.5"]), resolve_recipe("deep_mac/tiny")
    assert recipe == dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, batch_size=3),
        optimizer=dataclasses.replace(base.optimizer, name="sgd", momentum=0.5),
        name="mine",
    )


def test_the_path_of_a_base_is_relative_to_the_recipe(tmp_path, monkeypatch):
    write(tmp_path / "bases" / "small.yaml", "family: deep_mac\noptimizer: {learning_rate_factors: {backbone: 0.5}}")
    mine = write(
        tmp_path / "mine" / "mine.yaml",
        "base: ../bases/small.yaml\noptimizer: {learning_rate_factors: {heads: 2.0}}\ntrainer: {steps: 7}",
    )
    monkeypatch.chdir(tmp_path / "bases")
    recipe = resolve_recipe(mine)
    assert (recipe.family, recipe.trainer.steps) == ("deep_mac", 7)
    assert recipe.optimizer.learning_rate_factors == {"heads": 2.0}  # replaced as a whole


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("base: deep_mac/512_voc_only", ["deep_mac/512_voc_only", "one level"]),
        ("base: mine.yaml", ["one level"]),
        ("base: deep_mac/tini", ["deep_mac/tini", "neither the name of a recipe nor a file"]),
        ("base: [deep_mac/tiny]", ["base", "deep_mac/tiny"]),
        ("base: deep_mac/tiny\nfamily: deep_marc", ["deep_marc", "deep_mac"]),
        ("base: deep_mac/tiny\ntrainer: {steps: many}", ["trainer.steps", "many"]),
    ],
)
def test_a_base_that_cannot_be_used_is_refused_with_one_sentence(tmp_path, text, parts):
    mine = write(tmp_path / "mine.yaml", text)
    with pytest.raises(UserError) as caught:
        resolve_recipe(mine)
    assert "\n" not in str(caught.value)
    for part in (str(mine), *parts):
        assert part in str(caught.value)


# Every recipe of the package keeps these.


def test_shipped_recipes_have_the_values_that_were_recorded():
    """A new key, or one that changes on purpose, is written into the file by hand."""
    recorded = json.loads(Path(__file__).with_name("resolved_recipes.json").read_text())
    resolved = {name: dataclasses.asdict(resolve_recipe(name)) for name in recipe_names()}
    assert resolved.keys() == recorded.keys()
    for name, values in recorded.items():
        resolved[name].pop("name")
        assert json.loads(json.dumps(resolved[name])) == values, name


def test_a_shipped_recipe_repeats_nothing_of_its_base_or_the_defaults():
    for name in recipe_names():
        own = yaml.safe_load(files("maskwright.training").joinpath("recipes", f"{name}.yaml").read_text())
        base = own.pop("base", None)
        if base is None:
            below = recipe_parser(own["family"]).get_defaults().as_dict()
        else:
            below = dataclasses.asdict(resolve_recipe(base))
        repeated = [
            f"{section}.{key}"
            for section, values in own.items()
            if section != "family"
            for key, value in values.items()
            if json.dumps(value) == json.dumps(below[section][key])
        ]
        assert repeated == [], name


@pytest.fixture(params=recipe_names())
def shipped(request):
    return resolve_recipe(request.param)


def test_shipped_recipes_say_what_they_are_for(shipped):
    text = files("maskwright.training").joinpath("recipes", f"{shipped.name}.yaml").read_text()
    assert text.startswith("# ")
    assert shipped.name.startswith(f"{shipped.family}/")


def test_fine_tuning_has_the_values_of_the_weights_it_starts_from():
    recipe = resolve_recipe("deep_mac/fine_tune")
    assert recipe.trainer.initial_weights is not None
    config = from_pretrained(recipe.trainer.initial_weights).config
    given = {**recipe.model, "categories": config.categories, "pretrained_backbone": False}
    assert dataclasses.replace(config, **given) == config


def _categories(count) -> list[Category]:
    return [{"id": label + 1, "name": str(label)} for label in range(count)]


def _create(recipe, **values):
    """The recipe's model for 90 classes, as the originals count them, without a look for ImageNet weights."""
    known = {**recipe.model, "categories": _categories(90), **values}
    if "pretrained_backbone" in recipe.model:
        known["pretrained_backbone"] = False
    return family_class(recipe.family)(**known)


def test_shipped_recipes_build_at_full_size(shipped):
    with torch.device("meta"):
        model = _create(shipped)
    assert isinstance(model, SegmentationModel)
    grouped = [parameter for group in model.parameter_groups() for parameter in group["params"]]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in grouped} == {id(parameter) for parameter in trainable}
    assert len(grouped) == len(trainable)
    norms = [type(module) for module in nn.SyncBatchNorm.convert_sync_batchnorm(model).modules()]
    assert nn.SyncBatchNorm in norms
    assert not any(issubclass(kind, nn.modules.batchnorm._BatchNorm) and kind is not nn.SyncBatchNorm for kind in norms)
    if shipped.name in PUBLISHED:
        assert sum(parameter.numel() for parameter in trainable) == PUBLISHED[shipped.name].parameters


def test_shipped_recipes_know_the_layers_of_their_classes(shipped):
    """They are the tensors, and all of them, whose rows are more where there are more classes."""
    with torch.device("meta"):
        few, more = (_create(shipped, width=0.0625, categories=_categories(count)) for count in (3, 5))
    shapes, others = ({name: value.shape for name, value in model.state_dict().items()} for model in (few, more))
    assert {name for name in shapes if shapes[name] != others[name]} == few.class_layers().keys()
    for name, labels in few.class_layers().items():
        assert labels.shape == shapes[name][:1]
        assert set(labels.tolist()) - {-1} == {0, 1, 2}
        assert shapes[name][0] < others[name][0]


def test_shipped_recipes_take_a_real_step_when_reduced(shipped):
    torch.manual_seed(0)
    panoptic = isinstance(shipped.data, PanopticDataOptions)
    # Drop path may drop a branch of both images, and of a coarsest level no anchor may be sampled that fits no object.
    certain = {"drop_path_keep": 1.0, "drop_path_rate": 0.0, "anchor_scale": 2.0}
    values = {name: value for name, value in certain.items() if name in shipped.model}
    size = 65 if panoptic else min(256, shipped.model["image_size"])
    model = _create(shipped, **{"width": 0.0625, "image_size": size, **values})
    _open_zero_gates(model)
    optimizer = create_optimizer(model.parameter_groups(), shipped.optimizer)
    schedule = create_schedule(optimizer, shipped.optimizer, shipped.trainer.steps)
    losses = model.train()(*(_panoptic_batch if panoptic else _batch)(model.image_size))
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert torch.isfinite(total)
    silent = [name for name, p in model.named_parameters() if p.requires_grad and not _has_gradient(p)]
    assert [name for name in silent if not name.endswith(WITHOUT_GRADIENT)] == []

    before = [[value.detach().clone() for value in group["params"]] for group in optimizer.param_groups]
    if shipped.optimizer.warmup_start_factor == 0:
        schedule.step()  # the rate of the very first step is 0
    optimizer.step()
    for group, old in zip(optimizer.param_groups, before, strict=True):
        assert all(torch.isfinite(value).all() for value in group["params"]), group["name"]
        moved = [not torch.equal(value, other) for value, other in zip(group["params"], old, strict=True)]
        # A norm's weight is 1, and the first rate of a warm-up may move it by less than float32 knows.
        assert sum(moved) >= len(moved) / 2, group["name"]


def header_of(name: str) -> str:
    """The comments above the first key."""
    text = files("maskwright.training").joinpath("recipes", f"{name}.yaml").read_text()
    return "".join(takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))


class Published(NamedTuple):
    """What the originals' configuration of a recipe says, where it differs from that of the others."""

    image_size: int
    mask_head: str
    mask_classes: str
    parameters: int  # trainable ones, counted in the Object Detection API
    mask_ap: str


PUBLISHED = {
    "deep_mac/512_voc_only": Published(512, "hourglass52", "voc", 217_128_733, "32.5"),
    "deep_mac/1024_voc_only": Published(1024, "hourglass100", "voc", 240_895_261, "35.5"),
    "deep_mac/1024_non_voc_only": Published(1024, "hourglass100", "non_voc", 240_895_261, "39.1"),
    "deep_mac/1024_coco": Published(1024, "hourglass100", "all", 240_895_261, "39.4"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_have_the_originals_values(name):
    recipe, published = resolve_recipe(name), PUBLISHED[name]
    model, data, optimizer, trainer = recipe.model, recipe.data, recipe.optimizer, recipe.trainer
    assert (model["image_size"], model["mask_head"], data.mask_classes) == published[:3]
    assert (model["detector"], model["backbone"], model["resize"]) == ("centernet", "hourglass104", "tf1")
    weights = ("object_center_weight", "box_offset_weight", "box_size_weight", "cross_entropy_weight", "dice_weight")
    assert [model[key] for key in weights] == [1, 1, 0.1, 5, 0]
    assert (model["norm_momentum"], model["max_masks_per_image"], model["channel_order"]) == (0.9, 100, "bgr")
    # The original's, in the order blue, green, red.
    assert [255 * value for value in model["image_mean"][::-1]] == pytest.approx([104.01362, 114.034223, 119.916596])
    assert [255 * value for value in model["image_std"][::-1]] == pytest.approx([73.6027665, 69.8908208, 70.9150767])
    assert (data.scale, data.flip, data.colour) == ((0.6, 1.3), 0.5, 0.25)
    assert data.batch_size * trainer.devices * trainer.num_nodes * trainer.accumulate == 128
    assert (optimizer.name, optimizer.betas, optimizer.epsilon) == ("adam", (0.9, 0.999), 1e-7)
    assert (optimizer.weight_decay, optimizer.gradient_clip, trainer.ema_decay) == (0, None, None)
    rates = [
        optimizer.learning_rate * learning_rate_factor(step, options=optimizer, steps=trainer.steps)
        for step in (0, 2500, 5000, 27500, 50000)
    ]
    assert rates == pytest.approx([2.5e-4, 6.25e-4, 1e-3, 5e-4, 0])
    assert f"mask AP {published.mask_ap}" in header_of(name)
    for part in ("TPU v3-", "random weights", "one process's batch"):
        assert part in header_of("deep_mac/1024_coco")


class PublishedPanoptic(NamedTuple):
    """The same of MaX-DeepLab."""

    image_size: int
    backbone: str
    steps: int
    learning_rate: float
    pq: tuple[str, str, str, str]  # official, of things, of stuff, in-house


PUBLISHED_PANOPTIC = {
    "max_deeplab/s_os16_res641_100k": PublishedPanoptic(
        641, "max_deeplab_s", 100_000, 1e-3, ("45.9", "49.2", "40.9", "46.36")
    ),
    "max_deeplab/s_os16_res641_200k": PublishedPanoptic(
        641, "max_deeplab_s", 200_000, 1e-3, ("46.5", "50.6", "40.4", "47.04")
    ),
    "max_deeplab/s_os16_res641_400k": PublishedPanoptic(
        641, "max_deeplab_s", 400_000, 1e-3, ("47.0", "51.3", "40.5", "47.56")
    ),
    "max_deeplab/s_os16_res1025_100k": PublishedPanoptic(
        1025, "max_deeplab_s", 100_000, 1e-3, ("47.9", "52.1", "41.5", "48.41")
    ),
    "max_deeplab/s_os16_res1025_200k": PublishedPanoptic(
        1025, "max_deeplab_s", 200_000, 1e-3, ("48.7", "53.6", "41.3", "49.23")
    ),
    "max_deeplab/s_os16_res1025_400k": PublishedPanoptic(
        1025, "max_deeplab_s", 400_000, 1e-3, ("49.0", "54.0", "41.4", "49.54")
    ),
    "max_deeplab/l_os16_res1025_100k": PublishedPanoptic(
        1025, "max_deeplab_l", 100_000, 3e-4, ("50.9", "56.9", "42.0", "51.48")
    ),
    "max_deeplab/l_os16_res1025_200k": PublishedPanoptic(
        1025, "max_deeplab_l", 200_000, 3e-4, ("51.1", "56.8", "42.5", "51.64")
    ),
    "max_deeplab/l_os16_res1025_400k": PublishedPanoptic(
        1025, "max_deeplab_l", 400_000, 3e-4, ("51.3", "57.5", "42.0", "51.87")
    ),
}


@pytest.mark.parametrize("name", PUBLISHED_PANOPTIC)
def test_published_panoptic_recipes_have_the_originals_values(name):
    recipe, published = resolve_recipe(name), PUBLISHED_PANOPTIC[name]
    model, data, optimizer, trainer = recipe.model, recipe.data, recipe.optimizer, recipe.trainer
    assert (model["image_size"], model["backbone"], trainer.steps, optimizer.learning_rate) == published[:4]
    weights = ("pq_weight", "mask_id_weight", "instance_discrimination_weight", "semantic_weight")
    assert [model[key] for key in weights] == [3, 0.3, 1, 1]
    is_large = published.backbone == "max_deeplab_l"
    assert (model["small_instance_weight"], data.auto_augmentation) == ((3.0, True) if is_large else (1.0, False))
    areas = [model[key] for key in ("thing_area_limit", "stuff_area_limit")]
    assert areas == ([100, 1600] if published.image_size == 641 else [256, 4096])
    assert (data.scale, data.scale_steps, data.flip) == ((0.5, 1.5), 10, 0.5)
    assert data.batch_size * trainer.devices * trainer.num_nodes * trainer.accumulate == 64
    assert (optimizer.name, optimizer.betas, optimizer.epsilon) == ("adam", (0.9, 0.999), 1e-7)
    assert (optimizer.weight_decay, optimizer.gradient_clip, trainer.ema_decay) == (0, None, None)
    assert optimizer.learning_rate_factors == {"backbone": 0.1}
    share = [learning_rate_factor(step, options=optimizer, steps=trainer.steps) for step in (0, 2500, trainer.steps)]
    assert share == pytest.approx([0, 0.5, 0])
    header = header_of(name)
    all_classes, things, stuff, in_house = published.pq
    assert f"PQ {all_classes} by the official evaluation, things {things}, stuff {stuff};\n# PQ {in_house} by" in header
    for part in ("TPUs", "unmatched_weight"):
        assert part in header_of("max_deeplab/s_os16_res641_100k")


@pytest.mark.parametrize(
    "name",
    [
        "max_deeplab/l_os16_res1025_100k",
        "max_deeplab/s_os16_res641_100k",
        "max_deeplab/tiny",
        "max_deeplab/tiny_pretrained",
    ],
)
def test_panoptic_recipes_headers_say_their_size(name):
    header = header_of(name)
    with torch.device("meta"):
        model = _create(resolve_recipe(name), categories=_categories(133))
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert f"{millions:.2f} million parameters with COCO's 133 classes" in header


def test_the_data_keys_of_one_task_are_unknown_to_the_other():
    for name, key in (("deep_mac/tiny", "segmentations"), ("max_deeplab/tiny", "mask_classes")):
        with pytest.raises(UserError, match=f"--data.{key}"):
            resolve_recipe(name, [f"--data.{key}=all"])
    assert resolve_recipe("max_deeplab/tiny", ["--data.scale=null"]).data.scale is None


def _has_gradient(parameter):
    return parameter.grad is not None and bool(parameter.grad.any())


def _open_zero_gates(model):
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.weight.any():
            nn.init.ones_(module.weight)


def _panoptic_batch(size):
    images, targets = _batch(size)
    segmentation = torch.full((size, size), -1, dtype=torch.int32)
    segmentation[: size // 2] = 0
    segmentation[size // 3 : size * 3 // 4, size // 3 :] = 1
    kept = {name: targets[0][name] for name in ("labels", "iscrowd", "ids", "image_id")}
    return images, [{**kept, "segmentation": segmentation}] * 2


def _batch(size):
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator) for _ in range(2)]
    boxes = torch.tensor([[0.1, 0.1, 0.6, 0.5], [0.02, 0.02, 0.98, 0.98]]) * size
    masks = torch.zeros(2, size, size, dtype=torch.bool)
    masks[0, size // 8 : size // 3, size // 8 : size // 2] = True
    masks[1, size // 2 : size * 3 // 4, size // 3 : size * 4 // 5] = True
    target = {
        "boxes": boxes,
        "labels": torch.tensor([0, 0]),
        "masks": masks,
        "has_mask": torch.tensor([True, True]),
        "iscrowd": torch.tensor([False, False]),
        "ids": torch.tensor([1, 2]),
        "image_id": 1,
    }
    return images, [target, target]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--trainer.step=3"], "--trainer.step is no key of this recipe (did you mean --trainer.steps?)"),
        (["--steps", "3"], "--steps is no key of this recipe (did you mean --trainer.steps?)"),
        (["--qqq", "3"], "--qqq is no key of this recipe"),
        (["--optimizer.name=adm"], "optimizer.name: expected one of adamw, adam, sgd, but got adm"),
        (["--trainer.devices=two"], "trainer.devices: expected int or one of auto, but got two"),
        (["--optimizer", "adam"], "--optimizer is a section: give one of its keys, as in --optimizer.KEY VALUE"),
        (
            ["--model", "deep-mac-tiny"],
            "--model is a section: give one of its keys, as in --model.KEY VALUE; weights to begin with are given with "
            "--trainer.initial_weights",
        ),
    ],
)
def test_a_mistyped_override_is_answered_with_what_was_meant(overrides, message):
    with pytest.raises(UserError) as caught:
        resolve_recipe("deep_mac/tiny", overrides)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (
            "optimizer: {learning_rte: 1}",
            "optimizer.learning_rte is no key of this recipe (did you mean optimizer.lear",
        ),
        ("optimzer: {learning_rate: 1}", "unknown key 'optimzer' (did you mean optimizer?)"),
        ("model: {categories: [{ids: 1}]}", "model.categories: expected"),
    ],
)
def test_a_mistyped_key_of_a_file_is_answered_with_what_was_meant(tmp_path, text, part):
    (tmp_path / "own.yaml").write_text(f"base: deep_mac/tiny\n{text}\n")
    with pytest.raises(UserError) as caught:
        resolve_recipe(tmp_path / "own.yaml")
    assert part in str(caught.value)
    assert "Parser key" not in str(caught.value)


def test_a_mistyped_recipe_is_answered_with_what_was_meant(tmp_path):
    (tmp_path / "carrots.yaml").write_text("base: deep_mac/tiny\n")
    for name, part in [
        ("deep_mac/tinny", "(did you mean deep_mac/tiny?)"),
        (str(tmp_path / "carots.yaml"), f"(did you mean {tmp_path / 'carrots.yaml'}?)"),
        ("deep-mac-tiny", "--trainer.initial_weights deep-mac-tiny"),
        ("qqq", "the recipes are deep_mac/1024_coco, "),
    ]:
        with pytest.raises(UserError, match="neither the name of a recipe nor a file") as caught:
            resolve_recipe(name)
        assert part in str(caught.value)


def test_a_folder_without_a_run_is_no_recipe(tmp_path):
    with pytest.raises(UserError, match="a folder without a run"):
        resolve_recipe(tmp_path)
