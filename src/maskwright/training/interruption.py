"""Ctrl-C and `kill` as a wish to stop soon, instead of an exception in the middle of a step."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """While entered, SIGINT and SIGTERM are noted in `signal_number`; a second one interrupts at once.

    Entered before loader workers are forked: they inherit the handler, and a Ctrl-C, which reaches every
    process of the terminal, then leaves them working until the run has stopped.

    Attributes:
        signal_number: the signal that came, or None.
    """

    def __init__(self, announce: bool = True) -> None:
        """Say on stderr that the wish was heard only if `announce` (one process of several does)."""
        self.signal_number: int | None = None
        self._announce = announce
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python sets no handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.getsignal(number)
            self.listen()
        return self

    def listen(self) -> None:
        """Put the handlers in place (again): Lightning sets its own for SIGTERM, which would break off the run."""
        for number in self._previous:
            signal.signal(number, self._on_signal)

    def __exit__(self, *_: object) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:
            return
        if self.signal_number is not None:
            raise KeyboardInterrupt
        self.signal_number = number
        if self._announce:  # print() may not be re-entered from a signal handler
            os.write(2, b"\nstopping after this step; once more to stop without a checkpoint\n")
