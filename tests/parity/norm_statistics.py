"""The running statistics of batch norms as the originals keep them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class NormStatistics:
    """What a network's norms hold after training steps; made before them.

    Torch's running variance is the unbiased one, the originals' is mostly the biased one.
    """

    def __init__(self, network: nn.Module) -> None:
        self.norms = {name: module for name, module in network.named_modules() if isinstance(module, NORMS)}
        self.before = {name: value.clone() for name, value in network.state_dict().items()}
        self.counts: dict[str, int] = {}  # values per channel of a norm's last pass
        for name, norm in self.norms.items():
            norm.register_forward_pre_hook(self._recorder(name))

    def _recorder(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(_norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.counts[name] = inputs[0].numel() // inputs[0].shape[1]

        return record

    def after(
        self, *, biased: Callable[[str], bool], passes: Callable[[str], int] = lambda _norm: 1
    ) -> dict[str, Tensor]:
        """Means and variances by our names; `biased` and `passes` tell which variance a norm keeps and its passes."""
        found = {}
        for name, norm in self.norms.items():
            kept = (1 - norm.momentum) ** passes(name) * self.before[f"{name}.running_var"]
            factor = (self.counts[name] - 1) / self.counts[name] if biased(name) else 1.0
            found[f"{name}.running_mean"] = norm.running_mean.clone()
            found[f"{name}.running_var"] = kept + (norm.running_var - kept) * factor
        return found
