"""Work in the order in which it came, one piece at a time, and never more than so many pieces waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from starlette.exceptions import HTTPException

_Result = TypeVar("_Result")


class WorkQueue:
    """One thread does all work: memory stays that of one piece, and a model's own threads are not shared.

    Args:
        longest: so many requests may be under way, the one that is worked on among them.
    """

    def __init__(self, longest: int) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._longest = longest
        self._taken = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one request, from its first byte to its answer.

        Raises:
            HTTPException: all are taken.
        """
        if self._taken >= self._longest:
            raise HTTPException(503, "too many people ask at once; try again in a moment")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    async def run(self, work: Callable[..., _Result], *arguments: object) -> _Result:
        """The result of `work`, when its turn has come."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
