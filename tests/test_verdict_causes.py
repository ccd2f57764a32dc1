"""Tests for grouping broken claims by cause: claims that follow from the first, and the function to blame."""

from __future__ import annotations

from dataclasses import replace

from harness.kernel_functions import CPU
from harness.verdict import Claim, ClaimKind, Outcome, ScenarioResult, words
from harness.verdict.causes import causes
from harness.verdict.mismatch import EntrySeen, Mismatch, Place, Subject

COPY = "mm/huge_memory.c copy_huge_pmd()"
THERE = EntrySeen("pmd", 0xE7, ("P", "W", "U", "A", "D"), Place("written", "parent", "bar", 0))


def broken(name: str, wrong: str, checkpoint: str, process: str = "child", by: str = COPY) -> Claim:
    """A claim that is broken by one bit: "+A" or "-W"."""
    bits = tuple(one for one in (*THERE.bits, wrong[1:]) if one != wrong[1:] or wrong[0] == "+")
    entry = EntrySeen("pmd", 0xE5, tuple(dict.fromkeys(bits)), Place(checkpoint, process, "bar", 0))
    values = ("0", "1") if wrong[0] == "+" else ("1", "0")
    mismatch = Mismatch(Subject.BITS, wrong[1:], *values, entry, THERE, frozenset({wrong}))
    return Claim(name, Outcome.FAILED, by, "seen", checkpoint=checkpoint, mismatch=mismatch)


FIRST = broken("the child's entry is writable", "-W", "forked")
LATER = broken("the child's write sets its own accessed and dirty bits", "-W", "child-written", by=CPU)


def test_claims_about_the_same_difference_follow_from_the_first() -> None:
    (cause,) = causes([FIRST, LATER])
    assert (cause.claim, cause.followers, cause.kernel_function) == (FIRST, (LATER,), COPY)


def test_another_entry_or_difference_is_a_separate_cause() -> None:
    other = broken("the parent's entry is writable", "-W", "forked", process="parent")
    clean = broken("the child's entry is clean", "-D", "forked")
    value = Claim("no fault", Outcome.FAILED, COPY, mismatch=Mismatch(Subject.VALUE, "faults", "0", "1"))
    unknown = Claim("said by hand", Outcome.FAILED, COPY, "D=0")
    made = [FIRST, other, clean, value, unknown]
    assert [cause.claim for cause in causes(made)] == made


def test_other_bits_changed_at_the_first_claim_follow_from_it() -> None:
    """The first claim has all differences between the entry and its reference, although it is about one bit."""
    assert FIRST.mismatch is not None
    assert FIRST.mismatch.entry is not None
    entry = replace(FIRST.mismatch.entry, bits=("P", "U", "A"))
    first = replace(FIRST, mismatch=replace(FIRST.mismatch, entry=entry))
    assert len(causes([first, broken("the child keeps its dirty bit", "-D", "forked")])) == 1


def test_a_comparison_with_a_wrong_entry_follows_too() -> None:
    third = broken("the grandchild has what the child had", "+W", "later", process="grandchild")
    assert FIRST.mismatch is not None
    assert third.mismatch is not None
    third = replace(third, mismatch=replace(third.mismatch, reference=FIRST.mismatch.entry))
    assert [cause.followers for cause in causes([FIRST, third])] == [(third,)]


def test_the_function_of_the_first_wrong_stop_is_blamed() -> None:
    held = Claim("the parent has its entry", Outcome.PASSED, COPY, checkpoint="forked")
    assert LATER.mismatch is not None
    since = replace(LATER, mismatch=replace(LATER.mismatch, since="forked"))
    assert [cause.kernel_function for cause in causes([held, since])] == [COPY]
    assert [cause.kernel_function for cause in causes([held, LATER])] == [CPU]


def test_the_words_lead_with_the_first_and_count_the_others() -> None:
    made = (FIRST, LATER, Claim("", Outcome.FAILED, "", kind=ClaimKind.INVARIANTS))
    result = ScenarioResult("fork", "pmd", Outcome.FAILED, "", made)
    assert words.failed(result) == [
        "2 claims do not hold",
        f"BROKEN the child's entry is writable [{COPY}]",
        "       seen",
        "       and 1 more claim of the same entry",
    ]
    assert words.reason(result) == f"2 claims do not hold, first: the child's entry is writable [{COPY}]"
    assert [message for _, _, message in words.claims(result)][:2] == [
        "seen",
        "for the same entry as: the child's entry is writable",
    ]
    assert words.broken([result])[:2] == [
        f"fork pmd: the child's entry is writable [{COPY}]",
        f"fork pmd: the child's write sets its own accessed and dirty bits [{CPU}]",
    ]


def test_known_bugs_are_no_failures_and_are_named_in_the_last_line() -> None:
    held = Claim("x", Outcome.PASSED, "f()")
    known = [ScenarioResult("fork", level, Outcome.KNOWN_BUG, claims=(held,)) for level in ("pmd", "pud")]
    assert words.totals(known[:1]) == "1 known bug; 1 of 1 claim holds; a known bug does not count as a failure"
    assert words.totals(known) == "2 known bugs; 2 of 2 claims hold; known bugs do not count as failures"
    failed = [*known, ScenarioResult("fork", "pte", Outcome.FAILED)]
    assert words.totals(failed) == "1 failed, 2 known bugs; 2 of 2 claims hold"
    assert words.totals([]) == "nothing ran; 0 of 0 claims hold"
