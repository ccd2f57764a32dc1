"""One fault while it happens: the world in which the command runs, how it is started, and its processes."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.faults.world import World


@dataclass
class Scene:
    """What the functions of a kind work on.

    :ivar argv: of ``hugepfn``, without the program.
    :ivar prefix: a command that starts the command: prlimit, unshare, bash.
    :ivar mounts: a shell command that runs before it in its mount namespace.
    :ivar environment: beside that of the world.
    :ivar cwd: the working directory.
    :ivar pid: of the started command.
    :ivar terminal: our end of the command's terminal, if it has one.
    :ivar drawn: what was drawn at random, in words, for the report.
    """

    world: World
    random: Random
    argv: list[str]
    prefix: list[str] = field(default_factory=list)
    mounts: str = "true"
    environment: dict[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    pid: int = 0
    drawn: list[str] = field(default_factory=list)
    terminal: int | None = None

    def choose(self, what: str, least: int, most: int) -> int:
        """Draw a number, and note it."""
        number = self.random.randint(least, most)
        self.drawn.append(f"{what} {number}")
        return number

    def type(self, keys: bytes) -> None:
        """Type at the command's terminal."""
        assert self.terminal is not None
        os.write(self.terminal, keys)

    def hang_up(self) -> None:
        """Close the command's terminal. Its number stays in use, so that nobody else gets it."""
        assert self.terminal is not None
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, self.terminal)
        os.close(null)

    def qemu(self) -> int:
        """The pid of the command's QEMU.

        :raises LookupError: it has none.
        """
        for pid in descendants(self.pid):
            if "qemu-system" in program_of(pid):
                return pid
        raise LookupError("the command has no QEMU now")

    def signal_qemu(self, number: signal.Signals) -> None:
        """Send QEMU a signal.

        :raises LookupError: it has ended.
        """
        _send(self.qemu(), number)

    def signal(self, number: signal.Signals) -> None:
        """Send the command a signal.

        :raises LookupError: it has ended.
        """
        _send(self.pid, number)


def _send(pid: int, number: signal.Signals) -> None:
    """:raises LookupError: there is no such process, or it has ended and was not reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state != "Z":
            os.kill(pid, number)
            return
    except (FileNotFoundError, ProcessLookupError):
        pass
    raise LookupError(f"process {pid} has ended")


def descendants(pid: int) -> list[int]:
    """The children of a process, and theirs, as they are now."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            children = [int(word) for word in (task / "children").read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *descendants(child)]
    return found


def program_of(pid: int) -> str:
    """The program of a process, as its command line names it; "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
    except OSError:
        return ""
