"""Compares walks with a model: tables in a buffer, random leaves of all sizes, both address halves, both depths."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from harness.errors import UsageError
from harness.observe.table_reader import leaves_in
from harness.pagetable import (
    Bits,
    Entry,
    Kind,
    Layout,
    Leaf,
    Level,
    PhysicalMemory,
    SplitMemory,
    WalkError,
    entry_arrays,
    has_bit,
    pfns,
    root_paddr,
    translate,
    walk,
    walk_arrays,
    walk_range,
)
from harness.pagetable.memory import U64Array

FOUR, FIVE = Layout.MODERN, Layout(five_level=True)
PAGE = 4096
TABLE_FLAGS = 0x67  # P W U A D
LEAF_FLAGS = 0x8000000000000227  # P W U A SPECIAL NX
ROOT = 0x1000


def shifts(layout: Layout) -> list[int]:
    """The shift of each level, root first. Written out here, not taken from the code under test."""
    return [48, 39, 30, 21, 12] if layout.five_level else [39, 30, 21, 12]


def canonical(linear: int, layout: Layout) -> int:
    top = 57 if layout.five_level else 48
    return linear | ((1 << 64) - (1 << top)) if linear >> (top - 1) & 1 else linear


@dataclass
class Builder:
    """Guest RAM with page tables, and the list of what they map."""

    layout: Layout
    ram: bytearray = field(default_factory=lambda: bytearray(96 * PAGE), repr=False)
    next_table: int = ROOT + PAGE
    model: dict[int, tuple[Level, int]] = field(default_factory=dict)  # vaddr of a leaf -> level, raw

    def word(self, paddr: int) -> int:
        return int.from_bytes(self.ram[paddr : paddr + 8], "little")

    def store(self, paddr: int, value: int) -> None:
        self.ram[paddr : paddr + 8] = value.to_bytes(8, "little")

    def slot(self, linear: int, level: Level) -> int | None:
        """Return where the entry of this level is, and make the tables above it. None if a leaf is in the way."""
        table = ROOT
        for shift in shifts(self.layout):
            paddr = table + (linear >> shift & 511) * 8
            if shift == 12 + 9 * (level - 1):
                return paddr if self.word(paddr) == 0 else None
            if self.word(paddr) == 0:
                self.store(paddr, self.next_table | TABLE_FLAGS)
                self.next_table += PAGE
            elif self.word(paddr) & 0xFFF != TABLE_FLAGS:
                return None
            table = self.word(paddr) & ~0xFFF
        raise AssertionError("level below pte")

    def map(self, linear: int, level: Level, raw: int, *, leaf: bool = True) -> None:
        slot = self.slot(linear, level)
        if slot is None:
            return
        self.store(slot, raw)
        if leaf:
            self.model[canonical(linear & -level.size_bytes, self.layout)] = (level, raw)

    @property
    def memory(self) -> PhysicalMemory:
        return PhysicalMemory(self.ram)


def leaf_raw(pfn: int, level: Level, protnone: bool) -> int:
    """Encode a leaf. If P=0, its pfn is stored inverted."""
    paddr = (pfn << 12) & -level.size_bytes
    huge = 0x80 if level > Level.PTE else 0
    if protnone:
        return (~paddr & ((1 << 52) - level.size_bytes)) | 0x320 | huge
    return paddr | LEAF_FLAGS | huge


@dataclass(frozen=True)
class Plan:
    """One mapping to put into the tables."""

    indices: tuple[int, ...]
    level: Level
    pfn: int
    kind: str


plans = st.builds(
    Plan,
    indices=st.tuples(*[st.sampled_from([0, 1, 255, 256, 511])] * 5),
    level=st.sampled_from([Level.PTE, Level.PMD, Level.PUD]),
    pfn=st.integers(0, (1 << 40) - 1),
    kind=st.sampled_from(["leaf", "leaf", "protnone", "swap"]),
)


@st.composite
def builders(draw: st.DrawFn) -> Builder:
    builder = Builder(draw(st.sampled_from([FOUR, FIVE])))
    for plan in draw(st.lists(plans, max_size=14)):
        levels = shifts(builder.layout)
        linear = sum(index << shift for index, shift in zip(plan.indices[-len(levels) :], levels, strict=True))
        if plan.kind == "swap":
            builder.map(linear, plan.level, (plan.pfn << 12) | 0x1E, leaf=False)
        else:
            builder.map(linear, plan.level, leaf_raw(plan.pfn, plan.level, plan.kind == "protnone"))
    return builder


def edges(builder: Builder) -> list[int]:
    """Return the addresses to test: first, middle and last byte of each leaf, and their neighbours."""
    top = 1 << (57 if builder.layout.five_level else 48)
    linear = {0, top // 2 - 1, top // 2, top - 1}
    for vaddr, (level, _) in builder.model.items():
        first = vaddr % top
        linear |= {first - 1, first, first + level.size_bytes // 2, first + level.size_bytes - 1}
        linear |= {first + level.size_bytes}
    return sorted(canonical(one, builder.layout) for one in linear if 0 <= one < top)


def expected_at(builder: Builder, vaddr: int) -> tuple[int, Level, int] | None:
    for start, (level, raw) in builder.model.items():
        if start <= vaddr < start + level.size_bytes:
            return start, level, raw
    return None


@settings(max_examples=60)
@given(builders())
def test_walk_agrees_with_the_model(builder: Builder) -> None:
    for vaddr in edges(builder):
        way = walk(builder.memory, ROOT, vaddr, builder.layout)
        expected = expected_at(builder, vaddr)
        assert [entry.level for entry in way.path] == list(builder.layout.levels)[: len(way.path)]
        assert all(entry.kind is Kind.TABLE for entry in way.path[:-1])
        if expected is None:
            assert way.leaf is None
            assert way.hole or way.terminal.swap
            with pytest.raises(WalkError, match="nothing is mapped"):
                translate(builder.memory, ROOT, vaddr, builder.layout)
            continue
        start, level, raw = expected
        assert way.leaf is not None
        assert (way.leaf.vaddr, way.leaf.level, way.leaf.raw) == (start, level, raw)
        paddr = translate(builder.memory, ROOT, vaddr, builder.layout)
        assert paddr % level.size_bytes == vaddr - start
        assert paddr >> 12 == way.leaf.pfn_at(vaddr)
        assert leaf_raw(paddr >> 12, level, not raw & 1) == raw


@settings(max_examples=60)
@given(builders(), st.data())
def test_ranges_agree_with_the_model(builder: Builder, data: st.DataObject) -> None:
    places = st.sampled_from(edges(builder))
    start, last = sorted((data.draw(places), data.draw(places)))
    end = last + 1
    expected = [
        (vaddr, raw, level)
        for vaddr, (level, raw) in sorted(builder.model.items())
        if vaddr < end and vaddr + level.size_bytes > start
    ]
    leaves = walk_range(builder.memory, ROOT, start, end, builder.layout)
    assert [(leaf.vaddr, leaf.raw, leaf.level) for leaf in leaves] == expected
    assert leaves_in(builder.memory, ROOT, start, end, builder.layout) == leaves
    arrays = walk_arrays(builder.memory, ROOT, start, end, builder.layout)
    assert [column.dtype.name for column in arrays] == ["uint64", "uint64", "uint8"]
    assert list(zip(arrays.vaddr.tolist(), arrays.raw.tolist(), arrays.level.tolist(), strict=True)) == expected
    assert pfns(arrays).tolist() == [leaf.pfn for leaf in leaves]
    for bit in Bits:
        assert has_bit(arrays, bit, builder.layout).tolist() == [bit in leaf.bits for leaf in leaves]


@settings(max_examples=60)
@given(builders(), st.data())
def test_a_few_walks_find_the_leaves_of_a_short_range(builder: Builder, data: st.DataObject) -> None:
    start = data.draw(st.sampled_from(edges(builder))) & -PAGE
    end = min(start + data.draw(st.integers(0, 40)) * PAGE, 1 << 64)
    assume(builder.layout.is_canonical(end - 1))
    expected = walk_range(builder.memory, ROOT, start, end, builder.layout)
    with pytest.MonkeyPatch.context() as patch:
        if end - start <= 32 * PAGE:
            patch.setattr("harness.pagetable.bulk.walk_range", None)  # it must not be called
        assert leaves_in(builder.memory, ROOT, start, end, builder.layout) == expected


def test_a_short_range_may_begin_inside_a_leaf() -> None:
    builder = Builder(FOUR)
    builder.map(0x40000000, Level.PMD, leaf_raw(512, Level.PMD, False))
    builder.map(0x40200000, Level.PTE, leaf_raw(7, Level.PTE, False))
    found = leaves_in(builder.memory, ROOT, 0x401FE000, 0x40202000, FOUR)
    assert [(leaf.vaddr, leaf.level) for leaf in found] == [(0x40000000, Level.PMD), (0x40200000, Level.PTE)]


def test_what_is_wrong_with_a_range_is_told_by_the_walk_in_bulk() -> None:
    builder = Builder(FOUR)
    builder.ram[ROOT : ROOT + 8] = (1 << 40 | 1).to_bytes(8, "little")  # a table outside RAM
    told = []
    for search in (walk_range, leaves_in):
        with pytest.raises(WalkError, match="lies outside guest RAM") as caught:
            search(builder.memory, ROOT, 0, PAGE, FOUR)
        told.append(str(caught.value))
    assert told[0] == told[1]


@settings(max_examples=60)
@given(builders(), st.data())
def test_every_entry_of_a_range_is_where_a_walk_ends(builder: Builder, data: st.DataObject) -> None:
    places = st.sampled_from(edges(builder))
    start, last = sorted((data.draw(places), data.draw(places)))
    top = (1 << builder.layout.address_bits) - 1
    found = entry_arrays(builder.memory, ROOT, start, last + 1, builder.layout)
    at = start & top
    for vaddr, raw, level in zip(*(column.tolist() for column in found), strict=True):
        assert vaddr & top <= at, "there is a gap between two entries"
        at = (vaddr & top) + (1 << builder.layout.shift(Level(level)))
        way = walk(builder.memory, ROOT, vaddr, builder.layout)
        assert (way.terminal.raw, way.terminal.level) == (raw, level)
    assert at > last & top


@settings(max_examples=100)
@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=40), st.sampled_from([1, 2, 3]))
def test_bulk_and_single_walk_agree_on_any_word(words: list[int], level_number: int) -> None:
    """Garbage in a table: both walks take the same words for leaves."""
    level = Level(level_number)
    builder = Builder(FOUR)
    for index, word in enumerate(words):
        builder.map(
            index << level.shift, level, word & ~1 if level > Level.PTE and not word & 0x80 else word, leaf=False
        )
    end = 512 << level.shift
    found = {leaf.vaddr: leaf.raw for leaf in walk_range(builder.memory, ROOT, 0, end, FOUR)}
    for index in range(len(words) + 1):
        leaf = walk(builder.memory, ROOT, index << level.shift, FOUR).leaf
        assert found.get(index << level.shift) == (leaf.raw if leaf else None)


def test_a_hole_has_its_level() -> None:
    builder = Builder(FOUR)
    builder.map(0x40000000, Level.PTE, leaf_raw(7, Level.PTE, False))
    ends = {vaddr: walk(builder.memory, ROOT, vaddr, FOUR) for vaddr in (0x40001000, 0x40200000, 0, 1 << 40)}
    assert [way.terminal.level for way in ends.values()] == [Level.PTE, Level.PMD, Level.PUD, Level.PGD]
    assert all(way.hole for way in ends.values())
    assert str(ends[1 << 40]).splitlines() == ["walk of 0x0000010000000000", "  pgd 0x0000000000000000 none"]


def test_kernel_half_of_four_levels() -> None:
    builder = Builder(FOUR)
    builder.map(0xFFFF888040000000 % (1 << 48), Level.PUD, leaf_raw(0x40000, Level.PUD, False))
    leaf = walk(builder.memory, ROOT, 0xFFFF888041234567, FOUR).leaf
    assert leaf is not None
    assert leaf.vaddr == 0xFFFF888040000000
    assert translate(builder.memory, ROOT, 0xFFFF888041234567, FOUR) == 0x41234567
    assert [one.vaddr for one in walk_range(builder.memory, ROOT, 0, 1 << 64, FOUR)] == [0xFFFF888040000000]


def test_a_leaf_delegates_to_its_entry() -> None:
    builder = Builder(FOUR)
    builder.map(0, Level.PMD, 0x84000000002012D5 | 0x400 | 0x800)
    leaf = walk(builder.memory, ROOT, 0x1000, FOUR).leaf
    assert leaf is not None
    names = [name for name, value in vars(Leaf).items() if isinstance(value, property) and hasattr(Entry, name)]
    assert len(names) >= 20
    for name in names:
        assert getattr(leaf, name) == getattr(leaf.entry, name)
    assert leaf.covers(0x1FFFFF)
    assert not leaf.covers(0x200000)
    with pytest.raises(UsageError, match="0x200000"):
        leaf.pfn_at(0x200000)
    assert str(leaf).startswith("0x0000000000000000 pmd 0x84000000002")


@pytest.mark.parametrize(
    ("cr3", "pti", "root"),
    [
        (0x0000000103A4F000, False, 0x103A4F000),
        (0x8000000103A4F801, True, 0x103A4E000),
        (0x8000000103A4F801, False, 0x103A4F000),
        (0x6000000103A4E001, True, 0x103A4E000),
        (0xFFFFFFFFFFFFFFFF, False, 0x000FFFFFFFFFF000),
    ],
)
def test_root_paddr(cr3: int, pti: bool, root: int) -> None:
    assert root_paddr(cr3, pti=pti) == root


def test_a_table_outside_ram_is_named() -> None:
    builder = Builder(FOUR)
    for vaddr in (0, 0x40000000, 0x80000000):
        builder.map(vaddr, Level.PTE, leaf_raw(7, Level.PTE, False))
    builder.store(0x2000 + 8, 0x7000_0000 | TABLE_FLAGS)
    with pytest.raises(WalkError, match=r"pmd table at paddr 0x70000000 .*0x40000000.*outside guest RAM.*0x60000"):
        walk(builder.memory, ROOT, 0x40000000, FOUR)
    with pytest.raises(WalkError, match=r"pmd table at paddr 0x70000000 .*0x40000000.*outside guest RAM"):
        walk_arrays(builder.memory, ROOT, 0, 1 << 32, FOUR)
    with pytest.raises(WalkError, match="pgd table at paddr 0x60000 "):
        walk(builder.memory, 96 * PAGE, 0, FOUR)
    with pytest.raises(WalkError, match="pgd table at paddr 0x60000 "):
        walk_arrays(builder.memory, 96 * PAGE, 0, 1, FOUR)
    with pytest.raises(WalkError, match="4096-byte boundary"):
        walk(builder.memory, ROOT + 8, 0, FOUR)


def test_a_leaf_above_pud_is_refused() -> None:
    builder = Builder(FOUR)
    builder.store(ROOT, 0x2000 | TABLE_FLAGS | 0x80)
    with pytest.raises(WalkError, match="reserved bit 7"):
        walk(builder.memory, ROOT, 0, FOUR)
    with pytest.raises(WalkError, match="reserved bit 7"):
        walk_arrays(builder.memory, ROOT, 0, PAGE, FOUR)


def test_recursive_tables_do_not_exhaust_the_memory() -> None:
    builder = Builder(FOUR)
    for index in range(512):
        builder.store(ROOT + 8 * index, ROOT | TABLE_FLAGS)
    with pytest.raises(WalkError, match=r"262144 pmd tables.*smaller range"):
        walk_arrays(builder.memory, ROOT, 0, 1 << 64, FOUR)


@pytest.mark.parametrize(("start", "end"), [(0, 0x0000800000000001), (0x0000800000000000, 0x0000800000001000)])
def test_addresses_that_are_not_canonical_are_refused(start: int, end: int) -> None:
    memory = Builder(FOUR).memory
    with pytest.raises(UsageError, match="canonical 48-bit"):
        walk_arrays(memory, ROOT, start, end, FOUR)
    with pytest.raises(UsageError, match="canonical 48-bit"):
        walk(memory, ROOT, 0x0000800000000000, FOUR)
    with pytest.raises(UsageError, match="before it starts"):
        walk_range(memory, ROOT, 2, 1, FOUR)
    assert walk_range(memory, ROOT, 0x0000800000000000, 0x0000800000000000, FOUR) == []


def test_a_gigabyte_of_small_pages_is_walked_in_bulk() -> None:
    """Checks 262,144 entries. `make bench` measures the time."""
    ram = bytearray(516 * PAGE)
    pages = np.frombuffer(ram, "<u8").reshape(-1, 512)
    pages[1, 0], pages[2, 1] = 0x2000 | TABLE_FLAGS, 0x3000 | TABLE_FLAGS
    pages[3] = (np.arange(4, 516, dtype=np.uint64) << np.uint64(12)) | np.uint64(TABLE_FLAGS)
    frames = np.arange(1 << 18, dtype=np.uint64) + np.uint64(0x380000000)
    pages[4:] = ((frames << np.uint64(12)) | np.uint64(LEAF_FLAGS)).reshape(512, 512)
    memory = PhysicalMemory(ram)
    leaves = walk_arrays(memory, ROOT, 1 << 30, 2 << 30, FOUR)
    assert (pfns(leaves) == frames).all()
    assert (leaves.vaddr == (np.arange(1 << 18, dtype=np.uint64) << np.uint64(12)) + np.uint64(1 << 30)).all()


# -- memory --


def test_words_are_little_endian_and_tables_are_copies() -> None:
    ram = bytearray(2 * PAGE)
    memory = PhysicalMemory(ram)
    memory.write_u64(0x1008, 0x1122334455667788)
    assert ram[0x1008:0x1010].hex() == "8877665544332211"
    assert memory.read_u64(0x1008) == 0x1122334455667788
    tables = memory.tables(np.array([0x1000, 0], np.uint64))
    assert tables.shape == (2, 512)
    ram[0x1008] = 0
    assert int(tables[0, 1]) == 0x1122334455667788


def test_memory_refuses_invalid_accesses() -> None:
    memory = PhysicalMemory(bytes(PAGE))
    with pytest.raises(WalkError, match="read-only"):
        memory.write_u64(0, 1)
    with pytest.raises(WalkError, match=r"0x1000 lies outside guest RAM, which ends at 0x1000"):
        memory.read_u64(0x1000)
    with pytest.raises(WalkError, match="outside"):
        memory.read_u64(-8)
    with pytest.raises(WalkError, match="outside"):
        memory.tables(np.array([0, 0x1000], np.uint64))
    with pytest.raises(UsageError, match="multiple of 8"):
        memory.read_u64(4)
    with pytest.raises(UsageError, match="64 bits"):
        PhysicalMemory(bytearray(PAGE)).write_u64(0, 1 << 64)
    for size_bytes in (0, PAGE + 8):
        with pytest.raises(UsageError, match="whole number"):
            PhysicalMemory(bytes(size_bytes))


def test_an_mmap_can_be_closed_after_release() -> None:
    buffer = mmap.mmap(-1, 2 * PAGE)
    memory = PhysicalMemory(buffer)
    memory.write_u64(8, 5)
    assert buffer[8] == 5
    with pytest.raises(BufferError):
        buffer.close()
    memory.release()
    buffer.close()
    with pytest.raises(UsageError, match="released"):
        memory.read_u64(8)


def test_memory_over_a_memoryview() -> None:
    ram = bytearray(PAGE)
    memory = PhysicalMemory(memoryview(ram))
    memory.write_u64(0, 3)
    assert (memory.size_bytes, ram[0]) == (PAGE, 3)


def test_ram_with_a_hole_below_4_gib() -> None:
    ram = bytearray(4 * PAGE)
    memory = SplitMemory(PhysicalMemory(ram), 3 * PAGE)
    assert memory.size_bytes == (4 << 30) + PAGE
    memory.write_u64(2 * PAGE, 2)
    memory.write_u64(4 << 30, 3)
    assert (ram[2 * PAGE], ram[3 * PAGE]) == (2, 3)
    assert memory.read_u64(4 << 30) == 3
    found = memory.tables(np.array([4 << 30, 0, 2 * PAGE], np.uint64))
    assert found[:, 0].tolist() == [3, 0, 2]


@pytest.mark.parametrize("paddr", [3 * PAGE, (4 << 30) - 8, (4 << 30) + PAGE, -8])
def test_the_hole_and_addresses_after_ram_cannot_be_read(paddr: int) -> None:
    memory = SplitMemory(PhysicalMemory(bytearray(4 * PAGE)), 3 * PAGE)
    with pytest.raises(WalkError, match="which ends at 0x3000 and goes on from 0x100000000 to 0x100001000"):
        memory.read_u64(paddr)
    with pytest.raises(WalkError):
        memory.write_u64(paddr, 1)
    if paddr >= 0:
        with pytest.raises(WalkError):
            memory.tables(np.array([0, paddr & -PAGE], np.uint64))


class Repeated(PhysicalMemory):
    """Guest RAM that records how many tables are read at once, and raises at more than 512 where a test reads them."""

    asked: tuple[int, ...] = ()

    def tables(self, paddrs: U64Array) -> U64Array:
        self.asked += (len(paddrs),)
        if len(paddrs) > 512:
            raise InterruptedError("more than one of the tests reads")
        return super().tables(paddrs)


@pytest.mark.parametrize(("pages_more", "read"), [(0, (1, 1, 128, 1 << 16)), (1, (1, 1, 129))])
def test_a_walk_reads_65536_tables_of_one_level_and_no_more(pages_more: int, read: tuple[int, ...]) -> None:
    ram = bytearray(5 * PAGE)
    for table in range(1, 4):  # every entry of pgd, pud and pmd leads to the same table
        entry = ((table + 1) * PAGE | TABLE_FLAGS).to_bytes(8, "little")
        ram[table * PAGE : (table + 1) * PAGE] = entry * 512
    memory = Repeated(ram)
    end = (128 << 30) + pages_more * PAGE
    expected, told = (
        (WalkError, "has 65537 pte tables, at most 65536 .256 MiB.") if pages_more else (InterruptedError, "more than")
    )
    with pytest.raises(expected, match=told):
        walk_arrays(memory, ROOT, 0, end, FOUR)
    assert memory.asked == read


def test_ram_is_read_from_its_first_word_to_its_last() -> None:
    ram = bytearray(2 * PAGE)
    split, flat = SplitMemory(PhysicalMemory(ram), PAGE), PhysicalMemory(ram)
    for paddr in (0, PAGE - 8):
        split.write_u64(paddr, 5)
        assert (split.read_u64(paddr), flat.read_u64(paddr)) == (5, 5)
    flat.write_u64(2 * PAGE - 8, 6)
    assert split.read_u64((4 << 30) + PAGE - 8) == 6
    with pytest.raises(WalkError):
        flat.read_u64(2 * PAGE)


def test_a_table_may_be_the_last_page_of_ram_but_not_after_it() -> None:
    memory = PhysicalMemory(bytearray(2 * PAGE))
    assert walk(memory, PAGE, 0, FOUR).leaf is None
    assert len(walk_arrays(memory, PAGE, 0, PAGE, FOUR).raw) == 0
    for read in (lambda: walk(memory, 2 * PAGE, 0, FOUR), lambda: walk_arrays(memory, 2 * PAGE, 0, PAGE, FOUR)):
        with pytest.raises(WalkError, match=r"pgd table at paddr 0x2000 .* lies outside guest RAM"):
            read()
