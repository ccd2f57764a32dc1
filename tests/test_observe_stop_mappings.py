"""Tests for the checks of each mapping at a stop: its offset in the BAR, its protection, and its pagemap words."""

from __future__ import annotations

import pytest

from harness.guest.protocol import MappingEvent
from harness.observe.snapshot import CALIBRATION_MAPPING, MappingView, ProcessView, Snapshot
from harness.observe.stop_checks import violations_at
from harness.pagetable import Entry, Layout, Leaf, Level, PagemapWord, Region
from harness.verdict.invariants import Invariant
from tests.hand_made_guest import PAGE

START = 0x7F4000000000
BARS = (Region("bar0", 0xFEBD0000, 16384), Region("bar", 0x380000000, 1 << 30))
SOUND = 0x8000000000000237  # P W U PCD A SPECIAL NX
ANONYMOUS = 0x8000000000000867  # P W U A D SOFT_DIRTY NX
PRESENT = 1 << 63
PWT = 1 << 3
RAM = 0x5000


def leaf(raw: int, page: int = 0) -> Leaf:
    return Leaf(Entry(raw, Level.PTE, Layout.MODERN), START + page * PAGE)


def mapping(
    *leaves: Leaf, backing: str = "bar", offset: int = 0, prot: int = 3, pages: int = 1, words: tuple[int, ...] = ()
) -> MappingView:
    declared = MappingEvent("m", 1, START, pages * PAGE, prot, backing, offset)
    return MappingView(declared, leaves, tuple(PagemapWord(word) for word in words))


def broken(view: MappingView, *, name: str = "m", pid: int = 1, saved_dirty: bool = True) -> list[Invariant]:
    """Return the violated invariants at a stop of process 1 with this one mapping."""
    one = ProcessView("p", pid, "mapped", {name: view}, {})
    found = violations_at(Snapshot("mapped", 1, {"p": one}, BARS), saved_dirty)
    assert all(violation.mapping == name for violation in found)
    return [violation.invariant for violation in found]


@pytest.mark.parametrize(
    ("backing", "offset", "paddr", "holds"),
    [
        ("bar", 0, 0x380000000, True),
        ("bar", 0, 0x380001000, False),
        ("bar", PAGE, 0x380001000, True),
        ("bar", PAGE, 0x380000000, False),
        ("bar0", 2 * PAGE, 0xFEBD2000, True),
        ("bar0", 0, 0x380000000, False),
    ],
)
def test_a_pfn_must_match_the_bar_and_the_offset(backing: str, offset: int, paddr: int, holds: bool) -> None:
    found = broken(mapping(leaf(paddr | SOUND), backing=backing, offset=offset))
    assert found == ([] if holds else [Invariant.BAR_PFN])


def test_a_leaf_must_match_the_end_and_the_protection_of_its_mapping() -> None:
    bar = BARS[1].start_paddr
    assert broken(mapping(leaf(bar | SOUND), leaf(bar + PAGE | SOUND, 1))) == [Invariant.INSIDE]
    assert broken(mapping(leaf(bar | SOUND), leaf(bar + PAGE | SOUND, 1), pages=2)) == []
    assert broken(mapping(leaf(bar | SOUND), prot=1)) == [Invariant.WRITE]
    assert broken(mapping(leaf(bar | SOUND & ~2), prot=1)) == []


@pytest.mark.parametrize(("saved_dirty", "found"), [(True, [Invariant.SHADOW_STACK]), (False, [])])
def test_shadow_stacks_are_checked_if_the_kernel_has_saved_dirty(saved_dirty: bool, found: list[Invariant]) -> None:
    dirty = leaf(BARS[1].start_paddr | SOUND & ~2 | 0x40)
    assert broken(mapping(dirty), saved_dirty=saved_dirty) == found


def test_pagemap_shows_a_hole_over_a_bar_and_not_over_memory() -> None:
    bar = leaf(BARS[1].start_paddr | SOUND)
    assert broken(mapping(bar, words=(0,))) == []
    assert broken(mapping(bar, words=(PRESENT | BARS[1].start_paddr // PAGE,))) == [Invariant.HOLE]
    assert broken(mapping(bar, words=(PRESENT,)), pid=2) == [Invariant.HOLE]
    assert broken(mapping(backing="ram", words=(0,))) == []


@pytest.mark.parametrize(
    ("name", "pid", "compared"),
    [("m", 1, True), ("m", 2, False), (CALIBRATION_MAPPING, 1, True), (CALIBRATION_MAPPING, 2, True)],
)
def test_ordinary_memory_is_compared_only_if_it_is_not_used_any_more(name: str, pid: int, compared: bool) -> None:
    page = leaf(RAM | ANONYMOUS)
    soft_dirty = 1 << 55
    assert broken(mapping(page, backing="ram", words=(PRESENT | soft_dirty | 5,)), name=name, pid=pid) == []
    for words, found in (((0,), Invariant.PRESENT), ((PRESENT | soft_dirty | 6,), Invariant.SAME_PFN)):
        seen = broken(mapping(page, backing="ram", words=words), name=name, pid=pid)
        assert seen == ([found] if compared else [])


def test_tables_that_cannot_be_walked_are_a_violation() -> None:
    declared = MappingEvent("m", 1, START, PAGE, 3, "bar", 0)
    assert broken(MappingView(declared, (), (), "a table lies outside RAM")) == [Invariant.WALKABLE]


def test_the_cache_bits_of_ordinary_memory_are_not_compared() -> None:
    bar, ram = leaf(BARS[1].start_paddr | SOUND), leaf(RAM | ANONYMOUS, 1)
    views = {"bar": mapping(bar), "ram": mapping(ram, backing="ram", words=(0,))}
    at = Snapshot("mapped", 1, {"p": ProcessView("p", 2, "mapped", views, {})}, BARS)
    assert violations_at(at, True) == []
    views["other"] = mapping(leaf(BARS[1].start_paddr | SOUND | PWT))
    at = Snapshot("mapped", 1, {"p": ProcessView("p", 2, "mapped", views, {})}, BARS)
    assert [one.invariant for one in violations_at(at, True)] == [Invariant.CACHE_BITS]
