"""Tests for the tables of an Intel IOMMU: golden words, the way to a device's tables, and walks of random tables.

The positions in this file are written out by hand from the VT-d specification and drivers/iommu/intel, not taken from
the code.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UsageError
from harness.pagetable import (
    Entry,
    Kind,
    Layout,
    Level,
    PhysicalMemory,
    WalkError,
    entry_arrays,
    hole_mask,
    leaf_mask,
    pfns,
    walk,
    walk_range,
)
from harness.pagetable.vtd import Access, DeviceTables, SourceId, device_tables

SECOND, FIRST = Layout.SECOND_LEVEL, Layout.FIRST_LEVEL
THREE = dataclasses.replace(SECOND, three_level=True)
FIVE = dataclasses.replace(SECOND, five_level=True)
PAGE = 4096
DEVICE = SourceId(0, 0x28)  # 00:05.0
HIGH_DEVICE = SourceId(3, 0xA9)  # 03:15.1


@dataclass(frozen=True)
class Golden:
    """A leaf, and everything that it decodes to."""

    raw: int
    level: Level
    layout: Layout
    shown: str


LEAVES = [
    Golden(0x100000003, Level.PTE, THREE, "R W pfn=0x100000"),  # these three on Debian's 6.12.118, of QEMU's BAR
    Golden(0x100000083, Level.PMD, THREE, "R W PSE pfn=0x100000"),
    Golden(0x100000083, Level.PUD, THREE, "R W PSE pfn=0x100000"),
    Golden(0x380000881, Level.PMD, SECOND, "R PSE SNP pfn=0x380000"),
    Golden(0x5302, Level.PTE, FIVE, "W A D pfn=0x5"),
    Golden(0x4000000000005003, Level.PTE, SECOND, "R W unnamed=0x4000000000000000 pfn=0x5"),  # TM
    Golden(0x8000000000005067, Level.PTE, FIRST, "P W U A D NX pfn=0x5"),
    Golden(0x40000087, Level.PUD, FIRST, "P W U PSE pfn=0x40000"),
    Golden(0x201085, Level.PMD, FIRST, "P U PSE PAT pfn=0x200"),
    Golden(0x5485, Level.PTE, FIRST, "P U PAT unnamed=0x400 pfn=0x5"),  # EA
]


@pytest.mark.parametrize("golden", LEAVES, ids=lambda golden: f"{golden.raw:#x}-{golden.level.label}")
def test_leaf_golden(golden: Golden) -> None:
    entry = Entry(golden.raw, golden.level, golden.layout)
    assert entry.kind is Kind.LEAF
    assert str(entry) == f"{golden.level.label} {golden.raw:#018x} {golden.shown}"
    assert entry.size_bytes == PAGE << 9 * (golden.level - 1)


@pytest.mark.parametrize(
    ("raw", "level", "second", "first"),
    [
        (0, Level.PTE, Kind.NONE, Kind.NONE),
        (0x80, Level.PMD, Kind.NONE, Kind.NONE),  # a page size alone maps nothing
        (0x5000, Level.PTE, Kind.NONE, Kind.NONE),
        (0x5002, Level.PTE, Kind.LEAF, Kind.NONE),  # W without R is a mapping; W without P is none
        (0x5002, Level.PMD, Kind.TABLE, Kind.NONE),
        (0x5001, Level.PMD, Kind.TABLE, Kind.TABLE),
        (0x200082, Level.PMD, Kind.LEAF, Kind.NONE),
        (0x200081, Level.PMD, Kind.LEAF, Kind.LEAF),
        (0x5003, Level.PGD, Kind.TABLE, Kind.TABLE),
    ],
)
def test_kind_golden(raw: int, level: Level, second: Kind, first: Kind) -> None:
    assert Entry(raw, level, SECOND).kind is second
    assert Entry(raw, level, FIRST).kind is first


def test_the_depth_decides_how_wide_addresses_are() -> None:
    assert [layout.address_bits for layout in (THREE, SECOND, FIVE, FIRST)] == [39, 48, 57, 48]
    assert [layout.end for layout in (THREE, SECOND, FIVE, FIRST)] == [1 << 39, 1 << 48, 1 << 57, 1 << 47]
    assert [level.label for level in THREE.levels] == ["pud", "pmd", "pte"]
    assert THREE.is_canonical((1 << 39) - 1)
    assert not THREE.is_canonical(1 << 39)


@pytest.mark.parametrize("wrong", [{"format": FIRST.format}, {"five_level": True}, {"format": Layout.EPT.format}])
def test_only_the_second_level_has_three_levels(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="has four or five levels"):
        dataclasses.replace(THREE, **wrong)


# --- from the register to a device's tables ------------------------------------------------------


class Ram:
    """RAM of 64 pages, and a way to write words."""

    def __init__(self) -> None:
        self.bytes = bytearray(64 * PAGE)

    def store(self, paddr: int, *words: int) -> None:
        for number, word in enumerate(words):
            self.bytes[paddr + 8 * number : paddr + 8 * number + 8] = word.to_bytes(8, "little")

    def tables(self, rtaddr: int, device: SourceId = DEVICE) -> DeviceTables:
        return device_tables(PhysicalMemory(self.bytes), rtaddr, device)


def legacy(context_low: int = 0x3001, context_high: int = 0x101) -> Ram:
    """Root table at 0x1000, context table of bus 0 at 0x2000."""
    ram = Ram()
    ram.store(0x1000, 0x2001, 0)
    ram.store(0x2000 + 16 * 0x28, context_low, context_high)
    return ram


@pytest.mark.parametrize(("width", "layout"), [(1, THREE), (2, SECOND), (3, FIVE)])
def test_legacy_mode(width: int, layout: Layout) -> None:
    found = legacy(0x3001, 0x4500 | width).tables(0x1000)
    assert (found.access, found.root, found.layout) == (Access.TRANSLATED, 0x3000, layout)
    assert [str(step) for step in found.path] == [
        "root[0] 0x0000000000002001 0x0000000000000000",
        f"context[40] 0x0000000000003001 {0x4500 | width:#018x}",
    ]


def test_a_device_of_another_bus_has_its_own_context_table() -> None:
    ram = legacy()
    ram.store(0x1000 + 16 * 3, 0x5001, 0)
    ram.store(0x5000 + 16 * 0xA9, 0x6001, 2)
    assert ram.tables(0x1000, HIGH_DEVICE).root == 0x6000
    assert ram.tables(0x1000).root == 0x3000
    assert ram.tables(0x1000, SourceId(3, 0xAA)).access is Access.BLOCKED
    assert ram.tables(0x1000, SourceId(4, 0xA9)).access is Access.BLOCKED


def test_legacy_mode_without_tables() -> None:
    assert legacy(0x3000).tables(0x1000).access is Access.BLOCKED
    assert legacy(0x3009).tables(0x1000).access is Access.UNTRANSLATED
    assert legacy(0x3005).tables(0x1000).access is Access.TRANSLATED  # with a device TLB
    assert legacy().tables(0x1C00).access is Access.BLOCKED  # the IOMMU aborts everything
    assert legacy().tables(0x1C00).path == ()


def scalable(kind: int, *, high: bool = False, pasid: int = 0, width: int = 1, mode: int = 0) -> Ram:
    """Root table at 0x1000, context table at 0x2000, PASID directory at 0x3000, PASID table at 0x4000."""
    ram = Ram()
    device = HIGH_DEVICE if high else DEVICE
    ram.store(0x1000 + 16 * device.bus, *((0, 0x2001) if high else (0x2001, 0)))
    ram.store(0x2000 + 32 * (device.devfn % 128), 0x3001, pasid, 0, 0)
    ram.store(0x3000 + 8 * (pasid // 64), 0x4001)
    ram.store(0x4000 + 64 * (pasid % 64), 0x5001 | width << 2 | kind << 6, 0, 0x6000 | mode << 2)
    return ram


@pytest.mark.parametrize("high", [False, True])
@pytest.mark.parametrize("pasid", [0, 1, 130])
def test_scalable_mode(high: bool, pasid: int) -> None:
    device = HIGH_DEVICE if high else DEVICE
    found = scalable(2, high=high, pasid=pasid).tables(0x1400, device)
    assert (found.access, found.root, found.layout) == (Access.TRANSLATED, 0x5000, THREE)
    steps = [(step.table, step.index, len(step.raw)) for step in found.path]
    assert steps == [
        ("root", device.bus, 2),
        ("context", device.devfn % 128, 4),
        ("pasid-directory", pasid // 64, 1),
        ("pasid", pasid % 64, 8),
    ]
    first = scalable(1, high=high, pasid=pasid).tables(0x1400, device)
    assert (first.root, first.layout) == (0x6000, FIRST)


def test_scalable_mode_has_other_depths_and_kinds() -> None:
    assert scalable(2, width=3).tables(0x1400).layout == FIVE
    assert scalable(1, mode=1).tables(0x1400).layout == dataclasses.replace(FIRST, five_level=True)
    assert scalable(4).tables(0x1400).access is Access.UNTRANSLATED
    for paddr in (0x1000, 0x2000 + 32 * 0x28, 0x3000, 0x4000):
        ram = scalable(2)
        ram.store(paddr, 0)
        assert ram.tables(0x1400).access is Access.BLOCKED


@pytest.mark.parametrize(
    ("ram", "rtaddr", "words"),
    [
        (legacy(context_high=0), 0x1000, r"context\[40\] .*address width 0 is reserved"),
        (legacy(), 0x1800, "translation table mode 2 is reserved"),
        (legacy(), 0x7FFFF000, "root table at paddr 0x7ffff000 lies outside guest RAM"),
        (scalable(3), 0x1400, "nested translation, which is not walked"),
        (scalable(5), 0x1400, "a reserved type of translation"),
        (scalable(2, width=4), 0x1400, "address width 4 is reserved"),
        (scalable(1, mode=2), 0x1400, "first-level paging mode 2 is reserved"),
    ],
)
def test_what_makes_no_sense_is_an_error(ram: Ram, rtaddr: int, words: str) -> None:
    with pytest.raises(WalkError, match=words):
        ram.tables(rtaddr)


def test_a_device_has_a_name() -> None:
    assert SourceId.parse("0000:00:05.0") == DEVICE == SourceId.parse("00:05.0")
    assert SourceId.parse("03:15.1") == HIGH_DEVICE
    assert [str(one) for one in (DEVICE, HIGH_DEVICE)] == ["0000:00:05.0", "0000:03:15.1"]
    for wrong in ("5", "0001:00:05.0", "00:25.0", "00:05.8", ""):
        with pytest.raises(UsageError, match="not the address of a PCI device"):
            SourceId.parse(wrong)


# --- walks ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """An entry to put into the tables: where, at which level, and the word."""

    indices: tuple[int, ...]
    level: Level
    raw: int


words = st.one_of(
    st.sampled_from([0, 0x80, 0x1080, 0x5000]),
    st.integers(0, (1 << 34) - 1).map(lambda pfn: (pfn & ~0x3FFFF) << 12 | 0x83),
    st.integers(0, (1 << 34) - 1).map(lambda pfn: (pfn & ~0x3FFFF) << 12 | 0x885),
)
planned = st.builds(
    Planned,
    indices=st.tuples(*[st.sampled_from([0, 1, 255])] * 5),
    level=st.sampled_from([Level.PTE, Level.PMD, Level.PUD]),
    raw=words,
)


def tables(plans: list[Planned], layout: Layout) -> bytearray:
    """Return RAM with a root at 0x1000, and tables on the way to each entry."""
    ram = bytearray(80 * PAGE)
    free = 2 * PAGE
    for plan in plans:
        table = PAGE
        for level, index in zip(layout.levels, plan.indices, strict=False):
            at = table + 8 * index
            here = int.from_bytes(ram[at : at + 8], "little")
            if level == plan.level:
                if not here:
                    ram[at : at + 8] = plan.raw.to_bytes(8, "little")
                break
            if not here:
                here = free | 0x3
                ram[at : at + 8] = here.to_bytes(8, "little")
                free += PAGE
            elif here & 0xFFF != 0x3:
                break
            table = here & ~0xFFF
    return ram


@given(st.lists(planned, max_size=12), st.sampled_from([THREE, SECOND, FIVE, FIRST]))
def test_one_walk_and_the_walk_of_all_agree(plans: list[Planned], layout: Layout) -> None:
    memory = PhysicalMemory(tables(plans, layout))
    leaves = walk_range(memory, PAGE, 0, layout.end, layout)
    for leaf in leaves:
        assert walk(memory, PAGE, leaf.vaddr, layout).leaf == leaf
        assert walk(memory, PAGE, leaf.vaddr + leaf.size_bytes - 1, layout).leaf == leaf
    entries = entry_arrays(memory, PAGE, 0, layout.end, layout)
    kinds = [walk(memory, PAGE, vaddr, layout).terminal.kind for vaddr in entries.vaddr.tolist()]
    assert leaf_mask(entries, layout.format).tolist() == [kind is Kind.LEAF for kind in kinds]
    assert hole_mask(entries, layout.format).tolist() == [kind is Kind.NONE for kind in kinds]
    is_leaf = leaf_mask(entries, layout.format)
    assert entries.vaddr[is_leaf].tolist() == [leaf.vaddr for leaf in leaves]
    found = np.array([leaf.pfn for leaf in leaves], np.uint64)
    assert (pfns(entries, layout.format)[is_leaf] == found).all()
