"""A training step of Deep-MAC with its detector: losses, gradients, statistics, and the optimizer's first step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from cases_deep_mac_detector import LOSSES, detector_losses
from cases_deep_mac_mask_branch import (
    GRADIENT,
    MASK_LOSSES,
    create_model,
    load_model,
    losses_image_by_image,
    targets,
)
from cases_deep_mac_networks import TRAINING
from cases_deep_mac_ops import Arrays, assert_near, channels_first
from norm_statistics import NormStatistics
from parity_data import ParityData, below
from rounding import Results, Rounding
from torch import Tensor

from maskwright.convert.tables import Table
from maskwright.models.deep_mac import DeepMAC
from maskwright.models.deep_mac.network import Maps
from maskwright.training.optimizers import create_optimizer
from maskwright.training.recipes import resolve_recipe


def check_training_step(data: ParityData, file: str) -> None:
    """With the norms in either mode: every loss and their sum, all gradients, and the statistics afterwards."""
    arrays, config = data.arrays(file), data.files[file]["config"]
    weights = below(data.arrays(file.replace("h_train_step", "g_e2e_infer")), "w/")
    table = load_model(create_model(config, "centernet"), weights)
    for mode in ("eval", "train"):
        expected = below(arrays, f"{mode}/")

        def create(training: bool = mode == "train") -> DeepMAC:
            model = create_model(config, "centernet").train(training)
            load_model(model, weights)
            return model

        def step(model: DeepMAC, expected: Arrays = expected) -> Results:
            statistics = NormStatistics(model.network)
            losses = _losses(model, arrays, config)
            losses["total_loss"].backward()
            results = {f"loss/{name}": value.detach() for name, value in losses.items()}
            results |= _gradients(model, table, below(expected, "grad/"))
            return results | (_statistics(statistics, model, table, arrays) if model.training else {})

        rounding = Rounding(create, step, sequential_norms=True)
        rounding.check("loss", below(expected, "loss/"), TRAINING)
        rounding.check("gradnorm", below(expected, "gradnorm/"), GRADIENT)
        rounding.check("grad", below(expected, "grad/"), GRADIENT)
        if mode == "train":
            rounding.check("after", below(arrays, "after/"), TRAINING)


def _losses(model: DeepMAC, arrays: Arrays, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """By the original's names."""
    size = (config["size"], config["size"])
    stacks, detected = model.network.stack_outputs(channels_first(arrays["images"]).double())
    losses = detector_losses(model.centernet_loss, detected, arrays, size, model.network.backbone.strides[-1])
    found = {theirs: losses[ours] for theirs, ours in LOSSES.items()}
    of_masks = _mask_losses(model, stacks, arrays, config)
    found |= {MASK_LOSSES[name]: value for name, value in of_masks.items()}
    return found | {"total_loss": torch.stack(list(found.values())).sum()}


def _mask_losses(model: DeepMAC, stacks: list[Maps], arrays: Arrays, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """As `DeepMAC` has them where its norms do not see the grouping."""
    size, allowed = (config["size"], config["size"]), config["allowed_masked_classes_ids"]
    if model.training:
        return losses_image_by_image(model, stacks, arrays, size, allowed, clip=True)
    return model.mask_losses(stacks, targets(arrays, size, allowed))


def _gradients(model: DeepMAC, table: Table, recorded: Arrays) -> Results:
    """The length of every parameter's gradient, and the gradients that are recorded whole."""
    found = {}
    for name, parameter in model.network.named_parameters():
        gradient, path = parameter.grad, table[name].path
        assert gradient is not None, name
        found[f"gradnorm/{path}"] = gradient.norm()
        if path in recorded:
            found[f"grad/{path}"] = gradient.permute(2, 3, 1, 0) if gradient.ndim == 4 else gradient
    return found


def _statistics(statistics: NormStatistics, model: DeepMAC, table: Table, arrays: Arrays) -> Results:
    """The mask head's norms see each stack and image in a pass of its own, the backbone's one pass."""
    passes = len(model.network.pixel_embedding) * sum(name.startswith("gt_boxes") for name in arrays)
    found = statistics.after(
        biased=lambda _norm: True, passes=lambda norm: passes if norm.startswith("mask_head.") else 1
    )
    return {f"after/{table[name].path}": value for name, value in found.items()}


def check_first_adam_step(data: ParityData, file: str) -> None:
    """The recipes' optimizer on the reference's own gradients: how far each tensor moves in the first step.

    `epsilon` is the reference's 1e-7 times 32, as `create_optimizer` says.
    """
    arrays = data.arrays(file)
    gradients = {path: torch.from_numpy(value) for path, value in below(arrays, "train/grad/").items()}
    assert gradients
    parameters = {path: torch.nn.Parameter(torch.zeros_like(value)) for path, value in gradients.items()}
    recipe = resolve_recipe("deep_mac/512_voc_only", ["--data.images=x", "--data.annotations=x"]).optimizer
    options = replace(recipe, epsilon=recipe.epsilon / math.sqrt(1 - recipe.betas[1]))
    optimizer = create_optimizer(
        [{"name": "heads", "params": list(parameters.values()), "weight_decay_factor": 1.0}], options
    )
    for path, parameter in parameters.items():
        parameter.grad = gradients[path]
    optimizer.step()
    for path, parameter in parameters.items():
        name = f"adam1_delta_norm/{path}"
        assert_near(parameter.detach().norm(), arrays[name], name, GRADIENT)
