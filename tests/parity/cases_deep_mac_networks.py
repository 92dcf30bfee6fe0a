"""Hourglass networks and mask heads alone: inference, training mode and running statistics."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from cases_deep_mac_ops import assert_near, channels_first
from norm_statistics import NormStatistics
from parity_data import ParityData, below
from rounding import Results, Rounding
from torch import nn

from maskwright.convert.deep_mac import DEEP_MAC, unused_variables
from maskwright.convert.tables import HOURGLASS, Table, load_variables, module_table
from maskwright.nn.backbones import create_backbone
from maskwright.nn.hourglass import Hourglass, hourglass_levels
from maskwright.nn.image_batch import ImageBatch
from maskwright.nn.mask_heads import create_mask_head

# In RGB order, of 0..1. The ResNets' normalise by ImageNet's means and deviations and then, as Keras does, turn the
# channels and subtract 103.939, 116.779, 123.68 (BGR): one subtraction and one division.
PREPROCESSING = {
    "hourglass": (
        (119.9165958 / 255, 114.03422265 / 255, 104.01362025 / 255),
        (70.9150767 / 255, 69.89082075 / 255, 73.6027665 / 255),
    ),
    "resnet": ((0.485 + 0.229 * 123.68, 0.456 + 0.224 * 116.779, 0.406 + 0.225 * 103.939), (0.229, 0.224, 0.225)),
}
HOURGLASS_MOMENTUM = 0.9  # Keras: 0.1
RESNET_MOMENTUM = 0.01  # Keras: 0.99
INFERENCE, TRAINING = 1e-4, 1e-4


def create_hourglass(config: Mapping[str, Any]) -> Hourglass:
    """The network of a fixture: by the name of its function, or by its numbers."""
    if "fn" in config:
        stem, stacks = config["num_channels"], 1
        levels = hourglass_levels(config["fn"].replace("_", ""), stem)
    else:
        stem = config["input_channel_dims"]
        levels = list(zip(config["channel_dims_per_stage"], config["blocks_per_stage"], strict=True))
        stacks = config["num_hourglasses"]
    stem_stride = 4 if config.get("initial_downsample", True) else 1
    return Hourglass(3, stem, levels, stacks=stacks, stem_stride=stem_stride, norm_momentum=HOURGLASS_MOMENTUM)


def check_hourglass(data: ParityData, file: str) -> None:
    """Outputs of all stacks in both modes, and the statistics after one training step."""
    entry, arrays = data.files[file], data.arrays(file)
    config = entry["config"]
    weights = {f"w/{key}": value for key, value in _weights(data, file).items()}
    table = module_table(create_hourglass(config), HOURGLASS)

    def create() -> Hourglass:
        network = create_hourglass(config)
        load_variables(network, table, weights, "w")
        return network

    with torch.no_grad():
        outputs = create().eval()(channels_first(arrays["x"]))
    assert len(outputs) == sum(bool(re.fullmatch(r"y\d+", name)) for name in arrays)
    for index, output in enumerate(outputs):
        assert_near(output, channels_first(arrays[f"y{index}"]), f"y{index}", INFERENCE)

    def train(network: Hourglass) -> Results:
        statistics = NormStatistics(network)
        outputs = network(channels_first(arrays["xt"]).double())
        results = {f"out/yt{index}": output.detach() for index, output in enumerate(outputs)}
        return results | after_by_path(statistics, table, biased=True)

    expected = {f"yt{index}": channels_first(arrays[f"yt{index}"]) for index in range(len(outputs))}
    rounding = Rounding(lambda: create().train(), train)
    rounding.check("out", expected, TRAINING)
    rounding.check("after", below(arrays, "after/"), TRAINING)


def check_mask_head(data: ParityData, file: str) -> None:
    """Logits in both modes, and the statistics after one training step."""
    entry, arrays = data.files[file], data.arrays(file)
    config = entry["config"]
    name = config["network_type"]
    crops = channels_first(arrays["pixel_embedding"])
    if config["use_instance_embedding"]:
        vectors = torch.from_numpy(arrays["instance_embedding"])
        crops = torch.cat([crops, vectors[:, :, None, None].expand(-1, -1, *crops.shape[2:])], dim=1)
    is_hourglass = name.startswith("hourglass")
    values = {
        "mask_size": config["mask_size"],
        "norm_momentum": HOURGLASS_MOMENTUM if is_hourglass else RESNET_MOMENTUM,
    }
    table = module_table(create_mask_head(name, crops.shape[1], config["num_init_channels"], **values), DEEP_MAC)

    def create() -> nn.Module:
        head = create_mask_head(name, crops.shape[1], config["num_init_channels"], **values)
        load_variables(head, table, {f"w/{k}": v for k, v in below(arrays, "w/").items()}, "w")
        return head

    def train(head: nn.Module) -> Results:
        statistics = NormStatistics(head)
        results = {"out/logits_train": head(crops.double()).squeeze(1).detach()}
        return results | after_by_path(statistics, table, biased=is_hourglass)

    with torch.no_grad():
        assert_near(create().eval()(crops).squeeze(1), arrays["logits"], "logits", INFERENCE)
    rounding = Rounding(lambda: create().train(), train)
    rounding.check("out", {"logits_train": arrays["logits_train"]}, TRAINING)
    rounding.check("after", below(arrays, "after/"), TRAINING)


def check_full_size(data: ParityData, file: str) -> None:
    """A backbone at its published size, with weights from the manifest's rule."""
    config, arrays = data.files[file]["config"], data.arrays(file)
    kind = "resnet" if config["name"].startswith("resnet") else "hourglass"
    name = config["name"] if kind == "resnet" else config["name"].replace("_", "")
    backbone = create_backbone(name).eval()
    table, unused = module_table(backbone, DEEP_MAC), unused_variables(backbone)
    prefix = "model/_feature_extractor"
    keys = data.folder / f"{file.replace('p_', 'p_keys_', 1).removesuffix('.npz')}.json"
    if keys.exists():
        paths = {row.path for row in table.values()} | unused
        assert {f"{prefix}/{path}" for path in paths} == set(json.loads(keys.read_text()))
    # The unused norm behind the last of 512 channels has a scale and an offset.
    assert sum(p.numel() for p in backbone.parameters()) + 2 * 512 * bool(unused) == config["params_trainable"]
    load_variables(backbone, table, RuleWeights(backbone, table, prefix), prefix)
    image = torch.from_numpy(arrays["raw"][0]).permute(2, 0, 1) / 255
    with torch.no_grad():
        outputs = backbone(ImageBatch(1, "tf1", *PREPROCESSING[kind], "bgr").stack([image]))
    checked = 0
    for name in arrays:
        if match := re.fullmatch(r"y(\d+)_(every|channel_mean|channel_std)(\d*)", name):
            output = outputs[int(match[1])]
            values = {
                "every": output[:, :: int(match[3] or 1)].permute(0, 2, 3, 1),
                "channel_mean": output.mean((0, 2, 3)),
                "channel_std": output.std((0, 2, 3), correction=0),
            }[match[2]]
            assert_near(values, arrays[name], name, INFERENCE)
            checked += 1
    assert checked == 3 * len(outputs)


class RuleWeights(Mapping[str, np.ndarray]):
    """Weights drawn from a generator seeded by their own key, as the manifest's notes of `p_*` say."""

    def __init__(self, network: nn.Module, table: Table, prefix: str) -> None:
        state = network.state_dict()
        self._shapes: dict[str, tuple[int, ...]] = {}
        for name, row in table.items():
            shape = tuple(state[name].shape)
            self._shapes[f"{prefix}/{row.path}"] = shape if len(shape) == 1 else tuple(shape[i] for i in (2, 3, 1, 0))

    def __getitem__(self, key: str) -> np.ndarray:
        shape = self._shapes[key]
        random = np.random.RandomState(zlib.crc32(key.encode()))
        kind = key.rsplit("/", 1)[-1]
        if kind == "kernel":
            values = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))
        elif kind == "gamma":
            values = random.uniform(0.4, 0.7, shape)
        elif kind == "moving_variance":
            values = random.uniform(0.7, 1.3, shape)
        else:
            values = 0.1 * random.standard_normal(shape)
        return values.astype(np.float32)

    def __iter__(self) -> Any:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def after_by_path(statistics: NormStatistics, table: Table, *, biased: bool) -> Results:
    """The statistics after one pass, by the original's paths."""
    found = statistics.after(biased=lambda _norm: biased)
    return {f"after/{table[name].path}": value for name, value in found.items()}


def _weights(data: ParityData, file: str) -> dict[str, np.ndarray]:
    """The weights of a network: in the file itself, or in the file of the same seed that holds nothing else."""
    own = below(data.arrays(file), "w/")
    if own:
        return own
    entry = data.files[file]
    for other, candidate in data.with_module(entry["module"]).items():
        if other != file and (candidate["seed"], candidate["config"]) == (entry["seed"], entry["config"]):
            return below(data.arrays(other), "w/")
    raise AssertionError(f"no weights for {file}")
