"""Work that several processes of this machine share."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

from maskwright.errors import UserError

Share = TypeVar("Share")
Result = TypeVar("Result")


def in_processes(work: Callable[[Share], Result], shares: Sequence[Share]) -> list[Result]:
    """The result of `work` for every share, in their order; each but a single one is done in a process of its own.

    The processes are started here; on a CPU each takes its part of the threads. `work`, shares and results must be
    picklable.

    Raises:
        UserError: what `work` raises, or a process was killed.
    """
    if len(shares) == 1:
        return [work(shares[0])]
    threads = max(1, torch.get_num_threads() // len(shares))
    try:
        with ProcessPoolExecutor(
            len(shares), multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
        ) as pool:
            return list(pool.map(work, shares))
    except BrokenProcessPool as error:
        raise UserError(
            f"one of the {len(shares)} processes was killed (out of memory?); take fewer --processes"
        ) from error


def loading_of(loading: Mapping[str, Any], rank: int, processes: int) -> dict[str, Any]:
    """The options of `maskwright.load` of one of several processes.

    Each has the next GPU, unless a certain one or the CPU is asked for.
    """
    any_gpu = loading.get("device") in (None, "auto", "cuda") and torch.cuda.is_available() and processes > 1
    device = {"device": f"cuda:{rank % torch.cuda.device_count()}"} if any_gpu else {}
    return {**loading, **device}
