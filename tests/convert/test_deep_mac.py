from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from maskwright.convert.deep_mac import DEEP_MAC, convert_deep_mac, unused_variables
from maskwright.convert.tables import HOURGLASS, Table, load_variables, module_table
from maskwright.errors import UserError
from maskwright.models.deep_mac import DeepMAC
from maskwright.nn.hourglass import Hourglass
from maskwright.nn.layers import prediction_head
from maskwright.nn.mask_heads import MASK_HEADS, create_mask_head

ORIGINALS = [name for name in MASK_HEADS if name not in ("fcn", "fcn_separable", "fully_connected4")]


def variables_for(module: nn.Module, table: Table, prefix: str) -> dict[str, np.ndarray]:
    """Random variables in the original's layouts."""
    random, state = np.random.default_rng(0), module.state_dict()
    found = {}
    for name, row in table.items():
        found[f"{prefix}/{row.path}"] = random.random(row.shape(state[name].shape), dtype=np.float32)
    return found


@pytest.mark.parametrize("name", ORIGINALS)
def test_every_tensor_of_a_mask_head_has_its_own_row(name):
    head = create_mask_head(name, 5, 2, mask_size=8)
    table = module_table(head, DEEP_MAC)
    assert set(table) == {key for key in head.state_dict() if not key.endswith("num_batches_tracked")}
    assert len({row.path for row in table.values()}) == len(table)
    assert [row.layout for key, row in table.items() if key.endswith(("bias", "running_var"))].count("same") > 0


def test_names_of_the_hourglass():
    network = Hourglass(3, 2, [(4, 1), (4, 2), (6, 2)], stacks=2, stem_stride=4)
    table = module_table(network, HOURGLASS)
    paths = {name: (row.path, row.layout) for name, row in table.items()}
    vector, convolution = "same", "kernel"
    for name, expected in {
        "stem.conv.weight": ("downsample_input/conv_block/conv/kernel", convolution),
        "stem_residual.skip.norm.running_var": ("downsample_input/residual_block/skip/norm/moving_variance", vector),
        "stacks.1.encoder_skip.0.conv_block.norm.bias": (
            "hourglass_network/1/encoder_block1/0/conv_block/norm/beta",
            vector,
        ),
        "stacks.0.inner.encoder_down.1.conv.weight": (
            "hourglass_network/0/inner_block/0/encoder_block2/1/conv/kernel",
            convolution,
        ),
        "stacks.0.inner.inner.1.norm.weight": ("hourglass_network/0/inner_block/0/inner_block/1/norm/gamma", vector),
        "stacks.0.decoder.0.norm.running_mean": ("hourglass_network/0/decoder_block/0/norm/moving_mean", vector),
        "outputs.1.conv.weight": ("output_conv/1/conv/kernel", convolution),
        "merge_input.0.conv.weight": ("intermediate_conv1/0/conv/kernel", convolution),
        "merge_output.0.norm.weight": ("intermediate_conv2/0/norm/gamma", vector),
        "merge_residual.0.conv.weight": ("intermediate_residual/0/conv/kernel", convolution),
    }.items():
        assert paths[name] == expected
    table = module_table(Hourglass(3, 2, [(4, 1), (4, 1)]), HOURGLASS)
    assert table["stem.conv.weight"].path == "conv_input/conv_block/conv/kernel"


def test_names_of_the_resnet_head_count_weighted_layers():
    table = module_table(create_mask_head("resnet4", 5, 2), DEEP_MAC)
    for name, path in {
        "project_out.bias": "project_out/bias",
        "trunk.input_layer.weight": "_net/input_layer/kernel",
        "trunk.blocks.0.norm2.weight": "_net/model/layer_with_weights-4/gamma",
        "trunk.blocks.0.skip.bias": "_net/model/layer_with_weights-5/bias",
        "trunk.blocks.1.norm0.running_mean": "_net/model/layer_with_weights-6/moving_mean",
        "trunk.blocks.1.norm2.bias": "_net/model/layer_with_weights-10/beta",
    }.items():
        assert table[name].path == path


def test_heads_that_the_original_does_not_have_are_refused():
    for head in (
        create_mask_head("fcn", 5, 2),
        create_mask_head("hourglass10", 5, 2, upsample=2),
        create_mask_head("fully_connected4", 5, 2, mask_size=4),
    ):
        with pytest.raises(ValueError, match="none of the original's"):
            module_table(head, DEEP_MAC)


@pytest.mark.parametrize("name", ["hourglass10", "resnet4", "fully_connected"])
def test_loading_turns_the_axes_and_fills_everything(name):
    head = create_mask_head(name, 5, 2, mask_size=4)
    table = module_table(head, DEEP_MAC)
    variables = variables_for(head, table, "model/_mask_net")
    used = load_variables(head, table, {**variables, "model/other/kernel": np.zeros(1)}, "model/_mask_net")
    assert used == set(variables)
    kernel = variables["model/_mask_net/_net/input_layer/kernel"] if name != "hourglass10" else None
    if kernel is not None:
        assert (
            float(head.get_parameter(f"{'trunk.' if name == 'resnet4' else ''}input_layer.weight")[1, 3, 0, 0].detach())
            == kernel[0, 0, 3, 1]
        )
    for key, value in head.state_dict().items():
        if key in table:
            expected = np.sort(variables[f"model/_mask_net/{table[key].path}"].ravel())
            np.testing.assert_array_equal(np.sort(value.numpy().ravel()), expected)


def test_linear_layers_are_transposed():
    head = create_mask_head("fully_connected", 5, 2, mask_size=4)
    table = module_table(head, DEEP_MAC)
    variables = variables_for(head, table, "m")
    load_variables(head, table, variables, "m")
    np.testing.assert_array_equal(
        head.get_parameter("hidden.0.weight").detach().numpy(), variables["m/_net/fc1/kernel"].T
    )


@pytest.mark.parametrize("kernel", [(3, 3), (1, 3)])
def test_embedding_heads(kernel):
    head = prediction_head(4, 6, 2, kernel)
    table = module_table(head, DEEP_MAC)
    assert {name: row.path for name, row in table.items()} == {
        "0.weight": "layer_with_weights-0/kernel",
        "0.bias": "layer_with_weights-0/bias",
        "2.weight": "layer_with_weights-1/kernel",
        "2.bias": "layer_with_weights-1/bias",
    }


def test_wrong_variables_are_named_and_nothing_is_loaded():
    head = prediction_head(4, 6, 2)
    table = module_table(head, DEEP_MAC)
    variables = variables_for(head, table, "m")
    before = {key: value.clone() for key, value in head.state_dict().items()}
    last = "m/layer_with_weights-1/bias"
    with pytest.raises(UserError, match=r"variable 'm/layer_with_weights-1/bias' \(for '2.bias'\) is missing"):
        load_variables(head, table, {key: value for key, value in variables.items() if key != last}, "m")
    with pytest.raises(UserError, match=r"has 1 variables below 'm' that the model has not: \['m/layer_9'\]"):
        load_variables(head, table, {**variables, "m/layer_9": np.zeros(3)}, "m")
    flat = np.zeros((1, 3, 4, 6), np.float32)
    message = r"'m/layer_with_weights-0/kernel' .* must have shape \(3, 3, 4, 6\), but got \(1, 3, 4, 6\)"
    with pytest.raises(UserError, match=message):
        load_variables(head, table, {**variables, "m/layer_with_weights-0/kernel": flat}, "m")
    assert all(torch.equal(value, before[key]) for key, value in head.state_dict().items())


@pytest.mark.parametrize(("backbone", "left_out"), [("resnet_v1_18_fpn", 4), ("resnet_v1_50_fpn", 0)])
def test_resnets_convert_and_leave_out_only_the_norm_that_the_original_does_not_use(backbone, left_out):
    values = {"backbone": backbone, "width": 1 / 16, "image_size": 64, "mask_head": "resnet4", "mask_head_width": 16}
    network = DeepMAC(**values).network
    table = module_table(network, DEEP_MAC)
    assert set(table) == {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
    variables = variables_for(network, table, "model")
    unused = {f"model/_feature_extractor/{path}": np.zeros(32) for path in unused_variables(network.backbone)}
    assert len(unused) == left_out
    conversion = convert_deep_mac({**variables, **unused}, values)
    assert conversion.used == set(variables)
    assert len(conversion.remarks) == 1 + bool(left_out)
    state = conversion.model.network.state_dict()
    for name in ("backbone.trunk.conv.bias", "backbone.top_down.merge.2.norm.running_var"):
        np.testing.assert_array_equal(state[name], variables[f"model/{table[name].path}"])
    with pytest.raises(UserError, match="has 1 variables below 'model' that the model has not"):
        convert_deep_mac({**variables, "model/_feature_extractor/_base_model/layer_with_weights-999/beta": 0}, values)


def test_backbones_that_the_original_does_not_have_are_refused():
    with pytest.raises(ValueError, match="there is no table for this backbone"):
        module_table(DeepMAC(backbone="resnet18_fpn", width=1 / 16, mask_head="resnet4").network, DEEP_MAC)
