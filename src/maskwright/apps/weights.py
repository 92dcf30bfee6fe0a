"""The models of weights, which torch runs; `named_models` alone imports this, where it is asked for one."""

from __future__ import annotations

from maskwright.models.hub import from_pretrained, model_hash
from maskwright.predictor import Predictor


def load_weights(name: str, device: str | None, precision: str, compile: bool) -> tuple[str, Predictor]:
    """The hash of a model (`model_hash`), and its predictor.

    Raises:
        UserError: see `from_pretrained` and `Predictor`.
    """
    model = from_pretrained(name)
    weights = model_hash(model)  # before its batch norms are folded
    return weights, Predictor(model, device, precision, compile, in_place=True)
