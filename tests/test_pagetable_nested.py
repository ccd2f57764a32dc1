"""Tests for the tables that KVM writes: NPT and EPT. Golden words, and walks of random tables.

The positions in this file are written out by hand from the manuals and arch/x86/kvm/mmu/spte.h, not taken from the
code.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    entry_arrays,
    hole_mask,
    leaf_mask,
    pfns,
    walk,
    walk_range,
)

NPT, EPT = Layout.NPT, Layout.EPT
PAGE = 4096
ROOT = 0x1000
EMPTY = 1 << 63  # SHADOW_NONPRESENT_VALUE
FROZEN = EMPTY | 0x5A0


@dataclass(frozen=True)
class Golden:
    """A leaf, and everything that it decodes to."""

    what: str
    raw: int
    level: Level
    layout: Layout
    shown: str


LEAVES = [
    Golden(
        "read",
        0x0000380000001E27,
        Level.PTE,
        NPT,
        "P W U A HOST_WRITABLE MMU_WRITABLE MMU_PRESENT pfn=0x380000001",
    ),
    Golden(
        "written",
        0x0000380000200EE7,
        Level.PMD,
        NPT,
        "P W U A D PSE HOST_WRITABLE MMU_WRITABLE MMU_PRESENT pfn=0x380000200",
    ),
    Golden(
        "read-only",
        0x80003800400008A5,
        Level.PUD,
        NPT,
        "P U A PSE MMU_PRESENT NX pfn=0x380040000",
    ),
    Golden("with PAT", 0x8E7, Level.PTE, NPT, "P W U A D PAT MMU_PRESENT pfn=0x0"),
    Golden(
        "A/D disabled",
        0x0010000000001827,
        Level.PTE,
        NPT,
        "P W U A MMU_PRESENT unnamed=0x10000000000000 pfn=0x1",
    ),
    Golden(
        "read",
        0x0600380000001907,
        Level.PTE,
        EPT,
        "R W X A HOST_WRITABLE MMU_WRITABLE MMU_PRESENT memory-type=UC pfn=0x380000001",
    ),
    Golden(
        "written",
        0x0600380000200BF7,
        Level.PMD,
        EPT,
        "R W X A D PSE IPAT HOST_WRITABLE MMU_WRITABLE MMU_PRESENT memory-type=WB pfn=0x380000200",
    ),
    Golden(
        "read-only",
        0x80003800400009A5,
        Level.PUD,
        EPT,
        "R X A PSE MMU_PRESENT SUPPRESS_VE memory-type=WT pfn=0x380040000",
    ),
    Golden("tracked without A", 0x0800, Level.PTE, EPT, "MMU_PRESENT memory-type=UC pfn=0x0"),
]


@pytest.mark.parametrize("golden", LEAVES, ids=lambda golden: f"{golden.what}-{golden.layout.format.name}")
def test_leaf_golden(golden: Golden) -> None:
    entry = Entry(golden.raw, golden.level, golden.layout)
    assert entry.kind is Kind.LEAF
    assert str(entry).startswith(f"{golden.level.label} {golden.raw:#018x} ")
    assert sorted(str(entry).split()[2:]) == sorted(golden.shown.split())
    assert entry.size_bytes == PAGE << 9 * (golden.level - 1)


@pytest.mark.parametrize(
    ("raw", "level", "kind"),
    [
        (0, Level.PTE, Kind.NONE),
        (EMPTY, Level.PTE, Kind.NONE),  # since 6.10, in every format
        (EMPTY, Level.PMD, Kind.NONE),
        (FROZEN, Level.PTE, Kind.SWAP),
        (FROZEN, Level.PMD, Kind.SWAP),  # has PSE
        (0x0008000000000007 | 1 << 12, Level.PTE, Kind.SWAP),  # MMIO with NPT: P, and bit 51, which is reserved
        (0x6, Level.PTE, Kind.SWAP),  # MMIO with EPT: W and X without R
        (0x1827, Level.PMD, Kind.TABLE),
        (0x1827, Level.PGD, Kind.TABLE),
        (0x1827, Level.PTE, Kind.LEAF),
        (0x18A7, Level.PMD, Kind.LEAF),
    ],
)
def test_kind_golden(raw: int, level: Level, kind: Kind) -> None:
    for layout in (NPT, EPT):
        assert Entry(raw, level, layout).kind is kind


def test_the_hardware_uses_an_ept_entry_with_any_right() -> None:
    assert not Entry(0x800, Level.PTE, EPT).hardware_present
    assert all(Entry(0x800 | right, Level.PTE, EPT).hardware_present for right in (1, 2, 4))
    assert not Entry(0x802, Level.PTE, NPT).hardware_present
    assert Entry(0x801, Level.PTE, NPT).hardware_present


def test_the_bits_of_an_ept_leaf_have_its_own_places() -> None:
    for position, fact in ((1, "write"), (8, "young"), (9, "dirty")):
        entry = Entry(0x801 | 1 << position, Level.PTE, EPT)
        assert getattr(entry, fact), fact
        assert not getattr(Entry(0x801, Level.PTE, EPT), fact), fact
    assert not Entry(0x861, Level.PTE, EPT).young  # bits 5 and 6 are memory type and IPAT
    assert not Entry(0x861, Level.PTE, EPT).dirty


def test_the_pfn_of_a_leaf_without_rights_is_not_inverted() -> None:
    for layout in (NPT, EPT):
        assert Entry(0x12345800, Level.PTE, layout).pfn == 0x12345


def test_a_guest_physical_address_has_no_sign() -> None:
    memory = PhysicalMemory(bytes(2 * PAGE))
    assert walk(memory, ROOT, (1 << 48) - PAGE, NPT).hole
    with pytest.raises(UsageError, match="not a canonical"):
        walk(memory, ROOT, 1 << 48, NPT)
    with pytest.raises(UsageError, match="not a canonical"):
        walk(memory, ROOT, (1 << 64) - PAGE, NPT)


def test_a_nested_layout_has_no_software_bits_of_a_process() -> None:
    with pytest.raises(UsageError, match=r"start from Layout\.NPT"):
        Layout(format=NPT.format)


@dataclass(frozen=True)
class Planned:
    """An entry to put into the tables: where, at which level, and the word."""

    indices: tuple[int, int, int, int]
    level: Level
    raw: int


words = st.one_of(
    st.sampled_from([0, EMPTY, FROZEN, 0x0008000000001007, 0x6]),
    st.integers(0, (1 << 40) - 1).map(lambda pfn: (pfn & ~0x3FFFF) << 12 | 0x8A7),
    st.integers(0, (1 << 40) - 1).map(lambda pfn: (pfn & ~0x3FFFF) << 12 | 0x9F7 | 1 << 63),
)
planned = st.builds(
    Planned,
    indices=st.tuples(*[st.sampled_from([0, 1, 256, 511])] * 4),
    level=st.sampled_from([Level.PTE, Level.PMD, Level.PUD]),
    raw=words,
)


def tables(plans: list[Planned]) -> bytearray:
    """Return RAM with a root, and tables on the way to each entry."""
    ram = bytearray(64 * PAGE)
    free = ROOT + PAGE
    for plan in plans:
        table = ROOT
        for step, index in enumerate(plan.indices):
            at, level = table + 8 * index, 4 - step
            here = int.from_bytes(ram[at : at + 8], "little")
            if level == plan.level:
                if not here:
                    ram[at : at + 8] = plan.raw.to_bytes(8, "little")
                break
            if not here:
                here = free | 0x827
                ram[at : at + 8] = here.to_bytes(8, "little")
                free += PAGE
            elif here & 0xFFF != 0x827:
                break
            table = here & ~0xFFF
    return ram


@given(st.lists(planned, max_size=12), st.sampled_from([NPT, EPT]))
def test_one_walk_and_the_walk_of_all_agree(plans: list[Planned], layout: Layout) -> None:
    memory = PhysicalMemory(tables(plans))
    end = 1 << 48
    leaves = walk_range(memory, ROOT, 0, end, layout)
    assert [leaf.vaddr for leaf in leaves] == sorted(leaf.vaddr for leaf in leaves)
    for leaf in leaves:
        assert walk(memory, ROOT, leaf.vaddr, layout).leaf == leaf
        assert walk(memory, ROOT, leaf.vaddr + leaf.size_bytes - 1, layout).leaf == leaf
    entries = entry_arrays(memory, ROOT, 0, end, layout)
    kinds = [walk(memory, ROOT, vaddr, layout).terminal.kind for vaddr in entries.vaddr.tolist()]
    assert leaf_mask(entries, layout.format).tolist() == [kind is Kind.LEAF for kind in kinds]
    assert hole_mask(entries, layout.format).tolist() == [kind is Kind.NONE for kind in kinds]
    assert (
        sum(
            Entry(raw, Level(level), layout).size_bytes
            for raw, level in zip(entries.raw.tolist(), entries.level.tolist(), strict=True)
        )
        == end
    )
    found = np.array([leaf.pfn for leaf in leaves], np.uint64)
    is_leaf = leaf_mask(entries, layout.format)
    assert (pfns(entries, layout.format)[is_leaf] == found).all()
