"""The sessions of this user. A session is a folder whose lock is held by the session's process while it lives."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from harness.errors import UsageError
from harness.host import cache

_NAME = re.compile(r"\w[\w-]*(\.[\w-]+)*")  # never "." or "..", because it also names a folder
_NAME_MAX = 40
_SOCKET_PATH_MAX = 107  # sun_path without its NUL, unix(7)
_ABOUT = "about.json"
SOCKET = "socket"
_KEY = "key"
_KEY_BYTES = 32
_LOCK = ".lock"
#: The internal command that runs a session's process.
SERVE = "serve-session"


@dataclass(frozen=True, slots=True)
class About:
    """The description that a session publishes."""

    name: str
    pid: int  # the process that holds the machine
    kernel: str  # as requested
    release: str
    started_at: float  # seconds since the epoch


def root() -> Path:
    """Return the folder of this user's sessions: ``HUGEPFN_RUNTIME_DIR``, or the user's runtime folder (XDG)."""
    chosen = os.environ.get("HUGEPFN_RUNTIME_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    with warnings.catch_warnings():  # without XDG_RUNTIME_DIR it is a folder below /tmp, which is fine here
        warnings.simplefilter("ignore")
        return Path(platformdirs.user_runtime_path("hugepfn"))


def folder_of(name: str) -> Path:
    """The folder with a session's socket and keys."""
    return root() / name


def make_key(folder: Path) -> bytes:
    """Make the key of a new session, in a file that only this user can read. Every client must know it."""
    key = os.urandom(_KEY_BYTES)
    file = folder / _KEY
    file.touch(mode=0o600, exist_ok=False)
    file.write_bytes(key)
    return key


def key_of(name: str) -> bytes:
    """The key of a session.

    :raises OSError: there is no key, because the session has ended.
    """
    return (folder_of(name) / _KEY).read_bytes()


@contextlib.contextmanager
def claim(name: str) -> Iterator[Path]:
    """Make the folder of a new session, private to this user, and remove it when the block ends.

    :param name: the session's name; if it ends in "*", the first free one: "debian-6.12", "debian-6.12-2", ...
    :raises UsageError: the name is taken, or is not valid.
    """
    stem, wildcard = name.removesuffix("*"), name.endswith("*")
    if not _NAME.fullmatch(stem) or len(stem) > _NAME_MAX or stem.endswith(_LOCK):
        raise UsageError(
            f"{stem!r} is not a session name; expected at most {_NAME_MAX} letters, digits, '.', '_' and '-'"
        )
    if len(os.fsencode(folder_of(f"{stem}-999") / SOCKET)) > _SOCKET_PATH_MAX:
        raise UsageError(f"the path of a socket in {root()} is too long; set HUGEPFN_RUNTIME_DIR to a shorter path")
    with cache.room_errors(root()):
        root().mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_owner()
        for number in range(1, 1000):
            candidate = stem if number == 1 else f"{stem}-{number}"
            lock = _lock(candidate)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                if wildcard:
                    continue
                raise UsageError(f"there is already a session {stem!r}; choose another name") from None
            break
        folder = folder_of(candidate)
        try:
            shutil.rmtree(folder, ignore_errors=True)  # the remains of a session that was killed
            folder.mkdir(mode=0o700)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def _lock(name: str) -> filelock.FileLock:
    return filelock.FileLock(root() / f"{name}{_LOCK}")


def _check_owner() -> None:
    """Check that no other user can write to the folder or replace it, because its contents are trusted.

    :raises UsageError: another user can.
    """
    for folder in (root(), root().parent):
        status = folder.lstat()
        others = status.st_mode & 0o022 and not (status.st_mode & stat.S_ISVTX and folder != root())
        owners = {os.geteuid()} if folder == root() else {os.geteuid(), 0}
        if not stat.S_ISDIR(status.st_mode) or status.st_uid not in owners or others:
            raise UsageError(
                f"{folder} must be a directory owned by you with mode 0700: run `chmod 700 {folder}`, or set "
                "HUGEPFN_RUNTIME_DIR to another one"
            )


def publish(folder: Path, about: About) -> None:
    """Publish the session, which accepts connections from now on."""
    cache.write_note(folder / _ABOUT, asdict(about))


def sessions() -> list[About]:
    """Return the live sessions, by name, and remove the remains of sessions that were killed."""
    found: list[About] = []
    if not root().is_dir():
        return found
    _check_owner()
    for lock_file in sorted(root().glob(f"*{_LOCK}")):
        name = lock_file.name.removesuffix(_LOCK)
        lock = _lock(name)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            about: dict[str, Any] | None = cache.read_note(folder_of(name) / _ABOUT)
            if about is not None:
                found.append(About(**about))
            continue
        shutil.rmtree(folder_of(name), ignore_errors=True)
        lock_file.unlink(missing_ok=True)
        lock.release()
    return found


def holder(name: str) -> int | None:
    """Return the pid of the process that holds a session's lock, from /proc/locks; None if none does.

    This works even if the session's socket and description are gone. The process is a session's and has the lock file
    open, so it cannot be another process that reuses the pid of a dead session.
    """
    try:
        wanted = (root() / f"{name}{_LOCK}").stat()
    except OSError:
        return None
    told = cache.read_note(folder_of(name) / _ABOUT) or {}
    candidates = [told.get("pid", 0)]
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()  # 1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE START END
            if fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == str(wanted.st_ino):
                candidates.append(int(fields[4]))
    return next((pid for pid in candidates if _is_session(pid, wanted)), None)


def _is_session(pid: int, wanted: os.stat_result) -> bool:
    """Return whether a process is a session's. Other hugepfns hold the lock for a moment to check that it is free."""
    with contextlib.suppress(OSError):
        if SERVE.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            return False
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.path.samestat(link.stat(), wanted):
                    return True
    return False


def held() -> list[About]:
    """Return every session that has a process, even if it cannot be reached because it starts or lost its folder."""
    known = {about.name: about for about in sessions()}
    for lock_file in sorted(root().glob(f"*{_LOCK}")):
        name = lock_file.name.removesuffix(_LOCK)
        if name not in known and (pid := holder(name)) is not None:
            known[name] = About(name, pid, "", "", 0.0)
    return list(known.values())


def choose(name: str | None) -> About:
    """Return the session with this name; without a name, the only session.

    :raises UsageError: there is no such session; or no name was given, and there are several.
    """
    there = sessions()
    names = ", ".join(about.name for about in there)
    if name is not None:
        for about in there:
            if about.name == name:
                return about
        known = f"expected one of: {names}" if names else "start one with `hugepfn start`"
        raise UsageError(f"there is no session {name!r}; {known}")
    if not there:
        raise UsageError("no session is running; start one with `hugepfn start`")
    if len(there) > 1:
        raise UsageError(f"several sessions are running: {names}; name one with -s")
    return there[0]
