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
from parity_data import ParityData, below
from torch import Tensor, nn

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
INFERENCE, TRAINING, TRAINING_TO_ONE_CELL = 1e-4, 1e-4, 1e-2


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
    network = create_hourglass(config)
    table = module_table(network, HOURGLASS)
    load_variables(network, table, {f"w/{k}": v for k, v in _weights(data, file).items()}, "w")

    network.eval()
    with torch.no_grad():
        outputs = network(channels_first(arrays["x"]))
    assert len(outputs) == sum(bool(re.fullmatch(r"y\d+", name)) for name in arrays)
    for index, output in enumerate(outputs):
        assert_near(output, channels_first(arrays[f"y{index}"]), f"y{index}", INFERENCE)

    deepest = arrays["xt"].shape[1] // network.size_divisor
    tolerance = TRAINING if deepest > 1 else TRAINING_TO_ONE_CELL
    network.train()
    counts = record_counts(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for index, output in enumerate(network(channels_first(arrays["xt"]))):
        assert_near(output.detach(), channels_first(arrays[f"yt{index}"]), f"yt{index}", tolerance)
    check_statistics(network, table, before, counts, below(arrays, "after/"), tolerance)


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
    head = create_mask_head(
        name,
        crops.shape[1],
        config["num_init_channels"],
        mask_size=config["mask_size"],
        norm_momentum=HOURGLASS_MOMENTUM if is_hourglass else RESNET_MOMENTUM,
    )
    table = module_table(head, DEEP_MAC)
    load_variables(head, table, {f"w/{k}": v for k, v in below(arrays, "w/").items()}, "w")

    head.eval()
    with torch.no_grad():
        assert_near(head(crops).squeeze(1), arrays["logits"], "logits", INFERENCE)
    tolerance = TRAINING_TO_ONE_CELL if name in ("hourglass52", "hourglass100") else TRAINING
    head.train()
    counts = record_counts(head) if is_hourglass else None
    before = {key: value.clone() for key, value in head.state_dict().items()}
    assert_near(head(crops).squeeze(1).detach(), arrays["logits_train"], "logits_train", tolerance)
    check_statistics(head, table, before, counts, below(arrays, "after/"), tolerance)


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


def record_counts(network: nn.Module) -> dict[str, int]:
    """Values per channel that each batch norm sees; filled by the next forward."""
    counts: dict[str, int] = {}

    def recorder(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            counts[name] = inputs[0].numel() // inputs[0].shape[1]

        return hook

    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(recorder(name))
    return counts


def check_statistics(
    network: nn.Module,
    table: Table,
    before: Mapping[str, Tensor],
    counts: Mapping[str, int] | None,
    expected: Mapping[str, np.ndarray],
    tolerance: float,
    passes: int = 1,
) -> None:
    """Moving means and variances after a step of so many passes, each of as many values per channel.

    With `counts`, of a pass, the reference's variance is the biased one.
    """
    state = network.state_dict()
    checked = 0
    for name, row in table.items():
        module, _, leaf = name.rpartition(".")
        if leaf not in ("running_mean", "running_var"):
            continue
        value = state[name]
        if leaf == "running_var" and counts is not None:
            momentum = network.get_submodule(module).momentum
            assert isinstance(momentum, float)
            kept = (1 - momentum) ** passes * before[name]
            value = kept + (value - kept) * (counts[module] - 1) / counts[module]
        assert_near(value, expected[row.path], row.path, tolerance)
        checked += 1
    assert checked == len(expected)


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
