"""Runs a host command to its end, in its own process group and with a deadline, and always reaps it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import MachineryError
from harness.host.packages import find_command, how_to_get
from harness.host.signals import HeldSignals
from harness.printable import printable

_GRACE_S = 3.0  # between SIGTERM and SIGKILL, so that apt and tar can remove their temporary files
_HEARD_S = 1.0  # a Ctrl-C that does not end a wait is noticed after this time
_WORDS_MAX = 300
#: The deadline of a followed command: enough for a full kernel on a slow machine.
FOLLOW_TIMEOUT_S = 12 * 3600.0


@dataclass(frozen=True)
class Finished:
    """The result of a command."""

    status: int
    stdout: bytes
    stderr: str

    @property
    def words(self) -> str:
        """The first useful line of standard error, shortened."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        first = next((line for line in lines if line.startswith("E:")), lines[0] if lines else "no message")
        return " ".join(first.removeprefix("E:").split())[:_WORDS_MAX]


def run(
    argv: Sequence[str | Path],
    *,
    timeout_s: float,
    cwd: Path | None = None,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
) -> Finished:
    """Run a command and wait for it. At the deadline, on Ctrl-C and on any exception it is ended and reaped.

    :param check: raise an error if the exit status is not 0.
    :param env: its environment, instead of ours; the locale is C in either case.
    :param stdin: its standard input; empty if None.
    :raises MachineryError: not found, too slow, or (``check``) failed; has the first words of its stderr.
    """
    words = [os.fspath(word) for word in argv]
    name = Path(words[0]).name
    process = _start(words, cwd=cwd, env=env, stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE)
    try:
        stdout, stderr = _communicate(process, stdin, timeout_s)
    except subprocess.TimeoutExpired:
        raise MachineryError(f"{name} took more than {timeout_s:g} s: {' '.join(words[:8])}") from None
    finally:
        if process.returncode is None:
            _end(process)
    finished = Finished(process.returncode, stdout, printable(stderr))
    if check and finished.status != 0:
        check_room(finished, name)
        raise MachineryError(f"{name} failed (exit status {finished.status}): {finished.words}")
    return finished


def _communicate(process: subprocess.Popen[bytes], stdin: bytes | None, timeout_s: float) -> tuple[bytes, bytes]:
    """Wait as Popen.communicate() does, but notice every Ctrl-C.

    One that arrives just before poll(2) does not end it, and Python hears of it only when poll(2) returns.

    :raises subprocess.TimeoutExpired: the command has not ended.
    """
    end_s = time.monotonic() + timeout_s
    while stdin is None and end_s - time.monotonic() > _HEARD_S:  # a second call would not go on sending the input
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=_HEARD_S)
    return process.communicate(stdin, timeout=max(end_s - time.monotonic(), 0.0))


def follow(
    argv: Sequence[str | Path],
    on_line: Callable[[str], None],
    *,
    cwd: Path,
    env: Mapping[str, str],
    keep_open: Sequence[int] = (),
    on_end: Callable[[int], None],
    timeout_s: float = FOLLOW_TIMEOUT_S,
) -> int:
    """Run a command, and process each line of its output and errors as it arrives.

    :param keep_open: descriptors that the command and its children inherit, for instance a lock.
    :param on_end: called with the exit status in all cases; a negative status is the signal that ended it.
    :returns: its exit status.
    :raises MachineryError: it cannot be started, or has not ended in time.
    """
    words = [os.fspath(word) for word in argv]
    process = _start(words, cwd=cwd, env=env, stderr=subprocess.STDOUT, pass_fds=keep_open)
    assert process.stdout is not None, "it is a pipe"
    try:
        with ended_after(process, Path(words[0]).name, timeout_s):
            for line in process.stdout:
                on_line(printable(line).rstrip("\n"))
            return process.wait()
    finally:
        if process.returncode is None:
            _end(process)
        process.stdout.close()
        on_end(process.returncode)


def guarded(argv: Sequence[str | Path], number: signal.Signals = signal.SIGKILL) -> list[str]:
    """The command line of a child that does not outlive us: it gets a signal when the thread that started it ends,
    even if that is by SIGKILL (PR_SET_PDEATHSIG of prctl(2)).

    :param number: the signal; SIGTERM for a child that has to end children of its own.
    :raises MachineryError: there is no setpriv.
    """
    setpriv = find_program("setpriv", "util-linux")
    return [os.fspath(word) for word in (setpriv, "--pdeathsig", number.name.removeprefix("SIG"), "--", *argv)]


def _start(
    words: Sequence[str],
    *,
    cwd: Path | None,
    env: Mapping[str, str] | None,
    stdin: int = subprocess.DEVNULL,
    stderr: int = subprocess.PIPE,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    held = HeldSignals()
    try:
        process = subprocess.Popen(
            words,
            cwd=cwd,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**(os.environ if env is None else env), "LC_ALL": "C"},
            start_new_session=True,
            pass_fds=pass_fds,
        )
    except BaseException as error:
        held.release()
        if isinstance(error, OSError):
            raise MachineryError(f"cannot start {Path(words[0]).name}: {error.strerror}") from error
        raise
    try:
        held.release()
    except BaseException:
        _end(process)
        raise
    return process


def check_room(finished: Finished, name: str) -> None:
    """Raise an error if a command failed because the disk is full.

    :raises MachineryError: its stderr says so.
    """
    if "No space left on device" in finished.stderr or "Disk quota exceeded" in finished.stderr:
        raise MachineryError(
            f"no space left for {name}; free some, or set HUGEPFN_CACHE_DIR to a folder on another disk"
        )


@contextlib.contextmanager
def called_after(timeout_s: float, call: Callable[[], None]) -> Iterator[None]:
    """Call ``call`` in its own thread if the block takes longer. The call has returned when the block is left."""
    timer = threading.Timer(timeout_s, call)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join(timeout_s)  # the thread must not still run when the interpreter ends


@contextlib.contextmanager
def ended_after(process: subprocess.Popen[Any], name: str, timeout_s: float) -> Iterator[None]:
    """Kill a command and its children if the block, which reads its output, takes longer.

    :param process: the leader of its own process group.
    :raises MachineryError: it took longer.
    """
    late = threading.Event()

    def kill() -> None:
        late.set()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    with called_after(timeout_s, kill):
        yield
    if late.is_set():
        raise MachineryError(f"{name} took more than {timeout_s:g} s and was killed")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM and then SIGKILL to the group of a command, even if it is stopped, and reap it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for each in (number, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, each)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_GRACE_S)
            return
    with contextlib.suppress(subprocess.TimeoutExpired):  # a process in another group keeps its output open
        process.wait(_GRACE_S)


def find_program(name: str, package: str) -> Path:
    """The path of a program that must exist; see :func:`harness.host.packages.find_command`.

    :param package: the Debian package that contains it.
    :raises MachineryError: not found; says how to install it on this distribution.
    """
    path = find_command(name)
    if path is None:
        raise MachineryError(f"{name} is missing on this host; {how_to_get(package)}")
    return Path(path)
