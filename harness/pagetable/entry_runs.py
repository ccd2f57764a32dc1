"""A range of a process's page tables for display: equal neighbours are joined into runs, and changes are marked.

"The last look" is the previous time that the same range was read.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.errors import UsageError
from harness.pagetable.bits import PADDR_MASK, PAGE_SHIFT, Bits, Layout, Level
from harness.pagetable.bulk import BoolArray, LeafArrays, pfns
from harness.pagetable.entry import HUGE_LEVELS, Entry
from harness.pagetable.formats import CPU, TableFormat
from harness.pagetable.memory import U64Array


@dataclass(frozen=True, slots=True)
class EntryRun:
    """Neighbouring entries of one level that have the same bits, or are all holes, or all swap entries."""

    vaddr: int  # of the first byte
    end: int  # one past the last byte
    count: int  # of entries
    entry: Entry  # the first entry
    consecutive: bool  # each leaf's pfn follows the one before it
    before: Entry | None  # the entry at vaddr at the last look; None if it was the same

    @property
    def appeared(self) -> Bits:
        """Bits that were not there at the last look."""
        return Bits(0) if self.before is None else self.entry.bits & ~self.before.bits

    @property
    def vanished(self) -> Bits:
        """Bits that were there at the last look."""
        return Bits(0) if self.before is None else self.before.bits & ~self.entry.bits


class _Columns(NamedTuple):
    """Columns that decide whether two entries are equal."""

    kind: U64Array  # 0 hole, 1 leaf, 2 swap
    level: U64Array
    bits: U64Array  # the raw word without its address; equal for all holes, and for all swap entries


def leaf_mask(entries: LeafArrays, fmt: TableFormat = CPU) -> BoolArray:
    """Return for each entry of :func:`entry_arrays` whether it is a leaf, bool[n]."""
    small = (entries.level == Level.PTE) & ((entries.raw & np.uint64(fmt.small_leaf)) != 0)
    may_be_huge = np.isin(entries.level, [int(level) for level in HUGE_LEVELS])
    huge = may_be_huge & ((entries.raw & np.uint64(fmt.huge_leaf)) == np.uint64(fmt.huge_leaf))
    result: BoolArray = (small | huge) & ~hole_mask(entries, fmt)
    return result


def hole_mask(entries: LeafArrays, fmt: TableFormat = CPU) -> BoolArray:
    """Return for each entry whether it is empty, bool[n]; an entry that is neither leaf nor hole is a swap entry."""
    result: BoolArray = (entries.raw & np.uint64(~fmt.ignored & (1 << 64) - 1)) == 0
    return result


def only(entries: LeafArrays, which: BoolArray) -> LeafArrays:
    """Return the entries for which ``which`` is true."""
    return LeafArrays(entries.vaddr[which], entries.raw[which], entries.level[which])


def runs(
    entries: LeafArrays, layout: Layout, start: int, end: int, previous: LeafArrays | None = None
) -> Iterator[EntryRun]:
    """Yield the entries that :func:`entry_arrays` found in [start, end), with equal neighbours as one run.

    :param previous: the same range at the last look. Neighbours that changed differently are not equal.
    :raises UsageError: the last look was at another range.
    """
    if not len(entries.vaddr):
        return
    last_look = None if previous is None else _LastLook.of(entries, previous, layout.format)
    frames = pfns(entries, layout.format)
    for first, last in _alike(
        [*_columns(entries, layout.format), *(last_look.columns if last_look is not None else ())]
    ):
        entry = _entry(entries, first, layout)
        vaddr, over = int(entries.vaddr[first]), int(entries.vaddr[last - 1]) + entry.size_bytes
        if not entry.leaf:
            vaddr, over = max(vaddr, start), min(over, end)
        steps = np.diff(frames[first:last])
        consecutive = entry.leaf and bool((steps == np.uint64(entry.size_bytes >> PAGE_SHIFT)).all())
        before = last_look.before(first, layout) if last_look is not None else None
        yield EntryRun(vaddr, over, last - first, entry, consecutive, before)


def _alike(columns: Sequence[U64Array | BoolArray]) -> Iterator[tuple[int, int]]:
    """Yield each stretch in which no column changes: its first index, and one past its last."""
    breaks = np.zeros(len(columns[0]) - 1, np.bool_)
    for column in columns:
        breaks |= column[1:] != column[:-1]
    return itertools.pairwise([0, *(np.flatnonzero(breaks) + 1).tolist(), len(columns[0])])


def _entry(entries: LeafArrays, index: int, layout: Layout) -> Entry:
    return Entry(int(entries.raw[index]), Level(int(entries.level[index])), layout)


class _LastLook(NamedTuple):
    """What the last look at the same range found for each entry of this one."""

    entries: LeafArrays
    at: NDArray[np.intp]  # index of the entry that covered the same first byte
    changed: BoolArray  # whether it was different
    columns: tuple[U64Array | BoolArray, ...]  # neighbours that differ in one of these changed differently

    @classmethod
    def of(cls, entries: LeafArrays, previous: LeafArrays, fmt: TableFormat) -> _LastLook:
        """:raises UsageError: the last look was at another range."""
        at = _index_in(entries, previous)
        now, old = _columns(entries, fmt), _Columns(*(column[at] for column in _columns(previous, fmt)))
        moved = _moved(entries, previous, at, fmt)
        changed = moved | (now.kind != old.kind) | (now.level != old.level) | (now.bits != old.bits)
        return cls(previous, at, changed, (*old, moved, changed))

    def before(self, index: int, layout: Layout) -> Entry | None:
        """Return the entry at the last look; None if it was the same."""
        return _entry(self.entries, int(self.at[index]), layout) if self.changed[index] else None


def _columns(entries: LeafArrays, fmt: TableFormat) -> _Columns:
    is_leaf, is_hole = leaf_mask(entries, fmt), hole_mask(entries, fmt)
    kind = np.where(is_leaf, np.uint64(1), np.where(is_hole, np.uint64(0), np.uint64(2)))
    masks = np.zeros(len(Level) + 1, np.uint64)
    for level in Level:
        masks[level] = ~(PADDR_MASK & -level.size_bytes) & (1 << 64) - 1
    bits = np.where(is_leaf, entries.raw & masks[entries.level], np.uint64(0))
    return _Columns(kind, entries.level.astype(np.uint64), bits)


def _index_in(entries: LeafArrays, previous: LeafArrays) -> NDArray[np.intp]:
    """Return for each entry the index of the entry that covered its first byte at the last look."""
    at = np.searchsorted(previous.vaddr, entries.vaddr, side="right") - 1
    if not len(previous.vaddr) or int(at[0]) < 0:
        raise UsageError(
            f"the last look does not include {int(entries.vaddr[0]):#x}; compare two looks at the same range"
        )
    return at.astype(np.intp)


def _moved(entries: LeafArrays, previous: LeafArrays, at: NDArray[np.intp], fmt: TableFormat) -> BoolArray:
    """Return for each entry whether the leaf mapped another frame, or the swap entry differed, at the last look."""
    offset = (entries.vaddr - previous.vaddr[at]) >> np.uint64(PAGE_SHIFT)
    both = leaf_mask(entries, fmt) & leaf_mask(previous, fmt)[at]
    neither = ~leaf_mask(entries, fmt) & ~hole_mask(entries, fmt)
    elsewhere = both & (pfns(entries, fmt) != pfns(previous, fmt)[at] + offset)
    result: BoolArray = elsewhere | (neither & (entries.raw != previous.raw[at]))
    return result
