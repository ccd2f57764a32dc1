"""The VMAs of a process, as /proc/PID/maps lists them, and what its page tables have in each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from harness import pagetable
from harness.errors import ProtocolError
from harness.pagetable import Bits, Layout, Level

#: proc_pid_maps(5): range, permissions, offset in the file, device, inode, name.
_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ([-rwxsp]{4}) ([0-9a-f]+) [0-9a-f]+:[0-9a-f]+ \d+ *(.*)")


@dataclass(frozen=True, slots=True)
class VmaLine:
    """One line of /proc/PID/maps."""

    start: int
    """First virtual address."""
    end: int
    """One past the last virtual address."""
    perms: str
    """"rw-p": read, write, execute, shared or private."""
    offset: int
    """In bytes, from the start of the file."""
    name: str
    """Path of the file; "" for anonymous memory."""


@dataclass(frozen=True, slots=True)
class Vma:
    """A VMA, and the number of entries of each kind that its page tables have."""

    line: VmaLine
    leaves: Mapping[Level, int]
    """Number of leaves at each level: pte, pmd, pud."""
    swapped: int
    """Number of entries that are neither empty nor present: swap, migration, markers."""
    bits: Mapping[Bits, int]
    """Number of leaves with each bit; bits that no leaf has are left out."""


def parse_maps(text: str) -> tuple[VmaLine, ...]:
    """Return the VMAs in /proc/PID/maps, without [vsyscall], which lies in the kernel's half.

    :raises ProtocolError: a line is not of /proc/PID/maps.
    """
    found = []
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            raise ProtocolError(
                f"/proc/PID/maps has the line {line!r}; expected 'START-END PERMS OFFSET DEV INODE NAME'"
            )
        start, end, perms, offset, name = match.groups()
        if not int(start, 16) >> 63:
            found.append(VmaLine(int(start, 16), int(end, 16), perms, int(offset, 16), name))
    return tuple(found)


def count_vmas(lines: Iterable[VmaLine], entries: pagetable.LeafArrays, layout: Layout) -> tuple[tuple[Vma, ...], int]:
    """Return what is in each VMA, and the number of leaves that lie in none of them.

    :param entries: of the whole user half, see :func:`harness.pagetable.entry_arrays`.
    """
    import numpy as np

    leaves = pagetable.only(entries, pagetable.leaf_mask(entries))
    swapped = pagetable.only(entries, ~pagetable.leaf_mask(entries) & ~pagetable.hole_mask(entries))
    have = {bit: pagetable.has_bit(leaves, bit, layout) for bit in Bits}
    vmas, inside = [], 0
    for line in lines:
        first, last = _slice(leaves, line)
        swap_first, swap_last = _slice(swapped, line)
        levels = np.bincount(leaves.level[first:last], minlength=len(Level) + 1)
        bits = {bit: int(there[first:last].sum()) for bit, there in have.items()}
        inside += last - first
        vmas.append(
            Vma(
                line,
                {level: int(levels[level]) for level in (Level.PTE, Level.PMD, Level.PUD)},
                swap_last - swap_first,
                {bit: count for bit, count in bits.items() if count},
            )
        )
    return tuple(vmas), len(leaves.vaddr) - inside


def _slice(entries: pagetable.LeafArrays, line: VmaLine) -> tuple[int, int]:
    """Return the first and last index (exclusive) of the entries that start in a VMA."""
    import numpy as np

    edges = np.array([line.start, line.end], np.uint64)
    first, last = np.searchsorted(entries.vaddr, edges).tolist()
    return first, last
