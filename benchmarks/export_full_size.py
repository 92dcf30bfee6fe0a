"""What the export of a recipe's network costs at full size, with random weights, and how far its files are from torch.

    python benchmarks/export_full_size.py RECIPE [--form pair|single|detector|panoptic] [--seed 0]

`maskwright export` runs in a process of its own, whose processor seconds and largest memory are printed. Then torch and
onnxruntime get the same random inputs: two images of the network's size, ten boxes. The difference of an output is the
largest one of its numbers, relative to the largest magnitude. Norms have the statistics of such images, since
those of a new network would let its numbers die out. Classes that the recipe leaves open are 80, of panoptic maps 133.

A new network's detections have nearly equal scores, and rounding changes their order. So each is compared with the one
of its class within a pixel; `without partner` is the share of those that have none.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from maskwright.evaluation.report import format_table
from maskwright.export.graphs import Graph, GraphOptions, Values, create_graphs, example_inputs
from maskwright.models.family import Family
from maskwright.models.hub import family_class, from_pretrained, save_pretrained
from maskwright.onnx.metadata import encoder_path
from maskwright.training.recipes import resolve_recipe

FORMS = {
    "pair": GraphOptions(),
    "single": GraphOptions(single=True),
    "detector": GraphOptions(detector=True),
    "panoptic": GraphOptions(),
}
BOXES = 10
LARGEST = 1e6  # pixels


def build(recipe_name: str) -> Family[Any]:
    """The network of a recipe with random weights."""
    recipe = resolve_recipe(recipe_name)
    family = family_class(recipe.family)
    assumed = [{"id": label + 1, "name": str(label)} for label in range(133 if family.task == "panoptic" else 80)]
    config = family.config_class(**{**recipe.model, "categories": recipe.model.get("categories") or assumed})
    return family(config.without_initial_weights())


def random_inputs(graph: Graph, seed: int) -> Values:
    """Inputs of the graph, whose maps are those of a random image."""
    generator = torch.Generator().manual_seed(seed)
    values = example_inputs(graph)
    corners = torch.rand(BOXES, 2, 2, generator=generator) * graph.model.image_size
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1) + 2], dim=1)
    own = {"boxes": boxes, "image_index": torch.arange(BOXES) % 2, "labels": torch.arange(BOXES) - 1}
    drawn = {
        name: torch.randn(value.shape, generator=generator) if value.ndim == 4 else value
        for name, value in values.items()
    }
    return drawn | {name: value for name, value in own.items() if name in values}


def settle(model: Family[Any], options: GraphOptions) -> None:
    """Give the norms the statistics of random inputs."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    for graph in create_graphs(model.eval(), options):
        values = random_inputs(graph, 0)  # of a file of masks they come out of the encoder, which is settled by now
        for norm in norms:
            norm.train()
        with torch.no_grad():
            graph(*values.values())
        model.eval()


def export(weights: Path, file: Path, form: str) -> tuple[float, float]:
    """Processor seconds and largest memory (GB) of `maskwright export` in a process of its own."""
    options = [f"--{form}"] if form in ("single", "detector") else []
    command = [sys.executable, "-m", "maskwright", "export", str(weights), "--out", str(file), *options]
    process = os.posix_spawn(sys.executable, command, os.environ)
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"the export of {weights} failed")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def differences(graph: Graph, file: Path, seed: int) -> dict[str, float]:
    """Of each output of a graph, that of its file relative to torch's."""
    values = random_inputs(graph, seed)
    with torch.inference_mode():
        expected = {name: value.numpy() for name, value in zip(graph.outputs, graph(*values.values()), strict=True)}
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    taken = {each.name: values[each.name].numpy() for each in session.get_inputs()}
    found = dict(zip((each.name for each in session.get_outputs()), session.run(None, taken), strict=True))
    if graph.name != "detector":
        return {name: difference(value, found[name]) for name, value in expected.items()}
    ours, theirs = partners(expected, found)
    compared = {name: difference(value[ours], found[name][theirs]) for name, value in expected.items()}
    return compared | {"without partner": 1 - len(ours[0]) / expected["labels"].size}


def difference(expected: np.ndarray, found: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def partners(expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Indices (image, row) of torch's detections and of the file's that are of one class and place."""
    far = np.abs(expected["boxes"][:, :, None] - found["boxes"][:, None]).max(axis=3)
    far += LARGEST * (expected["labels"][:, :, None] != found["labels"][:, None])
    pairs = [
        (image, *pair) for image, each in enumerate(far) for pair in zip(*linear_sum_assignment(each), strict=True)
    ]
    image, row, other = np.array([pair for pair in pairs if far[pair] < 1]).T
    return [(image, row), (image, other)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--form", choices=FORMS, default="pair")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    options = FORMS[arguments.form]
    torch.manual_seed(arguments.seed)
    model = build(arguments.recipe)
    settle(model, options)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        weights, file = Path(folder) / "weights", Path(folder) / "model.onnx"
        save_pretrained(model, weights)
        del model
        seconds, memory = export(weights, file, arguments.form)
        print(f"{parameters / 1e6:.1f} M parameters; {seconds:.0f} processor seconds, {memory:.1f} GB at most")
        rows = []
        for graph in create_graphs(from_pretrained(weights), options):
            path = encoder_path(file) if graph.name == "encoder" else file
            size = f"{path.stat().st_size / 1e6:.1f} MB"
            found = differences(graph, path, arguments.seed + 1)
            rows += [[graph.name, size, name, f"{value:.1e}"] for name, value in found.items()]
        print(format_table(["file", "size", "output", "difference"], rows))


if __name__ == "__main__":
    main()
