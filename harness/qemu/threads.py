"""The CPU time of a process's threads, as the host's scheduler counts it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ThreadTime:
    """How long a thread has run, and how long it wanted to run and did not get a CPU."""

    ran_ns: int
    waited_ns: int


NO_TIME = ThreadTime(0, 0)


def thread_times(pid: int) -> Mapping[int, ThreadTime]:
    """Return the times of all threads by their ID; nothing if there is no such process.

    Source: /proc/PID/task/TID/schedstat (Documentation/scheduler/sched-stats.rst).
    """
    found = {}
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - at every wait: Path costs 5 times more
            with contextlib.suppress(OSError, IndexError, ValueError):
                ran, waited, *_ = Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()
                found[int(thread)] = ThreadTime(int(ran), int(waited))
    return found


def disk_waiters(pid: int) -> Set[int]:
    """Return the IDs of a process's threads that wait for a disk (state D in proc_pid_stat(5)), at this moment."""
    found = set()
    with contextlib.suppress(OSError):
        for one in Path(f"/proc/{pid}/task").iterdir():
            if state(int(one.name)) == "D":
                found.add(int(one.name))
    return found


def state(pid: int) -> str:
    """The letter of a process's or thread's state (proc_pid_stat(5)); empty if there is no such one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def stolen_s() -> float:
    """Return for how long this host's own host did not run the CPU that it ran least, in seconds since the boot.

    Source: the column steal of /proc/stat (proc_stat(5)); 0 on a host that is no virtual machine.
    """
    most = 0
    with contextlib.suppress(OSError, IndexError, ValueError):
        for line in Path("/proc/stat").read_text().splitlines():
            words = line.split()
            if words[0].startswith("cpu") and words[0] != "cpu":
                most = max(most, int(words[8]))
    return most / os.sysconf("SC_CLK_TCK")
