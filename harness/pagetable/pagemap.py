"""The words of /proc/PID/pagemap, which is the guest's own view of a page and one of the two witnesses.

pagemap skips VMAs with VM_PFNMAP, so a pfnmap appears as a hole: all zero except bit 55, which then comes from
VM_SOFTDIRTY.

Source: Documentation/admin-guide/mm/pagemap.rst; pte_to_pagemap_entry() and the PM_* masks in fs/proc/task_mmu.c.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import UsageError

SOFT_DIRTY_BIT = 55
EXCLUSIVE_BIT = 56
UFFD_WP_BIT = 57
GUARD_BIT = 58
FILE_OR_SHARED_BIT = 61
SWAPPED_BIT = 62
PRESENT_BIT = 63
FRAME_MASK = (1 << 55) - 1
SWAP_TYPE_MASK = (1 << 5) - 1
SWAP_OFFSET_SHIFT = 5

_NAMES = {
    SOFT_DIRTY_BIT: "SOFT_DIRTY",
    EXCLUSIVE_BIT: "EXCLUSIVE",
    UFFD_WP_BIT: "UFFD_WP",
    GUARD_BIT: "GUARD",
    FILE_OR_SHARED_BIT: "FILE_OR_SHARED",
    SWAPPED_BIT: "SWAPPED",
    PRESENT_BIT: "PRESENT",
}


@dataclass(frozen=True, slots=True)
class PagemapWord:
    """The pagemap word of one 4096-byte page (Documentation/admin-guide/mm/pagemap.rst).

    :raises UsageError: raw is not a 64-bit word.
    """

    raw: int
    """The 64-bit word, as the guest read it."""

    def __post_init__(self) -> None:
        if not 0 <= self.raw < 1 << 64:
            raise UsageError(f"a pagemap word has 64 bits, got {self.raw:#x}")

    def _has(self, bit: int) -> bool:
        return bool(self.raw >> bit & 1)

    @property
    def present(self) -> bool:
        """Bit 63: a page is mapped."""
        return self._has(PRESENT_BIT)

    @property
    def swapped(self) -> bool:
        """Bit 62: a swap, migration or marker entry."""
        return self._has(SWAPPED_BIT)

    @property
    def file_or_shared(self) -> bool:
        """Bit 61: a page of a file, or shared anonymous memory (since 3.5)."""
        return self._has(FILE_OR_SHARED_BIT)

    @property
    def guard(self) -> bool:
        """Bit 58: a guard region made by MADV_GUARD_INSTALL (since 6.15)."""
        return self._has(GUARD_BIT)

    @property
    def uffd_wp(self) -> bool:
        """Bit 57: write-protected by userfaultfd (since 5.13)."""
        return self._has(UFFD_WP_BIT)

    @property
    def exclusive(self) -> bool:
        """Bit 56: mapped exactly once (since 4.2)."""
        return self._has(EXCLUSIVE_BIT)

    @property
    def soft_dirty(self) -> bool:
        """Bit 55: written since 4 was written to clear_refs, or the whole VMA counts as written (VM_SOFTDIRTY)."""
        return self._has(SOFT_DIRTY_BIT)

    @property
    def hole(self) -> bool:
        """No information: all zero except, possibly, bit 55. Every page of a pfnmap looks like this."""
        return self.raw & ~(1 << SOFT_DIRTY_BIT) == 0

    @property
    def pfn(self) -> int | None:
        """Page frame number (4 KiB units); None if no page is present. A reader without CAP_SYS_ADMIN gets 0."""
        return self.raw & FRAME_MASK if self.present else None

    @property
    def swap_type(self) -> int | None:
        """Number of the swap area; None if not swapped."""
        return self.raw & SWAP_TYPE_MASK if self.swapped else None

    @property
    def swap_offset(self) -> int | None:
        """Slot in the swap area; None if not swapped."""
        return (self.raw & FRAME_MASK) >> SWAP_OFFSET_SHIFT if self.swapped else None

    def names(self) -> tuple[str, ...]:
        """Return the names of the flags that are set, in bit order."""
        return tuple(name for bit, name in _NAMES.items() if self._has(bit))

    def __str__(self) -> str:
        words = [f"pagemap {self.raw:#018x}", *self.names()]
        if self.hole:
            words.append("hole")
        elif self.pfn is not None:
            words.append(f"pfn={self.pfn:#x}")
        elif self.swapped:
            words.append(f"swap={self.swap_type}:{self.swap_offset:#x}")
        return " ".join(words)
