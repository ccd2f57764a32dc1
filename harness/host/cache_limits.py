"""Entries of the cache that cannot be built again. Each has its own name, and old ones are removed by age and size."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.host import cache
from harness.host.cache_parts import size_bytes
from harness.host.cache_sums import MARKER

_TIMEOUT_S = 60.0  # for others that write such an entry at this moment: each takes less than a second


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a kind is kept."""

    age_s: float
    size_bytes: int


def add(kind: str, name: str, fill: Callable[[Path], None], limits: Limits) -> Path:
    """Add an entry, and remove those that are beyond the limits. The new entry always stays.

    :param name: the entry's name; if there is one, "NAME-2" and so on.
    :param fill: fills the empty folder that it is given; if it raises, nothing is left behind.
    :returns: the folder of the entry.
    :raises MachineryError: no space, or no permission.
    """
    with cache.locked(kind, f"writes to {kind}", timeout_s=_TIMEOUT_S):
        folder = cache.folder_of(kind)
        with cache.room_errors(folder):
            folder.mkdir(exist_ok=True, mode=0o700)
            for leftover in folder.glob(".*.tmp-*"):  # we hold the lock, so whoever filled it is dead
                shutil.rmtree(leftover, ignore_errors=True)
            temporary = folder / f".{name}.tmp-{os.getpid()}"
            try:
                temporary.mkdir(mode=0o700)
                fill(temporary)
                (temporary / MARKER).touch()
                entry = temporary.rename(_free(folder / name))
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        _remove_beyond(limits, kind, entry)
    return entry


def _free(wanted: Path) -> Path:
    path, number = wanted, 1
    while path.exists():
        number += 1
        path = wanted.with_name(f"{wanted.name}-{number}")
    return path


def _remove_beyond(limits: Limits, kind: str, new: Path) -> None:
    """Remove entries, the oldest first, until the others are within the limits."""
    left_bytes = limits.size_bytes - size_bytes(new)
    with contextlib.suppress(FileNotFoundError):  # `hugepfn cache clean` removes one at this moment
        dated = sorted(((one.stat().st_mtime, one) for one in cache.entries(kind) if one != new), reverse=True)
        for at, entry in dated:
            left_bytes -= size_bytes(entry)
            if left_bytes < 0 or time.time() - at > limits.age_s:
                shutil.rmtree(entry, ignore_errors=True)
