"""Ctrl-C and SIGTERM reach every process of a group: the one that was called answers them, and ends its workers."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType

_GRACE_SECONDS = 30.0
_STOPPING = (signal.SIGINT, signal.SIGTERM)


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
def signals_held() -> Iterator[None]:
    """Ctrl-C and SIGTERM come at the end of this; processes that are started meanwhile do not see them at all.

    Blocking them is not enough. The system hands a signal to any thread that does not block it, such as a progress
    bar's, and Python then runs the handler in the main thread all the same: in the middle of torch's making of a
    loader, or in a callback of `fork`, which swallows what the handler raises.
    """
    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python sets no handlers, nor runs them
            came: list[int] = []
            stack.callback(lambda: [signal.raise_signal(number) for number in came])
            for number in _STOPPING:
                if (handler := signal.getsignal(number)) is not None:  # None: a library's own, not Python's
                    stack.callback(signal.signal, number, handler)
                    signal.signal(number, lambda number, _: came.append(number))
        if hasattr(signal, "pthread_sigmask"):  # not on Windows
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
            stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, blocked)
        yield


def end_late(_: int = 0) -> None:
    """In a worker that was forked with `signals_held`: SIGTERM ends it after a while, if its caller has not by then.

    The caller of torch's loader workers ends them by SIGTERM itself, if it does not get to ending them otherwise.
    """
    end = threading.Timer(_GRACE_SECONDS, os._exit, (0,))
    end.daemon = True  # does not keep a worker that is done
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: end.is_alive() or end.start())
    sys.excepthook = _tell_of_all_but_the_caller
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)


def _tell_of_all_but_the_caller(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """For the thread that hands tensors over: it would print a traceback when the caller ends while it takes one."""
    if not issubclass(kind, OSError | EOFError):
        sys.__excepthook__(kind, error, where)
