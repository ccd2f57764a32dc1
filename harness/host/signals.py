"""Handlers of signals. A signal that is ignored when we start stays ignored: nohup and background shells mean it so.

Whoever starts a program can have it ignore a signal, and execve(2) keeps that: nohup(1) does so with SIGHUP, a shell
without job control with SIGINT and SIGQUIT of what it runs in the background (POSIX, Shell Command Language 2.11).
No other module of this package calls :func:`signal.signal`.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]

#: What ends a command: Ctrl-C, a polite end, the end of the terminal.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def handle(number: signal.Signals, handler: Handler) -> None:
    """Installs a handler, unless the signal is ignored. In the main thread only."""
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, handler)


@contextlib.contextmanager
def handling(numbers: Iterable[signal.Signals], handler: Handler) -> Iterator[None]:
    """Handles signals while the block runs, but for those that are ignored. In the main thread only."""
    before = {number: signal.getsignal(number) for number in numbers}
    for number in before:
        handle(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class HeldSignals:
    """Holds back what ends a command while a child starts: in Popen the exception would lose one that already runs."""

    def __init__(self) -> None:
        self._noted: list[tuple[int, FrameType | None]] = []
        self._handlers: dict[int, Handler] = {}
        if threading.current_thread() is not threading.main_thread():
            return  # Python runs handlers in the main thread only
        for number in ENDING:
            handler = signal.getsignal(number)
            if callable(handler):
                self._handlers[number] = handler
                signal.signal(number, lambda number, frame: self._noted.append((number, frame)))

    def release(self) -> None:
        """Put the handlers back and let them have what came meanwhile."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        for number, frame in self._noted:
            self._handlers[number](number, frame)
