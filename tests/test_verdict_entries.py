"""Tests for observations as a table: equal neighbours share a row, and every changed bit is marked."""

from __future__ import annotations

import pytest

from harness.pagetable import Level, Observation
from harness.verdict.entries import Row, as_text, rows

MIB2 = 2 << 20
HOLE, SOFT_DIRTY_HOLE, PRESENT = 0, 1 << 55, 1 << 63 | 0x12345


def seen(
    checkpoint: str,
    bits: str,
    offset: int = 0,
    *,
    process: str = "parent",
    mapping: str = "bar",
    level: str = "pte",
    raw: int = 0x27,
    pagemap: int | None = None,
) -> Observation:
    pfn = f"{mapping}+{offset:#x}" if level != "none" else ""
    return Observation(checkpoint, process, mapping, offset, level, raw, tuple(bits.split()), pfn, pagemap)


def pages(checkpoint: str, bits: str, numbers: range, level: Level = Level.PTE) -> list[Observation]:
    return [seen(checkpoint, bits, n * level.size_bytes, level=level.label, raw=0x27 + (n << 12)) for n in numbers]


def shape(table: list[Row]) -> list[tuple[str, str, int]]:
    return [(row.checkpoint, row.place, row.count) for row in table]


def test_a_row_of_one_leaf() -> None:
    one = seen("forked", "P W D", 0x1000, process="child", level="pmd", raw=0x8000000380000A67, pagemap=SOFT_DIRTY_HOLE)
    assert rows([one]) == [
        Row(
            checkpoint="forked",
            process="child",
            place="bar+0x1000",
            count=1,
            level="pmd",
            raw="0x8000000380000a67",
            bits=("P", "W", "D"),
            appeared=frozenset(),
            vanished=(),
            pfn="bar+0x1000",
            pagemap="hole SOFT_DIRTY",
        )
    ]


def test_a_hole_has_no_pfn() -> None:
    (row,) = rows([seen("unmapped", "", level="none", raw=0)])
    assert (row.level, row.raw, row.bits, row.pfn, row.count) == ("none", "0x0000000000000000", (), "-", 1)


@pytest.mark.parametrize(
    ("word", "text"),
    [(None, "not read"), (HOLE, "hole"), (PRESENT, "PRESENT"), (PRESENT | 1 << 55, "SOFT_DIRTY PRESENT")],
)
def test_pagemaps_word_is_decoded(word: int | None, text: str) -> None:
    assert rows([seen("read", "P", pagemap=word)])[0].pagemap == text


@pytest.mark.parametrize("level", [Level.PTE, Level.PMD, Level.PUD])
def test_equal_neighbours_are_one_row(level: Level) -> None:
    table = rows(pages("read", "P W", range(3), level))
    assert shape(table) == [("read", "bar+0x0", 3)]
    assert table[0].raw == "0x0000000000000027", "a row shows the raw word of its first entry"


def test_a_gap_a_difference_or_another_level_begins_a_row() -> None:
    table = rows(
        [
            *pages("read", "P W", range(2)),
            *pages("read", "P W", range(3, 5)),  # page 2 is a hole
            *pages("read", "P", range(5, 6)),
            *pages("read", "P W", range(6, 7)),
            seen("read", "P W", 0x7000, pagemap=HOLE),
            seen("read", "P W", MIB2, level="pmd"),
        ]
    )
    assert shape(table) == [
        ("read", "bar+0x0", 2),
        ("read", "bar+0x3000", 2),
        ("read", "bar+0x5000", 1),
        ("read", "bar+0x6000", 1),
        ("read", "bar+0x7000", 1),
        ("read", f"bar+{MIB2:#x}", 1),
    ]


def test_processes_mappings_and_stops_are_never_joined() -> None:
    table = rows(
        [
            seen("a", "P"),
            seen("a", "P", 0x1000, process="child"),
            seen("a", "P", 0x2000, process="child", mapping="memory"),
            seen("b", "P", 0x3000, process="child", mapping="memory"),
        ]
    )
    assert [row.count for row in table] == [1, 1, 1, 1]


def test_holes_are_never_joined() -> None:
    holes = [seen("a", "", offset, level="none", raw=0) for offset in (0, 0x1000)]
    assert [row.count for row in rows(holes)] == [1, 1]


# --- changes -------------------------------------------------------------------------------------


def marks(table: list[Row]) -> list[tuple[str, int, set[str], tuple[str, ...]]]:
    return [(row.place, row.count, set(row.appeared), row.vanished) for row in table]


def test_bits_that_were_set_or_cleared_since_the_previous_stop() -> None:
    table = rows(
        [seen("read", "P W"), seen("written", "P W A D"), seen("forked", "P A SAVED_DIRTY"), seen("end", "P A")]
    )
    assert [(set(row.appeared), row.vanished) for row in table] == [
        (set(), ()),
        ({"A", "D"}, ()),
        ({"SAVED_DIRTY"}, ("D", "W")),
        (set(), ("SAVED_DIRTY",)),
    ]


def test_a_page_is_compared_with_itself() -> None:
    table = rows(
        [
            seen("a", "P D"),
            seen("a", "P", process="child"),
            seen("b", "P D"),
            seen("b", "P D", process="child"),
            seen("b", "P D", 0x5000, mapping="memory"),
        ]
    )
    assert [set(row.appeared) for row in table] == [set(), set(), set(), {"D"}, set()]


def test_a_removed_leaf_lost_all_its_bits() -> None:
    table = rows([seen("a", "P W"), seen("b", "", level="none", raw=0), seen("c", "P W")])
    assert [(set(row.appeared), row.vanished) for row in table] == [(set(), ()), (set(), ("P", "W")), ({"P", "W"}, ())]


def test_a_change_in_the_middle_of_neighbours_is_marked_where_it_is() -> None:
    table = rows([*pages("a", "P D", range(1)), *pages("a", "P", range(1, 4)), *pages("b", "P D", range(4))])
    assert marks(table)[2:] == [("bar+0x0", 1, set(), ()), ("bar+0x1000", 3, {"D"}, ())]


def test_a_lost_bit_is_not_hidden_by_a_neighbour_that_never_had_it() -> None:
    table = rows([*pages("a", "P", range(1)), *pages("a", "P D", range(1, 2)), *pages("b", "P", range(2))])
    assert marks(table)[2:] == [("bar+0x0", 1, set(), ()), ("bar+0x1000", 1, set(), ("D",))]


def test_a_change_common_to_all_neighbours_is_one_row() -> None:
    table = rows([*pages("a", "P W D", range(512)), *pages("b", "P SAVED_DIRTY", range(512))])
    assert marks(table) == [("bar+0x0", 512, set(), ()), ("bar+0x0", 512, {"SAVED_DIRTY"}, ("D", "W"))]


# --- as text -------------------------------------------------------------------------------------


def test_as_text() -> None:
    table = rows([*pages("written", "P W D", range(4)), *pages("forked", "P A", range(4))])
    assert as_text(table).splitlines() == [
        "  written             parent     bar+0x0 x4 pte 0x0000000000000027 P W D bar+0x0",
        "  forked              parent     bar+0x0 x4 pte 0x0000000000000027 P +A -D -W bar+0x0",
    ]
    assert as_text([]) == ""


def test_what_changed_is_marked_as_a_mask() -> None:
    first, second = rows([seen("read", "P W", raw=0x1003), seen("written", "P W D", raw=0x2043)])
    assert (first.changed, second.changed) == (0, 0x3040)


def test_against_another_run_the_same_stop_is_compared_not_the_previous_one() -> None:
    mine = [seen("read", "P W", raw=0x3), seen("written", "P W D", raw=0x43), seen("only-here", "P", raw=0x1)]
    other = [seen("read", "P W", raw=0x3), seen("written", "P W", raw=0x3)]
    read, written, only = rows(mine, other)
    assert (read.changed, read.appeared) == (0, frozenset())
    assert (written.changed, written.appeared) == (0x40, frozenset({"D"}))
    assert (only.changed, only.appeared) == (0, frozenset())


def test_against_another_run_frames_of_ordinary_memory_may_differ() -> None:
    sides = [
        Observation("filled", "parent", "memory", 0, "pte", raw, bits, f"ram+{raw & ~0xFFF:#x}", None)
        for raw, bits in ((0x5003, ("P", "W")), (0x9001, ("P",)))
    ]
    (row,) = rows(sides[:1], sides[1:])
    assert (row.changed, row.appeared) == (0x2, frozenset({"W"}))
