"""Guest-physical memory, as a walk reads it.

:class:`Memory` has everything that a walk needs. :class:`PhysicalMemory` implements it for a buffer in which offsets
are physical addresses. :class:`SplitMemory` is for larger guests, with a hole below 4 GiB and the rest of RAM above it.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Protocol, TypeAlias

from harness.errors import MachineryError, UsageError
from harness.pagetable.bits import ENTRIES_PER_TABLE, PAGE_SHIFT, PAGE_SIZE_BYTES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

U64Array: TypeAlias = "NDArray[np.uint64]"
RamBuffer: TypeAlias = bytes | bytearray | memoryview | mmap.mmap


#: The start of the RAM that does not fit below the hole for devices.
HIGH_RAM_PADDR = 1 << 32


class WalkError(MachineryError):
    """A walk left guest RAM, or found an impossible entry. The root or layout is wrong, or the guest is running."""


class Memory(Protocol):
    """The guest-physical memory that a walk needs. It can be implemented without mapping guest RAM."""

    @property
    def size_bytes(self) -> int:
        """Bytes of RAM; physical addresses go from 0 to size_bytes - 1."""

    def read_u64(self, paddr: int) -> int:
        """Return the 8-byte word at an 8-byte-aligned physical address."""

    def tables(self, paddrs: U64Array) -> U64Array:
        """Return a copy of the tables at these 4096-byte-aligned addresses, uint64[len(paddrs), 512]."""


class WritableMemory(Memory, Protocol):
    """Guest RAM that the host can also write to, for release words."""

    def write_u64(self, paddr: int, value: int) -> None:
        """Write the 8-byte word at an 8-byte-aligned physical address."""


class SplitMemory:
    """Guest RAM whose first part starts at address 0 and the rest at 4 GiB, as on QEMU's q35.

    :param flat: all RAM without the hole, so that an address is an offset in the RAM file.
    :param low_bytes: the part of it below 4 GiB, in bytes; a multiple of 4096.
    """

    def __init__(self, flat: WritableMemory, low_bytes: int) -> None:
        self._flat = flat
        self._low_bytes = low_bytes

    @property
    def size_bytes(self) -> int:
        """First address after RAM, including the hole."""
        return HIGH_RAM_PADDR + self._flat.size_bytes - self._low_bytes

    def read_u64(self, paddr: int) -> int:
        """Return the word at an 8-byte-aligned physical address.

        :raises WalkError: paddr lies in the hole or after RAM.
        """
        return self._flat.read_u64(self._offset(paddr))

    def write_u64(self, paddr: int, value: int) -> None:
        """Store a word at an 8-byte-aligned physical address.

        :raises WalkError: paddr lies in the hole or after RAM.
        """
        self._flat.write_u64(self._offset(paddr), value)

    def tables(self, paddrs: U64Array) -> U64Array:
        """Return a copy of the tables at these 4096-byte-aligned addresses, uint64[len(paddrs), 512].

        :raises WalkError: one of them lies in the hole or after RAM.
        """
        import numpy as np

        high = paddrs >= np.uint64(HIGH_RAM_PADDR)
        if len(in_hole := paddrs[~high & (paddrs >= np.uint64(self._low_bytes))]):
            self._offset(int(in_hole[0]))
        moved = np.where(high, paddrs - np.uint64(HIGH_RAM_PADDR - self._low_bytes), paddrs)
        return self._flat.tables(moved)

    def _offset(self, paddr: int) -> int:
        if 0 <= paddr < self._low_bytes:
            return paddr
        if HIGH_RAM_PADDR <= paddr < self.size_bytes:
            return paddr - HIGH_RAM_PADDR + self._low_bytes
        raise WalkError(
            f"paddr {paddr:#x} lies outside guest RAM, which ends at {self._low_bytes:#x} and goes on from "
            f"{HIGH_RAM_PADDR:#x} to {self.size_bytes:#x}"
        )


class PhysicalMemory:
    """Guest RAM in a buffer: offset in the buffer == physical address.

    :param buffer: bytes, bytearray, memoryview or mmap; a whole number of 4096-byte pages. It is not copied, and an
        mmap cannot be closed before :meth:`release`.
    :raises UsageError: the buffer is empty, or not a whole number of pages.
    """

    def __init__(self, buffer: RamBuffer) -> None:
        size_bytes = len(memoryview(buffer).cast("B")) if isinstance(buffer, memoryview) else len(buffer)
        if size_bytes == 0 or size_bytes % PAGE_SIZE_BYTES:
            raise UsageError(f"guest RAM is a whole number of 4096-byte pages, got {size_bytes} bytes")
        import numpy as np

        words: U64Array = np.frombuffer(buffer, dtype="<u8")
        self._pages: U64Array | None = words.reshape(-1, ENTRIES_PER_TABLE)
        self._size_bytes = size_bytes

    @property
    def size_bytes(self) -> int:
        """Bytes of RAM."""
        return self._size_bytes

    def release(self) -> None:
        """Release the buffer, so that its owner can close it."""
        self._pages = None

    def read_u64(self, paddr: int) -> int:
        """Return the little-endian word at an 8-byte-aligned physical address.

        :raises WalkError: paddr lies outside RAM.
        :raises UsageError: paddr is not a multiple of 8.
        """
        page, word = self._index(paddr)
        return int(self._ram()[page, word])

    def write_u64(self, paddr: int, value: int) -> None:
        """Store a word at an 8-byte-aligned physical address, in one store.

        :raises WalkError: paddr lies outside RAM, or the buffer is read-only.
        :raises UsageError: paddr is not a multiple of 8, or value is not a 64-bit word.
        """
        page, word = self._index(paddr)
        if not 0 <= value < 1 << 64:
            raise UsageError(f"a word has 64 bits, got {value:#x}")
        if not self._ram().flags.writeable:
            raise WalkError(f"cannot write at paddr {paddr:#x}: this view of guest RAM is read-only; map it writable")
        self._ram()[page, word] = value

    def tables(self, paddrs: U64Array) -> U64Array:
        """Return a copy of the tables at these 4096-byte-aligned addresses, uint64[len(paddrs), 512].

        :raises WalkError: one of them lies outside RAM.
        """
        import numpy as np

        if len(paddrs) and int(paddrs.max()) >= self._size_bytes:
            self._index(int(paddrs.max()))
        copy: U64Array = self._ram()[(paddrs >> np.uint64(PAGE_SHIFT)).astype(np.intp)]
        return copy

    def _ram(self) -> U64Array:
        if self._pages is None:
            raise UsageError("this guest RAM was released: take a new PhysicalMemory")
        return self._pages

    def _index(self, paddr: int) -> tuple[int, int]:
        """Return the page number and the index of the word in the page."""
        if paddr % 8:
            raise UsageError(f"a 64-bit word is read at a multiple of 8, got paddr {paddr:#x}")
        if not 0 <= paddr < self._size_bytes:
            raise WalkError(f"paddr {paddr:#x} lies outside guest RAM, which ends at {self._size_bytes:#x}")
        return paddr >> PAGE_SHIFT, (paddr & (PAGE_SIZE_BYTES - 1)) >> 3
