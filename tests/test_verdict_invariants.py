"""Tests for the invariants: for each there are leaves that break only this one; good leaves break none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.pagetable import Entry, Layout, Leaf, Level, PagemapWord
from harness.verdict.invariants import (
    Area,
    Invariant,
    Violation,
    cache_violations,
    calibration_violations,
    pfnmap_violations,
)

P, W, U, PWT, PCD, A, D = (1 << bit for bit in range(7))
HUGE, PROTNONE, SPECIAL, SOFT_DIRTY = 1 << 7, 1 << 8, 1 << 9, 1 << 11
PAT_OF_PTE, PAT_OF_HUGE = 1 << 7, 1 << 12
SAVED_DIRTY, NX = 1 << 58, 1 << 63

BAR = 0x380000000
START = 0x7F4000000000
AREA = Area("child", "bar", START, START + (2 << 30), prot=3, bar_paddr=BAR)
HOLE, HOLE_OF_A_NEW_VMA = PagemapWord(0), PagemapWord(1 << 55)
PFN_MASK = (1 << 52) - 4096

GOOD = P | W | U | A | D | SPECIAL | NX
HUGE_FLAG = {Level.PTE: 0, Level.PMD: HUGE, Level.PUD: HUGE}


def leaf(flags: int, level: Level = Level.PTE, offset: int = 0, paddr: int | None = None) -> Leaf:
    """A leaf at a byte offset of the VMA. If it is not present, its address is stored inverted (L1TF)."""
    paddr = BAR + offset if paddr is None else paddr
    stored = paddr if flags & P else ~paddr & PFN_MASK & -level.size_bytes
    return Leaf(Entry(stored | flags | HUGE_FLAG[level], level, Layout.MODERN), START + offset)


def broken(one: Leaf, area: Area = AREA, *, saved_dirty: bool = True) -> list[str]:
    return [str(violation) for violation in pfnmap_violations(area, [one], [], saved_dirty)]


@pytest.mark.parametrize("level", [Level.PTE, Level.PMD, Level.PUD])
@pytest.mark.parametrize(
    "flags",
    [
        GOOD,
        GOOD & ~A,
        GOOD & ~D,
        GOOD & ~(W | D),
        GOOD & ~(W | D) | SAVED_DIRTY,
        PROTNONE | A | SPECIAL | NX,  # mprotect(PROT_NONE): no P, no U, by design
        GOOD | SOFT_DIRTY | PCD | PWT,
    ],
    ids=["written", "old", "clean", "read-only", "saved dirty", "prot_none", "uncached"],
)
def test_good_leaves_break_nothing(level: Level, flags: int) -> None:
    assert broken(leaf(flags, level)) == []
    assert broken(leaf(flags, level, offset=level.size_bytes)) == []


def test_good_pagemap_words_break_nothing() -> None:
    assert list(pfnmap_violations(AREA, [leaf(GOOD)], [HOLE, HOLE_OF_A_NEW_VMA] * 3, True)) == []


READ_ONLY = replace(AREA, prot=1)
SHORT = replace(AREA, end=START + (1 << 20))
MIDDLE = replace(AREA, start=START + 4096, bar_paddr=BAR + 4096)
W0_D1 = "W=0 with D=1 never: a shadow stack to the CPU"


@pytest.mark.parametrize(
    ("one", "area", "invariant"),
    [
        (leaf(GOOD & ~SPECIAL), AREA, "every leaf of a pfnmap is special"),
        (leaf(GOOD & ~SPECIAL, Level.PUD), AREA, "every leaf of a pfnmap is special"),
        (leaf(GOOD & ~U), AREA, "every leaf of a user mapping is reachable from user mode"),
        (leaf(GOOD, paddr=BAR + 4096), AREA, "pfn is BAR + offset"),
        (leaf(GOOD, offset=4096, paddr=BAR), AREA, "pfn is BAR + offset"),
        (leaf(GOOD, Level.PUD, paddr=BAR + (1 << 30)), AREA, "pfn is BAR + offset"),
        (leaf(PROTNONE | SPECIAL | NX, paddr=0), AREA, "pfn is BAR + offset"),
        (leaf(GOOD, Level.PMD), SHORT, "no leaf reaches past its vma"),
        (leaf(GOOD, Level.PMD), MIDDLE, "no leaf reaches past its vma"),
        (leaf(GOOD), READ_ONLY, "W only where the vma has it"),
        (leaf(GOOD & ~W), AREA, W0_D1),
        (leaf(GOOD & ~W, Level.PMD), AREA, W0_D1),
        (leaf(GOOD & ~W, Level.PUD), READ_ONLY, W0_D1),
        (leaf(GOOD & ~D | SAVED_DIRTY), AREA, "SAVED_DIRTY never with W=1"),
        (leaf(GOOD | SAVED_DIRTY, Level.PUD), AREA, "SAVED_DIRTY never with W=1"),
    ],
)
def test_a_bad_leaf_breaks_exactly_one(one: Leaf, area: Area, invariant: str) -> None:
    (message,) = broken(one, area)
    assert message.startswith(f"{invariant}: ")
    offset = max(one.vaddr - area.start, 0)
    assert f"child bar+{offset:#x}: {one.entry}" in message, "the message names the place and shows the entry"


def test_write_0_dirty_1_is_ordinary_before_saved_dirty() -> None:
    assert broken(leaf(GOOD & ~W), saved_dirty=False) == []


def test_a_message_has_what_was_expected() -> None:
    (message,) = broken(leaf(GOOD, offset=4096, paddr=BAR))
    assert f"expected pfn {(BAR + 4096) >> 12:#x}" in message
    (message,) = broken(leaf(GOOD, Level.PMD), SHORT)
    assert f"vma {START:#x}-{START + (1 << 20):#x}, leaf at {START:#x}" in message


def test_every_bad_leaf_is_reported() -> None:
    leaves = [leaf(GOOD, offset=0), leaf(GOOD & ~SPECIAL, offset=4096), leaf(GOOD & ~(SPECIAL | W), offset=8192)]
    found = list(pfnmap_violations(AREA, leaves, [], True))
    assert [violation.message.split("bar+")[1].split(":")[0] for violation in found] == ["0x1000", "0x2000", "0x2000"]


@pytest.mark.parametrize("word", [1 << 63 | 0x12345, 1 << 61, 1 << 62, 1 << 63 | 1 << 55])
def test_pagemap_that_shows_something_over_a_pfnmap(word: int) -> None:
    (found,) = pfnmap_violations(AREA, [leaf(GOOD)], [HOLE, PagemapWord(word), HOLE], True)
    assert found == Violation.of(Invariant.HOLE, AREA, f"child bar page 1: {PagemapWord(word)}")


# --- cache bits ----------------------------------------------------------------------------------

UNCACHED = PCD | PWT
CHILD, PARENT = AREA, replace(AREA, process="parent")


def test_the_same_cache_bits_at_every_level() -> None:
    same = [(PARENT, leaf(GOOD | PAT_OF_PTE)), (CHILD, leaf(GOOD | PAT_OF_HUGE, Level.PMD))]
    assert list(cache_violations(same)) == []
    assert list(cache_violations([(PARENT, leaf(GOOD | UNCACHED))])) == [], "a single leaf cannot be compared"
    assert list(cache_violations([])) == []


@pytest.mark.parametrize(
    ("flags", "level", "index"),
    [(GOOD | PCD, Level.PTE, 2), (GOOD | PAT_OF_PTE, Level.PTE, 4), (GOOD | PAT_OF_HUGE, Level.PUD, 4)],
)
def test_different_cache_bits_are_reported_with_a_place_that_has_the_usual_ones(
    flags: int, level: Level, index: int
) -> None:
    other = leaf(flags, level)
    usual = [(PARENT, leaf(GOOD | UNCACHED, offset=offset)) for offset in (4096, 8192)]
    (found,) = cache_violations([usual[0], (CHILD, other), usual[1]])
    assert (found.invariant, found.process) == (Invariant.CACHE_BITS, CHILD.process)
    assert found.message == (
        f"PAT index {index} at child bar+0x0: {other.entry}; PAT index 3 at parent bar+0x1000: {usual[0][1].entry}"
    )


# --- calibration ---------------------------------------------------------------------------------

MEMORY = Area("parent", "memory", START, START + (4 << 20), prot=3, bar_paddr=None)
RAM = 0x12345000
ANON = P | W | U | A | D | NX


def page(number: int, flags: int = ANON) -> Leaf:
    return leaf(flags, offset=number * 4096, paddr=RAM + number * 4096)


def word(number: int, *, soft_dirty: bool = False) -> PagemapWord:
    return PagemapWord(1 << 63 | soft_dirty << 55 | (RAM >> 12) + number)


def disagreements(leaves: list[Leaf], words: list[PagemapWord]) -> list[tuple[str, str]]:
    found = calibration_violations(MEMORY, leaves, words)
    return [(one.invariant.value, one.message.split(": ")[0]) for one in found]


def test_agreeing_witnesses() -> None:
    assert disagreements([page(0), page(2, ANON | SOFT_DIRTY)], [word(0), HOLE, word(2, soft_dirty=True)]) == []
    assert disagreements([], [HOLE, HOLE_OF_A_NEW_VMA]) == []
    assert disagreements([page(0)], [word(0, soft_dirty=True)]) == [], "pagemap reports a whole new VMA as soft-dirty"
    assert disagreements([page(0), page(1), page(2)], [word(0)]) == [], "pages without a pagemap word are not compared"


def test_a_huge_page_is_compared_page_by_page() -> None:
    huge = Leaf(Entry(0x40000000 | ANON | HUGE, Level.PMD, Layout.MODERN), START)
    behind = leaf(ANON, offset=2 << 20, paddr=RAM)
    words = [PagemapWord(1 << 63 | (0x40000000 >> 12) + number) for number in range(512)]
    words.append(PagemapWord(1 << 63 | RAM >> 12))
    assert disagreements([huge, behind], words) == []
    words[511], words[7] = words[7], words[511]
    pfn = "walk and pagemap agree on the pfn"
    assert disagreements([huge, behind], words) == [(pfn, "parent memory page 7"), (pfn, "parent memory page 511")]


@pytest.mark.parametrize(
    ("leaves", "words", "invariant", "place"),
    [
        ([page(0)], [HOLE], "walk and pagemap agree on present", "parent memory page 0"),
        ([], [word(0)], "walk and pagemap agree on present", "parent memory page 0"),
        ([page(0)], [word(0), word(1)], "walk and pagemap agree on present", "parent memory page 1"),
        ([page(1)], [HOLE, HOLE], "walk and pagemap agree on present", "parent memory page 1"),
        ([page(0)], [word(1)], "walk and pagemap agree on the pfn", "parent memory page 0"),
        ([page(0), page(1)], [word(0), word(0)], "walk and pagemap agree on the pfn", "parent memory page 1"),
        (
            [page(0, ANON | SOFT_DIRTY)],
            [word(0)],
            "a soft-dirty entry is soft-dirty in pagemap",
            "parent memory page 0",
        ),
    ],
)
def test_witnesses_that_disagree_on_one_property(
    leaves: list[Leaf], words: list[PagemapWord], invariant: str, place: str
) -> None:
    assert disagreements(leaves, words) == [(invariant, place)]


def test_a_disagreement_shows_both_words() -> None:
    (found,) = calibration_violations(MEMORY, [page(0)], [word(5)])
    assert str(word(5)) in found.message
    assert str(page(0).entry) in found.message
    (found,) = calibration_violations(MEMORY, [], [word(5)])
    assert found.message.endswith("walk a hole")
