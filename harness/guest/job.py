"""A program that runs in the guest: what it reads, what it prints, how it ends."""

from __future__ import annotations

import asyncio
import enum
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

from harness.errors import ProtocolError
from harness.guest import bounds


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a guest program ended: an exit status, or the number of the signal that killed it."""

    status: int | None
    signal: int | None

    @property
    def ok(self) -> bool:
        """Whether it exited with 0."""
        return self.status == 0

    @property
    def signal_name(self) -> str:
        """SIGSEGV; SIGRTMIN+2, which :class:`signal.Signals` has no name for; empty where it exited."""
        if self.signal is None:
            return ""
        if signal.SIGRTMIN < self.signal < signal.SIGRTMAX:
            return f"SIGRTMIN+{self.signal - signal.SIGRTMIN}"
        known = {member.value: member.name for member in signal.Signals}
        return known.get(self.signal, f"SIG{self.signal}")  # 32 and 33 are glibc's own, and have no name

    def __str__(self) -> str:
        return f"signal {self.signal_name}" if self.signal else f"exit status {self.status}"

    @classmethod
    def parse(cls, text: str) -> ExitStatus:
        """From the agent's ``status N`` or ``signal N``.

        :raises ProtocolError: it is neither.
        """
        match text.partition(" "):
            case "signal", _, number:
                return cls(None, bounds.signal_number(number))
            case "status", _, number:
                return cls(bounds.status(number), None)
        raise ProtocolError(f"agent: exit {bounds.shown(text)}, expected 'status N' or 'signal N'")


class Input(enum.Enum):
    """What a job reads as its standard input; the value is the agent's verb that starts such a job."""

    NULL = "run"  # /dev/null
    PIPE = "pipe"
    SOCKET = "socket"  # one connection, which is its standard output as well: for a server of inetd's kind


class Stream(enum.Enum):
    """What a job writes to; the value is the agent's verb."""

    OUT = "out"
    ERR = "err"


@dataclass
class Job:
    """A program that runs in the guest."""

    id: int
    argv: tuple[str, ...]
    exited: asyncio.Future[ExitStatus]
    sink: Callable[[Stream, bytes], None] | None = None  # gets what it prints as it comes; else that is kept here
    full: Callable[[], bool] = lambda: False  # whether the sink has no room for more
    pid: int = 0
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    held: bool = False  # the guest keeps what it prints
    on_its_way_bytes: int = 0  # of input
    took: asyncio.Event = field(default_factory=asyncio.Event)

    def receive(self, stream: Stream, data: bytes) -> None:
        """It printed something.

        :raises ProtocolError: it is more than is kept.
        """
        if self.sink is not None:
            self.sink(stream, data)
            return
        kept = self.stdout if stream is Stream.OUT else self.stderr
        if len(kept) + len(data) > bounds.OUTPUT_MAX_BYTES:
            raise ProtocolError(
                f"{bounds.shown(self.argv[0])} has printed more than {bounds.OUTPUT_MAX_BYTES >> 20} MiB, which is all "
                "that is kept of a job's output; print less, or take it as it comes (sink=)"
            )
        kept += data

    def took_input(self, text: str) -> None:
        """It has taken so many bytes of its input, or never will.

        :raises ProtocolError: it never got so many.
        """
        self.on_its_way_bytes -= bounds.decimal(text, "took", 0, self.on_its_way_bytes)
        self.took.set()
