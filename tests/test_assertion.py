"""Tests for the explanation of a failed assertion: whose entry, what was expected and found; no call is repeated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from harness.assertion.explain import explain
from harness.assertion.history import History
from harness.assertion.source import next_claim
from harness.claims import Claims
from harness.errors import KernelDied
from harness.guest.job import ExitStatus
from harness.kernel_functions import CPU, copy_huge_pmd
from harness.observe.run_result import RunResult
from harness.pagetable import Bits, Leaf, Level
from harness.verdict import mismatch_words, parse_ktap
from harness.verdict.mismatch import Mismatch, Place
from tests.hand_made_stop import DIRTY, PLAIN, leaf, stop

STDOUT = """KTAP version 1
1..1
# checkpoint written
# value child-write-faults=1
# value cold=0
# checkpoint forked
# value slow-faults=-1
ok 1 x
"""
RESULT = RunResult(parse_ktap(STDOUT), ExitStatus(0, None), STDOUT, "")
LOST = PLAIN & ~Bits.W | Bits.SAVED_DIRTY
HISTORY = History(
    [
        stop("written", parent=leaf(DIRTY)),
        stop("forked", parent=leaf(LOST), child=leaf(DIRTY)),
        stop("exited", parent=leaf(LOST), child=None),
    ],
    result=RESULT,
)
WRITTEN, FORKED, EXITED = HISTORY.stops
PTES = tuple(leaf(PLAIN, Level.PTE, number) for number in range(512))


def failing(check: Callable[[], object], history: History = HISTORY) -> Mismatch:
    """Run a test that fails, and return the mismatch of its assertion."""
    with pytest.raises(AssertionError) as caught:
        check()
    found = explain(caught.value, history)
    assert found is not None
    return found


def a_bit_that_is_set() -> None:
    assert not FORKED["child"].leaf("bar").young


def a_bit_that_is_clear() -> None:
    parent = FORKED["parent"].leaf("bar")
    assert parent.present
    assert parent.write


def pte_dirty() -> None:
    assert not FORKED["parent"].leaf("bar").entry.kernel_dirty


def a_bit_by_name() -> None:
    assert Bits.SAVED_DIRTY not in FORKED["parent"].leaf("bar").bits


def an_entry() -> None:
    written = WRITTEN["parent"].leaf("bar").entry
    assert EXITED["parent"].leaf("bar").entry == written


def the_only_bit_that_differs() -> None:
    assert FORKED["child"].leaf("bar").bits & ~Bits.A == WRITTEN["parent"].leaf("bar").bits & ~(Bits.A | Bits.D)


def bits_that_changed() -> None:
    assert FORKED["parent"].leaf("bar").bits ^ WRITTEN["parent"].leaf("bar").bits == Bits.D


def a_level() -> None:
    assert FORKED["child"].leaf("bar").level is Level.PUD


def levels() -> None:
    assert [one.level for one in FORKED["child"].leaves("bar")] == [Level.PTE, Level.PTE]


def a_pfn() -> None:
    assert FORKED["child"].leaf("bar").pfn == 0x123


def the_second_of_two_parts() -> None:
    child = FORKED["child"].leaf("bar")
    assert (child.level, child.dirty, child.write) == (Level.PMD, True, False)


def no_entry() -> None:
    assert EXITED["child"].leaf("bar", 0x2000).dirty


def an_entry_too_many() -> None:
    assert FORKED["child"].find_leaf("bar") is None


def entries_too_many() -> None:
    assert not FORKED["child"].leaves("bar")


def one_of_all() -> None:
    assert all(process.leaf("bar").write for process in FORKED)


def a_value() -> None:
    values = RESULT.values
    for name, error in {"cold": "EINVAL"}.items():
        assert values[name] == error


def a_count() -> None:
    who = "child"
    assert RESULT.faults(f"{who}-write-faults", before="forked") == 0


def a_hang() -> None:
    assert RESULT.faults("slow-faults", before="exited") == 0


def said_by_the_test() -> None:
    assert len(HISTORY.stops) == 2, "the number of stops"


def same(one: Leaf, other: Leaf) -> bool:
    return one == other


def a_helper_of_the_test() -> None:
    assert same(FORKED["child"].leaf("bar"), FORKED["parent"].leaf("bar"))


@pytest.mark.parametrize(
    ("check", "told"),
    [
        (a_bit_that_is_set, "child bar+0x0 at 'forked', A: expected 0, got 1"),
        (a_bit_that_is_clear, "parent bar+0x0 at 'forked', W: expected 1, got 0"),
        (pte_dirty, "parent bar+0x0 at 'forked', pmd_dirty(): expected 0, got 1"),
        (a_bit_by_name, "parent bar+0x0 at 'forked', SAVED_DIRTY: expected 0, got 1"),
        (
            an_entry,
            "parent bar+0x0 at 'exited' (so since 'forked'): -W -D +SAVED_DIRTY; "
            "expected 0x80000003800002f7, got 0x84000003800002b5",
        ),
        (the_only_bit_that_differs, "child bar+0x0 at 'forked', D: expected 0, got 1"),
        (bits_that_changed, "parent bar+0x0 at 'forked', changed bits: expected D, got W D SAVED_DIRTY"),
        (a_level, "child bar+0x0 at 'forked', level: expected pud, got pmd"),
        (levels, "child bar+0x0 at 'forked', level: expected pte x2, got pmd"),
        (a_pfn, "child bar+0x0 at 'forked', pfn: expected 0x123, got 0x380000"),
        (the_second_of_two_parts, "child bar+0x0 at 'forked', W: expected 0, got 1"),
        (no_entry, "child bar+0x2000 at 'exited': expected an entry, got none"),
        (an_entry_too_many, "child bar+0x0 at 'forked': expected no entry, got one"),
        (entries_too_many, "child bar+0x0 at 'forked': expected no entry, got one"),
        (one_of_all, "parent bar+0x0 at 'forked', W: expected 1, got 0"),
        (a_value, "the program reports cold between 'written' and 'forked': expected EINVAL, got 0"),
        (a_count, "the program reports child-write-faults between 'written' and 'forked': expected 0, got 1"),
        (a_hang, "slow before 'exited' hangs: it was abandoned after 10,000 faults"),
        (said_by_the_test, "the number of stops after 'exited': expected 2, got 3"),
    ],
)
def test_whose_entry_and_what_was_expected(check: Callable[[], None], told: str) -> None:
    assert mismatch_words.headline(failing(check)) == told


def test_a_helper_is_not_called_again_but_its_entries_are_shown() -> None:
    assert mismatch_words.lines(failing(a_helper_of_the_test)) == [
        "child bar+0x0 at 'forked', same(FORKED['child'].leaf('bar'), FORKED['parent'].leaf('bar')): "
        "expected true, got false",
        "  forked  parent  bar+0x0  pmd  0x84000003800002b5  P U PCD A PSE SPECIAL SAVED_DIRTY NX",
        "  forked  child   bar+0x0  pmd  0x80000003800002f7  P +W U PCD A +D PSE SPECIAL NX -SAVED_DIRTY",
    ]


def test_a_call_with_an_effect_is_not_repeated() -> None:
    called = []

    def until(_checkpoint: str) -> Any:
        called.append(1)
        return FORKED

    def check() -> None:
        assert not until("forked")["child"].leaf("bar").young

    found = failing(check)
    assert called == [1]
    assert (found.expected, found.got, found.entry) == ("false", "true", None)


def test_the_stops_of_the_claim_are_shown_instead_of_the_last_one() -> None:
    assert mismatch_words.lines(failing(a_bit_that_is_set))[1:] == [
        "  written  parent  bar+0x0  pmd  0x80000003800002f7  P W U PCD A D PSE SPECIAL NX",
        "  forked   child   bar+0x0  pmd  0x80000003800002f7  P W U PCD A D PSE SPECIAL NX",
    ]
    assert mismatch_words.lines(failing(an_entry))[1:] == [
        "  written  parent  bar+0x0  pmd  0x80000003800002f7  P W U PCD A D PSE SPECIAL NX",
        "  exited   parent  bar+0x0  pmd  0x84000003800002b5  P U PCD A PSE SPECIAL +SAVED_DIRTY NX -W -D",
    ]


def test_equal_neighbours_share_a_line() -> None:
    at = stop("unmapped", parent=(*PTES, leaf(DIRTY, Level.PTE, 512)))

    def check() -> None:
        assert at["parent"].leaves("bar") == ()

    assert mismatch_words.lines(failing(check, History([at]))) == [
        "parent bar+0x0 at 'unmapped': expected no entry, got 513 entries",
        "  unmapped  parent  bar+0x0 x512  pte  0x8000000380000237  P W U PCD A SPECIAL NX",
    ]


def test_the_first_difference_of_two_lists_is_shown() -> None:
    moved = (*PTES[:7], leaf(PLAIN, Level.PTE, 7, page=9), *PTES[8:])
    before, after = stop("before", parent=PTES), stop("after", parent=moved)

    def check() -> None:
        now, then = after["parent"].leaves("bar"), before["parent"].leaves("bar")
        assert [one.entry for one in now] == [one.entry for one in then]

    head, *table = mismatch_words.lines(failing(check, History([before, after])))
    assert head == "parent bar+0x7000 at 'after': pfn; expected 0x8000000380007237, got 0x8000000380009237"
    assert len(table) == 2


def test_equal_entries_are_distinguished_by_their_stop() -> None:
    assert WRITTEN["parent"].leaf("bar") == FORKED["child"].leaf("bar")
    assert HISTORY.place_of(FORKED["child"].leaf("bar")) == Place("forked", "child", "bar", 0)
    assert HISTORY.place_of(WRITTEN["parent"].leaf("bar").entry) == Place("written", "parent", "bar", 0)


def test_pytests_values_are_used_for_expressions_that_are_not_repeated() -> None:
    def holders() -> list[str]:
        return ["child bar"]

    with pytest.raises(AssertionError) as caught:
        assert holders() == []
    found = explain(caught.value, HISTORY, (["child bar"], []))
    assert found is not None
    assert mismatch_words.headline(found) == "holders() after 'exited': expected none, got child bar"


def test_the_next_claim_is_named_if_the_kernel_dies() -> None:
    claim = Claims()

    def until(checkpoint: str) -> None:
        raise KernelDied(checkpoint)

    def check(level: Level) -> None:
        with claim("an earlier one", by=CPU):
            pass
        until("forked")
        with claim(f"the child's {level.label} is clean", by=copy_huge_pmd):
            pass
        with claim("a later one"):
            pass

    with pytest.raises(KernelDied) as caught:
        check(Level.PMD)
    assert next_claim(caught.value, claim) == ("the child's pmd is clean", "mm/huge_memory.c copy_huge_pmd()")
    assert next_claim(caught.value, Claims()) is None


def test_a_comparison_in_pytests_words() -> None:
    one, other = FORKED["parent"].leaf("bar"), WRITTEN["parent"].leaf("bar")
    assert mismatch_words.compared("==", one.entry, other.entry) == [
        "0x84000003800002b5 == 0x80000003800002f7",
        "+SAVED_DIRTY -W -D",
        "pmd 0x84000003800002b5 P U PCD A PSE SPECIAL SAVED_DIRTY NX pfn=0x380000",
        "pmd 0x80000003800002f7 P W U PCD A D PSE SPECIAL NX pfn=0x380000",
    ]
    assert mismatch_words.compared("==", Bits.W, Bits.W | Bits.D) == ["W == W D", "-D"]
