"""The state of a session's machine, as values and in words: it runs, it stands still, or it has ended."""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass


class HaltCause(enum.Enum):
    """Why no vCPU runs."""

    PAUSED = enum.auto()  # by `hugepfn pause`
    GDB = enum.auto()  # gdb is attached
    NO_GDB = enum.auto()  # it was stopped for gdb, which is not attached
    QEMU = enum.auto()  # QEMU cannot go on


@dataclass(frozen=True, slots=True)
class Halt:
    """A machine stands still, and not only for the moment in which a command looks at it."""

    cause: HaltCause
    since: float | None  # seconds since the epoch; None: not known


@dataclass(frozen=True, slots=True)
class MachineState:
    """The state of a machine. It runs if there is neither a halt nor an end."""

    halt: Halt | None = None
    ended: str = ""  # how it ended; "" if it has not


def halt_words(halt: Halt, session: str) -> str:
    """Return the words for a machine that stands still: since when, why, and what lets it go on."""
    resume = f"`hugepfn resume{f' -s {session}' if session else ''}`"
    why = {
        HaltCause.PAUSED: f"`hugepfn pause` stopped it; {resume} lets it go on",
        HaltCause.GDB: "gdb has stopped it; `continue` in gdb lets it go on",
        HaltCause.NO_GDB: f"it was stopped for gdb, and no gdb is attached; {resume} lets it go on",
        HaltCause.QEMU: "QEMU has stopped it and cannot go on; end the session with `hugepfn stop`",
    }
    return f"the machine stands still{_since(halt)}: {why[halt.cause]}"


def state_words(state: MachineState) -> str:
    """Return the state in a few words, for a table."""
    if state.ended:
        return state.ended.splitlines()[0]
    if state.halt is None:
        return "runs"
    why = {
        HaltCause.PAUSED: "paused",
        HaltCause.GDB: "stopped by gdb",
        HaltCause.NO_GDB: "waits for gdb",
        HaltCause.QEMU: "stopped by QEMU",
    }
    return f"stands still{_since(state.halt)}: {why[state.halt.cause]}"


def _since(halt: Halt) -> str:
    if halt.since is None:
        return ""
    seconds = max(int(time.time() - halt.since), 0)
    clock = "%H:%M:%S" if seconds < 12 * 3600 else "%Y-%m-%d %H:%M"
    return f" since {time.strftime(clock, time.localtime(halt.since))} ({seconds} s)"
