"""Tests for the values of one stop: how a leaf is found, how a hole is shown, and how two kernels are compared."""

from __future__ import annotations

import re

import pytest

from harness.errors import ClaimFailed, UsageError
from harness.guest.protocol import MappingEvent
from harness.observe.snapshot import CALIBRATION_MAPPING, MappingView, ProcessView, Snapshot
from harness.pagetable import Entry, Layout, Leaf, Level, PagemapWord, PhysicalMemory, Region, Walk, walk
from tests.hand_made_guest import BAR, BAR_VADDR, HUGE, PAGE, SPECIAL, Guest

PMD_BYTES = 2 << 20
FLAGS = 0x8000000000000067 | SPECIAL
VMA_BYTES = 4 * PMD_BYTES
ORDINARY = Region("bar0", 0xFEBD0000, 16384)


def small(offset: int) -> Leaf:
    """A pte of the BAR, at an offset of the mapping that equals its offset in the BAR."""
    return Leaf(Entry(BAR.start_paddr + offset | FLAGS, Level.PTE, Layout.MODERN), BAR_VADDR + offset)


def large(offset: int) -> Leaf:
    return Leaf(Entry(BAR.start_paddr + offset | FLAGS | HUGE, Level.PMD, Layout.MODERN), BAR_VADDR + offset)


def hole(offset: int, *, table: bool = True) -> Walk:
    """A walk that ends at an empty entry, in a pmd table or in the top-level table."""
    guest = Guest()
    root = guest.page()
    if table:
        guest.map(root, BAR_VADDR, 0, Level.PMD)
    return walk(PhysicalMemory(guest.ram), root, BAR_VADDR + offset, Layout.MODERN)


def view(*leaves: Leaf, words: tuple[int, ...] = (), start: int = BAR_VADDR, broken: str = "") -> MappingView:
    declared = MappingEvent("bar", 77, start, VMA_BYTES, 3, "bar", 0)
    return MappingView(declared, leaves, tuple(PagemapWord(word) for word in words), broken)


def stop(name: str, seen: MappingView, *holes: Walk) -> Snapshot:
    parent = ProcessView("parent", 77, "mapped", {name: seen}, {name: holes} if holes else {})
    return Snapshot("mapped", 77, {"parent": parent}, (ORDINARY, BAR))


def test_a_leaf_is_found_by_any_byte_that_it_maps() -> None:
    seen = view(small(0), large(PMD_BYTES))
    parent = stop("bar", seen)["parent"]
    assert seen.end == BAR_VADDR + VMA_BYTES
    assert parent.leaves("bar") == (small(0), large(PMD_BYTES))
    assert parent.leaf("bar") == parent.leaf("bar", PAGE - 1) == small(0)
    assert parent.leaf("bar", PMD_BYTES) == parent.leaf("bar", 2 * PMD_BYTES - 1) == large(PMD_BYTES)
    assert [parent.find_leaf("bar", offset) for offset in (PAGE, PMD_BYTES - 1, 2 * PMD_BYTES)] == [None] * 3
    assert repr(parent) == "<parent (pid 77) at 'mapped'>"


def test_an_unmapped_offset_shows_the_walk_to_the_nearest_hole_before_it() -> None:
    seen = view(small(0), large(2 * PMD_BYTES))
    parent = stop("bar", seen, hole(PAGE), hole(3 * PMD_BYTES))["parent"]
    for offset, nearest in ((PAGE, PAGE), (PMD_BYTES, PAGE), (3 * PMD_BYTES, 3 * PMD_BYTES)):
        with pytest.raises(ClaimFailed) as caught:
            parent.leaf("bar", offset)
        assert str(caught.value) == f"parent has no entry for bar+{offset:#x} at 'mapped'\n{hole(nearest)}"
    with pytest.raises(ClaimFailed, match=re.escape("bar+0x1000 at 'mapped'") + "$"):
        stop("bar", seen)["parent"].leaf("bar", PAGE)


def test_an_empty_top_level_hints_at_a_process_that_has_exited() -> None:
    parent = stop("bar", view(), hole(0, table=False))["parent"]
    with pytest.raises(
        ClaimFailed, match="nothing is mapped near it, so the process has probably exited; let it wait at a gate"
    ):
        parent.leaf("bar")


def test_tables_that_cannot_be_walked_have_a_reason() -> None:
    parent = stop("bar", view(broken="a table lies outside RAM"), hole(0))["parent"]
    with pytest.raises(ClaimFailed, match=r"bar\+0x0 at 'mapped': a table lies outside RAM$"):
        parent.leaf("bar")


def test_a_bar_by_its_name() -> None:
    at = stop("bar", view())
    assert (at.bar("bar"), at.bar("bar0")) == (BAR, ORDINARY)
    with pytest.raises(UsageError, match=r"the device has no BAR 'bar3'; expected one of \['bar0', 'bar'\]"):
        at.bar("bar3")


def test_observations_are_relative_to_the_mapping_and_to_the_bar() -> None:
    seen = view(small(PAGE), large(PMD_BYTES), words=(0, 1 << 63))
    found = stop("bar", seen, hole(2 * PMD_BYTES), hole(0)).observations()
    assert [(one.offset, one.level, one.pfn, one.pagemap) for one in found] == [
        (0, "none", "", 0),
        (PAGE, "pte", "bar+0x1000", 1 << 63),
        (PMD_BYTES, "pmd", "bar+0x200000", None),
        (2 * PMD_BYTES, "none", "", None),
    ]
    assert [(one.checkpoint, one.process, one.mapping) for one in found] == [("mapped", "parent", "bar")] * 4
    assert (found[1].raw, found[1].bits) == (small(PAGE).raw, small(PAGE).bits.names())
    assert (found[0].raw, found[0].bits) == (0, ())


def test_a_leaf_that_begins_before_its_mapping_is_shown_at_the_mappings_first_byte() -> None:
    """mremap() or MAP_FIXED has cut the mapping out of a huge one, and the huge entry is still there."""
    inner = view(large(0), start=BAR_VADDR + 5 * PAGE)
    (found,) = stop("bar", inner).observations()
    assert (found.offset, found.level, found.pfn) == (0, "pmd", f"bar+{5 * PAGE:#x}")


def test_the_calibration_page_is_left_out() -> None:
    assert stop(CALIBRATION_MAPPING, view(small(0))).observations() == ()
