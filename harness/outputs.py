"""Standard streams and files of results: a failure to write is reported, and never looks like a verdict.

A full disk or a closed descriptor must not end a run early, nor with Python's own exit status 1. So these streams drop
what they cannot write, and remember why; the command reports it at its end (:func:`harness.cli.main`). A reader that
stops early, as in ``hugepfn run | head -1``, is not an error: the run goes on, and its verdict is the exit status.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import MachineryError, UsageError

if TYPE_CHECKING:  # slow to import
    from rich.console import Console
    from rich.table import Table

#: Errors of a host that is at its limits, in contrast to a wrong request.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


class _Descriptor(io.FileIO):
    """A descriptor that never fails: what it cannot write is dropped."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all or a part of the data; never raise, whatever the reader does."""
        while self.error is None:
            try:
                written = super().write(data)
            except OSError as error:
                self.error = error
            else:
                if written is not None:
                    return written
                select.select([], [self], [])  # another process shares it, and has set O_NONBLOCK
        return memoryview(data).nbytes


class Output(io.TextIOWrapper):
    """A text stream to a descriptor, which it owns. It never raises for what cannot be written or encoded."""

    def __init__(self, descriptor: int, encoding: str = "utf-8") -> None:
        self._descriptor = _Descriptor(descriptor, "w")
        buffer = io.BufferedWriter(self._descriptor)
        super().__init__(buffer, encoding=encoding, errors="backslashreplace", line_buffering=True)

    @property
    def lost(self) -> str:
        """Why something could not be written; "" if everything was written, or if the reader stopped early."""
        error = self._descriptor.error
        return "" if error is None or error.errno == errno.EPIPE else str(error.strerror)


def write_all(descriptor: int, data: bytes) -> None:
    """Write bytes of another program as they are.

    :raises OSError: the reader does not take them.
    """
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # another process shares the terminal or pipe, and has set O_NONBLOCK
            select.select([], [descriptor], [])


def hold_descriptors() -> None:
    """Open standard descriptors that the caller has closed, before another file gets their numbers.

    Input is then empty, and output fails as on a closed descriptor.
    """
    for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(
                os.open(os.devnull, flags), True
            )  # open() returns the lowest free number, which is this one


@contextlib.contextmanager
def standard_streams() -> Iterator[Output]:
    """Replace ``sys.stdout`` and ``sys.stderr`` by :class:`Output` while the block runs; yield the former.

    They have their own descriptors, because pytest replaces 1 and 2 while a test runs.
    """
    before = sys.stdin, sys.stdout, sys.stderr
    with contextlib.ExitStack() as stack:
        ours = [
            stack.enter_context(Output(os.dup(number), getattr(old, "encoding", None) or "utf-8"))
            for number, old in ((1, sys.stdout), (2, sys.stderr))
        ]
        if sys.stdin is None:  # it was closed when Python started
            sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout, sys.stderr = ours
        try:
            yield ours[0]
        finally:
            sys.stdin, sys.stdout, sys.stderr = before


def print_table(console: Console, table: Table) -> None:
    """Print a table without the blanks that rich adds at the ends of its lines."""
    with console.capture() as capture:
        console.print(table, soft_wrap=True)
    console.file.writelines(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def check_writable(files: Mapping[str, Path | None]) -> None:
    """Empty the files for the results now, so that an error is found before anything runs.

    :param files: the files, by the options that name them.
    :raises UsageError: a file cannot be created.
    :raises MachineryError: this host is at its limits: no space, no file descriptors.
    """
    for option, file in files.items():
        if file is None:
            continue
        if not file.parent.is_dir():
            raise UsageError(f"{option} {file}: there is no directory {file.parent}; create it, or name another file")
        try:
            file.write_text("")
        except OSError as error:
            raise _refused(f"{option} {file}", error, UsageError) from error


def write_text(file: Path | None, make: Callable[[], str]) -> None:
    """Write a requested file.

    :raises MachineryError: it cannot be written.
    """
    if file is not None:
        try:
            file.write_text(make())
        except OSError as error:
            raise _refused(str(file), error, MachineryError) from error


def _refused(file: str, error: OSError, family: type[UsageError | MachineryError]) -> UsageError | MachineryError:
    if error.errno in (*NO_ROOM, *NO_DESCRIPTORS):
        family = MachineryError
    hint = "free some room" if family is MachineryError else "name another file"
    if error.errno in NO_DESCRIPTORS:
        hint = "raise ulimit -n"
    return family(f"{file} cannot be written: {error.strerror}; {hint}")
