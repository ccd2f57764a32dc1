"""Findings are grouped by how they show, and told from known bugs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import DeadlineError
from harness.explorer.groups import Groups, lines_of, symptom_of
from harness.explorer.sequence import SequenceResult, end_of, place_of
from harness.model.draw import draw
from harness.model.operation import Operation, Verb
from harness.verdict.invariants import Area, Deviation, Invariant, Oracle, Violation
from harness.verdict.known_bugs import parse_ledger
from harness.verdict.log.complaint_kinds import ComplaintKind
from harness.verdict.log.taint import Taint
from harness.verdict.log.troubles import End, EndKind, KernelComplaint
from harness.verdict.symptoms import Ended, Shown

GONE = Deviation(Oracle.UNTOUCHED, "smaps", "pud", "no change", "gone", "step 3")
BAD_PUD = KernelComplaint(ComplaintKind.BAD_PUD, "mm/pgtable-generic.c:42: bad pud 0(1)", (), "bad pud")
LEDGER = """
[[bug]]
id = "HP-1"
title = "t"
scenario = "s"
function = "f"
reproduce = "r"

[[bug.symptom]]
oracle = "untouched"
cause = "smaps|numa_maps"
level = "pud"
got = "gone"
"""


def result(shown: Shown) -> SequenceResult:
    return SequenceResult(draw(1, 1), shown, 3)


@pytest.mark.parametrize(
    ("shown", "symptom"),
    [
        (GONE, "untouched: smaps (pud): expected no change, got gone"),
        (Deviation(Oracle.DATA, "read", "pmd", "0x1", "0x2"), "data: read (pmd)"),
        (Deviation(Oracle.TEARDOWN, "munmap", "", "0", "4 KiB"), "teardown: munmap"),
        (
            Violation.of(Invariant.INSIDE, Area("p0", "arena", 0, 1, 0, None), "m"),
            "entries: no leaf reaches past its vma",
        ),
        (BAD_PUD, "log: bad pud"),
        (Ended(End(EndKind.DIED), BAD_PUD), "the kernel died: bad pud"),
        (Ended(End(EndKind.DIED)), "the kernel died: without a word"),
        (Ended(End(EndKind.HANG)), "hang: without a word"),
        (Taint.WARN, f"taint: {Taint.WARN}"),
    ],
)
def test_a_symptom_has_nothing_that_differs_between_two_findings_of_one_bug(shown: Shown, symptom: str) -> None:
    assert symptom_of(shown) == symptom


def test_a_group_counts_its_sequences() -> None:
    groups = Groups()
    assert groups.add(5, result(GONE)) is not None
    assert groups.add(9, result(GONE)) is None
    assert groups.add(7, result(BAD_PUD)) is not None
    assert [(one.number, one.times) for one in groups.new] == [(5, 2), (7, 1)]


def test_a_known_bug_is_no_finding() -> None:
    groups = Groups(parse_ledger(LEDGER))
    assert groups.add(5, result(GONE)) is None
    assert groups.new == []
    assert [(one.known, one.times) for one in groups.known] == [("HP-1", 1)]


def test_a_known_bug_may_show_in_a_race() -> None:
    groups = Groups(parse_ledger(LEDGER))
    raced = Deviation(Oracle.UNTOUCHED, "munmap against smaps", "pud", "no change", "gone")
    assert groups.add(5, result(raced)) is None


@pytest.mark.parametrize(
    "other",
    [
        Deviation(Oracle.UNTOUCHED, "munmap against read", "pud", "no change", "gone"),
        Deviation(Oracle.DIRT, "smaps", "pud", "no change", "gone"),
        Deviation(Oracle.UNTOUCHED, "smaps_rollup", "pud", "no change", "gone"),
        Deviation(Oracle.UNTOUCHED, "smaps", "pmd", "no change", "gone"),
        Deviation(Oracle.UNTOUCHED, "smaps", "pud", "no change", "-W"),
        BAD_PUD,
    ],
)
def test_what_differs_from_a_known_bug_is_a_finding(other: Shown) -> None:
    assert Groups(parse_ledger(LEDGER)).add(5, result(other)) is not None


def test_a_sequence_shows_where_it_went_wrong() -> None:
    lines = lines_of(draw(1, 1), failing=2)
    assert [line.endswith("<-") for line in lines] == [number == 2 for number in range(1, 11)]


def test_a_line_of_the_log_belongs_to_an_operation() -> None:
    log = "".join(f"hugepfn: checkpoint {at} pid 9\n{said}" for at, said in (("0.1", "bad pud\n"), ("1.2", "oops\n")))
    assert [place_of(log, line) for line in ("bad pud", "oops", "warning")] == [(0, 2), (1, 3), None]
    assert place_of("oops\n", "oops") is None


STALL = KernelComplaint(ComplaintKind.RCU_STALL, "rcu: INFO: rcu_sched self-detected stall", (), "rcu stall")


@pytest.mark.parametrize(
    ("complaint", "steps_done", "expected"),
    [
        (None, 0, "progress: fill: expected an end, got no end"),
        (STALL, 0, "progress: fill: expected an end, got no end"),  # what an endless system call looks like
        (STALL, 1, "progress: munmap against read: expected an end, got no end"),
        (BAD_PUD, 0, "log: bad pud"),
        (STALL, 4, "hang: rcu stall"),  # after the last one
    ],
)
def test_what_did_not_end(complaint: KernelComplaint | None, steps_done: int, expected: str) -> None:
    race = (Operation(0, Verb.RACE, size=2), Operation(0, Verb.UNMAP, 0, 4096), Operation(0, Verb.READ))
    complaints = [complaint] if complaint is not None else []
    run: Any = SimpleNamespace(kernel_troubles=lambda: SimpleNamespace(complaints=complaints))
    shown, _ = end_of(run, (Operation(0, Verb.FILL), *race), steps_done + 1, DeadlineError("nothing within 10 s"))
    assert symptom_of(shown) == expected
