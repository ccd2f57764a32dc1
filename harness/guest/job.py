"""A program that runs in the guest: its input, its output, and how it ends."""

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
    """The exit status; None if a signal killed the program."""
    signal: int | None
    """The number of the signal; None if the program exited."""

    @property
    def ok(self) -> bool:
        """Whether it exited with 0."""
        return self.status == 0

    @property
    def signal_name(self) -> str:
        """SIGSEGV; SIGRTMIN+2, for which :class:`signal.Signals` has no name; empty if it exited."""
        if self.signal is None:
            return ""
        if signal.SIGRTMIN < self.signal < signal.SIGRTMAX:
            return f"SIGRTMIN+{self.signal - signal.SIGRTMIN}"
        known = {member.value: member.name for member in signal.Signals}
        return known.get(self.signal, f"SIG{self.signal}")  # 32 and 33 are reserved by glibc and have no name

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
    """The standard input of a job. The value is the agent's verb that starts such a job."""

    NULL = "run"  # /dev/null
    PIPE = "pipe"
    SOCKET = "socket"  # one connection, which is also its standard output, as inetd does it


class Stream(enum.Enum):
    """An output stream of a job. The value is the agent's verb."""

    OUT = "out"
    ERR = "err"


@dataclass
class Job:
    """A program that runs in the guest."""

    id: int
    argv: tuple[str, ...]
    exited: asyncio.Future[ExitStatus]
    sink: Callable[[Stream, bytes], None] | None = (
        None  # gets the output as it arrives; without it, the output is kept here
    )
    full: Callable[[], bool] = lambda: False  # whether the sink has no room for more
    pid: int = 0
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    held: bool = False  # the guest keeps its output
    on_its_way_bytes: int = 0  # of input
    took: asyncio.Event = field(default_factory=asyncio.Event)

    def receive(self, stream: Stream, data: bytes) -> None:
        """Take output of the job.

        :raises ProtocolError: it is more than we keep.
        """
        if self.sink is not None:
            self.sink(stream, data)
            return
        kept = self.stdout if stream is Stream.OUT else self.stderr
        if len(kept) + len(data) > bounds.OUTPUT_MAX_BYTES:
            raise ProtocolError(
                f"{bounds.shown(self.argv[0])} has printed more than {bounds.OUTPUT_MAX_BYTES >> 20} MiB, the limit "
                "for output that is kept; print less, or read the output as it arrives (sink=)"
            )
        kept += data

    def took_input(self, text: str) -> None:
        """The job has read this many bytes of its input, or never will.

        :raises ProtocolError: that is more than it was sent.
        """
        self.on_its_way_bytes -= bounds.decimal(text, "took", 0, self.on_its_way_bytes)
        self.took.set()
