"""Tests for decoding entries as the CPU and the kernel do: golden words for each level and layout.

The positions in this file are written out by hand from the SDM and asm/pgtable_types.h, not taken from the code.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UsageError
from harness.pagetable import Bits, Entry, Kind, Layout, Level

MODERN, CLASSIC, NO_DEVMAP = Layout.MODERN, Layout.CLASSIC, Layout.NO_DEVMAP
NOPTI = Layout(nopti_shadow=True)


@dataclass(frozen=True)
class Golden:
    """A word, and everything that it decodes to."""

    what: str
    raw: int
    level: Level
    layout: Layout
    names: str
    pfn: int
    cache: int = 2  # UC-, what vfio maps a BAR as


LEAVES = [
    Golden("bar, first read", 0x8000380000001237, Level.PTE, MODERN, "P W U PCD A SPECIAL NX", 0x380000001),
    Golden("bar, first read", 0x80003800002002B7, Level.PMD, MODERN, "P W U PCD A PSE SPECIAL NX", 0x380000200),
    Golden("bar, first read", 0x80003800400002B7, Level.PUD, MODERN, "P W U PCD A PSE SPECIAL NX", 0x380040000),
    Golden("bar, written", 0x80003800400002F7, Level.PUD, MODERN, "P W U PCD A D PSE SPECIAL NX", 0x380040000),
    Golden("bar, forked child", 0x80003800400002D7, Level.PUD, MODERN, "P W U PCD D PSE SPECIAL NX", 0x380040000),
    Golden(
        "bar, mprotect RO", 0x84003800400002B5, Level.PUD, MODERN, "P U PCD A PSE SPECIAL SAVED_DIRTY NX", 0x380040000
    ),
    Golden("bar, mprotect RO on 6.1", 0x8000380000001275, Level.PTE, CLASSIC, "P U PCD A D SPECIAL NX", 0x380000001),
    Golden("bar, PROT_NONE", 0x000FC7FFFFFFE330, Level.PTE, MODERN, "PCD A PROTNONE SPECIAL", 0x380000001),
    Golden("bar, PROT_NONE", 0x000FC7FFFFE003B0, Level.PMD, MODERN, "PCD A PSE PROTNONE SPECIAL", 0x380000000),
    Golden("bar, PROT_NONE", 0x000FC7FF800003B0, Level.PUD, MODERN, "PCD A PSE PROTNONE SPECIAL", 0x380040000),
    Golden("6.1, bit 58", 0x8400000012345267, Level.PTE, CLASSIC, "P W U A D SPECIAL DEVMAP NX", 0x12345, 0),
    Golden("6.12, bit 58", 0x8400000012345265, Level.PTE, MODERN, "P U A D SPECIAL SAVED_DIRTY NX", 0x12345, 0),
    Golden("6.12, bit 57", 0x8200000012345267, Level.PTE, MODERN, "P W U A D SPECIAL DEVMAP NX", 0x12345, 0),
    Golden("6.17, bit 57", 0x8200000012345267, Level.PTE, NO_DEVMAP, "P W U A D SPECIAL NX", 0x12345, 0),
    Golden("6.17, bit 58", 0x8400000012345265, Level.PTE, NO_DEVMAP, "P U A D SPECIAL SAVED_DIRTY NX", 0x12345, 0),
    Golden("write-through: PAT", 0x80000000123452BF, Level.PTE, MODERN, "P W U PWT PCD A PAT SPECIAL NX", 0x12345, 7),
    Golden("PAT_LARGE", 0x80000000122012BF, Level.PMD, MODERN, "P W U PWT PCD A PSE PAT SPECIAL NX", 0x12200, 7),
    Golden("PAT_LARGE alone", 0x80000000400010A7, Level.PUD, MODERN, "P W U A PSE PAT NX", 0x40000, 4),
    Golden("PWT alone", 0x800000001234502F, Level.PTE, MODERN, "P W U PWT A NX", 0x12345, 1),
    Golden("anonymous, soft-dirty", 0x8000000012345867, Level.PTE, MODERN, "P W U A D SOFT_DIRTY NX", 0x12345, 0),
    Golden("userfaultfd", 0x8400000012345425, Level.PTE, MODERN, "P U A UFFD_WP SAVED_DIRTY NX", 0x12345, 0),
    Golden("kernel text", 0x00000000010001E1, Level.PMD, MODERN, "P A D PSE G", 0x1000, 0),
    Golden("parked by pmdp_invalidate", 0x000FFFFFBFE000E6, Level.PMD, MODERN, "W U A D PSE", 0x40000, 0),
    Golden("at the top of the address", 0x800FFFFFFFFFF067, Level.PTE, MODERN, "P W U A D NX", 0xFFFFFFFFFF, 0),
]


@pytest.mark.parametrize("golden", LEAVES, ids=lambda golden: f"{golden.what}-{golden.level.label}")
def test_leaf_golden(golden: Golden) -> None:
    entry = Entry(golden.raw, golden.level, golden.layout)
    assert entry.kind is Kind.LEAF
    assert entry.bits.names() == tuple(golden.names.split())
    assert entry.pfn == golden.pfn
    assert entry.cache == golden.cache
    assert str(entry).startswith(f"{golden.level.label} 0x{golden.raw:016x} {golden.names}")
    assert str(entry).endswith(f"pfn={golden.pfn:#x}")


def test_every_property_is_its_own_bit() -> None:
    """A difference of one bit changes exactly one property: no two properties share a bit."""
    facts = ("write", "user", "young", "dirty", "saved_dirty", "special", "soft_dirty", "uffd_wp", "nx")
    positions = (1, 2, 5, 6, 58, 9, 11, 10, 63)
    for fact, position in zip(facts, positions, strict=True):
        entry = Entry(1 | 1 << position, Level.PTE, MODERN)
        assert [name for name in facts if getattr(entry, name)] == [fact]


TABLES = [
    (0x8000000003A4F067, Level.PGD, MODERN, "P W U A D NX", 0x3A4F000, 0),
    (0x0400000002A34067, Level.PGD, NOPTI, "P W U A D NOPTISHADOW", 0x2A34000, 0),
    (0x0400000002A34067, Level.PGD, MODERN, "P W U A D", 0x2A34000, 1 << 58),
    (0x0400000002A34067, Level.PUD, NOPTI, "P W U A D", 0x2A34000, 1 << 58),
    (0x000FFFFFFFFFF063, Level.PMD, MODERN, "P W A D", 0xFFFFFFFFFF000, 0),
    (0x000000000000100F, Level.P4D, MODERN, "P W U PWT", 0x1000, 0),
]


@pytest.mark.parametrize(("raw", "level", "layout", "names", "table_paddr", "unnamed"), TABLES)
def test_table_golden(raw: int, level: Level, layout: Layout, names: str, table_paddr: int, unnamed: int) -> None:
    entry = Entry(raw, level, layout)
    assert entry.kind is Kind.TABLE
    assert entry.bits.names() == tuple(names.split())
    assert entry.table_paddr == table_paddr
    assert entry.unnamed == unnamed
    with pytest.raises(UsageError, match="only a leaf has a pfn"):
        _ = entry.pfn


SWAPS = [
    (0x17FFFFFFFFDB9600, Level.PTE),  # type 2, offset 0x1234: the offset is stored inverted
    (0xF7FFFFFFF7FBFE02, Level.PMD),  # a migration entry with its soft-dirty bit, which is bit 1
    (0x000000000000107E, Level.PTE),  # P clear, every low bit but PROTNONE and PAT set
    (0x00000000000010FE, Level.PTE),  # bit 7 of a pte is no page size
    (0x0000000000000100, Level.PMD),  # PROTNONE without PSE: garbage
    (0x0000000000001080, Level.P4D),  # there are no leaves at p4d
    (0x0000000000001002, Level.PGD),
]


@pytest.mark.parametrize(("raw", "level"), SWAPS)
def test_swap_is_never_decoded_as_a_page(raw: int, level: Level) -> None:
    entry = Entry(raw, level, MODERN)
    assert entry.kind is Kind.SWAP
    assert entry.bits == Bits(0)
    assert not any([entry.present, entry.write, entry.dirty, entry.kernel_write, entry.kernel_dirty])
    assert entry.unnamed == 0
    with pytest.raises(UsageError, match="only a leaf"):
        _ = entry.pfn
    with pytest.raises(UsageError, match="only a table"):
        _ = entry.table_paddr
    assert "not present" in str(entry)


@pytest.mark.parametrize("level", list(Level))
@pytest.mark.parametrize("raw", [0, 0x20, 0x40, 0x60])
def test_none_masks_the_erratum_bits(raw: int, level: Level) -> None:
    entry = Entry(raw, level, MODERN)
    assert entry.none
    assert entry.bits == Bits(0)
    assert str(entry) == f"{level.label} {raw:#018x} none"


def test_none_masks_nothing_else() -> None:
    for position in (0, 1, 2, 3, 4, 7, 8, 9, 10, 11, 12, 57, 58, 63):
        assert not Entry(1 << position, Level.PTE, MODERN).none


@pytest.mark.parametrize(
    ("raw", "kernel_write", "with_shadow_stack", "kernel_dirty", "shape"),
    [
        (0x8000000000001025, False, False, False, False),  # W=0 D=0
        (0x8000000000001027, True, True, False, False),  # W=1 D=0
        (0x8000000000001067, True, True, True, False),  # W=1 D=1
        (0x8000000000001065, False, True, True, True),  # W=0 D=1
        (0x8400000000001025, False, False, True, False),  # W=0 SAVED_DIRTY
    ],
)
def test_kernel_predicates(
    raw: int, kernel_write: bool, with_shadow_stack: bool, kernel_dirty: bool, shape: bool
) -> None:
    entry = Entry(raw, Level.PTE, MODERN)
    assert entry.kernel_write is kernel_write
    assert entry.kernel_dirty is kernel_dirty
    assert entry.shadow_stack_shape is shape
    assert Entry(raw, Level.PTE, Layout(shadow_stack=True)).kernel_write is with_shadow_stack


def test_predicates_of_leaves_say_nothing_about_tables() -> None:
    table = Entry(0x1065, Level.PMD, Layout(shadow_stack=True))
    assert table.table
    assert not any([table.kernel_dirty, table.kernel_write, table.shadow_stack_shape])


def test_protection_key_and_reserved_bits_are_shown() -> None:
    entry = Entry(0xA800000000001067, Level.PTE, MODERN)
    assert entry.pkey == 5
    assert "pkey=5" in str(entry)
    reserved = Entry(0x80000000402020A7, Level.PUD, MODERN)
    assert reserved.unnamed == 0x202000
    assert "unnamed=0x202000" in str(reserved)
    assert reserved.pfn == 0x40000


words = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.builds(lambda a, b: a & b, st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1)),
)
layouts = st.builds(
    Layout,
    saved_dirty=st.booleans(),
    devmap_bit=st.sampled_from([57, None]),
    five_level=st.booleans(),
    shadow_stack=st.booleans(),
    nopti_shadow=st.booleans(),
) | st.just(CLASSIC)


@given(words, st.sampled_from(Level), layouts)
def test_every_bit_of_an_entry_is_accounted_for(raw: int, level: Level, layout: Layout) -> None:
    """Names, protection key, address and unnamed bits make up the word, and none of them overlap."""
    entry = Entry(raw, level, layout)
    if not entry.present:
        assert entry.bits == Bits(0)
        return
    stored = ((entry.pfn << 12) if entry.leaf else entry.table_paddr) ^ (0 if raw & 1 else -1)
    shift = 12 + 9 * (level - 1) if entry.leaf else 12
    address = stored & ((1 << 52) - (1 << shift))
    rest = raw - address - (entry.pkey << 59) - entry.unnamed
    assert rest >= 0
    assert rest.bit_count() == len(entry.bits.names())


@given(words, st.sampled_from(Level), layouts)
def test_str_is_one_line(raw: int, level: Level, layout: Layout) -> None:
    text = str(Entry(raw, level, layout))
    assert text.startswith(f"{level.label} 0x{raw:016x} ")
    assert "\n" not in text


def test_levels() -> None:
    assert [(level.label, level.shift) for level in Level] == [
        ("pte", 12),
        ("pmd", 21),
        ("pud", 30),
        ("p4d", 39),
        ("pgd", 48),
    ]
    assert [Level.from_label(level.label) for level in Level] == list(Level)
    assert Level.PUD.size_bytes == 1 << 30
    assert Level.from_label("PMD") is Level.PMD
    with pytest.raises(UsageError, match=r"'huge'.*pte, pmd, pud, p4d, pgd"):
        Level.from_label("huge")


def test_layout_knows_the_depth() -> None:
    five = Layout(five_level=True)
    assert five.levels == (Level.PGD, Level.P4D, Level.PUD, Level.PMD, Level.PTE)
    assert MODERN.levels == (Level.PGD, Level.PUD, Level.PMD, Level.PTE)
    assert (MODERN.shift(Level.PGD), five.shift(Level.PGD), MODERN.shift(Level.PUD)) == (39, 48, 30)
    assert Entry(0, Level.PGD, MODERN).size_bytes == 512 << 30


@pytest.mark.parametrize(
    ("vaddr", "in_four", "in_five"),
    [
        (0, True, True),
        (0x00007FFFFFFFFFFF, True, True),
        (0x0000800000000000, False, True),
        (0x00FFFFFFFFFFFFFF, False, True),
        (0x0100000000000000, False, False),
        (0xFEFFFFFFFFFFFFFF, False, False),
        (0xFF00000000000000, False, True),
        (0xFFFF7FFFFFFFFFFF, False, True),
        (0xFFFF800000000000, True, True),
        (0xFFFFFFFFFFFFFFFF, True, True),
        (1 << 64, False, False),
        (-1, False, False),
    ],
)
def test_canonical(vaddr: int, in_four: bool, in_five: bool) -> None:
    assert MODERN.is_canonical(vaddr) is in_four
    assert Layout(five_level=True).is_canonical(vaddr) is in_five


def test_invalid_values_are_refused() -> None:
    with pytest.raises(UsageError, match="64 bits"):
        Entry(1 << 64, Level.PTE, MODERN)
    with pytest.raises(UsageError, match="58"):
        Layout(saved_dirty=True, devmap_bit=58)
    with pytest.raises(UsageError, match="57, 58, None"):
        Layout(devmap_bit=9)


def test_bits_cannot_be_used_as_numbers() -> None:
    """A Bits value is not a mask: using it as one must fail loudly."""
    with pytest.raises(TypeError):
        _ = Bits.NX & 0x8000000000000000  # type: ignore[operator]
    assert Bits.SAVED_DIRTY not in Entry(0x80003800400002B7, Level.PUD, MODERN).bits
    assert str(Bits.P | Bits.NX) == "P NX"


def test_setting_a_bit_in_both_entries_excludes_it_from_a_comparison() -> None:
    old, young = (Entry(raw, Level.PUD, MODERN) for raw in (0x80003800400002D7, 0x80003800400002F7))
    assert old != young
    assert old | Bits.A == young
    assert young | Bits.A == young
    assert old | Bits(0) == old
    assert (old | Bits.SAVED_DIRTY).raw == 0x84003800400002D7
    assert (Entry(0, Level.PTE, MODERN) | Bits.A).raw == 0, "an empty entry has no accessed bit to set"
