"""The parts of the cache, and how they are cleaned. An entry that is in use is never removed.

A finished entry is in use while a process that found it lives, which shares a lock on the entry's marker. It is also in
use while a process holds its lock in ``locks/``, because it is being built. A folder in which kernels are built has
a lock of its own, which lasts as long as make.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import MachineryError
from harness.host import cache

#: Every part that hugepfn itself makes, and what is in it.
CONTENTS = {
    "accel": "whether KVM runs guests on this host",
    "apt": "the package lists of the Debian mirror",
    "bisections": "journals of bisections, for --resume",
    "btf": "the types of kernels, for walks",
    "builds": "sources and object files, for the next build of a kernel",
    "built": "kernels that were built",
    "campaigns": "journals of campaigns, for --resume",
    "compat": "the file systems of a `make compat` that runs, or was killed",
    "failures": "evidence of tests that failed",
    "hashes": "the identity of kernel files",
    "initramfs": "what guests start from",
    "kept": "machines that --keep-vm kept; `hugepfn kept` lists them",
    "kernels": "Debian's kernels",
    "programs": "guest programs that were compiled",
    "qemu-system-x86_64": "QEMU from the Debian mirror",
    "resolved": "which version a kernel's name means today",
    "sandbox": "which sandbox QEMU has on this host",
    "selftest-sources": "sources of the kernel's selftests",
    "selftests": "selftests that were built",
    "shipped": "kernels and tests that another machine sent for its campaign",
    "staged": "modules of build trees",
    "symbols": "the names of kernels, for gdb",
    "templates": "booted machines, from which others are cloned",
    "vmlinux": "kernels that were unpacked",
}
#: People keep these on purpose, so they go only if they are named.
ON_PURPOSE = frozenset({"kept"})
_LOCKS = "locks"
_WHOLE = frozenset({"apt"})  # parts that are one entry
_OWN_LOCKS = (".complete", "lock")  # files in an entry on which a lock is held


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One thing in the cache, which is removed as a whole."""

    path: Path
    lock: str  # the name of its locks in ``locks/``, or the beginning of it
    size_bytes: int
    used_at: float  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class CachePart:
    """A folder of the cache."""

    name: str
    entries: tuple[CacheEntry, ...]

    @property
    def size_bytes(self) -> int:
        """The room that it takes on disk."""
        return sum(entry.size_bytes for entry in self.entries)

    @property
    def contents(self) -> str:
        """What is in it; empty if another program has put it there."""
        return CONTENTS.get(self.name, "")


def parts() -> list[CachePart]:
    """Everything in the cache, by size."""
    if not cache.root().is_dir():
        return []
    folders = [folder for folder in cache.root().iterdir() if folder.is_dir() and folder.name != _LOCKS]
    return sorted((_part(folder) for folder in folders), key=lambda part: part.size_bytes, reverse=True)


def _part(folder: Path) -> CachePart:
    paths = [folder] if folder.name in _WHOLE else sorted(folder.iterdir())
    entries = []
    for path in paths:
        name = path.name[1:].rpartition(".tmp-")[0] if ".tmp-" in path.name else path.name  # what a builder left
        lock = folder.name if path == folder else f"{folder.name}.{name}"
        with contextlib.suppress(FileNotFoundError):  # somebody removes it meanwhile
            entries.append(CacheEntry(path, lock, size_bytes(path), _used_at(path)))
    return CachePart(folder.name, tuple(entries))


def _used_at(path: Path) -> float:
    """When an entry was used. A folder for builds is not touched itself, but what is in it is."""
    times = [path.stat().st_mtime]
    if path.is_dir() and not (path / _OWN_LOCKS[0]).exists():
        with contextlib.suppress(FileNotFoundError):
            times += [one.lstat().st_mtime for one in path.iterdir()]
    return max(times)


def size_bytes(path: Path) -> int:
    """The room that a file or folder takes on disk; holes take none."""
    total = 0
    with contextlib.suppress(FileNotFoundError):  # somebody removes it meanwhile
        total = path.lstat().st_blocks * 512
        if path.is_dir() and not path.is_symlink():
            with os.scandir(path) as found:
                total += sum(size_bytes(Path(one)) for one in found)
    return total


def remove(entry: CacheEntry) -> bool:
    """Remove an entry, unless somebody uses it.

    :returns: whether it is gone.
    :raises MachineryError: it cannot be removed.
    """
    with _alone(entry) as alone:
        if not alone:
            return False
        try:
            if entry.path.is_dir():
                (entry.path / _OWN_LOCKS[0]).unlink(missing_ok=True)  # from now on it is not finished
                shutil.rmtree(entry.path)
            else:
                entry.path.unlink(missing_ok=True)
        except FileNotFoundError:
            pass  # somebody else has removed it
        except OSError as error:
            raise MachineryError(f"{entry.path} cannot be removed: {error.strerror}") from error
    return True


@contextlib.contextmanager
def _alone(entry: CacheEntry) -> Iterator[bool]:
    """Take all locks of an entry while the block runs; the value is whether nobody else has one."""
    import filelock

    with contextlib.ExitStack() as stack:
        try:
            for file in _lock_files(entry):
                stack.enter_context(filelock.FileLock(file, timeout=0))
            for name in _OWN_LOCKS:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    held = stack.enter_context((entry.path / name).open())
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (filelock.Timeout, BlockingIOError):
            yield False
            return
        yield True


def _lock_files(entry: CacheEntry) -> Sequence[Path]:
    folder = cache.root() / _LOCKS
    with cache.room_errors(folder):
        folder.mkdir(exist_ok=True)
        own = folder / f"{entry.lock}.lock"
        return [
            own,
            *(file for file in folder.glob("*.lock") if file.name.startswith(f"{entry.lock}.") and file != own),
        ]
