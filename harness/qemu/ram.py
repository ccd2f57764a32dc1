"""Guest RAM: a file that QEMU maps and the host reads. After it is opened, it has no name in the file system."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.errors import MachineryError, RestoreError, UsageError
from harness.events import Note, Say
from harness.host import cache
from harness.pagetable import PAGE_SIZE_BYTES, PhysicalMemory, WalkError
from harness.pagetable.memory import SplitMemory, U64Array, WritableMemory

_DEFAULT_FOLDER = Path("/dev/shm")
_ADVICE = "free some, use less --memory, or choose another folder with --ram-dir"
_EXISTING = "choose an existing folder that you may write with --ram-dir"
_Q35_ALL_LOW_BYTES = 0xB000_0000
_PART_BYTES = 64 << 20
_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


GuestMemory = WritableMemory


def low_ram_bytes(size_bytes: int) -> int:
    """The part of a guest's RAM that is below 4 GiB: all of it if it is less than 2.75 GiB, otherwise 2 GiB.

    QEMU hw/i386/pc_q35.c pc_q35_init().
    """
    return size_bytes if size_bytes < _Q35_ALL_LOW_BYTES else 2 << 30


def as_the_guest_sees(flat: WritableMemory) -> GuestMemory:
    """Guest RAM addressed by physical address, given RAM addressed by its offset in the file."""
    low_bytes = low_ram_bytes(flat.size_bytes)
    return flat if low_bytes == flat.size_bytes else SplitMemory(flat, low_bytes)


def ram_folder(chosen: Path | None = None) -> Path:
    """The folder for RAM files: the argument, ``HUGEPFN_RAM_DIR``, or /dev/shm."""
    return chosen or Path(os.environ.get("HUGEPFN_RAM_DIR") or _DEFAULT_FOLDER)


def check_room(memory_mib: int, folder: Path) -> None:
    """Check that a RAM file fits.

    :raises MachineryError: the folder is missing, or has too little space.
    """
    if reason := _why_no_room(memory_mib, folder):
        raise MachineryError(f"{reason}; {_ADVICE}")


def _why_no_room(memory_mib: int, folder: Path) -> str:
    try:
        status = os.statvfs(folder)
    except OSError as error:
        return f"cannot put guest RAM into {folder}: {error.strerror}"
    free_mib = status.f_bavail * status.f_frsize >> 20
    if free_mib >= memory_mib:
        return ""
    return f"no space for guest RAM: {folder} has {free_mib} MiB free, expected {memory_mib} MiB"


def find_room(memory_mib: int, chosen: Path | None = None, say: Say = lambda _event: None) -> Path:
    """Find a folder for a RAM file: :func:`ram_folder`, or another one if the user chose none and that has no space.

    podman and docker give /dev/shm 64 MB. A file on disk is as good, because the host's page cache holds it.

    :param chosen: ``--ram-dir``, which is used or refused.
    :param say: told which other folder is used.
    :raises UsageError: the user chose a folder that does not exist or may not be written.
    :raises MachineryError: no folder has enough space; the message is about the first.
    """
    folder = ram_folder(chosen)
    named = chosen is not None or bool(os.environ.get("HUGEPFN_RAM_DIR"))
    if named and not folder.is_dir():
        raise UsageError(f"cannot put guest RAM into {folder}: no such folder; {_EXISTING}")
    if reason := _why_no_room(memory_mib, folder):
        elsewhere = [] if named else _elsewhere()
        other = next((each for each in elsewhere if _fits(memory_mib, each)), None)
        if other is None:
            raise MachineryError(f"{reason}; {_ADVICE}")
        say(Note(f"guest RAM goes to {other}: {reason}"))
        return other
    if named and not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"cannot put guest RAM into {folder}: you may not write there; {_EXISTING}")
    return folder


def _elsewhere() -> list[Path]:
    temporary = os.environ.get("TMPDIR")
    return [*([Path(temporary)] if temporary else []), Path("/var/tmp"), cache.root()]


def _fits(memory_mib: int, folder: Path) -> bool:
    return not _why_no_room(memory_mib, folder) and os.access(folder, os.W_OK | os.X_OK)


class SharedRam:
    """The RAM of a machine that booted: QEMU and the host map the same file. ``fd`` is for QEMU."""

    share = True

    def __init__(self, memory_mib: int, folder: Path | None = None) -> None:
        """Make a sparse file of ``memory_mib`` MiB and map it.

        :raises UsageError: as for :func:`find_room`.
        :raises MachineryError: the folder is missing, or has too little space.
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
            raise MachineryError(f"cannot put guest RAM into {folder}: {error.strerror}; {_ADVICE}") from error
        self._flat = PhysicalMemory(self._map)
        self.memory = as_the_guest_sees(self._flat)

    def attach(self, pid: int) -> None:
        """QEMU is running; there is nothing to do, because the file is enough."""

    def close(self) -> None:
        """Free the memory."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._flat.release()
            self._map.close()

    def copy_to(self, path: Path, check: Callable[[], None] = lambda: None) -> None:
        """Copy what is in use to a new file with mode 0600, without the holes. The machine must be stopped.

        :param check: called for each part; it may raise an exception to end the copy.
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
    """The RAM of a clone: QEMU maps the template's file privately, so a clone needs memory only for what it changes.

    The host then reads QEMU's memory through /proc/PID/mem, which Linux allows to the process that started it.
    """

    share = False

    def __init__(self, path: Path) -> None:
        """Open the template's RAM file.

        :raises RestoreError: it cannot be opened, for instance because another hugepfn has pruned it.
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
        """The memory that walks read, available when QEMU runs."""
        if self._flat is None:
            raise MachineryError("the QEMU of the clone is not running yet")
        return as_the_guest_sees(self._flat)

    def attach(self, pid: int) -> None:
        """QEMU is running: find where it has mapped the file."""
        self._flat = ProcessMemory(pid, self.fd)

    def close(self) -> None:
        """Free the memory."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self._flat is not None:
            self._flat.close()


GuestRam = SharedRam | PrivateRam


class ProcessMemory:
    """Guest RAM inside a QEMU process, by offset in the RAM file. It is read through /proc/PID/mem."""

    def __init__(self, pid: int, ram_fd: int) -> None:
        """:raises MachineryError: the process does not map the file, or may not be read."""
        self._pid = pid
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

    def _check_moved(self, moved_bytes: int, wanted_bytes: int) -> None:
        """Refuse a short read: what a process that has ended does not give would look like empty tables.

        :raises MachineryError: the memory is gone.
        """
        if moved_bytes != wanted_bytes:
            raise MachineryError(f"QEMU (pid {self._pid}) has ended, and its memory is gone")

    def read_u64(self, paddr: int) -> int:
        """Return the 8-byte word at an 8-byte-aligned physical address.

        :raises MachineryError: QEMU has ended.
        """
        word = os.pread(self._fd, 8, self._check(paddr, 8))
        self._check_moved(len(word), 8)
        return int.from_bytes(word, "little")

    def write_u64(self, paddr: int, value: int) -> None:
        """Write an 8-byte word.

        :raises MachineryError: QEMU has ended.
        """
        self._check_moved(os.pwrite(self._fd, value.to_bytes(8, "little"), self._check(paddr, 8)), 8)

    def tables(self, paddrs: U64Array) -> U64Array:
        """Return a copy of the tables at these addresses, uint64[len(paddrs), 512]; neighbours are read at once.

        :raises MachineryError: QEMU has ended.
        """
        import numpy as np

        found = np.empty((len(paddrs), PAGE_SIZE_BYTES // 8), np.uint64)
        breaks = np.flatnonzero(np.diff(paddrs) != PAGE_SIZE_BYTES) + 1
        for rows in np.split(np.arange(len(paddrs)), breaks):
            if len(rows):
                first, last = int(rows[0]), int(rows[-1]) + 1
                self._check(int(paddrs[last - 1]), PAGE_SIZE_BYTES)
                offset = self._check(int(paddrs[first]), PAGE_SIZE_BYTES)
                part = found[first:last]
                self._check_moved(os.preadv(self._fd, [part.data.cast("B")], offset), part.nbytes)
        return found

    def close(self) -> None:
        """Close the process's memory."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _mapped_at(pid: int, ram_fd: int) -> int:
    """The address at which a process has mapped a whole file (proc_pid_maps(5)).

    The file is recognised by the device and inode that our own mapping of it shows. On btrfs and overlayfs these are
    not what fstat() says (fs/proc/task_mmu.c show_map_vma() takes them from the inode underneath).
    """
    with mmap.mmap(ram_fd, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE) as page:
        ours = ctypes.c_char.from_buffer(page)
        vaddr = ctypes.addressof(ours)
        del ours  # otherwise the mapping cannot be closed
        wanted = next(file for start, _offset, file in _file_mappings(os.getpid()) if start == vaddr)
    for start, offset, file in _file_mappings(pid):
        if (file, offset) == (wanted, 0):
            return start
    raise MachineryError(f"QEMU (pid {pid}) does not map the template's RAM")


def _file_mappings(pid: int) -> Iterator[tuple[int, int, tuple[str, str]]]:
    """The file mappings of a process: first vaddr, offset in bytes, and the file as (device, inode)."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, _access, offset, device, inode, *_path = line.split()
        if inode != "0":
            yield int(span.partition("-")[0], 16), int(offset, 16), (device, inode)


def data_ranges(fd: int) -> list[tuple[int, int]]:
    """The parts of a sparse file that contain data, as [start, end) in bytes."""
    ranges = []
    end, size_bytes = 0, os.fstat(fd).st_size
    while end < size_bytes:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole from here on
            break
        end = os.lseek(fd, start, os.SEEK_HOLE)
        ranges.append((start, end))
    return ranges
