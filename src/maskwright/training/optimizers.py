"""Optimizer and learning-rate schedule of a recipe."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from maskwright.errors import UserError
from maskwright.structures import ParameterGroup
from maskwright.training.options import OptimizerOptions


def create_optimizer(groups: Sequence[ParameterGroup], options: OptimizerOptions) -> Optimizer:
    """The optimizer over a model's parameter groups, each with its share of learning rate and weight decay.

    Departures of torch's optimizers from those of the originals, Keras's: its SGD keeps the learning rate inside of
    the velocity (v = m v - rate g), so that after a change of rate the old one fades over some 1 / (1 - m) steps
    instead of ending at once; its Adam adds `epsilon` before the bias correction, which at step t is the same as
    torch's with epsilon / sqrt(1 - beta2^t): 32 times as much at the first step, and alike from some 5000 on.

    Raises:
        UserError: `learning_rate_factors` names a group that the model does not have.
        ValueError: a parameter is in two groups.
    """
    names = {group["name"] for group in groups}
    unknown = options.learning_rate_factors.keys() - names
    if unknown:
        raise UserError(
            f"optimizer.learning_rate_factors: unknown group {sorted(unknown)[0]!r}; "
            f"this model has {', '.join(sorted(names))}"
        )
    parameters: list[dict[str, Any]] = [
        {
            "name": group["name"],
            "params": group["params"],
            "lr": options.learning_rate * options.learning_rate_factors.get(group["name"], 1.0),
            "weight_decay": options.weight_decay * group["weight_decay_factor"],
        }
        for group in groups
    ]
    if options.name == "sgd":
        return torch.optim.SGD(parameters, lr=options.learning_rate, momentum=options.momentum)
    kind = torch.optim.AdamW if options.name == "adamw" else torch.optim.Adam
    return kind(parameters, lr=options.learning_rate, betas=options.betas, eps=options.epsilon)


def create_schedule(optimizer: Optimizer, options: OptimizerOptions, steps: int) -> LambdaLR:
    """The schedule over a run of `steps` optimizer steps; step it once after each."""
    return LambdaLR(optimizer, partial(learning_rate_factor, options=options, steps=steps))


def learning_rate_factor(step: int, *, options: OptimizerOptions, steps: int) -> float:
    """Share of the peak learning rate that optimizer step `step` (from 0) of a run of `steps` takes.

    Linear warm-up ends with the full rate at step `warmup_steps`; cosine and polynomial reach 0 after the last step.

    Source: `step` is PiecewiseConstantDecay under LinearWarmup of Deep-MARC's recipes, `polynomial` is
    PolynomialDecay under the warm-up of MaX-DeepLab's (arXiv 2012.00759), with `warmup_start_factor` 0.
    """
    if step < options.warmup_steps:
        first = options.warmup_start_factor
        first = 1 / (options.warmup_steps + 1) if first is None else first
        return first + (1 - first) * step / options.warmup_steps
    if options.schedule == "constant":
        return 1.0
    if options.schedule == "step":
        return options.step_factor ** bisect_left(options.step_boundaries, step)
    if options.schedule == "polynomial":
        return (1 - min(step, steps) / steps) ** options.polynomial_power
    progress = (step - options.warmup_steps) / max(1, steps - options.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
