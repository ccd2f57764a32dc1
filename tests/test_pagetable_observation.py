"""Observations survive the way through text, anything else is refused by line, and a diff names what changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import UsageError
from harness.pagetable import (
    Bits,
    Entry,
    Layout,
    Level,
    Observation,
    Region,
    Walk,
    diff,
    dump_observations,
    load_observations,
    relative_pfn,
)
from harness.pagetable.changes import Key

GOLDEN = Path(__file__).parent / "data" / "pagetable" / "observations-v1.jsonl"
BAR = Region("bar", 0x380040000000, 2 << 30)
PARENT = Observation(
    checkpoint="forked",
    process="parent",
    mapping="bar",
    offset=0,
    level="pud",
    raw=0x80003800400002F7,
    bits=("P", "W", "U", "PCD", "A", "D", "PSE", "SPECIAL", "NX"),
    pfn="bar+0x0",
    pagemap=0x0080000000000000,
)
HEADER = '{"schema": "hugepfn-observations", "version": 1}\n'

text = st.text(st.sampled_from('a\n\u2028"é{0'), max_size=4)
words = st.integers(0, (1 << 64) - 1)
observations = st.builds(
    Observation,
    checkpoint=text,
    process=text,
    mapping=text,
    offset=st.integers(0, 1 << 40),
    level=st.sampled_from(["pte", "pmd", "pud", "none"]),
    raw=words,
    bits=st.sets(st.sampled_from([bit.name for bit in Bits])).map(lambda names: tuple(sorted(str(n) for n in names))),
    pfn=st.sampled_from(["", "bar+0x0", "ram+0x1000"]),
    pagemap=st.none() | words,
)


def test_of_walk_reads_the_golden_file() -> None:
    """The page's own pfn is recorded, not that of the first page of the leaf."""
    vaddr = 0x7F4000000000
    parent = Walk(vaddr, (Entry(0x80003800400002F7, Level.PUD, Layout.MODERN),))
    child = Walk(vaddr + 0x1000, (Entry(0x80003800400002D7, Level.PUD, Layout.MODERN),))
    hole = Walk(0x1000, (Entry(0x2067, Level.PGD, Layout.MODERN), Entry(0, Level.PUD, Layout.MODERN)))
    made = [
        Observation.of_walk(
            parent, checkpoint="forked", process="parent", mapping="bar", offset=0, regions=[BAR], pagemap=1 << 55
        ),
        Observation.of_walk(child, checkpoint="forked", process="child", mapping="bar", offset=0x1000, regions=[BAR]),
        Observation.of_walk(hole, checkpoint="forked", process="child", mapping="hole", offset=0),
    ]
    golden = GOLDEN.read_text(encoding="utf-8")
    assert load_observations(golden) == made
    assert dump_observations(made) == golden
    assert made[0] == PARENT


def test_a_swap_entry_has_neither_level_nor_pfn() -> None:
    way = Walk(0, (Entry(0x17FFFFFFFFDB9600, Level.PTE, Layout.MODERN),))
    seen = Observation.of_walk(way, checkpoint="c", process="p", mapping="m", offset=0, regions=[BAR])
    assert (seen.level, seen.raw, seen.bits, seen.pfn) == ("none", 0x17FFFFFFFFDB9600, (), "")


def test_relative_pfn_ends_with_its_region() -> None:
    assert relative_pfn(0x380040000, [BAR]) == "bar+0x0"
    assert relative_pfn(0x380040000 + 0x7FFFF, [BAR]) == "bar+0x7ffff000"
    assert relative_pfn(0x380040000 + 0x80000, [BAR]) == "ram+0x3800c0000000"
    assert relative_pfn(0x380040000 - 1, [BAR]) == "ram+0x38003ffff000"
    assert relative_pfn(0x12345) == "ram+0x12345000"


@settings(max_examples=40)
@given(st.lists(observations, max_size=3))
def test_round_trip(many: list[Observation]) -> None:
    written = dump_observations(many)
    assert load_observations(written) == many
    assert written.count("\n") == len(many) + 1
    assert diff(many, many) == []


def line(**changes: object) -> str:
    return HEADER + json.dumps({**PARENT.to_json(), **changes}) + "\n"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("", "line 1: not JSON"),
        ("[]\n", "line 1: these are no observations, expected the header of hugepfn-observations version 1"),
        ('{"schema": "other", "version": 1}\n', "line 1: these are no observations"),
        ('{"schema": "hugepfn-observations", "version": 2}\n', "line 1: version 2 is not known"),
        (HEADER + "nonsense\n", "line 2: not JSON"),
        (HEADER + "[1]\n", "line 2: expected an object, got list"),
        (HEADER + "{}\n", "line 2: missing or unknown keys: bits, checkpoint"),
        (line(extra=1), "line 2: missing or unknown keys: extra"),
        (line() + "\n", "line 3: not JSON"),
        (line(offset="0"), "line 2: offset is '0', expected int"),
        (line(offset=True), "line 2: offset is True"),
        (line(offset=-1), "line 2: offset"),
        (line(raw=5), "line 2: raw is 5, expected str"),
        (line(raw="5"), "line 2: raw is '5', expected a 64-bit number"),
        (line(raw="0x1_0"), "line 2: raw"),
        (line(pagemap="0x" + "1" * 17), "line 2: pagemap"),
        (line(pagemap=0), "line 2: pagemap is 0, expected str or null"),
        (line(level="huge"), "line 2: no level of a leaf is called 'huge'; valid values: pte, pmd, pud, none"),
        (line(bits=["Q"]), "line 2: no bit is called 'Q'"),
        (line(bits=[["P"]]), "line 2: bits"),
        (line(bits="P"), "line 2: bits"),
    ],
)
def test_anything_else_is_refused_by_line(wrong: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_observations(wrong)
    assert str(caught.value).startswith(message)


def test_diff_names_bits_level_and_pfn() -> None:
    other = replace(
        PARENT,
        level="pmd",
        raw=0x84003800400002B5,
        bits=("P", "U", "PCD", "A", "PSE", "SPECIAL", "SAVED_DIRTY", "NX"),
        pfn="bar+0x200000",
        pagemap=None,
    )
    (change,) = diff([PARENT], [other])
    assert change.key == Key("forked", "parent", "bar", 0), "the first time"
    assert change.appeared == ("SAVED_DIRTY",)
    assert change.vanished == ("W", "D")
    assert change.level == ("pud", "pmd")
    assert change.pfn == ("bar+0x0", "bar+0x200000")
    assert change.pagemap == ("SOFT_DIRTY", "not read")
    assert str(change).startswith(
        "forked parent bar+0x0: +SAVED_DIRTY -W -D level pud -> pmd pfn bar+0x0 -> bar+0x200000"
    )
    assert "0x80003800400002f7" in str(change)
    assert "0x84003800400002b5" in str(change)
    (back,) = diff([other], [PARENT])
    assert (back.appeared, back.vanished) == (change.vanished, change.appeared)


def test_diff_names_what_only_one_run_has() -> None:
    child = replace(PARENT, process="child")
    later = replace(PARENT, checkpoint="written")
    changes = diff([PARENT, child], [later, PARENT])
    assert [(change.only_before, change.only_after) for change in changes] == [(True, False), (False, True)]
    assert [change.key.process for change in changes] == ["child", "parent"]
    assert "only in the first run: pud 0x80003800400002f7" in str(changes[0])
    assert "only in the second run" in str(changes[1])
    assert changes[0].appeared == changes[0].vanished == ()


@pytest.mark.parametrize("field", ["checkpoint", "process", "mapping"])
def test_each_name_is_part_of_the_key(field: str) -> None:
    other = replace(PARENT, **{field: "other"})  # type: ignore[arg-type]
    assert len(diff([PARENT], [other])) == 2
    assert len(diff([PARENT], [replace(PARENT, offset=0x1000)])) == 2


def test_the_same_checkpoint_twice_is_matched_in_turn() -> None:
    dirty, clean = PARENT, replace(PARENT, bits=tuple(bit for bit in PARENT.bits if bit != "D"))
    assert diff([clean, dirty], [clean, dirty]) == []
    (change,) = diff([clean, dirty], [clean, clean])
    assert change.key.turn == 1
    assert change.vanished == ("D",)
    assert "(time 2)" in str(change)


def test_where_ordinary_memory_lies_is_no_difference() -> None:
    here, there = replace(PARENT, pfn="ram+0x1000"), replace(PARENT, pfn="ram+0x2000")
    assert diff([here], [there]) == []
    assert diff([here], [PARENT])[0].pfn == ("ram+0x1000", "bar+0x0")
    assert diff([PARENT], [replace(PARENT, pfn="")])[0].pfn == ("bar+0x0", "")
    mapped = replace(PARENT, pagemap=0x8180000000012345)
    assert diff([mapped], [replace(PARENT, pagemap=0x8180000000054321)]) == []
    assert diff([mapped], [PARENT])[0].pagemap == ("SOFT_DIRTY EXCLUSIVE PRESENT", "SOFT_DIRTY")
