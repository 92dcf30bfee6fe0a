"""The models that commands ask, whichever library runs them: torch those of weights, onnxruntime exported files.

Commands give pictures and boxes as arrays. What they do with the answers is the same for tensors and for arrays, so
that a command with an exported file needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from maskwright import onnx
from maskwright.apps.processes import device_of_process
from maskwright.errors import UserError

EXPORTED = ".onnx"
"""The suffix of exported models, which have no weights folder."""


@runtime_checkable
class AnyPredictor(Protocol):
    """What `maskwright.Predictor` and `maskwright.onnx.Predictor` have in common."""

    device: Any
    precision: str

    @property
    def task(self) -> str:
        """What the model finds: `instance` or `panoptic`."""
        ...

    @property
    def categories(self) -> Sequence[Any]:
        """The model's label space."""
        ...

    @property
    def needs_boxes(self) -> bool:
        """Whether the model has no detector."""
        ...

    @property
    def takes_boxes(self) -> bool:
        """Whether the model answers boxes."""
        ...

    def predict(self, *arguments: Any, **options: Any) -> Any:
        """What is in an image: tensors or arrays of the same names."""
        ...

    def encode(self, image: Any) -> Any:
        """The features of an image."""
        ...

    def masks_from_boxes(self, features: Any, boxes: Any, labels: Any = None) -> Any:
        """Masks of boxes on an image that was encoded."""
        ...


@dataclass(frozen=True)
class NamedModel:
    """A model as it answers, with its name and a hash of all that decides its answers."""

    name: str
    weights: str
    predictor: AnyPredictor

    @property
    def kind_of_device(self) -> str:
        """Where it runs: `cpu` or `cuda`."""
        return str(self.predictor.device).partition(":")[0]


def load_named(name: str, device: str | None = None, precision: str = "float32", compile: bool = False) -> NamedModel:
    """The model of a name: a bundled one, a weights folder, a Hub repository (`owner/name`), or an exported file.

    An exported file computes in float32. `device`, `precision` and `compile`: see `maskwright.Predictor`.

    Raises:
        UserError: there is no such model, its files are damaged, the device is not there, or torch is not
    """
    if Path(name).suffix == EXPORTED:
        if precision not in ("auto", "float32") or compile:
            raise UserError(f"{name} is an exported model: it computes in float32, and cannot be compiled")
        exported = onnx.Predictor(name, device)
        return NamedModel(name, exported.digest, exported)
    try:
        from maskwright.apps.weights import load_weights
    except ModuleNotFoundError as error:
        told = f"--model {name} needs {error.name}, which is not installed here: give an exported model (FILE.onnx)"
        raise UserError(told) from error
    weights, predictor = load_weights(name, device, precision, compile)
    return NamedModel(name, weights, predictor)


@cache
def predictor_of_process(model: str, device: str, precision: str, compile: bool) -> AnyPredictor:
    """The predictor of a worker process, on its share of the GPUs; loaded once."""
    return load_named(model, device_of_process(device), precision, compile).predictor


@contextmanager
def memory_error_told(place: object) -> Iterator[None]:
    """Say in one sentence that the device has too little memory for the picture at `place`.

    Raises:
        UserError: so.
    """
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, of the package that may not be there
            raise
        raise UserError(f"{place}: out of memory ({str(error).splitlines()[0]})") from error
