"""The numbers that Keras gives the layers of a functional model in a checkpoint (`layer_with_weights-N`)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from maskwright.nn.spinenet import Resample, SpineNet

# The number of Keras layers that each of our modules without weights is in the original. Upsampling is shape, index,
# reshape, tile, reshape there.
_KERAS_LAYERS = {nn.ReLU: 1, nn.MaxPool2d: 1, nn.Upsample: 5}


class KerasGraph:
    """The graph of a functional Keras model, reduced to what decides the order of its layers."""

    def __init__(self) -> None:
        self._inputs: list[list[int]] = []
        self._names: list[str | None] = []
        self._layers: list[int] = []

    def add(self, inputs: Sequence[int], name: str | None = None, layers: int = 1) -> int:
        """Add a layer with weights by its `name`, or a chain of `layers` layers without; return its number."""
        self._inputs.append(list(inputs))
        self._names.append(name)
        self._layers.append(layers)
        return len(self._inputs) - 1

    def follow(self, start: int, module: nn.Module, name: str) -> int:
        """Add the layers of a chain of modules, a residual block being one; return the last one's number."""
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, BasicBlock, Bottleneck)):
            return self.add([start], name)
        if isinstance(module, (nn.Sequential, Resample)):
            for child, layer in module.named_children():
                start = self.follow(start, layer, f"{name}.{child}")
            return start
        layers = _KERAS_LAYERS.get(type(module), 0)
        return self.add([start], layers=layers) if layers else start

    def order(self, outputs: Sequence[int]) -> list[str]:
        """The names of the layers with weights as Keras numbers them.

        They are sorted by falling depth, the length of the longest path to an output. Layers of one depth are in the
        order in which a walk from the outputs back to the input first meets them.

        Source: `_build_map` and `_map_graph_network` of Keras 2, engine/functional.py.
        """
        found: dict[int, int] = {}
        finished: dict[int, None] = {}
        stack = list(reversed(outputs))
        while stack:
            node = stack[-1]
            if node in found:
                finished[stack.pop()] = None
            else:
                found[node] = len(found)
                stack.extend(reversed([before for before in self._inputs[node] if before not in found]))
        depth = dict.fromkeys(finished, 0)
        for node in reversed(finished):
            for before in self._inputs[node]:
                depth[before] = max(depth[before], depth[node] + self._layers[node])
        ordered = sorted(finished, key=lambda node: (-depth[node], found[node]))
        return [name for node in ordered if (name := self._names[node]) is not None]


def spinenet_order(network: SpineNet) -> list[str]:
    """Names of the convolutions, norms and residual blocks of a SpineNet, in the order of the original's numbers."""
    graph = KerasGraph()
    x = graph.follow(graph.add([]), network.stem, "stem")
    numbers = []
    for index, group in enumerate(network.stem_groups):
        x = graph.add([graph.follow(x, group, f"stem_groups.{index}")])  # an identity closes every group
        numbers.append(x)
    outputs = {}
    for index, node in enumerate(network.plan[len(numbers) :]):
        resampled = []
        for position, parent in enumerate(node.parents):
            name = f"nodes.{index}.resample.{position}"
            resampled.append(graph.follow(numbers[parent], network.get_submodule(name), name))
        summed = graph.add([*resampled, *(numbers[parent] for parent in node.merged)], layers=2)  # and ReLU
        name = f"nodes.{index}.blocks"
        numbers.append(graph.add([graph.follow(summed, network.get_submodule(name), name)]))
        if node.is_output:
            name = f"endpoints.{node.level}"
            outputs[node.level] = graph.follow(numbers[-1], network.get_submodule(name), name)
    return graph.order([outputs[level] for level in sorted(outputs)])
