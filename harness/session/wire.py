"""Messages between a session's process and a command: pickled tuples over a socket in the user's own folder.

A command connects, sends one :class:`Call` with its descriptors, and gets an answer. While the call runs, the command
may send :class:`Signal`. If the command disconnects, its request ends. Only a start reports progress before the answer.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

from harness.errors import ExitCode, HugepfnError


@dataclass(frozen=True)
class Call:
    """A call of a method of :class:`harness.session.session.Session`, with its arguments."""

    verb: str
    arguments: dict[str, Any] = field(default_factory=dict)
    descriptors: int = 0  # how many follow: the command's own standard streams


@dataclass(frozen=True)
class Signal:
    """A signal that the command received, for its program in the guest."""

    number: int


@dataclass(frozen=True)
class Size:
    """A new size of the command's terminal."""

    rows: int
    columns: int


@dataclass(frozen=True)
class Answer:
    """The return value of the call."""

    value: Any = None


@dataclass(frozen=True)
class RemoteFailure:
    """A HugepfnError that the call raised, with its message."""

    message: str
    exit_code: int


class RemoteError(HugepfnError):
    """An error in a session's process, with its message and exit status."""

    def __init__(self, failure: RemoteFailure) -> None:
        super().__init__(failure.message)
        self.exit_code = ExitCode(failure.exit_code)


def send_descriptors(to: Connection, descriptors: Sequence[int]) -> None:
    """Send descriptors (SCM_RIGHTS)."""
    for descriptor in descriptors:
        send_handle(to, descriptor, os.getpid())


def receive_descriptors(of: Connection, count: int) -> list[int]:
    """Receive the descriptors of :func:`send_descriptors`; the caller has to close them."""
    return [recv_handle(of) for _ in range(count)]


def end_reading(connection: Connection) -> None:
    """Let a thread that receives from a connection see its end. Sending is still possible."""
    with socket.socket(fileno=os.dup(connection.fileno())) as same, contextlib.suppress(OSError):
        same.shutdown(socket.SHUT_RD)
