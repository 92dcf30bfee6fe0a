"""One forward pass in training mode before a run begins, so that values that do not fit are found at once."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from maskwright.errors import UserError
from maskwright.structures import PanopticTarget, Target
from maskwright.training.options import PanopticDataOptions, Recipe


def rehearse(model: nn.Module, recipe: Recipe) -> None:
    """Compute the losses of blank crops once: one crop with an object (or one segment that covers it), and one without.

    A copy of the model computes them, on the CPU, and torch's random state is put back: the run that follows
    is what it would have been. The crops form one batch, or two where `data.batch_size` is 1.

    Args:
        model: of the recipe, on the CPU and in the modes it trains in.
        recipe: names the size of the crops.

    Raises:
        UserError: the model cannot compute its losses.
    """
    size = recipe.data.side(recipe.model["image_size"])
    create_target = _panoptic_target if isinstance(recipe.data, PanopticDataOptions) else _target
    crops = [(torch.zeros(3, size, size, dtype=torch.uint8), create_target(size, count)) for count in (1, 0)]
    batches = [crops] if recipe.data.batch_size > 1 else [[crop] for crop in crops]
    scratch = copy.deepcopy(model)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for batch in batches:
                scratch([image for image, _ in batch], [target for _, target in batch])
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"a first try of the model on blank crops of {size} x {size} pixels failed ({_sizes(recipe)}): "
            f"{' '.join(str(error).split())}"
        ) from error


def _target(size: int, count: int) -> Target:
    """The target of a crop with one object in its middle (`count` 1) or none (`count` 0)."""
    low, high = size // 4, max(size // 4 + 1, size * 3 // 4)
    masks = torch.zeros(1, size, size, dtype=torch.bool)
    masks[:, low:high, low:high] = True
    fields: dict[str, Tensor] = {
        "boxes": torch.tensor([[low, low, high, high]], dtype=torch.float32),
        "labels": torch.zeros(1, dtype=torch.int64),
        "masks": masks,
        "has_mask": torch.ones(1, dtype=torch.bool),
        "iscrowd": torch.zeros(1, dtype=torch.bool),
        "ids": torch.ones(1, dtype=torch.int64),
    }
    return Target(**{name: rows[:count] for name, rows in fields.items()}, image_id=0)  # pyright: ignore[reportArgumentType]


def _panoptic_target(size: int, count: int) -> PanopticTarget:
    """The target of a crop that is one segment (`count` 1) or void (`count` 0)."""
    return PanopticTarget(
        segmentation=torch.full((size, size), count - 1, dtype=torch.int32),
        labels=torch.zeros(count, dtype=torch.int64),
        iscrowd=torch.zeros(count, dtype=torch.bool),
        ids=torch.ones(count, dtype=torch.int64),
        image_id=0,
    )


def _sizes(recipe: Recipe) -> str:
    sizes = {
        "model.image_size": recipe.model["image_size"],
        "data.crop_size": getattr(recipe.data, "crop_size", None),
        "data.batch_size": recipe.data.batch_size,
    }
    return ", ".join(f"{key} {size}" for key, size in sizes.items() if size is not None)
