"""Name tables: where each tensor of a network is stored in a TensorFlow original's object graph; how it is loaded.

`Names` say, per kind of module, the attribute path of each child; that is all a family has to write down. From them
`module_table` makes the `Table` of a network of any depth and width: the name of each tensor in our state dict, and its
`Variable`. `load_variables` reads a table, counts, and checks every shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from maskwright.errors import UserError
from maskwright.models.family import Family
from maskwright.nn.hourglass import EncoderDecoder, Hourglass
from maskwright.nn.layers import ConvBlock, PostActivationBlock

Layout = Literal["same", "kernel", "depthwise", "part", "first_rows"]


@dataclass(frozen=True)
class Variable:
    """One variable of the original, and how it becomes our tensor.

    path: its attribute path.
    layout: `same`: no change; `kernel`: window, in, out (of a transposed convolution: window, out, in), where a window
        of size 1 may be left out; `depthwise`: window, channels, 1; `part`: one of several stacked vectors, flattened;
        `first_rows`: our tensor has only the first rows (axis 1).
    part: which of the stacked vectors.
    skip: the first N output channels are not taken.
    """

    path: str
    layout: Layout = "same"
    part: int = 0
    skip: int = 0

    def shape(self, ours: Sequence[int]) -> tuple[int, ...]:
        """The shape of the variable, or of the part of it that is taken, where our tensor has the shape `ours`."""
        if self.layout == "depthwise":
            return (*ours[2:], *ours[:2])
        if self.layout == "kernel":
            return (*ours[2:], ours[1], ours[0] + self.skip)
        return (*ours[:-1], ours[-1] + self.skip)

    def fit(self, values: np.ndarray, ours: Sequence[int]) -> np.ndarray | None:
        """The values of our tensor of shape `ours`; None if the variable's shape does not fit."""
        if self.layout == "first_rows" and values.ndim > 1:
            values = values[:, : ours[1]]
        elif self.layout == "part":
            if values.ndim < 2 or self.part >= len(values):
                return None
            values = values[self.part].ravel()
        expected = self.shape(ours)
        if self.layout not in ("kernel", "depthwise"):
            return values[..., self.skip :] if values.shape == expected else None
        if _without_trivial_window(values.shape) != _without_trivial_window(expected):
            return None
        *window, before, after = range(len(expected))
        order = (before, after) if self.layout == "depthwise" else (after, before)
        return values.reshape(expected)[..., self.skip :].transpose(*order, *window)


Table = dict[str, Variable]
Paths = Mapping[str, "str | Variable | None"]
Names = Mapping[type[nn.Module], "Paths | Callable[[Any], Paths]"]
"""By kind of module (subclasses included), the attribute path of each child, which is a module or a tensor.

Where the paths depend on the module, they are a function of it.

The names of children may have dots; a child that the module lacks is skipped. An empty path: the original has no
object of its own for the child. None: the child has no table, and keeps its values. Of a list of modules the path is
that of each item: `{key}` is its name in the list and `{n}` its number from 1 on; a single module counts as item 0.
"""


class Conversion(NamedTuple):
    """What a converter makes of a checkpoint.

    model: in eval mode.
    used: attribute paths of the variables that it took.
    remarks: lines for the user: what was chosen for them, and what was not taken.
    """

    model: Family[Any]
    used: set[str]
    remarks: list[str]


_NORM: Paths = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_KERNEL: Paths = {"weight": Variable("kernel", "kernel"), "bias": "bias"}
_DEPTHWISE: Paths = {"weight": Variable("depthwise_kernel", "depthwise"), "bias": "bias"}
_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def _hourglass_names(network: Hourglass) -> Paths:
    stem = "downsample_input" if network.stem.conv.stride == (2, 2) else "conv_input"
    return {
        "stem": f"{stem}/conv_block",
        "stem_residual": f"{stem}/residual_block",
        "stacks": "hourglass_network/{key}",
        "outputs": "output_conv/{key}",
        "merge_input": "intermediate_conv1/{key}",
        "merge_output": "intermediate_conv2/{key}",
        "merge_residual": "intermediate_residual/{key}",
    }


HOURGLASS: Names = {
    Hourglass: _hourglass_names,
    EncoderDecoder: {
        "encoder_skip": "encoder_block1/{key}",
        "encoder_down": "encoder_block2/{key}",
        "inner": "inner_block/{key}",
        "decoder": "decoder_block/{key}",
    },
    PostActivationBlock: {"conv_block": "conv_block", "conv": "conv", "norm": "norm", "skip": "skip"},
    ConvBlock: {"conv": "conv", "norm": "norm"},
}
"""The stacked hourglass, the same file in the Object Detection API and in Model Garden."""


def numbered(names: Iterable[str], path: str = "layer_with_weights", start: int = 0) -> dict[str, str]:
    """The paths of layers that Keras numbers in the order of `names`."""
    return {name: f"{path}-{number}" for number, name in enumerate(names, start)}


def module_table(module: nn.Module, names: Names) -> Table:
    """The table of every tensor of `module`, but for the children whose path is None.

    Raises:
        ValueError: a part of the module is not in `names`: the original has none such.
    """
    rows = dict(_rows(module, names, "", Variable("")))
    if left := [name for name in _tensors(module) if name not in rows]:
        raise ValueError(f"there is no table for {', '.join(left[:3])}: it is none of the original's")
    return {name: row for name, row in rows.items() if row is not None}


def _rows(module: nn.Module, names: Names, name: str, at: Variable) -> Iterator[tuple[str, Variable | None]]:
    """The rows of `module`, our `name` of it and the original's `at`; None for tensors that have no table."""
    for child, where in _paths(module, names, name).items():
        inner, full_name = _find(module, child), f"{name}.{child}" if name else child
        if inner is None:
            continue
        if where is None:
            yield from ((f"{full_name}.{tensor}", None) for tensor in _tensors(inner))
            continue
        where = Variable(where) if isinstance(where, str) else where
        if isinstance(inner, Tensor):
            yield full_name, _below(at, where)
        elif isinstance(inner, _LISTS) and "{" in where.path:
            for key, item in inner.named_children():
                yield from _rows(item, names, f"{full_name}.{key}", _below(at, where, key))
        else:
            yield from _rows(inner, names, full_name, _below(at, where))


def _paths(module: nn.Module, names: Names, name: str) -> Paths:
    known = next((names[kind] for kind in type(module).__mro__ if kind in names), None)
    if known is not None:
        return known(module) if callable(known) else known
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return _NORM
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        return _DEPTHWISE if getattr(module, "groups", 1) > 1 else _KERNEL
    if _tensors(module):
        raise ValueError(
            f"there is no table for this {name or 'network'} ({type(module).__name__}): it is none of the original's"
        )
    return {}


def _find(module: nn.Module, child: str) -> Any:
    found: Any = module
    for part in child.split("."):
        found = getattr(found, part, None)
    return found


def _below(at: Variable, where: Variable, key: str = "0") -> Variable:
    """`where`, below the path of `at`; a layout holds for everything below it."""
    path = _join(at.path, where.path.format(key=key, n=int(key) + 1))
    return replace(at if where.layout == "same" else where, path=path)


def _join(*paths: str) -> str:
    return "/".join(path for path in paths if path)


def _tensors(module: nn.Module) -> list[str]:
    return [name for name in module.state_dict() if not name.endswith("num_batches_tracked")]


def _without_trivial_window(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return shape


def load_variables(
    module: nn.Module,
    table: Table,
    variables: Mapping[str, np.ndarray],
    prefix: str,
    not_taken: Sequence[str] = (),
) -> set[str]:
    """Fill the tensors of `module` named in `table` from the original's variables below `prefix`.

    Args:
        module: what the table was made from.
        table: of `module_table`.
        variables: by attribute path, such as `convert.checkpoint.Variables`.
        prefix: the path below which the table's paths are, without a slash at the end; "" for all variables.
        not_taken: variables below `prefix` that may be left over: the beginnings of their paths.

    Returns:
        The paths that were used.

    Raises:
        UserError: a variable is missing, left over below `prefix`, or has another shape than the module's tensor.
            Nothing is filled then.
    """
    state = module.state_dict()
    loaded: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, row in table.items():
        wanted, ours = _join(prefix, row.path), tuple(state[name].shape)
        path = stored_path(variables, wanted)
        if path is None:
            raise UserError(f"variable {wanted!r} (for {name!r}) is missing in the checkpoint")
        values = np.asarray(variables[path])
        fitting = row.fit(values, ours)
        if fitting is None:
            expected = f"variable {path!r} (for {name!r}) must have shape {row.shape(ours)}"
            raise UserError(f"{expected}, but got {values.shape}")
        loaded[name] = torch.from_numpy(np.array(fitting, order="C"))
        used.add(path)
    below = f"{prefix}/" if prefix else ""
    rest = sorted(path for path in variables if path.startswith(below) and path not in used)
    if left := [path for path in rest if not path.startswith(tuple(not_taken))]:
        raise UserError(f"the checkpoint has {len(left)} variables below {prefix!r} that the model has not: {left[:5]}")
    for name, values in loaded.items():
        state[name].copy_(values)
    return used


def stored_path(variables: Mapping[str, np.ndarray], path: str) -> str | None:
    """The path in the file, if any: an attribute that the original keeps twice may have a leading underscore."""
    front, slash, last = path.rpartition("/")
    return next((found for found in (path, f"{front}{slash}_{last}") if found in variables), None)
