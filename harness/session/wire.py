"""The words between a session's process and a command: pickled tuples over a socket in the user's own folder.

A command connects, sends one :class:`Call` and the descriptors that go with it, and gets an answer. While the call
works, it may send :class:`Signal`; its going away ends what it asked for. Only a start tells its progress before.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

from harness.errors import ExitCode, HugepfnError


@dataclass(frozen=True)
class Call:
    """A method of :class:`harness.session.session.Session`, and what it is given."""

    verb: str
    arguments: dict[str, Any] = field(default_factory=dict)
    descriptors: int = 0  # so many follow: the command's own standard streams


@dataclass(frozen=True)
class Signal:
    """The command got a signal, for what it runs in the guest."""

    number: int


@dataclass(frozen=True)
class Size:
    """The command's terminal has changed."""

    rows: int
    columns: int


@dataclass(frozen=True)
class Say:
    """A line of progress."""

    line: str


@dataclass(frozen=True)
class Answer:
    """What the call returned."""

    value: Any = None


@dataclass(frozen=True)
class Failure:
    """An error of ours, as it was told there."""

    message: str
    exit_code: int


class RemoteError(HugepfnError):
    """What went wrong in a session's process, in its words and with its exit status."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.exit_code = ExitCode(failure.exit_code)


def send_descriptors(to: Connection, descriptors: Sequence[int]) -> None:
    """Hands descriptors over (SCM_RIGHTS)."""
    for descriptor in descriptors:
        send_handle(to, descriptor, os.getpid())


def receive_descriptors(of: Connection, count: int) -> list[int]:
    """Descriptors that :func:`send_descriptors` hands over; ours to close."""
    return [recv_handle(of) for _ in range(count)]
