"""MaX-DeepLab's layers alone: inference, training mode, gradients and statistics after one training step."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from cases_deep_mac_ops import assert_near
from norm_statistics import NormStatistics
from parity_data import ParityData, below
from torch import Tensor, nn

from maskwright.convert.max_deeplab import MAX_DEEPLAB
from maskwright.convert.tables import load_variables, module_table
from maskwright.models.max_deeplab.axial_attention import AxialAttention, AxialAttention2d, relative_positions
from maskwright.models.max_deeplab.blocks import (
    AxialBlock,
    BasicStageBlock,
    BottleneckStageBlock,
    StageBlock,
    inception_stem,
)
from maskwright.models.max_deeplab.decoder import ResizedFuse, resize_to
from maskwright.models.max_deeplab.dual_path import DualPathLayer
from maskwright.models.max_deeplab.stages import keep_probability

INFERENCE, TRAINING, GRADIENTS = 1e-4, 1e-4, 1e-3

Outputs = list[Tensor]
Run = Callable[[dict[str, Tensor]], Outputs]


class Masked(nn.Module):
    """In the place of drop path: the branch times a given mask, in both modes."""

    def __init__(self, mask: np.ndarray) -> None:
        super().__init__()
        self.mask = torch.from_numpy(mask)

    def forward(self, branch: Tensor) -> Tensor:
        return branch * self.mask.reshape(-1, *[1] * (branch.dim() - 1))


def first(values: np.ndarray) -> Tensor:
    """Channels first, as the networks have it; a memory stays as it is."""
    tensor = torch.from_numpy(values)
    return tensor.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def last(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor


def check_axial_attention(data: ParityData, file: str) -> None:
    arrays, config = data.arrays(file), data.files[file]["config"]
    module = AxialAttention(
        config["C"],
        config["key_depth"],
        config["value_depth"],
        config["heads"],
        "width",
        query_positions=config.get("use_query_rpe_similarity", True),
        key_positions=config.get("use_key_rpe_similarity", True),
        value_positions=config.get("retrieve_value_rpe", True),
    )
    named = {"in/x": arrays["x"][:, None], "out_eval/0": arrays["y_eval"][:, None], "g_out/0": arrays["g_out"][:, None]}
    named |= {"out_train/0": arrays["y_train"][:, None], "grad_in/x": arrays["gx_train"][:, None]}
    named |= {name: arrays[name] for name in arrays if name.startswith(("w/", "after/", "gnorm/"))}
    check_layer(named, module, lambda inputs: [module(inputs["x"])])

    upright = AxialAttention(
        config["C"], config["key_depth"], config["value_depth"], config["heads"], "height", **_positions(module)
    )
    upright.load_state_dict(module.state_dict())
    x = first(named["in/x"])
    for mode in (True, False):
        upright.train(mode)
        module.train(mode)
        torch.testing.assert_close(upright(x.transpose(2, 3)).transpose(2, 3), module(x), rtol=1e-4, atol=1e-4)


def _positions(module: AxialAttention) -> dict[str, bool]:
    return {name: getattr(module, name) is not None for name in ("query_positions", "key_positions", "value_positions")}


def check_axial_attention_2d(data: ParityData, file: str) -> None:
    arrays, config = data.arrays(file), data.files[file]["config"]
    filters = config["filters"]
    module = AxialAttention2d(
        arrays["in/x"].shape[-1],
        filters * config["key_expansion"],
        filters * config["value_expansion"],
        config["num_heads"],
        stride=config["strides"],
    )
    check_layer(arrays, module, lambda inputs: [module(inputs["x"])])


def check_block(data: ParityData, file: str) -> None:
    arrays, config = data.arrays(file), data.files[file]["config"]
    in_channels, filters = arrays["in/x"].shape[-1], config["filters_list"]
    stride = config.get("strides", 1)
    module: StageBlock
    if len(filters) == 2:
        module = BasicStageBlock(in_channels, filters[-1], stride=stride)
    elif config.get("attention_type") == "axial":
        module = AxialBlock(in_channels, filters[-1], filters[0], num_heads=config["axial_layer_config"]["num_heads"])
    else:
        module = BottleneckStageBlock(in_channels, filters[-1], stride=stride, dilation=config.get("atrous_rate", 1))
    if "in/drop_path_mask" in arrays:
        module.drop_path = Masked(arrays["in/drop_path_mask"])
    check_layer(arrays, module, lambda inputs: [module(inputs["x"])])


def check_dual_path(data: ParityData, file: str) -> None:
    arrays, config = data.arrays(file), data.files[file]["config"]
    module = DualPathLayer(
        arrays["in/pixel"].shape[-1],
        arrays["in/memory"].shape[-1],
        config["filters"],
        num_heads=config["num_heads"],
        feed_forward_channels=config["feed_forward_network_channels"],
        pixel_reads_memory=config.get("use_pixel2memory_feedback_attention", True),
    )
    for ours, theirs in (("drop_pixel", "pixel"), ("drop_memory", "memory"), ("drop_feed_forward", "ffn")):
        if f"in/m_{theirs}" in arrays:
            setattr(module, ours, Masked(arrays[f"in/m_{theirs}"]))
    check_layer(arrays, module, lambda inputs: list(module(inputs["pixel"], inputs["memory"])))


def check_fuse(data: ParityData, file: str) -> None:
    arrays, config = data.arrays(file), data.files[file]["config"]
    names = sorted(below(arrays, "in/"))
    size = (config["height"], config["width"])
    shapes = [arrays[f"in/{name}"].shape for name in names]
    channels = [shape[-1] for shape in shapes]
    strides = [1 if (shape[1] + 1) // 2 == size[0] else 2 if shape[1] == size[0] else 4 for shape in shapes]
    module = ResizedFuse(channels, strides, config["num_channels"], 2)
    check_layer(arrays, module, lambda inputs: [module([inputs[name] for name in names], size)])


def check_stem(data: ParityData, file: str) -> None:
    arrays = data.arrays(file)
    module = inception_stem(round(64 * data.files[file]["config"]["width_multiplier"]))
    check_layer(arrays, module, lambda inputs: [module(inputs["x"])])


def check_positions(data: ParityData, file: str) -> None:
    arrays = data.arrays(file)
    for name, expected in below(arrays, "dist_").items():
        queries, keys = (int(size) for size in name.split("_"))
        index = relative_positions(queries, keys)
        np.testing.assert_array_equal(index.numpy(), expected)
        if f"out_{name}" in arrays:
            np.testing.assert_array_equal(arrays[f"emb_{name}"][index.numpy()], arrays[f"out_{name}"])


def check_resize(data: ParityData, file: str) -> None:
    arrays = data.arrays(file)
    checked = 0
    for name in arrays:
        if match := re.fullmatch(r"bil2?_(\d+)x(\d+)", name):
            resized = resize_to(first(arrays["x"]), (int(match[1]), int(match[2])))
            assert_near(last(resized), arrays[name], name, INFERENCE)
            checked += 1
    assert checked


def check_keep_probability(data: ParityData, file: str) -> None:
    arrays, config = data.arrays(file), data.files[file]["config"]
    for name in arrays:
        schedule, _, stage = name.partition("_")
        np.testing.assert_allclose(keep_probability(config["keep"], schedule, int(stage)), arrays[name], rtol=1e-6)


def check_layer(arrays: Mapping[str, np.ndarray], module: nn.Module, run: Run) -> None:
    """Outputs of both modes, gradients of the inputs and norms of those of the weights, and the statistics."""
    table = module_table(module, MAX_DEEPLAB)
    load_variables(module, table, below(arrays, "w/"), "")
    inputs = {name: first(values) for name, values in below(arrays, "in/").items()}
    module.eval()
    with torch.no_grad():
        for index, output in enumerate(run(inputs)):
            assert_near(last(output), arrays[f"out_eval/{index}"], f"out_eval/{index}", INFERENCE)
    module.train()
    statistics = NormStatistics(module)
    for value in inputs.values():
        value.requires_grad_()
    outputs = run(inputs)
    for index, output in enumerate(outputs):
        assert_near(last(output.detach()), arrays[f"out_train/{index}"], f"out_train/{index}", TRAINING)
    after, recorded = statistics.after(biased=lambda _norm: True), below(arrays, "after/")
    for name, expected in fitted(after, table, recorded).items():
        assert_near(after[name], expected, name, TRAINING)
    torch.autograd.backward(outputs, [first(arrays[f"g_out/{index}"]) for index in range(len(outputs))])
    for name, expected in below(arrays, "grad_in/").items():
        if name in inputs and inputs[name].grad is not None:
            assert_near(last(inputs[name].grad), expected, f"grad_in/{name}", GRADIENTS)
    check_gradient_norms(module, table, below(arrays, "gnorm/"))


def fitted(
    ours: Mapping[str, Tensor], table: Mapping[str, Any], recorded: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What the original has in the place of each tensor of ours, all of it used."""
    assert {table[name].path for name in ours} == set(recorded)
    return {name: table[name].fit(recorded[table[name].path], tuple(value.shape)) for name, value in ours.items()}


def gradients_by_path(module: nn.Module, table: Mapping[str, Any]) -> dict[str, list[Tensor]]:
    """The gradients of each of the original's variables; stacked norms are several tensors of ours."""
    grouped: dict[str, list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        grouped.setdefault(table[name].path, []).append(gradient)
    return grouped


def check_gradient_norms(module: nn.Module, table: Mapping[str, Any], expected: Mapping[str, np.ndarray]) -> None:
    """The lengths of all weights' gradients; the reference's keys are the variables' Keras names."""
    found = {
        path.replace("/_", "/").removeprefix("_"): torch.cat([g.flatten() for g in gradients]).norm().item()
        for path, gradients in gradients_by_path(module, table).items()
    }
    largest = max(float(value) for value in expected.values())
    assert len(found) == len(expected)
    for key, value in expected.items():
        path = key.partition("/")[2].removesuffix(":0")
        assert abs(found[path] - float(value)) <= GRADIENTS * max(float(value), 1e-2 * largest), (
            path,
            found[path],
            value,
        )


CHECKS = {
    "axial_layers.AxialAttention": [check_axial_attention],
    "axial_layers.AxialAttention2D": [check_axial_attention_2d],
    "axial_blocks.AxialBlock": [check_block],
    "dual_path_transformer.DualPathTransformerLayer": [check_dual_path],
    "resized_fuse.ResizedFuse": [check_fuse],
    "stems.InceptionSTEM": [check_stem],
    "positional_encodings.RelativePositionalEncoding": [check_positions],
    "utils.resize_align_corners / resize_bilinear": [check_resize],
    "drop_path.get_drop_path_keep_prob": [check_keep_probability],
}
