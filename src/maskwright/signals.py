"""Ctrl-C and SIGTERM reach every process of a group: the one that was called answers them, and ends its workers."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_GRACE_SECONDS = 30.0


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """While entered, SIGTERM raises `Terminated` in the main thread; once, so that the way out is not interrupted."""
    if threading.current_thread() is not threading.main_thread():  # elsewhere Python sets no handlers
        yield
        return

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Processes that are started meanwhile do not see Ctrl-C and SIGTERM, from their beginning on."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def end_late(_: int = 0) -> None:
    """In a worker that was forked with `signals_blocked`: SIGTERM ends it after a while, if its caller has not by then.

    The caller of torch's loader workers ends them by SIGTERM itself, if it does not get to ending them otherwise.
    """
    end = threading.Timer(_GRACE_SECONDS, os._exit, (0,))
    end.daemon = True  # does not keep a worker that is done
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: end.is_alive() or end.start())
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
