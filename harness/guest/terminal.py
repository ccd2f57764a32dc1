"""Connects this terminal to one of a guest, with its size, until Ctrl-]."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Protocol

from harness.errors import UsageError
from harness.host.signals import handling

LEAVE = 0x1D  # Ctrl-]
_READ_BYTES = 64 << 10


class Line(Protocol):
    """The other end: the socket of a serial line, or an SSH channel."""

    def fileno(self) -> int:
        """Readable when there is something to receive."""

    def recv(self, size: int, /) -> bytes:
        """Receive data; empty at the end."""

    def sendall(self, data: bytes, /) -> None:
        """Send all of it."""


class _HasFileno(Protocol):
    def fileno(self) -> int:
        """Its descriptor."""


def size() -> tuple[int, int]:
    """The rows and columns of this terminal."""
    columns, rows = os.get_terminal_size(sys.stdout.fileno())
    return rows, columns


def interact(line: Line, resize: Callable[[int, int], None], ended: _HasFileno | None = None) -> None:
    """Connect the terminal of this process to a line. Ctrl-C and similar keys go to the guest.

    :param resize: called with rows and columns, now and whenever they change.
    :param ended: becomes readable when the other side is done, even if the line is still open.
    :raises UsageError: there is no terminal.
    """
    require_terminal()
    stdin, stdout = sys.stdin.fileno(), sys.stdout.fileno()
    resize(*size())
    wanted = [stdin, line, *([ended] if ended is not None else [])]
    with _raw(stdin), _resizing() as resized:
        while True:
            ready, _, _ = select.select([*wanted, resized], [], [])
            if resized in ready:
                os.read(resized, 1)
                resize(*size())
            if line in ready:
                data = line.recv(_READ_BYTES)
                if not data:
                    return
                _write(stdout, data)
            if stdin in ready:
                typed = os.read(stdin, 4096)
                before, leaving, _ = typed.partition(bytes([LEAVE]))
                line.sendall(before)
                if leaving or not typed:
                    return
            if ended is not None and ended in ready and line not in ready:
                return


def require_terminal() -> None:
    """:raises UsageError: standard input or output is not a terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "standard input and output must be a terminal; in scripts, use `hugepfn exec` or `hugepfn ssh -- COMMAND`"
        )


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


@contextlib.contextmanager
def _raw(descriptor: int) -> Iterator[None]:
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor, termios.TCSADRAIN)  # keeps what was typed ahead
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _resizing() -> Iterator[int]:
    """A descriptor that becomes readable whenever the size of the terminal changes."""
    readable, writable = os.pipe()
    os.set_blocking(writable, False)

    def changed(_number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(writable, b"!")

    try:
        with handling((signal.SIGWINCH,), changed):
            yield readable
    finally:
        os.close(readable)
        os.close(writable)
