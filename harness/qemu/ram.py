"""Guest RAM: a file that QEMU maps and the host reads, with no name left in the file system once it is open."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from harness.errors import MachineryError, RestoreError
from harness.events import Note, Say
from harness.host import cache
from harness.pagetable import PAGE_SIZE_BYTES, PhysicalMemory, WalkError
from harness.pagetable.memory import SplitMemory, U64Array, WritableMemory

_DEFAULT_FOLDER = Path("/dev/shm")
_ADVICE = "free some, use less --memory, or name another folder: --ram-dir"
_Q35_ALL_LOW_BYTES = 0xB000_0000
_PART_BYTES = 64 << 20
_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


GuestMemory = WritableMemory


def low_ram_bytes(size_bytes: int) -> int:
    """How much of a guest's RAM lies below 4 GiB: all of it if less than 2.75 GiB, else 2 GiB.

    QEMU hw/i386/pc_q35.c pc_q35_init().
    """
    return size_bytes if size_bytes < _Q35_ALL_LOW_BYTES else 2 << 30


def as_the_guest_sees(flat: WritableMemory) -> GuestMemory:
    """Guest RAM by physical address, of RAM by its offset in the file."""
    low_bytes = low_ram_bytes(flat.size_bytes)
    return flat if low_bytes == flat.size_bytes else SplitMemory(flat, low_bytes)


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


def find_room(memory_mib: int, chosen: Path | None = None, say: Say = lambda _event: None) -> Path:
    """Where a RAM file goes: :func:`ram_folder`, or another folder where nobody chose that one and it has no room.

    podman and docker give /dev/shm 64 MB. A file on disk does as well; the host's page cache holds it.

    :param chosen: ``--ram-dir``, which is taken or refused.
    :param say: hears where it goes instead.
    :raises MachineryError: no folder has room; tells of the first.
    """
    folder = ram_folder(chosen)
    try:
        check_room(memory_mib, folder)
    except MachineryError as error:
        named = chosen is not None or os.environ.get("HUGEPFN_RAM_DIR")
        other = None if named else next((each for each in _elsewhere() if _fits(memory_mib, each)), None)
        if other is None:
            raise
        say(Note(f"guest RAM goes to {other}: {str(error).partition(';')[0]}"))
        return other
    return folder


def _elsewhere() -> list[Path]:
    temporary = os.environ.get("TMPDIR")
    return [*([Path(temporary)] if temporary else []), Path("/var/tmp"), cache.root()]


def _fits(memory_mib: int, folder: Path) -> bool:
    try:
        check_room(memory_mib, folder)
    except MachineryError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


class SharedRam:
    """The RAM of a machine that booted: QEMU and the host map the same file. ``fd`` is for QEMU."""

    share = True

    def __init__(self, memory_mib: int, folder: Path | None = None) -> None:
        """Makes a sparse file of ``memory_mib`` MiB and maps it.

        :raises MachineryError: the folder is missing, may not be written, or has too little room.
        """
        folder = find_room(memory_mib, folder)
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
        self._flat = PhysicalMemory(self._map)
        self.memory = as_the_guest_sees(self._flat)

    def attach(self, pid: int) -> None:
        """QEMU runs; nothing to do, the file is enough."""

    def close(self) -> None:
        """Gives the memory back."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._flat.release()
            self._map.close()

    def copy_to(self, path: Path, check: Callable[[], None] = lambda: None) -> None:
        """Copies what is in use to a new file with mode 0600, holes left out. The machine must be stopped.

        :param check: called for each part; it may raise to end this.
        """
        path.touch(mode=0o600, exist_ok=False)
        with path.open("wb") as file:
            size_bytes = os.fstat(self.fd).st_size
            file.truncate(size_bytes)
            for start, end in data_ranges(self.fd):
                file.seek(start)
                while start < end:
                    check()
                    start += os.sendfile(file.fileno(), self.fd, start, min(end - start, _PART_BYTES))


class PrivateRam:
    """The RAM of a clone: QEMU maps the template's file privately, so only what the clone dirties is its own.

    The host then reads QEMU's memory through /proc/PID/mem, which Linux allows to whoever started it.
    """

    share = False

    def __init__(self, path: Path) -> None:
        """Opens the template's RAM file.

        :raises RestoreError: it cannot be opened; another hugepfn has pruned it, for instance.
        :raises MachineryError: this host is at its limits, which says nothing about the template.
        """
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            family = MachineryError if error.errno in _LIMITS else RestoreError
            raise family(f"cannot open the template's RAM {path}: {error.strerror}") from error
        self._flat: ProcessMemory | None = None

    @property
    def memory(self) -> GuestMemory:
        """What the walks read, once QEMU runs."""
        if self._flat is None:
            raise MachineryError("the clone's QEMU does not run yet")
        return as_the_guest_sees(self._flat)

    def attach(self, pid: int) -> None:
        """QEMU runs: finds where it mapped the file."""
        self._flat = ProcessMemory(pid, self.fd)

    def close(self) -> None:
        """Gives the memory back."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self._flat is not None:
            self._flat.close()


GuestRam = SharedRam | PrivateRam


class ProcessMemory:
    """Guest RAM inside a QEMU process, by offset in the RAM file: that file's mapping, through /proc/PID/mem."""

    def __init__(self, pid: int, ram_fd: int) -> None:
        """:raises MachineryError: the process does not map the file, or may not be read."""
        self.size_bytes = os.fstat(ram_fd).st_size
        self._base = _mapped_at(pid, ram_fd)
        try:
            self._fd = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise MachineryError(
                f"cannot read the memory of QEMU (pid {pid}): {error.strerror}; use --no-clone"
            ) from error

    def _check(self, paddr: int, length: int) -> int:
        if not 0 <= paddr <= self.size_bytes - length:
            raise WalkError(f"paddr {paddr:#x} lies outside guest RAM, which ends at {self.size_bytes:#x}")
        return self._base + paddr

    def read_u64(self, paddr: int) -> int:
        """Returns the 8-byte word at an 8-byte-aligned physical address."""
        return int.from_bytes(os.pread(self._fd, 8, self._check(paddr, 8)), "little")

    def write_u64(self, paddr: int, value: int) -> None:
        """Writes it."""
        os.pwrite(self._fd, value.to_bytes(8, "little"), self._check(paddr, 8))

    def tables(self, paddrs: U64Array) -> U64Array:
        """Returns a copy of the tables at these addresses, uint64[len(paddrs), 512]; neighbours in one read."""
        found = np.empty((len(paddrs), PAGE_SIZE_BYTES // 8), np.uint64)
        breaks = np.flatnonzero(np.diff(paddrs) != PAGE_SIZE_BYTES) + 1
        for rows in np.split(np.arange(len(paddrs)), breaks):
            if len(rows):
                first, last = int(rows[0]), int(rows[-1]) + 1
                self._check(int(paddrs[last - 1]), PAGE_SIZE_BYTES)
                offset = self._check(int(paddrs[first]), PAGE_SIZE_BYTES)
                os.preadv(self._fd, [found[first:last].data.cast("B")], offset)
        return found

    def close(self) -> None:
        """Lets go of the process."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _mapped_at(pid: int, ram_fd: int) -> int:
    """Where a process has the whole of a file mapped (proc_pid_maps(5)).

    The file is recognised by the device and inode that our own mapping of it shows. On btrfs and overlayfs these are
    not what fstat() says (fs/proc/task_mmu.c show_map_vma() takes them from the inode underneath).
    """
    with mmap.mmap(ram_fd, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE) as page:
        ours = np.frombuffer(page, np.uint8)
        vaddr = ours.ctypes.data
        del ours  # or the mapping could not be closed
        wanted = next(file for start, _offset, file in _file_mappings(os.getpid()) if start == vaddr)
    for start, offset, file in _file_mappings(pid):
        if (file, offset) == (wanted, 0):
            return start
    raise MachineryError(f"QEMU (pid {pid}) does not map the template's RAM")


def _file_mappings(pid: int) -> Iterator[tuple[int, int, tuple[str, str]]]:
    """A process's mappings of files: first vaddr, offset in bytes, and the file as (device, inode)."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, _access, offset, device, inode, *_path = line.split()
        if inode != "0":
            yield int(span.partition("-")[0], 16), int(offset, 16), (device, inode)


def data_ranges(fd: int) -> list[tuple[int, int]]:
    """The parts of a sparse file that hold data, as [start, end) in bytes."""
    ranges = []
    end, size_bytes = 0, os.fstat(fd).st_size
    while end < size_bytes:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole from here on
            break
        end = os.lseek(fd, start, os.SEEK_HOLE)
        ranges.append((start, end))
    return ranges
