"""Work that several processes of this machine share."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar

import torch

from maskwright.errors import UserError

Share = TypeVar("Share")
Result = TypeVar("Result")


def in_processes(work: Callable[[Share], Result], shares: Sequence[Share]) -> list[Result]:
    """The result of `work` for every share, in their order; each but a single one is done in a process of its own.

    The processes are started here; on a CPU each takes its part of the threads. `work`, shares and results must be
    picklable. The caller may be a script without `if __name__ == "__main__":`, a notebook or standard input: the
    processes do not run the main module, so nothing that it defines can be sent to them.

    Raises:
        UserError: what `work` raises, a share holds something that the main module defines, or a process was killed.
    """
    if len(shares) == 1:
        return [work(shares[0])]
    threads = max(1, torch.get_num_threads() // len(shares))
    try:
        with ProcessPoolExecutor(
            len(shares), multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
        ) as pool:
            with _without_main_module():
                results = pool.map(_do, [_pickled((work, share)) for share in shares])
            return list(results)
    except BrokenProcessPool as error:
        raise UserError(
            f"one of the {len(shares)} processes was killed (out of memory?); take fewer --processes"
        ) from error


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Hide the main module: a process that is spawned meanwhile finds none to run again, as it would do first of all.

    Run again, a script without a guard would start processes itself, and standard input is no file to be run.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _pickled(task: object) -> bytes:
    try:
        return pickle.dumps(task)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"the work cannot be handed to several processes ({error}): take processes=1, or, where a class is one of "
            "the main program, define it in a module of its own"
        ) from error


def _do(task: bytes) -> Any:
    work, share = pickle.loads(task)
    return work(share)


def loading_of(loading: Mapping[str, Any], rank: int, processes: int) -> dict[str, Any]:
    """The options of `maskwright.load` of one of several processes.

    Each has the next GPU, unless a certain one or the CPU is asked for.
    """
    any_gpu = loading.get("device") in (None, "auto", "cuda") and torch.cuda.is_available() and processes > 1
    device = {"device": f"cuda:{rank % torch.cuda.device_count()}"} if any_gpu else {}
    return {**loading, **device}
