"""What a command leaves behind: processes, files, sessions, unfinished entries of the cache."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults.scene import program_of
from tests.faults.world import MARKER, World

#: QEMU dies with its parent by a signal of the kernel; its memory may take a moment to be freed.
_ENDING_S = 5.0
_ENTRIES = ("kernels", "initramfs", "programs", "templates", "kept")


@dataclass(frozen=True)
class Before:
    """What was there before the command started."""

    files: frozenset[Path]


def look(world: World) -> Before:
    """Note what is there."""
    return Before(frozenset(_own_files(world)))


def leftovers(world: World, before: Before, marker: str, may_leave: tuple[str, ...] = ()) -> list[str]:
    """What is there now and should not be, in words. Processes that are left are ended.

    :param may_leave: names of files that are no leftovers.
    """
    found = [f"process {pid} ({name})" for pid, name in _left_processes(marker)]
    new = [path for path in _own_files(world) if path not in before.files]
    found += [f"file {_short(path, world)}" for path in new if path.name not in may_leave]
    return found + [f"unfinished cache entry {_short(path, world)}" for path in _unfinished(world)]


def _left_processes(marker: str) -> list[tuple[int, str]]:
    """The processes with the marker in their environment that do not end by themselves."""
    left = []
    end_s = time.monotonic() + _ENDING_S
    for pid in _marked(marker):
        try:
            watched = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        name = program_of(pid)
        if not select.select([watched], [], [], max(end_s - time.monotonic(), 0))[0]:
            left.append((pid, name))
            signal.pidfd_send_signal(watched, signal.SIGKILL)
        os.close(watched)
    return left


def _marked(marker: str) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
        except OSError:
            continue
        if f"{MARKER}={marker}".encode() in environment.split(b"\0"):
            found.append(int(process.name))
    return found


def _own_files(world: World) -> Iterator[Path]:
    """Every file outside of the cache that is not asked for, and what the cache has besides entries."""
    for name in ("home", "run", "tmp", "shm", "work"):
        yield from (path for path in (world.folder / name).rglob("*") if path.name != "hugepfn" or path.is_file())
    for path in world.cache.glob("*"):
        if path.is_file():
            yield path
    for path in world.cache.glob("*/.*"):
        yield path


def _unfinished(world: World) -> list[Path]:
    folders = [folder for kind in _ENTRIES for folder in (world.cache / kind).glob("*") if folder.is_dir()]
    return [folder for folder in folders if folder.name[0] != "." and not (folder / ".complete").is_file()]


def _short(path: Path, world: World) -> str:
    return str(path.relative_to(world.folder) if path.is_relative_to(world.folder) else path)
