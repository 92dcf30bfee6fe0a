"""A stopwatch that charges what passes on some clocks to the stages of a prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

from torch import nn


class Stopwatch:
    """Charges what passes on some clocks to the innermost stage."""

    def __init__(self, clocks: Callable[[], tuple[float, ...]]) -> None:
        self.clocks = clocks
        self.spent: dict[str, list[float]] = {}
        self._open: list[str] = []
        self._last: tuple[float, ...] = ()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Until its end, or that of a stage within, time is this stage's."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def _charge(self) -> None:
        now = self.clocks()
        if self._open:
            spent = self.spent.setdefault(self._open[-1], [0.0] * len(now))
            self.spent[self._open[-1]] = [s + n - last for s, n, last in zip(spent, now, self._last, strict=True)]
        self._last = now

    @contextmanager
    def watch(self, model: nn.Module, stages: dict[str, str]) -> Iterator[None]:
        """Time the modules and methods at `stages`' paths wherever the model calls them."""
        with ExitStack() as stack:
            for path, name in stages.items():
                stack.enter_context(self._watch_one(model, path, name))
            yield

    @contextmanager
    def _watch_one(self, model: nn.Module, path: str, name: str) -> Iterator[None]:
        *parents, attribute = path.split(".")
        owner: Any = model
        for parent in parents:
            owner = getattr(owner, parent, None)
        target = getattr(owner, attribute, None)
        if isinstance(target, nn.Module):
            owner, attribute, target = target, "forward", target.forward
        if target is None:
            yield
            return

        @wraps(target)
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.stage(name):
                return target(*arguments, **options)

        setattr(owner, attribute, timed)
        try:
            yield
        finally:
            setattr(owner, attribute, target)
