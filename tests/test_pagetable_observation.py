"""Tests for observations: JSON and back, refused input, and what a diff names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import UsageError
from harness.pagetable import Bits, Observation, Region, diff, relative_pfn
from harness.pagetable.changes import EntryChange, Key
from harness.pagetable.formats import FORMATS

GOLDEN = Path(__file__).parent / "data" / "pagetable" / "observations.jsonl"
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
    format=st.sampled_from([*FORMATS]),
)


def test_the_golden_file() -> None:
    child = replace(
        PARENT,
        process="child",
        offset=0x1000,
        raw=0x80003800400002D7,
        bits=tuple(bit for bit in PARENT.bits if bit != "A"),
        pfn="bar+0x1000",
        pagemap=None,
    )
    hole = replace(child, mapping="hole", offset=0, level="none", raw=0, bits=(), pfn="")
    golden = [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]
    assert [one.to_json() for one in (PARENT, child, hole)] == golden
    assert [Observation.from_json(line) for line in golden] == [PARENT, child, hole]


def test_relative_pfn_ends_with_its_region() -> None:
    assert relative_pfn(0x380040000, [BAR]) == "bar+0x0"
    assert relative_pfn(0x380040000 + 0x7FFFF, [BAR]) == "bar+0x7ffff000"
    assert relative_pfn(0x380040000 + 0x80000, [BAR]) == "ram+0x3800c0000000"
    assert relative_pfn(0x380040000 - 1, [BAR]) == "ram+0x38003ffff000"
    assert relative_pfn(0x12345) == "ram+0x12345000"


@settings(max_examples=40)
@given(st.lists(observations, max_size=3))
def test_round_trip(many: list[Observation]) -> None:
    written = json.dumps([one.to_json() for one in many])
    assert [Observation.from_json(data) for data in json.loads(written)] == many
    assert diff(many, many) == []


def changed(**changes: object) -> object:
    return {**PARENT.to_json(), **changes}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([1], "expected an object, got list"),
        ({}, "missing or unknown keys: bits, checkpoint"),
        (changed(extra=1), "missing or unknown keys: extra"),
        (changed(offset="0"), "offset is '0', expected int"),
        (changed(offset=True), "offset is True"),
        (changed(offset=-1), "offset"),
        (changed(raw=5), "raw is 5, expected str"),
        (changed(raw="5"), "raw is '5', expected a 64-bit number"),
        (changed(raw="0x1_0"), "raw"),
        (changed(pagemap="0x" + "1" * 17), "pagemap"),
        (changed(pagemap=0), "pagemap is 0, expected str or null"),
        (changed(format="PAE"), "no format of tables is called 'PAE'; valid values: CPU, NPT, EPT"),
        (changed(format=1), "format is 1, expected str"),
        (changed(level="huge"), "no level of a leaf is called 'huge'; valid values: pte, pmd, pud, none"),
        (changed(bits=["Q"]), "no bit is called 'Q'"),
        (changed(bits=[["P"]]), "bits"),
        (changed(bits="P"), "bits"),
    ],
)
def test_anything_else_is_refused(wrong: object, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Observation.from_json(wrong)
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
    assert change.key == Key("forked", "parent", "bar", 0), "the first of two equal checkpoints is matched first"
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


def test_frames_of_ordinary_memory_are_no_difference() -> None:
    here, there = replace(PARENT, pfn="ram+0x1000"), replace(PARENT, pfn="ram+0x2000")
    assert diff([here], [there]) == []
    assert diff([here], [PARENT])[0].pfn == ("ram+0x1000", "bar+0x0")
    assert diff([PARENT], [replace(PARENT, pfn="")])[0].pfn == ("bar+0x0", "")
    mapped = replace(PARENT, pagemap=0x8180000000012345)
    assert diff([mapped], [replace(PARENT, pagemap=0x8180000000054321)]) == []
    assert diff([mapped], [PARENT])[0].pagemap == ("SOFT_DIRTY EXCLUSIVE PRESENT", "SOFT_DIRTY")


def test_a_change_needs_an_observation_on_one_side() -> None:
    key = Key("forked", "child", "bar", 0, 0)
    with pytest.raises(UsageError, match="one side at least"):
        EntryChange(key, None, None)
