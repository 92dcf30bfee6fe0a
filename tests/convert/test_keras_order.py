"""Keras' numbers of layers: small graphs by hand, SpineNets against what was read off the originals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from maskwright.convert.keras_order import KerasGraph, spinenet_order
from maskwright.nn.backbones import create_detection_backbone
from maskwright.nn.feature_maps import BackboneOptions
from maskwright.nn.spinenet import SpineNet

READ_OFF = json.loads((Path(__file__).parents[1] / "parity/data/deep_marc/layer_order.json").read_text())


def test_the_longest_way_to_an_output_counts():
    """Two ways from a to the sum: the long one's layers come first, the short one's as late as they are needed."""
    graph = KerasGraph()
    a = graph.add([graph.add([])], "a")
    short = graph.add([a], "short")
    long = graph.add([graph.add([a], "long 1")], "long 2")
    end = graph.add([graph.add([short, long])], "end")
    assert graph.order([end]) == ["a", "long 1", "short", "long 2", "end"]


def test_layers_without_weights_count_but_have_no_number():
    graph = KerasGraph()
    a = graph.add([], "a")
    left = graph.add([graph.add([a], layers=3)], "left")
    right = graph.add([a], "right")
    assert graph.order([left, right]) == ["a", "left", "right"]
    far = graph.add([graph.add([right])], "far")
    assert graph.order([left, far]) == ["a", "right", "left", "far"]


def test_what_no_output_needs_has_no_number():
    graph = KerasGraph()
    a = graph.add([], "a")
    graph.add([a], "unused")
    assert graph.order([a]) == ["a"]


@pytest.mark.parametrize(
    ("name", "repeats"), [("spinenet49", 1), ("spinenet96", 2), ("spinenet143", 3), ("spinenet190", 4)]
)
def test_spinenets_are_numbered_as_the_originals(name, repeats):
    with torch.device("meta"):
        network = create_detection_backbone(name, BackboneOptions())
    assert isinstance(network, SpineNet)
    key = next(key for key in READ_OFF if key.startswith(f"spinenet repeats={repeats} "))
    assert [role(network, module) for module in spinenet_order(network)] == READ_OFF[key]


def role(network: SpineNet, module: str) -> str:
    """Our name of a module in the reference's words."""
    kind = "conv" if isinstance(network.get_submodule(module), nn.Conv2d) else "bn"
    part, *path = module.split(".")
    if part == "stem":
        return f"stem/{kind}"
    if part == "stem_groups":
        return f"stem_block_{int(path[0]) + 1}/{path[1]}"
    if part == "endpoints":
        return f"endpoint/level{path[0]}/{kind}"
    node, group, *rest = path
    if group == "blocks":
        return f"scale_permuted_block_{int(node) + 1}/{rest[0]}"
    scale = network.get_submodule(f"nodes.{node}.resample.{rest[0]}.scale")
    last = 2 if any(isinstance(layer, nn.Conv2d) for layer in scale.modules()) else 1
    number = {"reduce": 0, "scale": 1, "expand": last}[rest[1]]
    return f"block{int(node) + 1}/input{rest[0]}/{kind}{number}"
