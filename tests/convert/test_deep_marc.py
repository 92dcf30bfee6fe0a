"""`maskwright convert --family deep_marc`: the reference's own checkpoint, and every table against its module."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from checkpoint_files import model_only
from parity_data import ParityData
from torch import nn

import maskwright
from maskwright.cli import main
from maskwright.convert.checkpoint import Variables
from maskwright.convert.deep_marc import DEEP_MARC, convert_deep_marc, network_table, skip_background
from maskwright.convert.tables import Table, module_table
from maskwright.errors import UserError
from maskwright.models.deep_marc import DeepMARC
from maskwright.nn.mask_heads import create_mask_head

OWN_COPY = ParityData("deep_marc")
OWN_COPY.folder = Path(__file__).parents[1] / "parity" / "data" / "deep_marc"
CHECKPOINT = OWN_COPY.folder / "e_r50hg52_ckpt" / "ckpt-1"
THINGS = [{"id": 10 * index, "name": f"thing {index}"} for index in range(6)]
MODEL = {
    "categories": THINGS,
    "image_size": 128,
    "backbone": "resnet50_fpn",
    "mask_head": "hourglass52",
    "mask_head_width": 64,
    "mask_size": 32,
    "mask_norm_momentum": 0.9,
    "resize": "half_pixel",
    "width": 1 / 16,
}


@pytest.fixture(scope="module")
def variables() -> Variables:
    return Variables(CHECKPOINT)


def variables_for(module: nn.Module, table: Table) -> dict[str, np.ndarray]:
    """Random variables in the original's layouts, with the channels that are skipped."""
    random, state = np.random.default_rng(0), module.state_dict()
    shapes = {f"model/{row.path}": row.shape(state[name].shape) for name, row in table.items()}
    return {path: random.random(shape, dtype=np.float32) for path, shape in shapes.items()}


def convert(folder: Path, checkpoint: Path, **changes: Any) -> int:
    recipe = {"family": "deep_marc", "model": {**MODEL, **changes}, "data": {"mask_classes": ["thing 1"]}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    arguments = ["--family", "deep_marc", "--recipe", str(folder / "recipe.yaml"), "--out", str(folder / "converted")]
    return main(["convert", str(checkpoint), *arguments])


def test_backbone_pyramid_and_mask_head_come_over(tmp_path: Path, capsys, variables: Variables):
    assert convert(tmp_path, CHECKPOINT) == 0
    taken = [path for path in variables if path.split("/")[1] in ("backbone", "decoder", "mask_head")]
    assert capsys.readouterr().out.splitlines() == [
        f"variables converted: {len(taken)} ({sum(variables[path].size for path in taken):,} numbers)",
        "optimizer slots skipped: 473",
        "other bookkeeping skipped: 5",
        "preprocessing, padding and epsilon: the original's, so image_padding mean (the recipe: black), "
        "padding same (the recipe: symmetric), norm_epsilon 0.0001 (the recipe: 1e-05)",
        "not taken: proposal network, 26 variables",
        "not taken: box head, 34 variables",
        "the detector is new and has to be trained: until then, ask for masks of given boxes",
        "classes: 6, 1 of them with masks",
        str(tmp_path / "converted"),
    ]
    model = maskwright.from_pretrained(tmp_path / "converted")
    assert isinstance(model, DeepMARC)
    assert (model.config.padding, model.config.norm_epsilon) == ("same", 1e-4)
    kernel = model.network.backbone.get_parameter("trunk.layer4.2.conv2.weight").detach()
    expected = variables["model/backbone/layer_with_weights-17/_conv2/kernel"].transpose(3, 2, 0, 1)
    np.testing.assert_array_equal(kernel.numpy(), expected)
    (masks,) = model.masks_from_boxes(model.encode([torch.zeros(3, 60, 80)]), [torch.tensor([[5.0, 5.0, 50.0, 50.0]])])
    assert masks.mask_probabilities.shape == (1, 64, 64)
    assert "not taken: box head" in (tmp_path / "converted" / "README.md").read_text()


def test_exported_and_training_checkpoints_have_the_same_paths(tmp_path: Path, variables: Variables):
    """The keys of a file from training begin with `decoder/`, those of an exported one with `model/decoder/`."""
    assert variables._keys["model/decoder/layer_with_weights-0/kernel"].startswith("decoder/")
    decoder = {path: variables[path] for path in variables if path.startswith("model/decoder/")}
    exported = Variables(model_only(tmp_path, decoder))
    assert set(exported) == set(decoder)
    for path, value in decoder.items():
        np.testing.assert_array_equal(exported[path], value)


def test_what_does_not_fit_is_one_sentence(tmp_path: Path, capsys):
    assert convert(tmp_path, CHECKPOINT, class_agnostic_masks=False) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert "_mask_regressor/kernel' (for 'mask_head.project_out.weight') must have shape (1, 1, 4, 7), but got" in line
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet101_fpn"}, "'model/backbone/layer_with_weights-15/_conv1/kernel'"),
        ({"mask_head": "hourglass20"}, "'model/mask_head/_hourglass/"),
        ({"backbone": "efficientnet_lite0_fpn"}, "there is no table for this backbone"),
    ],
)
def test_other_networks_are_refused(changes, message, variables: Variables):
    with pytest.raises((UserError, ValueError), match=message):
        convert_deep_marc(variables, {**MODEL, **changes})


@pytest.mark.parametrize(
    ("backbone", "mask_head"),
    [("resnet50_fpn", "fcn"), ("resnet101_fpn", "fcn_separable"), ("spinenet49", "hourglass20"), ("spinenet96", "fcn")],
)
@pytest.mark.parametrize("agnostic", [True, False])
def test_every_tensor_has_a_row_of_its_own(backbone, mask_head, agnostic):
    values = {**MODEL, "backbone": backbone, "mask_head": mask_head, "class_agnostic_masks": agnostic}
    model = DeepMARC(**values)
    table = network_table(model.network)
    parts = ("backbone.", "mask_head.")
    assert set(table) == {
        name for name in model.network.state_dict() if name.startswith(parts) and "num_batches_tracked" not in name
    }
    variables = variables_for(model.network, table)
    assert len(variables) == len(table)
    conversion = convert_deep_marc(variables, values)
    assert conversion.used == set(variables)
    converted = conversion.model
    assert isinstance(converted, DeepMARC)
    assert converted.config.norm_epsilon == (1e-3 if backbone.startswith("spinenet") else 1e-4)
    state = converted.network.state_dict()
    for name, row in table.items():
        expected = np.sort(variables[f"model/{row.path}"][..., row.skip :].ravel())
        np.testing.assert_array_equal(np.sort(state[name].numpy().ravel()), expected, err_msg=name)


@pytest.mark.parametrize("backbone", ["resnet50_fpn", "spinenet49"])
def test_the_saved_model_is_the_originals_function_whatever_the_recipe_says(tmp_path: Path, backbone):
    wrong = {
        "resize": "antialias",
        "image_mean": (0.5, 0.5, 0.5),
        "image_std": (0.5, 0.5, 0.5),
        "channel_order": "bgr",
        "image_padding": "black",
        "norm_epsilon": 0.1,
    }
    if backbone == "resnet50_fpn":
        wrong |= {"padding": "symmetric", "trunk_norm_epsilon": 1e-5}
    values = {**MODEL, "backbone": backbone}
    network = DeepMARC(**values).network
    conversion = convert_deep_marc(variables_for(network, network_table(network)), {**values, **wrong})
    maskwright.save_pretrained(conversion.model, tmp_path / "converted")
    config = asdict(maskwright.from_pretrained(tmp_path / "converted").config)
    expected = {
        "resize": "half_pixel",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "channel_order": "rgb",
        "image_padding": "mean",
        "padding": "same" if backbone == "resnet50_fpn" else "symmetric",
        "norm_epsilon": 1e-4 if backbone == "resnet50_fpn" else 1e-3,
        "trunk_norm_epsilon": None,
    }
    assert {name: config[name] for name in expected} == expected
    for name in wrong:
        assert f"{name} {expected[name]} (the recipe: " in conversion.remarks[0]


def test_the_background_s_mask_is_left_out():
    head = create_mask_head("fcn", 4, 8, num_masks=3, upsample=2)
    table = skip_background(module_table(head, DEEP_MARC))
    assert {name: row.skip for name, row in table.items() if row.skip} == {
        "project_out.weight": 1,
        "project_out.bias": 1,
    }


def test_coco_is_the_label_space_where_none_is_given():
    values = {**MODEL, "categories": None}
    full = DeepMARC(**{**MODEL, "categories": [{"id": index, "name": str(index)} for index in range(1, 91)]})
    model = convert_deep_marc(variables_for(full.network, network_table(full.network)), values).model
    assert [model.categories[0]["name"], model.categories[89]["name"]] == ["person", "toothbrush"]


def test_variables_of_other_parts_are_refused():
    model = DeepMARC(**MODEL)
    variables = variables_for(model.network, network_table(model.network))
    with pytest.raises(UserError, match=r"1 variables below 'model' that .*: \['model/semantic_head/kernel'\]"):
        convert_deep_marc({**variables, "model/semantic_head/kernel": np.zeros(1)}, MODEL)


def test_heads_that_the_original_does_not_have_are_refused():
    for head in (
        create_mask_head("hourglass20", 4, 8),
        create_mask_head("resnet4", 4, 8, upsample=2),
        create_mask_head("fully_connected", 4, 8, upsample=2, mask_size=8),
    ):
        with pytest.raises(ValueError, match="none of the original's"):
            module_table(head, DEEP_MARC)
