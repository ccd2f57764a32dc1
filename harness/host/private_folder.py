"""A folder for a machine's sockets that no other user can enter. Only the folder protects a Unix socket."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from harness.errors import UsageError

_PATH_MAX = 107  # of a socket: sun_path without its NUL, unix(7)


class PrivateFolder:
    """The folder given to :meth:`use`; otherwise a temporary one with mode 0700, made when it is first needed."""

    def __init__(self) -> None:
        self._given: Path | None = None
        self._own: tempfile.TemporaryDirectory[str] | None = None

    def use(self, folder: Path) -> None:
        """Use this folder from now on. The caller has made it with mode 0700, and removes it."""
        self._given = folder

    def socket(self, name: str) -> Path:
        """The path for a socket of this name.

        :raises UsageError: its path is longer than the kernel allows.
        """
        if self._given is None and self._own is None:
            self._own = tempfile.TemporaryDirectory(prefix="hugepfn-")  # mkdtemp(3): mode 0700
        folder = self._given if self._own is None else Path(self._own.name)
        assert folder is not None
        path = folder / name
        if len(os.fsencode(path)) > _PATH_MAX:
            raise UsageError(f"{path} is too long for the path of a socket; set TMPDIR to a folder with a shorter path")
        return path

    def close(self) -> None:
        """Remove the temporary folder, if there is one."""
        if self._own is not None:
            self._own.cleanup()
            self._own = None
