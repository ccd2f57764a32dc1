"""Tests for runs: equal neighbours are joined, and no change is hidden."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import pagetable
from harness.errors import UsageError
from harness.pagetable import Bits, Entry, EntryRun, Kind, Layout, LeafArrays, Level, hole_mask, leaf_mask, runs
from harness.pagetable.entry import kind_of

FOUR = Layout.MODERN
PAGE, HUGE = 4096, 2 << 20
RW, RO = 0x8000000000000067, 0x8000000000000025


def test_no_module_hides_a_name_that_is_imported_late() -> None:
    """A module that is imported becomes an attribute of its package, in the place of whatever has its name."""
    for module in pkgutil.iter_modules(pagetable.__path__):
        importlib.import_module(f"harness.pagetable.{module.name}")
    hidden = [name for name in pagetable.__all__ if isinstance(getattr(pagetable, name), ModuleType)]
    assert hidden == []


def arrays(*entries: tuple[int, int, Level]) -> LeafArrays:
    vaddr, raw, level = zip(*entries, strict=True)
    return LeafArrays(np.array(vaddr, np.uint64), np.array(raw, np.uint64), np.array(level, np.uint8))


def ptes(*raws: int, start: int = 0) -> LeafArrays:
    return arrays(*((start + index * PAGE, raw, Level.PTE) for index, raw in enumerate(raws)))


def look(now: LeafArrays, previous: LeafArrays | None = None, end: int | None = None) -> list[EntryRun]:
    last = int(now.vaddr[-1]) + (1 << FOUR.shift(Level(int(now.level[-1]))))
    return list(runs(now, FOUR, int(now.vaddr[0]), end or last, previous))


def test_equal_neighbours_are_one_run() -> None:
    found = look(ptes(RW | 0x5000, RW | 0x6000, RW | 0x9000, RO | 0xA000, RO | 0xB000, 0, 0, 0x1E, 0x2E))
    assert [(run.vaddr // PAGE, run.end // PAGE, run.count) for run in found] == [
        (0, 3, 3),
        (3, 5, 2),
        (5, 7, 2),
        (7, 9, 2),
    ]
    assert [run.entry.kind for run in found] == [Kind.LEAF, Kind.LEAF, Kind.NONE, Kind.SWAP]
    assert [run.consecutive for run in found] == [False, True, False, False]
    assert [run.before for run in found] == [None] * 4


def test_levels_are_not_mixed_and_edges_cut_holes_only() -> None:
    now = arrays((0, 0xE7 | 2 << 21, Level.PMD), (HUGE, 0, Level.PMD), (2 * HUGE, 0, Level.PTE))
    found = list(runs(now, FOUR, PAGE, 2 * HUGE + PAGE, None))
    assert [(run.vaddr, run.end) for run in found] == [(0, HUGE), (HUGE, 2 * HUGE), (2 * HUGE, 2 * HUGE + PAGE)]
    clipped = list(runs(arrays((0, 0, Level.PUD)), FOUR, PAGE, 3 * PAGE))
    assert [(run.vaddr, run.end) for run in clipped] == [(PAGE, 3 * PAGE)]


def test_a_change_of_bits_is_marked_and_splits_a_run() -> None:
    before = ptes(*[RW | 0x5000 + index * PAGE for index in range(4)])
    now = ptes(RW | 0x5000, RO | 0x6000, RO | 0x7000, RW | 0x8000)
    found = look(now, before)
    assert [(run.count, run.appeared, run.vanished) for run in found] == [
        (1, Bits(0), Bits(0)),
        (2, Bits(0), Bits.W | Bits.D),
        (1, Bits(0), Bits(0)),
    ]
    back = look(before, now)
    assert back[1].appeared == Bits.W | Bits.D


def test_a_moved_page_is_a_change_without_bits() -> None:
    found = look(ptes(RW | 0x5000, RW | 0x9000), ptes(RW | 0x5000, RW | 0x6000))
    assert [run.before for run in found] == [None, Entry(RW | 0x6000, Level.PTE, FOUR)]
    assert found[1].appeared == found[1].vanished == Bits(0)
    moved_swap = look(ptes(0x1E), ptes(0x2E))
    assert moved_swap[0].before == Entry(0x2E, Level.PTE, FOUR)


def test_a_split_keeps_the_pages_and_a_collapse_is_marked() -> None:
    huge = arrays((0, RW | 0x80 | 3 << 21, Level.PMD))
    small = ptes(*[RW | (3 << 21) + index * PAGE for index in range(512)])
    split = look(small, huge)
    assert [(run.count, run.before is not None and run.before.level) for run in split] == [(512, Level.PMD)]
    assert split[0].vanished == Bits.PSE
    collapsed = look(huge, small)
    assert [(run.count, run.before is not None and run.before.level) for run in collapsed] == [(1, Level.PTE)]


def test_another_range_is_refused() -> None:
    with pytest.raises(UsageError, match="same range"):
        look(ptes(RW), ptes(RW, start=PAGE))


words = st.one_of(st.just(0), st.sampled_from([RW, RO, 0x1E, 0x60, RW | 0x80]), st.integers(0, (1 << 64) - 1))


@settings(max_examples=120)
@given(st.lists(words, min_size=1, max_size=24), st.lists(words, min_size=24, max_size=24), st.sampled_from([1, 2, 3]))
def test_runs_cover_everything_and_hide_no_change(now: list[int], old: list[int], level_number: int) -> None:
    level = Level(level_number)
    pairs = [(one, two) for one, two in zip(now, old[: len(now)], strict=True) if not is_table(one, two, level)]
    if not pairs:
        return
    size_bytes = level.size_bytes
    current = arrays(*((index * size_bytes, one, level) for index, (one, _) in enumerate(pairs)))
    previous = arrays(*((index * size_bytes, two, level) for index, (_, two) in enumerate(pairs)))
    kinds = [kind_of(one, level) for one, _ in pairs]
    assert leaf_mask(current).tolist() == [kind is Kind.LEAF for kind in kinds]
    assert hole_mask(current).tolist() == [kind is Kind.NONE for kind in kinds]
    found = look(current, previous)
    assert sum(run.count for run in found) == len(pairs)
    for run in found:
        for index in range(run.vaddr // size_bytes, run.end // size_bytes):
            one, two = (Entry(raw, level, FOUR) for raw in pairs[index])
            assert (one.kind, one.bits, one.pkey) == (run.entry.kind, run.entry.bits, run.entry.pkey)
            same = one.kind is two.kind and (one.none or one.raw == two.raw)
            assert (run.before is None) == same
            if run.before is not None:
                assert run.before.bits == two.bits


def is_table(one: int, two: int, level: Level) -> bool:
    return Kind.TABLE in (kind_of(one, level), kind_of(two, level))


def test_a_range_without_entries_has_no_runs() -> None:
    none = LeafArrays(np.zeros(0, np.uint64), np.zeros(0, np.uint64), np.zeros(0, np.uint8))
    assert list(runs(none, FOUR, 0, 0)) == []
    assert list(runs(none, FOUR, 0, 0, none)) == []
