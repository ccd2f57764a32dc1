"""Guest RAM: a file that QEMU and the host map, with no name left in the file system once it is open."""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path

from harness.errors import MachineryError
from harness.pagetable import PhysicalMemory

_DEFAULT_FOLDER = Path("/dev/shm")
_ADVICE = "free some, use less --memory, or name another folder: --ram-dir"


def ram_folder(chosen: Path | None = None) -> Path:
    """Where RAM files go: the argument, ``HUGEPFN_RAM_DIR``, or the shared-memory file system."""
    return chosen or Path(os.environ.get("HUGEPFN_RAM_DIR") or _DEFAULT_FOLDER)


def check_room(memory_mib: int, folder: Path) -> None:
    """Looks whether a RAM file fits.

    :raises MachineryError: the folder is missing, or has too little room.
    """
    try:
        status = os.statvfs(folder)
    except OSError as error:
        raise MachineryError(f"no room for guest RAM in {folder}: {error.strerror}; {_ADVICE}") from error
    free_mib = status.f_bavail * status.f_frsize >> 20
    if free_mib < memory_mib:
        raise MachineryError(f"no room for guest RAM: {folder} has {free_mib} MiB free, {memory_mib} needed; {_ADVICE}")


class GuestRam:
    """The RAM of one machine. ``fd`` is for QEMU, ``memory`` for walks; both go with :meth:`close`."""

    def __init__(self, memory_mib: int, folder: Path | None = None) -> None:
        """Makes a sparse file of ``memory_mib`` MiB and maps it.

        :raises MachineryError: the folder is missing, may not be written, or has too little room.
        """
        folder = ram_folder(folder)
        check_room(memory_mib, folder)
        size_bytes = memory_mib << 20
        try:
            self.fd, name = tempfile.mkstemp(prefix="hugepfn-ram-", dir=folder)
            try:
                Path(name).unlink()
                os.truncate(self.fd, size_bytes)
                self._map = mmap.mmap(self.fd, size_bytes)
            except BaseException:
                os.close(self.fd)
                raise
        except OSError as error:
            raise MachineryError(f"no room for guest RAM in {folder}: {error.strerror}; {_ADVICE}") from error
        self.memory = PhysicalMemory(self._map)

    def close(self) -> None:
        """Gives the memory back. Whoever still holds a view of it keeps it alive until then."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self.memory.release()
            self._map.close()
