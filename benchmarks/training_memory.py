"""How much memory a recipe's training step needs, counted tensor by tensor; no GPU is needed.

    python benchmarks/training_memory.py RECIPE [--classes 133] [--instances 16] [--json OUT] [--SECTION.KEY VALUE ...]

Any key of the recipe can be given after these: `--data.batch_size 8`, `--trainer.precision bf16-mixed`,
`--model.activation_checkpointing true`. Steps on one and on two images of noise run on the processor, through losses,
gradients and the optimizer; the peak of what their tensors hold together grows evenly with the number of images, and
is told for `data.batch_size` of them. Weights, gradients of an earlier pass and the optimizer's state are held from the
start, as where passes are accumulated. A GPU needs more: its context and libraries take about 1 GB, some convolutions
a workspace, and its allocator keeps gaps.

Numbers are in 10^9 bytes. RECIPE's own `model.categories` are used where it names them, else `--classes` things.
"""

from __future__ import annotations

import argparse
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from maskwright.errors import UserError
from maskwright.evaluation.report import format_table
from maskwright.files import write_json
from maskwright.models.hub import family_class
from maskwright.structures import PanopticTarget, Target
from maskwright.training.optimizers import create_optimizer
from maskwright.training.options import Recipe
from maskwright.training.recipes import resolve_recipe

AUTOCAST = {"32": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.bfloat16}  # as many bytes as float16


class MemoryCount(TorchDispatchMode):
    """Counts the bytes of all storages that come into being under it, for as long as anything holds them.

    now: held at the moment.
    peak: the most that was ever held.
    """

    def __init__(self, known: list[Tensor]) -> None:
        """`known` are tensors from before, whose storages (and views of them) do not count."""
        super().__init__()
        self.now = self.peak = 0
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        address, size = storage.data_ptr(), storage.nbytes()
        if size and address not in self._seen:
            self._seen.add(address)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._release, address, size)

    def _release(self, address: int, size: int) -> None:
        self._seen.discard(address)
        self.now -= size


def synthetic_targets(task: str, count: int, size: int, num_classes: int, instances: int) -> list[Any]:
    """As many segments, or instances with masks, in each image: equal stripes from top to bottom."""
    rows = torch.arange(size) * instances // size
    shared: dict[str, Any] = {
        "labels": torch.arange(instances) % num_classes,
        "iscrowd": torch.zeros(instances, dtype=torch.bool),
        "ids": torch.arange(instances) + 1,
        "image_id": 0,
    }
    if task == "panoptic":
        return [PanopticTarget(segmentation=rows[:, None].expand(size, size).int(), **shared)] * count
    masks = (rows == torch.arange(instances)[:, None])[:, :, None].expand(-1, -1, size).clone()
    tops = torch.searchsorted(rows, torch.arange(instances)).float()
    bottoms = torch.searchsorted(rows, torch.arange(instances), right=True).float()
    boxes = torch.stack([torch.zeros(instances), tops, torch.full((instances,), float(size)), bottoms], dim=1)
    return [Target(boxes=boxes, masks=masks, has_mask=torch.ones(instances, dtype=torch.bool), **shared)] * count


def create_model(recipe: Recipe, num_classes: int) -> nn.Module:
    """The recipe's model with random weights, in training mode."""
    values = dict(recipe.model)
    if not values.get("categories"):
        values["categories"] = [{"id": i + 1, "name": str(i + 1), "isthing": True} for i in range(num_classes)]
    if "pretrained_backbone" in values:
        values["pretrained_backbone"] = False
    model = family_class(recipe.family)(**values).train()
    return model.to(memory_format=torch.channels_last) if recipe.trainer.channels_last else model


@contextmanager
def number_format(precision: str) -> Iterator[None]:
    """The training precision's autocast."""
    dtype = AUTOCAST[precision]
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        yield


def measure(recipe: Recipe, num_classes: int, instances: int) -> dict[str, float]:
    """Bytes by what holds them, at the recipe's batch size and precision."""
    torch.manual_seed(0)
    model: Any = create_model(recipe, num_classes)
    groups = model.parameter_groups()
    optimizer = create_optimizer(groups, recipe.optimizer)
    parameters = [parameter for group in groups for parameter in group["params"] if parameter.requires_grad]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = [value for values in optimizer.state.values() for value in values.values() if isinstance(value, Tensor)]
    kept = {
        "weights": [*model.parameters(), *model.buffers()],
        "gradients": [parameter.grad for parameter in parameters],
        "optimizer": state,
    }
    sizes = {name: float(sum(tensor.nbytes for tensor in tensors)) for name, tensors in kept.items()}
    known = [tensor for tensors in kept.values() for tensor in tensors]
    size = recipe.data.side(recipe.model["image_size"])
    counts = []
    for count in (1, 2):
        images = [torch.randint(0, 256, (3, size, size), dtype=torch.uint8) for _ in range(count)]
        targets = synthetic_targets(model.task, count, size, len(model.categories), instances)
        with MemoryCount(known) as memory:
            with number_format(recipe.trainer.precision):
                loss = torch.stack(list(model(images, targets).values())).sum()
            saved = memory.now
            loss.backward()
            optimizer.step()
        del loss
        counts.append((saved, memory.peak))
    (saved, peak), (saved_2, peak_2) = counts
    more = recipe.data.batch_size - 1
    sizes["saved for the gradients"] = saved + more * (saved_2 - saved)
    sizes["temporary"] = peak + more * (peak_2 - peak) - sizes["saved for the gradients"]
    return {**sizes, "all": sum(sizes.values()), "of these, per image": peak_2 - peak}


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("recipe")
    parser.add_argument("--classes", type=int, default=133, metavar="N")
    parser.add_argument("--instances", type=int, default=16, metavar="N", help="or segments, of each image")
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments, overrides = parser.parse_known_args()
    for name in ("classes", "instances"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, but got {getattr(arguments, name)}")
    return arguments, overrides


def main() -> None:
    arguments, overrides = parse_arguments()
    try:
        # Data are noise, and `resolve_recipe` refuses a recipe without.
        recipe = resolve_recipe(arguments.recipe, ["--data.images=x", "--data.annotations=x", *overrides])
        sizes = measure(recipe, arguments.classes, arguments.instances)
    except UserError as error:
        print(f"training_memory: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    print(f"{arguments.recipe}: batch size {recipe.data.batch_size}, precision {recipe.trainer.precision}")
    print(format_table(["what", "GB"], [[name, size / 1e9] for name, size in sizes.items()]))
    if arguments.json:
        write_json(arguments.json, sizes)


if __name__ == "__main__":
    main()
