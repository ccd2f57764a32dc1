"""The user's cache folder. An entry is built once and is complete or absent, even if several processes want it.

An entry is built in a sibling folder ``.NAME.tmp-PID`` under the entry's lock and then renamed. The holder of a lock
may delete unfinished siblings of that entry, because the process that was building them is dead.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from harness.errors import MachineryError
from harness.events import Note, Say, Waiting, tell
from harness.host import cache_sums
from harness.host.cache_key import short
from harness.host.cache_sums import MARKER
from harness.logs import timed

_LOG = logging.getLogger("hugepfn.cache")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
#: Kinds of entry that contain a guest's memory or log. Only their owner may read them, whatever the mode of the cache
#: folder.
PRIVATE = frozenset({"templates", "kept", "failures"})


def root() -> Path:
    """The cache folder: ``HUGEPFN_CACHE_DIR``, else the user's cache folder (XDG)."""
    chosen = os.environ.get("HUGEPFN_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_path("hugepfn"))


def folder_of(kind: str) -> Path:
    """The folder with the entries of a kind. Makes that of a private kind inaccessible to others if it is not yet.

    :raises MachineryError: the folder of a private kind belongs to another user, who may have put anything there.
    """
    folder = root() / kind
    if kind in PRIVATE:
        with contextlib.suppress(FileNotFoundError):
            status = folder.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                raise MachineryError(
                    f"{folder} must be a directory that you own, because it holds what guests had in their memory: "
                    "remove it, or set HUGEPFN_CACHE_DIR to a folder that you own"
                )
            if status.st_mode & 0o077:
                folder.chmod(0o700)
    return folder


def _make_root() -> None:
    """:raises MachineryError: every user may write there, so a program in it may come from anybody."""
    root().mkdir(parents=True, exist_ok=True, mode=0o700)
    _check_owner(root())


def _check_owner(folder: Path) -> None:
    """Check that no other user can have created a folder of the cache.

    If the cache folder has the sticky bit, others can create folders that are missing, but cannot replace any.

    :raises MachineryError: another user can have created it.
    """
    mode = root().stat().st_mode
    if not mode & stat.S_IWOTH:
        return
    if not mode & stat.S_ISVTX or folder.stat().st_uid not in (os.geteuid(), 0):
        raise MachineryError(
            f"{root()} can be written by every user of this host, and hugepfn runs what is in it: "
            f"run `chmod o-w {root()}`, or set HUGEPFN_CACHE_DIR to another folder"
        )


@contextlib.contextmanager
def room_errors(where: Path) -> Iterator[None]:
    """Turn errors of the file system into one line that names the folder.

    :raises MachineryError: no space, or no permission.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise MachineryError(
                f"no space left for {where}; free some, or set HUGEPFN_CACHE_DIR to a folder on another disk"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise MachineryError(
                f"cannot write to {where}: {error.strerror}; set HUGEPFN_CACHE_DIR to another folder"
            ) from error
        raise


@contextlib.contextmanager
def locked(name: str, what: str, say: Say | None = None, timeout_s: float = 1800) -> Iterator[None]:
    """Hold the lock ``name``; waits for it if another process has it.

    :param what: what the other process does, for the message about the wait: "fetches linux-image-...".
    :raises MachineryError: the other process has not finished after ``timeout_s`` seconds.
    """
    import filelock  # 20 ms, and what is in the cache needs no lock

    folder = root() / "locks"
    with room_errors(folder):
        _make_root()
        folder.mkdir(exist_ok=True)
        lock = filelock.FileLock(folder / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            tell(say, Waiting(what, lock_holder(folder / f"{name}.lock")))
            try:
                lock.acquire(timeout=timeout_s)
            except filelock.Timeout:
                raise MachineryError(
                    f"another hugepfn still {what} after {timeout_s:g} s; the lock is in {folder}"
                ) from None
    try:
        yield
    finally:
        lock.release()


def lock_holder(file: Path | int) -> int | None:
    """The process that has an flock(2) on a file, if it still lives (/proc/locks: the Linux kernel's fs/locks.c).

    :param file: its path or descriptor.
    """
    with contextlib.suppress(OSError):
        inode = os.stat(file).st_ino  # noqa: PTH116 - of a descriptor, too
        for line in Path("/proc/locks").read_text().splitlines():
            match line.split():
                case [_, "FLOCK", _, "WRITE", pid, place, *_] if place.endswith(f":{inode}") and int(pid) > 0:
                    return int(pid) if Path("/proc", pid).exists() else None
    return None


def flock(file: IO[str], who: str, timeout_s: float) -> None:
    """Lock an open file with flock(2), waiting if necessary. Ctrl-C ends the wait.

    :param who: the holder of the lock, for the message.
    :raises MachineryError: the lock is still held after ``timeout_s`` seconds.
    """
    ended, got = threading.Event(), threading.Event()
    descriptor = os.dup(file.fileno())  # refers to the same open file description, which is what owns the lock

    def wait() -> None:  # flock(2) has no timeout: the thread keeps waiting, and releases a lock that comes too late
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        got.set()
        if ended.is_set():
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)

    threading.Thread(target=wait, daemon=True).start()
    try:
        if not got.wait(timeout_s):
            raise MachineryError(f"{who} has not ended after {timeout_s:g} s")
    except BaseException:
        ended.set()
        raise


def has(kind: str, name: str) -> bool:
    """Whether there is a finished entry."""
    return (folder_of(kind) / name / MARKER).is_file()


def find(kind: str, name: str, say: Say | None = None) -> Path | None:
    """The folder of a finished entry, which is in use until this process ends; None if there is none.

    An entry with a damaged file counts as none. Its files are read once in each process.

    :raises MachineryError: every user may write to the cache, so the entry may come from anybody.
    """
    entry = folder_of(kind) / name
    if not (entry / MARKER).is_file():
        return None
    _check_owner(entry.parent)
    if entry not in _used and (damaged := cache_sums.changed(entry)):
        tell(say, Note(f"{entry / damaged} has changed since it was saved; not using it"))
        return None
    return entry if _use(entry) else None


def use_path(path: Path) -> None:
    """Note that a file is used which may lie in an entry, such as a kernel that was built."""
    if path.is_relative_to(root()) and len(names := path.relative_to(root()).parts) > 2:
        _use(root() / names[0] / names[1])


_used: dict[Path, int] = {}  # entries in use, each with a descriptor that holds a lock on its marker


def _use(entry: Path) -> bool:
    """Set the time of the last use of an entry, and share a lock on its marker until this process ends.

    Whoever removes an entry takes the lock for itself first (harness/host/cache_parts.py).

    :returns: False if somebody removes it just now.
    """
    with contextlib.suppress(OSError):  # it belongs to another user, or the file system has no locks
        marker = entry / MARKER
        if entry not in _used or not os.path.samestat(os.fstat(_used[entry]), marker.stat()):
            descriptor = os.open(marker, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            if entry in _used:  # that of an entry which was there before
                os.close(_used[entry])
            _used[entry] = descriptor
        os.utime(entry)
    return (entry / MARKER).is_file()


def entries(kind: str) -> list[Path]:
    """All finished entries of a kind, sorted by name."""
    folder = folder_of(kind)
    if not folder.is_dir():
        return []
    _check_owner(folder)
    return sorted(entry for entry in folder.iterdir() if (entry / MARKER).is_file())


def prune(kind: str, kept: int) -> list[Path]:
    """Delete all entries of a kind except the most recently used, by the mtime of the entry's folder.

    :returns: the deleted folders.
    """
    gone = []
    with contextlib.suppress(FileNotFoundError):  # another hugepfn process prunes at the same time
        gone = sorted(entries(kind), key=lambda folder: folder.stat().st_mtime, reverse=True)[kept:]
    for folder in gone:
        shutil.rmtree(folder, ignore_errors=True)
    return gone


def obtain(
    kind: str,
    name: str,
    build: Callable[[Path], None],
    say: Say | None = None,
    timeout_s: float = 1800,
    what: str | None = None,
    summed: Sequence[str] = (),
) -> Path:
    """The folder of an entry, which is built now if it is missing.

    :param kind: a folder of the cache: "kernels".
    :param build: fills the empty folder that it is given; if it raises, nothing is left behind.
    :param timeout_s: how long to wait for another process that is building it.
    :param what: what the other process does, for the message about the wait; None: "prepares NAME".
    :param summed: files of the entry whose checksums are kept; if one of them has changed, the entry is built again.
    :raises MachineryError: no space, or another process took too long to build it.
    """
    if found := find(kind, name, say):
        _LOG.info("%s %s: in the cache", kind, short(name))
        return found
    with locked(f"{kind}.{name}", what or f"prepares {name}", say, timeout_s):
        if found := find(kind, name):  # the process that we waited for has built it
            _LOG.info("%s %s: in the cache, built just now by another hugepfn process", kind, short(name))
            return found
        folder = folder_of(kind)
        mode = 0o700 if kind in PRIVATE else 0o777
        with room_errors(folder):
            folder.mkdir(exist_ok=True, mode=mode)
            _sweep(folder, kind, own=name)
            temporary = folder / f".{name}.tmp-{os.getpid()}"
            try:
                temporary.mkdir(mode=mode)
                with timed(_LOG, "%s %s: not in the cache; building it", kind, short(name), level=logging.INFO):
                    build(temporary)
                cache_sums.write(temporary, summed)
                shutil.rmtree(folder / name, ignore_errors=True)  # incomplete, or damaged
                temporary.rename(folder / name)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        _use(folder / name)
        return folder / name


def _sweep(folder: Path, kind: str, own: str) -> None:
    """Delete what dead builders left in this folder. The caller holds the lock of ``own``."""
    import filelock

    for leftover in folder.glob(".*.tmp-*"):
        name = leftover.name[1:].rpartition(".tmp-")[0]
        if name == own:
            shutil.rmtree(leftover, ignore_errors=True)
            continue
        with (
            contextlib.suppress(filelock.Timeout),
            filelock.FileLock(root() / "locks" / f"{kind}.{name}.lock", timeout=0),
        ):
            shutil.rmtree(leftover, ignore_errors=True)


def write_note(path: Path, value: object) -> None:
    """Write a small JSON file completely or not at all.

    :raises MachineryError: no space, or no permission.
    """
    with room_errors(path.parent):
        if path.is_relative_to(root()):
            _make_root()
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(value, file, indent=1)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def read_note(path: Path) -> dict[str, Any] | None:
    """A JSON object written by :func:`write_note`; None if it is missing or cannot be read."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
