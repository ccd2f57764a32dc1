"""How busy this host is, so that a later reader can tell whether it was too busy."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

_MEMORY = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class HostLoad:
    """The load of this host at one moment."""

    date: str
    """UTC."""
    load: tuple[float, float, float]
    """The load averages over 1, 5 and 15 minutes (proc_loadavg(5))."""
    cpus: int
    """The number of CPUs on which this process may run."""
    memory_available_mib: int | None
    """None if the kernel does not tell."""
    free_mib: dict[str, int]
    """The free room of file systems, by folder."""

    @classmethod
    def now(cls, *folders: Path) -> Self:
        """Look at the host.

        :param folders: whose file systems matter.
        """
        return cls(
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            load=os.getloadavg(),
            cpus=len(os.sched_getaffinity(0)),
            memory_available_mib=_available_mib(),
            free_mib=dict(_free_mib(folders)),
        )


def _available_mib() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _MEMORY.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) >> 10
    return None


def _free_mib(folders: tuple[Path, ...]) -> Iterator[tuple[str, int]]:
    for folder in folders:
        with contextlib.suppress(OSError):
            yield str(folder), shutil.disk_usage(folder).free >> 20
