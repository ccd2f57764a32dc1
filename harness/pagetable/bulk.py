"""Walk page tables for a whole range at once, one level at a time: 262,144 entries in milliseconds.

The rules are those of :mod:`harness.pagetable.walk` and :func:`harness.pagetable.entry.kind_of`; property tests
check that the two agree.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from harness.errors import UsageError
from harness.pagetable.bits import (
    ENTRIES_PER_TABLE,
    PADDR_MASK,
    PAGE_SHIFT,
    PAGE_SIZE_BYTES,
    Bits,
    Kind,
    Layout,
    Level,
    bit_positions,
)
from harness.pagetable.entry import HUGE_LEVELS, Entry
from harness.pagetable.formats import CPU, PRESENT, PSE, TableFormat
from harness.pagetable.memory import Memory, U64Array, WalkError
from harness.pagetable.walk import Leaf, require_no_reserved_leaf, require_table

BoolArray: TypeAlias = NDArray[np.bool_]

MAX_TABLES = 1 << 16
"""Tables of one level that a bulk walk reads at once: 256 MiB of copies, 128 GiB of 4 KiB pages."""


class LeafArrays(NamedTuple):
    """Leaves by column, in ascending order of vaddr; all three arrays have the same length."""

    vaddr: U64Array  # of the first byte that the leaf maps, canonical
    raw: U64Array  # the entry
    level: NDArray[np.uint8]  # Level.PTE, PMD or PUD; for a hole (entry_arrays) up to PGD


class _Search(NamedTuple):
    """What a bulk walk looks for."""

    layout: Layout
    span: tuple[int, int]  # first and last byte, linear
    every: bool  # include holes and swap entries


class _Tables(NamedTuple):
    """Tables of one level that have yet to be read."""

    paddr: U64Array
    base: U64Array  # linear address of what the table's first entry maps


def walk_arrays(memory: Memory, root: int, start: int, end: int, layout: Layout) -> LeafArrays:
    """Return every leaf that overlaps [start, end), PROT_NONE ones included; holes and swap entries are left out.

    :param root: physical address of the root table.
    :param start: first virtual address, canonical; the last one, end - 1, is canonical too.
    :param end: one past the last virtual address, at most 2**64. A leaf that crosses start or end is included.
    :raises UsageError: the range is not canonical, or ends before it starts.
    :raises WalkError: a table lies outside RAM, an entry above pud claims to be a leaf, or the range has more than
        65,536 tables of one level.
    """
    return _descend(memory, root, start, end, layout, every=False)


def entry_arrays(memory: Memory, root: int, start: int, end: int, layout: Layout) -> LeafArrays:
    """Return every entry at which the walk of an address in [start, end) ends: leaves, holes and swap entries.

    Together they cover the range without a gap. A hole has the level at which the walk reaches it, up to pgd. The first
    and the last entry may extend beyond the range. The rest is as in :func:`walk_arrays`.
    """
    return _descend(memory, root, start, end, layout, every=True)


def walk_range(memory: Memory, root: int, start: int, end: int, layout: Layout) -> list[Leaf]:
    """Return every leaf that overlaps [start, end) as objects; the rest is as in :func:`walk_arrays`."""
    vaddr, raw, level = walk_arrays(memory, root, start, end, layout)
    return [
        Leaf(Entry(one_raw, Level(one_level), layout), one_vaddr)
        for one_vaddr, one_raw, one_level in zip(vaddr.tolist(), raw.tolist(), level.tolist(), strict=True)
    ]


def _descend(memory: Memory, root: int, start: int, end: int, layout: Layout, *, every: bool) -> LeafArrays:
    span = _linear_range(start, end, layout)
    found: list[LeafArrays] = []
    if span is not None:
        require_table(memory, root, layout.levels[0], "given as the root")
        search = _Search(layout, span, every)
        tables = _Tables(np.array([root], np.uint64), np.zeros(1, np.uint64))
        for level in layout.levels:
            if not len(tables.paddr):
                break
            tables = _read_level(memory, tables, level, search, found)
    return _in_order(found, layout)


def has_bit(leaves: LeafArrays, bit: Bits, layout: Layout) -> BoolArray:
    """Return for each leaf whether it has a bit, bool[n]: the bulk form of ``bit in leaf.bits``."""
    result = np.zeros(len(leaves.raw), np.bool_)
    is_present = (leaves.raw & np.uint64(PRESENT)) != 0
    for level in (Level.PTE, Level.PMD, Level.PUD):
        for present in (False, True):
            for position, named in bit_positions(Kind.LEAF, level, layout, present).items():
                if named is bit:
                    is_set = (leaves.raw >> np.uint64(position) & np.uint64(1)) != 0
                    result |= (leaves.level == level) & (is_present == present) & is_set
    return result


def pfns(leaves: LeafArrays, fmt: TableFormat = CPU) -> U64Array:
    """Return the page frame number of each leaf, uint64[n]: ``leaf.pfn`` in bulk, with L1TF inversion undone."""
    stored = leaves.raw
    if fmt.inverts:
        stored = np.where((leaves.raw & np.uint64(PRESENT)) != 0, leaves.raw, ~leaves.raw)
    mask = np.zeros(len(Level) + 1, np.uint64)
    for level in Level:
        mask[level] = PADDR_MASK & -level.size_bytes
    result: U64Array = (stored & mask[leaves.level]) >> np.uint64(PAGE_SHIFT)
    return result


def _linear_range(start: int, end: int, layout: Layout) -> tuple[int, int] | None:
    """Return first and last byte without the sign extension, which makes both halves one ascending range."""
    if end < start:
        raise UsageError(f"the range ends at {end:#x}, before it starts at {start:#x}")
    if start == end:
        return None
    for vaddr in (start, end - 1):
        if not layout.is_canonical(vaddr):
            raise UsageError(f"vaddr {vaddr:#x} is not a canonical {layout.address_bits}-bit address")
    mask = (1 << layout.address_bits) - 1
    return start & mask, (end - 1) & mask


def _read_level(memory: Memory, tables: _Tables, level: Level, search: _Search, found: list[LeafArrays]) -> _Tables:
    """Read all tables of one level, add matching entries to found, and return the tables of the next level."""
    shift = search.layout.shift(level)
    raw = memory.tables(tables.paddr)
    offsets = np.arange(ENTRIES_PER_TABLE, dtype=np.uint64) << np.uint64(shift)
    base = tables.base[:, np.newaxis] + offsets
    first, last = (np.uint64(edge >> shift << shift) for edge in search.span)
    if int(base[0, 0]) < first or int(base[-1, -1]) > last:
        inside = (base >= first) & (base <= last)
        raw, base = raw[inside], base[inside]
    else:
        raw, base = raw.ravel(), base.ravel()

    is_leaf, is_table = _kinds(raw, level, search.layout.format)
    wanted = ~is_table if search.every else is_leaf
    if wanted.all():
        found.append(LeafArrays(base, raw, np.full(len(raw), level, np.uint8)))
    elif wanted.any():
        wanted_raw = raw[wanted]
        found.append(LeafArrays(base[wanted], wanted_raw, np.full(len(wanted_raw), level, np.uint8)))
    below = _Tables(raw[is_table] & np.uint64(PADDR_MASK), base[is_table])
    _check_tables(memory, raw[is_table], below, level, search.layout)
    return below


def _kinds(raw: U64Array, level: Level, fmt: TableFormat) -> tuple[BoolArray, BoolArray]:
    """Return (is a leaf, is a table) for each entry: kind_of() for a whole array."""
    if level is Level.PTE:
        return (raw & np.uint64(fmt.small_leaf)) != 0, np.zeros(len(raw), np.bool_)
    is_present = (raw & np.uint64(fmt.table)) != 0
    if level not in HUGE_LEVELS:
        return np.zeros(len(raw), np.bool_), is_present
    is_huge = (raw & np.uint64(fmt.huge_leaf)) == np.uint64(fmt.huge_leaf)
    is_huge &= (raw & np.uint64(~fmt.ignored & (1 << 64) - 1)) != 0
    return is_huge, is_present & ~is_huge


def _check_tables(memory: Memory, raw: U64Array, below: _Tables, level: Level, layout: Layout) -> None:
    """Reject what :func:`harness.pagetable.walk.walk` rejects, and a range that is too large to read at once."""
    if not len(raw):
        return
    levels = layout.levels
    next_level = levels[levels.index(level) + 1]
    reserved = raw[(raw & np.uint64(PSE)) != 0]
    if len(reserved):
        require_no_reserved_leaf(int(reserved[0]), level)
    highest = int(below.paddr.argmax())
    require_table(memory, int(below.paddr[highest]), next_level, f"for {int(below.base[highest]):#x} and on")
    if len(raw) > MAX_TABLES:
        raise WalkError(
            f"the range has {len(raw)} {next_level.label} tables, at most {MAX_TABLES} "
            f"({MAX_TABLES * PAGE_SIZE_BYTES >> 20} MiB) are read at once: walk a smaller range"
        )


def _in_order(found: list[LeafArrays], layout: Layout) -> LeafArrays:
    """Join the leaves of all levels, sort them by address, and restore the sign extension."""
    if not found:
        return LeafArrays(np.zeros(0, np.uint64), np.zeros(0, np.uint64), np.zeros(0, np.uint8))
    if len(found) == 1:
        linear, raw, level = found[0]
    else:
        linear, raw = np.concatenate([part.vaddr for part in found]), np.concatenate([part.raw for part in found])
        level = np.concatenate([part.level for part in found])
        order = np.argsort(linear, kind="stable")
        linear, raw, level = linear[order], raw[order], level[order]
    if not layout.format.signed:
        return LeafArrays(linear, raw, level)
    sign_bit = np.uint64(1 << (layout.address_bits - 1))
    extension = np.uint64((1 << 64) - (1 << layout.address_bits))
    vaddr: U64Array = np.where((linear & sign_bit) != 0, linear | extension, linear)
    return LeafArrays(vaddr, raw, level)
