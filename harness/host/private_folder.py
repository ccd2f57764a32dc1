"""A folder for a machine's sockets that nobody else can enter. A Unix socket has no other lock than the way to it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from harness.errors import UsageError

_PATH_MAX = 107  # of a socket: sun_path less its NUL, unix(7)


class PrivateFolder:
    """A session's own folder once :meth:`use` says so; else a temporary one with mode 0700, made when it is needed."""

    def __init__(self) -> None:
        self._given: Path | None = None
        self._own: tempfile.TemporaryDirectory[str] | None = None

    def use(self, folder: Path) -> None:
        """From now on this folder, which somebody else made with mode 0700, and removes."""
        self._given = folder

    def socket(self, name: str) -> Path:
        """Where a socket of this name belongs.

        :raises UsageError: its path is longer than the kernel allows.
        """
        if self._given is None and self._own is None:
            self._own = tempfile.TemporaryDirectory(prefix="hugepfn-")  # mkdtemp(3): mode 0700
        folder = self._given if self._own is None else Path(self._own.name)
        assert folder is not None
        path = folder / name
        if len(os.fsencode(path)) > _PATH_MAX:
            raise UsageError(f"{path} is too long for a socket's path; set TMPDIR to a shorter folder")
        return path

    def close(self) -> None:
        """Removes the temporary folder, if there is one."""
        if self._own is not None:
            self._own.cleanup()
            self._own = None
