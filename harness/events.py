"""What hugepfn does while you wait, as values: one event per step of fetching, building, waiting and running.

The code that works calls a :data:`Say` with each event. The code that shows events prints ``str(event)``, or has a
better form for some of them (a bar for :class:`Compiled`). docs/events.md describes the format between processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Note:
    """Something worth knowing that needs no action."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Waiting:
    """Another process holds what this one needs."""

    what: str
    """What the other process does: "builds debsrc:6.12"."""
    pid: int | None = None
    """Of the other process, if this host's kernel tells it; otherwise None."""

    def __str__(self) -> str:
        return f"waiting for another hugepfn{f' (pid {self.pid})' if self.pid else ''}, which {self.what}"


@dataclass(frozen=True)
class Fetching:
    """A download begins."""

    what: str
    size_bytes: int

    def __str__(self) -> str:
        return f"fetching {self.what} ({self.size_bytes / 1e6:.0f} MB)"


@dataclass(frozen=True)
class Building:
    """The compilation of a kernel begins."""

    spec: str
    folder: str

    def __str__(self) -> str:
        return f"building {self.spec} in {self.folder}"


@dataclass(frozen=True)
class Compiled:
    """One more file of a kernel is compiled."""

    file: str
    files: int
    """The number of files that are compiled so far."""
    most: int | None
    """The most files that an earlier build with this configuration compiled; None if this is the first one."""
    elapsed_s: float

    def __str__(self) -> str:
        total = f" of at most {self.most}" if self.most else ""
        return f"{self.files}{total} files compiled after {_duration(self.elapsed_s)}{self._left()}"

    def _left(self) -> str:
        if not self.most or self.files >= self.most:
            return ""
        return f"; at most {_duration(self.elapsed_s * (self.most - self.files) / self.files)} more at this speed"


@dataclass(frozen=True)
class Built:
    """A kernel is compiled and linked."""

    spec: str
    files: int
    cpu_s: float

    def __str__(self) -> str:
        return f"built {self.files} files of {self.spec} in {self.cpu_s:.0f} CPU seconds"


Event = Note | Waiting | Fetching | Building | Compiled | Built
Say = Callable[[Event], None]


def tell(say: Say | None, event: Event) -> None:
    """Pass an event to a listener, if there is one."""
    if say is not None:
        say(event)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Sparing:
    """Passes events on as plain lines: no event twice, and only every so many :class:`Compiled`.

    :param write: called with each line.
    """

    EVERY = 200

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._said: set[Event] = set()

    def __call__(self, event: Event) -> None:
        """Pass an event on, or drop it."""
        if event in self._said or (isinstance(event, Compiled) and event.files % self.EVERY):
            return
        self._said.add(event)
        self._write(str(event))
