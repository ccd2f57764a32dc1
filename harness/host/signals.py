"""Signal handlers. A signal that is ignored when we start stays ignored, because our parent wants it that way.

A parent can make a program ignore a signal, and execve(2) keeps that. nohup(1) does so with SIGHUP; a shell without
job control does so with SIGINT and SIGQUIT of its background commands (POSIX, Shell Command Language 2.11).
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

#: The signals that end a command: Ctrl-C, `kill`, the end of the terminal.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def handle(number: signal.Signals, handler: Handler) -> None:
    """Install a handler, unless the signal is ignored. Only in the main thread."""
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, handler)


def ignore_ending() -> None:
    """Ignore the ending signals from now on, because the command has its exit status and is leaving.

    While Python ends, they would raise an exception in a place where nothing catches it, or have their default effect.
    """
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def handling(numbers: Iterable[signal.Signals], handler: Handler) -> Iterator[None]:
    """Handle signals while the block runs, except those that are ignored. Only in the main thread."""
    before = {number: signal.getsignal(number) for number in numbers}
    for number in before:
        handle(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class HeldSignals:
    """Delays the ending signals while a child starts: an exception inside Popen would lose a child that is running."""

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
        """Restore the handlers, and call them for the signals that arrived in the meantime."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        for number, frame in self._noted:
            self._handlers[number](number, frame)
