"""Networks for inference: folded batch norms, convolutions that a processor computes fast, weights of the precision."""

from __future__ import annotations

import copy
import ctypes
import platform
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from maskwright.nn.same_padding import EvenlyPaddedConv2d, SamePaddedConv2d, SamePadding

AnyModule = TypeVar("AnyModule", bound=nn.Module)

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT, _LARGEST_KEPT = 256 << 20, 32 << 20


def fold_batch_norms(module: AnyModule, *, in_place: bool = False) -> AnyModule:
    """A frozen copy of `module` in eval mode, its batch norms folded into the convolutions before them.

    With `in_place` it is the module itself, which saves the memory of the copy.

    A norm is folded, and replaced by an `nn.Identity`, if its parent registers it right after a convolution or linear
    layer of as many channels, or after an `nn.Sequential` that ends in one. This relies on the norm being the only
    reader of that layer; a test checks it for every backbone and mask head. Other norms, such as those of sums, stay.

    The copy computes what the module does in eval mode, up to rounding. It cannot be trained or saved: its state dict
    fits no model.
    """
    folded = (module if in_place else copy.deepcopy(module)).eval().requires_grad_(False)
    # A list of the parents, not of the layers: it would keep the replaced layers in memory.
    for parent in [parent for parent in folded.modules() if len(list(parent.children())) > 1]:
        for (before, _), (name, norm) in pairwise(list(parent.named_children())):
            path, layer = before, parent.get_submodule(before)
            while isinstance(layer, nn.Sequential) and len(layer):
                path, layer = f"{path}.{len(layer) - 1}", layer[-1]
            if fused := _fused(layer, norm):
                parent.set_submodule(path, fused)
                parent.set_submodule(name, nn.Identity())
    folded.register_state_dict_pre_hook(_refuse_saving)
    return folded


def _fused(layer: nn.Module, norm: Any) -> nn.Module | None:
    """One layer for both; None if `norm` is no batch norm of the output of a convolution or linear layer."""
    if not isinstance(norm, _BATCH_NORMS) or norm.running_mean is None:
        return None
    if isinstance(layer, nn.Linear) and layer.out_features == norm.num_features:
        return fuse_linear_bn_eval(layer, norm)
    if isinstance(layer, _CONVOLUTIONS) and layer.out_channels == norm.num_features:
        return fuse_conv_bn_eval(layer, norm, isinstance(layer, _TRANSPOSED))
    return None


def _refuse_saving(module: nn.Module, *_: Any) -> None:
    raise ValueError(
        f"this {type(module).__name__} was rebuilt for inference and has no weights to save; "
        "save the model that it was made of (`maskwright.from_pretrained`)"
    )


def keep_freed_memory() -> bool:
    """Let this process keep up to 256 MB of what it frees, in blocks of 32 MB (the most that glibc allows) or less.

    By default glibc gives blocks of the size of feature maps back to the system whenever they are freed. They come back
    as pages that are cleared one by one, which on a virtual machine may take a tenth of a prediction's time.

    Returns:
        Whether it is so from now on: where the C library is glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT) and mallopt(_M_TRIM_THRESHOLD, _KEPT))


def speed_up_convolutions(module: nn.Module) -> None:
    """Give the convolutions of `module`, in place, a form that torch computes faster on a processor.

    - 1 x 1 convolutions get a dilation of 2, which means nothing to a single tap: with one thread torch gives
      undilated ones to its own kernel, which is slower than oneDNN's.
    - Convolutions with TensorFlow's SAME padding become an `EvenlyPaddedConv2d`.

    The module computes the same up to rounding.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1:
            layer.dilation = (2, 2)
    for parent in list(module.modules()):
        children = list(parent.named_children())
        for path, layer in children:
            if isinstance(layer, SamePaddedConv2d):
                parent.set_submodule(path, EvenlyPaddedConv2d.of(layer))
        for (name, padding), (path, layer) in pairwise(children):
            if isinstance(padding, SamePadding):
                while isinstance(layer, nn.Sequential):
                    path, layer = f"{path}.0", layer[0]
                parent.set_submodule(path, EvenlyPaddedConv2d.of(cast(nn.Conv2d, layer)))
                parent.set_submodule(name, nn.Identity())


def store_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Store in `dtype`, in place, the weights of `module` that autocast would convert to it in each call.

    These are the weights of convolutions and linear layers. Afterwards the module runs only under autocast to `dtype`.
    Parts with `full_precision = True` run `without_autocast` and keep their weights.
    """
    if getattr(module, "full_precision", False):
        return
    if isinstance(module, (*_CONVOLUTIONS, nn.Linear)):
        module.to(dtype)
    for child in module.children():
        store_weights(child, dtype)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context that switches autocast on `device` off.

    Where autocast is off already, the context does nothing, so that exported graphs do not contain it.
    """
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()
