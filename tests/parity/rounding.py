"""How far rounding moves the results of a network: the bound where float32 is coarser than the usual tolerances.

A reference in float32 lies as far from the exact results as its network amplifies roundings: in training mode up to a
millionfold. So such a network of ours is computed in float64 and, where the usual tolerance is too narrow, several
times more with roundings to float32 put in at every layer; the differences say how near the reference must be. No bound
depends on the processor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from parity_data import below
from torch import Tensor, nn

UNIT = torch.finfo(torch.float32).eps  # one unit in the last place
SEEDS = range(5)
MULTIPLE = 8  # of the largest difference that any seed makes; the references at hand lie within 3.5
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, *NORMS)

Results = dict[str, Tensor]


class Rounding:
    """The results of a network in float64, and how far from them float32 may lie.

    create: makes the network, the same one each time.
    compute: a network's results by name, `KIND/NAME`: outputs, losses, gradients or statistics.
    sequential_norms: in training mode the reference's batch norms add up their n values one after the other, which
        rounds n times: their sums are off by sqrt(n) units, not by one.
    dtype: another one where ours computes in nothing else.
    """

    def __init__(
        self,
        create: Callable[[], nn.Module],
        compute: Callable[[Any], Results],
        *,
        sequential_norms: bool = False,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.create, self.compute, self.sequential_norms, self.dtype = create, compute, sequential_norms, dtype
        self.exact = compute(create().to(dtype))

    @cached_property
    def spread(self) -> dict[str, float]:
        """The largest difference that roundings make to each result."""
        spread = dict.fromkeys(self.exact, 0.0)
        for seed in SEEDS:
            network = self.create().to(self.dtype)
            put_in_roundings(network, seed, self.sequential_norms)
            for name, value in self.compute(network).items():
                spread[name] = max(spread[name], largest(value - self.exact[name]))
        return spread

    def check(self, kind: str, expected: Mapping[str, np.ndarray], tolerance: float) -> list[float]:
        """Assert that all results of a kind are within `tolerance` of the largest magnitude, or what rounding allows.

        Results that are zero but for rounding may be as large as a unit of the kind's largest result.

        Returns:
            The errors beyond the tolerance as multiples of what rounding does.
        """
        exact = below(self.exact, f"{kind}/")
        assert set(exact) == set(expected), f"{kind}: {set(exact) ^ set(expected)}"
        zero = UNIT * max((largest(value) for value in exact.values()), default=0.0)
        multiples = []
        for name, ours in exact.items():
            theirs = torch.as_tensor(expected[name])
            assert ours.shape == theirs.shape, f"{name}: {tuple(ours.shape)}, expected {tuple(theirs.shape)}"
            error = largest(ours - theirs)
            if not error <= max(tolerance * largest(theirs), MULTIPLE * zero):  # nor if it is NaN
                rounding = self.spread[f"{kind}/{name}"]
                assert error <= MULTIPLE * rounding, (
                    f"{kind}/{name}: differs by {error:.3g}, by rounding {rounding:.3g}"
                )
                multiples.append(error / rounding)
        return multiples


def largest(values: Tensor) -> float:
    """The largest magnitude."""
    return float(values.detach().abs().max())


def put_in_roundings(network: nn.Module, seed: int, sequential_norms: bool) -> None:
    """From now on what enters a layer is moved by one unit: up, down or not; so is its gradient on the way back."""
    generator = torch.Generator().manual_seed(seed)

    def rounded(values: Tensor, units: float = 1.0) -> Tensor:
        return values * (1 + units * UNIT * torch.randint(-1, 2, values.shape, generator=generator))

    def round_input(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return rounded(inputs[0]), *inputs[1:]

    for layer in network.modules():
        if isinstance(layer, LAYERS):
            layer.register_forward_pre_hook(round_input)
        if isinstance(layer, NORMS) and layer.training:
            layer.forward = _norm_of_sums(layer, rounded, sequential_norms)


def _norm_of_sums(norm: Any, rounded: Callable[..., Tensor], sequential: bool) -> Callable[[Tensor], Tensor]:
    """A training step of a batch norm with rounded sums: its variance is the mean square less the squared mean."""

    def forward(x: Tensor) -> Tensor:
        count, dims = x.numel() // x.shape[1], [dim for dim in range(x.dim()) if dim != 1]
        units = count**0.5 if sequential else 1.0
        mean, square = (rounded(values.mean(dims, keepdim=True), units) for values in (x, x.square()))
        variance = square - mean.square()
        with torch.no_grad():
            norm.running_mean.lerp_(mean.flatten(), norm.momentum)
            norm.running_var.lerp_(variance.flatten() * count / (count - 1), norm.momentum)
        weight, bias = (values.view(mean.shape) for values in (norm.weight, norm.bias))
        return (x - mean) * torch.rsqrt(variance + norm.eps) * weight + bias

    return forward
