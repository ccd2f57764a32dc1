"""Tests for the output of walk and maps: every bit is named, and exactly what changed is marked."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.text import Text

from harness.commands.walk_view import (
    device_lines,
    machine_line,
    parse_span,
    process_line,
    range_lines,
    vma_lines,
    walk_lines,
)
from harness.errors import UsageError
from harness.introspect.address_spaces import DeviceRoot, MachineRoot
from harness.introspect.processes import ProcessRoot, ProcessVmas, RangeWalk
from harness.introspect.vmas import Vma, VmaLine
from harness.pagetable import Bits, Entry, Layout, LeafArrays, Level, Walk
from harness.pagetable.vtd import Access, LookUp

FOUR = Layout.MODERN
SLEEPER = ProcessRoot(100, 100, "sleeper", 0x2000, FOUR)
VADDR = 0x7F0000003000
RW, RO = 0x8000000000005067, 0x8400000000005025


def plain(lines: list[Text]) -> list[str]:
    return [line.plain.rstrip() for line in lines]


def marked(lines: list[Text], style: str) -> set[str]:
    """Return the words that have a style."""
    return {line.plain[span.start : span.end].strip() for line in lines for span in line.spans if span.style == style}


def way(*raws: int) -> Walk:
    levels = (Level.PGD, Level.PUD, Level.PMD, Level.PTE)
    return Walk(VADDR, tuple(Entry(raw, level, FOUR) for raw, level in zip(raws, levels, strict=False)))


def of_range(*raws: int) -> RangeWalk:
    vaddrs = [VADDR + 4096 * index for index in range(len(raws))]
    entries = LeafArrays(np.array(vaddrs, np.uint64), np.array(raws, np.uint64), np.ones(len(raws), np.uint8))
    return RangeWalk(SLEEPER, VADDR, VADDR + 4096 * len(raws), entries)


def of_vma(name: str, start: int, end: int, ptes: int, **bits: int) -> Vma:
    leaves = {Level.PTE: ptes, Level.PMD: 0, Level.PUD: 0}
    return Vma(VmaLine(start, end, "rw-p", 0, name), leaves, 0, {Bits[bit]: count for bit, count in bits.items()})


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("0x7f0000003000", (VADDR, None)),
        ("7f0000003000", (VADDR, None)),
        ("00400000-00401000", (0x400000, 0x401000)),
        ("0x400000-0x401000", (0x400000, 0x401000)),
        ("FFFFFFFF81000000", (0xFFFFFFFF81000000, None)),
    ],
)
def test_spans(text: str, span: tuple[int, int | None]) -> None:
    assert parse_span(text) == span


@pytest.mark.parametrize("text", ["", "0x", "main", "1-2-3", "400000-400000", "5000-4000", "12345678901234567", "-5"])
def test_no_spans(text: str) -> None:
    with pytest.raises(UsageError):
        parse_span(text)


def test_a_walk_shows_every_level() -> None:
    assert plain(walk_lines(way(0x3067, 0x4067, 0x5067, RW))) == [
        "0x00007f0000003000",
        "  pgd[254]  0x0000000000003067  P W U A D     table=0x3000",
        "  pud[0]    0x0000000000004067  P W U A D     table=0x4000",
        "  pmd[0]    0x0000000000005067  P W U A D     table=0x5000",
        "  pte[3]    0x8000000000005067  P W U A D NX  pfn=0x5",
        "  4K page, paddr 0x5000, pfn 0x5",
    ]
    assert plain(walk_lines(way(0x3067, 0)))[-2:] == [
        "  pud[0]    0x0000000000000000             hole: no table below this pud",
        "  hole: no table below this pud",
    ]


def test_changes_along_a_walk_are_marked() -> None:
    same = way(0x3067, 0x4067, 0x5067, RW)
    assert marked(walk_lines(same, same), "bold green") | marked(walk_lines(same, same), "red") == set()
    lines = walk_lines(way(0x3067, 0x4067, 0x5067, RO), same)
    assert marked(lines, "bold green") == {"+SAVED_DIRTY"}
    assert marked(lines, "red") == {"-W", "-D"}
    assert plain(lines)[4] == "  pte[3]    0x8400000000005025  P U A +SAVED_DIRTY NX -W -D  pfn=0x5"
    huge = way(0x3067, 0x4067, 0x2000E7)
    lines = walk_lines(huge, same)
    assert "+PSE" in marked(lines, "bold green")
    assert any(re.fullmatch(r"  -pte +0x8000000000005067 +this table is gone", line) for line in plain(lines))
    assert plain(lines)[3].endswith("(was table=0x5000)")
    grown = walk_lines(same, way(0x3067, 0))
    assert {"+P", "+NX", "pfn=0x5", "table=0x5000"} <= marked(grown, "bold green")


def test_a_range_shows_runs_and_holes() -> None:
    lines = plain(range_lines(of_range(RW, RW + 4096, RO, 0, 0, 0x1E)))
    assert [" ".join(line.split()) for line in lines] == [
        "vaddr size entries raw bits",
        "0x7f0000003000 8K pte x2 0x8000000000005067 P W U A D NX pfn=0x5..0x6",
        "0x7f0000005000 4K pte 0x8400000000005025 P U A SAVED_DIRTY NX pfn=0x5",
        "0x7f0000006000 8K pte x2 hole",
        "0x7f0000008000 4K pte not present: swap, migration or marker",
    ]
    apart = plain(range_lines(of_range(RW, RW + 0x3000)))
    assert apart[1].endswith("pfn=0x5 and others")


def test_changes_in_a_range_are_marked() -> None:
    lines = range_lines(of_range(RO, 0, RW), of_range(RW, RW, RW))
    assert marked(lines, "bold green") == {"+SAVED_DIRTY", "hole"}
    assert {"-W", "-D", "(was pfn=0x5)"} <= marked(lines, "red")
    quiet = range_lines(of_range(RO, 0, RW), of_range(RO, 0, RW))
    assert marked(quiet, "bold green") | marked(quiet, "red") == set()


def test_vmas_show_counts_and_their_changes() -> None:
    before = ProcessVmas(SLEEPER, (of_vma("[heap]", 0x1000, 0x3000, 2, P=2, W=2), of_vma("gone", 0x9000, 0xA000, 0)), 0)
    now = ProcessVmas(
        SLEEPER,
        (of_vma("[heap]", 0x1000, 0x3000, 1, P=1, W=1, D=1), of_vma("new [x]", 0x5000, 0x6000, 1, P=1)),
        0,
    )
    lines = vma_lines(now, before)
    assert [line.split() for line in plain(lines)] == [
        ["range", "perms", "pte", "pmd", "pud", "W", "D", "name"],
        ["1000-3000", "rw-p", "1", "(-1)", "-", "-", "1", "(-1)", "1", "(+1)", "[heap]"],
        ["+5000-6000", "rw-p", "1", "-", "-", "-", "-", "new", "[x]"],
        ["-9000-a000", "rw-p", "gone"],
    ]
    assert marked(lines, "bold green") == {"+5000-6000", "(+1)"}
    assert marked(lines, "red") == {"-9000-a000", "rw-p", "gone", "(-1)"}
    assert plain(vma_lines(ProcessVmas(SLEEPER, (), 3)))[-1] == "  3 leaves are outside all VMAs"


def test_a_changed_vma_shows_its_old_mapping() -> None:
    (heap,) = ProcessVmas(SLEEPER, (of_vma("", 0x1000, 0x3000, 0),), 0).vmas
    grown = replace(heap, line=replace(heap.line, end=0x4000, perms="r--p", name="[heap]"))
    other = replace(heap, line=replace(heap.line, offset=4096))
    before = ProcessVmas(SLEEPER, (heap,), 0)
    (line,) = plain(vma_lines(ProcessVmas(SLEEPER, (grown,), 0), before))[1:]
    cells = ["1000-4000 (was 1000-3000)", "r--p (was rw-p)", "-", "-", "-", "[heap] (was none)"]
    assert re.split("  +", line.strip()) == cells
    assert plain(vma_lines(ProcessVmas(SLEEPER, (other,), 0), before))[1].split()[0] == "+1000-3000"


def test_unnamed_bits_are_marked_too() -> None:
    lines = plain(walk_lines(way(0x3067, 0x4067, 0x5067, 1 << 59 | RW), way(0x3067, 0x4067, 0x5067, 1 << 60 | RW)))
    assert "P W U A D NX +pkey=1 -pkey=2" in lines[4]


def test_the_header_of_a_process() -> None:
    assert process_line(SLEEPER).plain == "process 100 (sleeper)  root 0x2000, 4 levels"
    thread = ProcessRoot(101, 100, "worker", 0x2000, Layout(five_level=True))
    assert process_line(thread).plain == "process 101 (worker), a thread of 100  root 0x2000, 5 levels"
    after_exec = ProcessRoot(100, 100, "sh", 0x9000, FOUR)
    assert "at the last look: 100 (sleeper) with root 0x2000" in process_line(after_exec, SLEEPER).plain


def test_the_header_of_a_device_shows_how_the_iommu_finds_it() -> None:
    path = (LookUp("root", 0, (0x2001, 0)), LookUp("context", 40, (0x3001, 0x101)))
    layout = replace(Layout.SECOND_LEVEL, three_level=True)
    assert plain(device_lines(DeviceRoot("0000:00:05.0", Access.TRANSLATED, path, 0x3000, layout))) == [
        "device 0000:00:05.0  root 0x3000, 3 levels",
        "  root[0]      0x0000000000002001 0x0000000000000000",
        "  context[40]  0x0000000000003001 0x0000000000000101",
    ]
    blocked = DeviceRoot("0000:00:06.0", Access.BLOCKED, path[:1], 0, layout)
    assert plain(device_lines(blocked))[0] == "device 0000:00:06.0  blocked"


def test_the_header_of_a_virtual_machine() -> None:
    assert machine_line(MachineRoot(SLEEPER, 6, 0x4000, Layout.NPT)).plain == (
        "virtual machine 6 of process 100 (sleeper)  root 0x4000, 4 levels"
    )
    assert machine_line(MachineRoot(SLEEPER, 6, 0, Layout.NPT)).plain.endswith("  no nested tables yet")


def test_values_can_be_sent_to_another_process() -> None:
    walk = pickle.loads(pickle.dumps(of_range(RW, RO, 0)))
    assert plain(range_lines(walk, of_range(RW, RO, 0))) == plain(range_lines(of_range(RW, RO, 0)))
    for value in (way(0x3067, 0), SLEEPER, ProcessVmas(SLEEPER, (of_vma("a", 0, 4096, 1, P=1),), 0)):
        assert pickle.loads(pickle.dumps(value)) == value
