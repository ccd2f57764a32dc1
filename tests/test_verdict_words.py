"""Checks that words for results are made in one place, and that nothing is recognised by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from harness.campaign.facts import sightings
from harness.errors import ExitCode
from harness.verdict import Claim, ClaimKind, Outcome, Run, ScenarioResult, words
from harness.verdict.bisect import judge
from harness.verdict.claims import BugFixed, BugReturned, BugSeen
from harness.verdict.differences import What, compare_runs
from harness.verdict.invariants import Invariant, Violation
from harness.verdict.known_bugs import parse_ledger
from harness.verdict.log.complaint_kinds import ComplaintKind
from harness.verdict.log.taint import Taint
from harness.verdict.log.troubles import Excused, KernelComplaint, KernelTroubles
from harness.verdict.seen import NO_FACTS
from harness.verdict.series import changes
from harness.verdict.table import Column, Mark, Table
from tests.test_mutants import kill

ROOT = Path(__file__).resolve().parents[1]
OWN = Claim("W is kept", Outcome.PASSED, "f()")
HELD = Claim("", Outcome.PASSED, "", kind=ClaimKind.INVARIANTS)
BROKEN = replace(HELD, outcome=Outcome.FAILED)
WARNED = KernelTroubles((KernelComplaint(ComplaintKind.WARNING, "WARNING: mm/memory.c:1"),))
CONTEXT = {"kernel": {"spec": "debian:6.12.118"}, "date": "2026-11-26", "qemu": "7.2"}
NAME = "the invariants held at 3 stops, and the kernel log has no complaint"
EVIL = "cannot know: known bug HP-1: x; HP-1 (6.12.9 had it); the invariants held at 3 stops: {stops}"
LIST = """
[[bug]]
id = "HP-1"
title = "x"
scenario = "fork"
function = "f()"
reproduce = "x"
[[bug.symptom]]
claim = "x"
"""


def run(claim: Claim, stops: int, *kernel: KernelTroubles) -> Run:
    return Run((ScenarioResult("fork", "pud", claim.outcome, "", (OWN, claim), stops=stops, kernel=kernel),), CONTEXT)


def concluded() -> list[object]:
    """Return the content of every table and verdict, without the words."""
    runs = good, longer, bad = run(HELD, 3), run(HELD, 8), run(BROKEN, 8, WARNED)
    table = Table.of([Column(f"debian:6.12.{number}", (one,)) for number, one in enumerate(runs)])
    mutant = kill.Mutant(Path("x.patch"), "x", (kill.Killer("fork", "pud", '{complaint = "warning"}'),))
    differing = [d for other in (longer, bad) for one in compare_runs(good, other) for d in one.differences]
    return [
        [[(cell.mark, cell.word, cell.listed, cell.bugs) for cell in row] for row in table.cells],
        table.exit_code(),
        [(change.step, change.before.mark, change.after.mark) for change in changes(table)],
        [(one.what, one.after) for one in differing if one.what is What.CLAIM],
        [kill.verdict(mutant, one)[0] for one in runs],
        [judge(one.results)[0] for one in runs],
        sightings(table, parse_ledger(LIST), NO_FACTS),
        [Run.from_json(one.to_json()) == one for one in runs],
    ]


def test_the_claim_of_invariants_may_be_called_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    before = concluded()
    assert before[:5] == [
        [[(Mark.PASS, "pass", (), frozenset())] * 2 + [(Mark.FAIL, "FAIL", (), frozenset())]],
        ExitCode.CLAIM_FAILED,
        [(2, Mark.PASS, Mark.FAIL)],
        [(What.CLAIM, "failed")],
        ["survived", "survived", "killed"],
    ]
    monkeypatch.setattr(words, "_INVARIANTS", EVIL)
    assert concluded() == before
    (_, (_, renamed, _)) = words.claims(run(HELD, 1).results[0])
    assert renamed == EVIL.format(stops="1 stop")


def test_the_output_of_a_test_makes_no_known_bug() -> None:
    said = ScenarioResult("fork", "pud", Outcome.PASSED, EVIL, (replace(OWN, name=EVIL),))
    for outcome, mark in ((Outcome.PASSED, Mark.PASS), (Outcome.SKIPPED, Mark.SKIP), (Outcome.FAILED, Mark.FAIL)):
        ((cell,),) = Table.of([Column("a", (Run((replace(said, outcome=outcome),)),))]).cells
        assert (cell.mark, cell.listed, cell.bugs) == (mark, (), frozenset())


@pytest.mark.parametrize("phrase", ["the invariants held", "claims do not hold{", "fixed here: ", "had it)"])
def test_the_words_are_in_one_file(phrase: str) -> None:
    files = [*(ROOT / "harness").rglob("*.py"), *(ROOT / "tests" / "mutants").glob("*.py")]
    assert [path.name for path in files if phrase in path.read_text()] == ["words.py"]


VIOLATED = Violation(Invariant.BAR_PFN, "forked", "parent", "bar", "expected 5")
GAP = KernelTroubles(gap="a gap of 7 records")
EXCUSED = KernelTroubles(excused=(Excused("rcu: stalls", "it stood still"),))
TAINTED = KernelTroubles((KernelComplaint(ComplaintKind.BAD_PAGE_MAP, "BUG: Bad page map"),), Taint.WARN)


@pytest.mark.parametrize(
    ("violations", "kernel", "lines"),
    [
        ([], [KernelTroubles()], []),
        ([VIOLATED], [GAP], ["pfn is BAR + offset: at 'forked', expected 5"]),
        ([replace(VIOLATED, invariant=Invariant.HOLE)], [], []),  # this invariant is waived
        (
            [],
            [GAP, TAINTED],
            ["the kernel log: BUG: Bad page map", "the kernel is now tainted: W (512): the kernel issued a warning"],
        ),
        ([], [GAP, EXCUSED], ["a gap of 7 records", "not the kernel's fault: rcu: stalls (it stood still)"]),
    ],
)
def test_the_claim_of_invariants_says_what_was_seen(
    violations: list[Violation], kernel: list[KernelTroubles], lines: Sequence[str]
) -> None:
    waived = ((Invariant.HOLE, "mine"),)
    seen = ScenarioResult(
        *("fork", "pud", Outcome.PASSED, "", (HELD,)),
        waived=waived,
        stops=3,
        violations=tuple(violations),
        kernel=tuple(kernel),
    )
    assert [(name, message) for _, name, message in words.claims(seen)] == [(NAME, "\n".join(lines))]


PASSED = ScenarioResult("fork", "pud", Outcome.PASSED)
RETURNED = (BugReturned("HP-3", "6.12.118", date(2026, 11, 26)),)


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (PASSED, ""),
        (replace(PASSED, fixed_bugs=(BugFixed("HP-2", "6.12.117"),)), "fixed here: HP-2 (6.12.117 had it)"),
        (
            replace(PASSED, outcome=Outcome.KNOWN_BUG, reason="W=0", known_bugs=(BugSeen("HP-1", "W is lost"),)),
            "known bug HP-1: W is lost",
        ),
        (replace(PASSED, outcome=Outcome.FAILED, reason="killed by SIGBUS", claims=(OWN, BROKEN)), "killed by SIGBUS"),
        (
            replace(PASSED, outcome=Outcome.FAILED, claims=(replace(OWN, outcome=Outcome.FAILED), BROKEN)),
            "1 claim does not hold: W is kept [f()]",
        ),
        (
            replace(PASSED, outcome=Outcome.FAILED, reason="killed by SIGBUS", returned_bugs=RETURNED),
            "killed by SIGBUS\nthis looks like HP-3, but 6.12.118 was measured without HP-3 on 2026-11-26",
        ),
    ],
)
def test_the_reason_of_an_outcome(result: ScenarioResult, reason: str) -> None:
    assert words.reason(result) == reason


@pytest.mark.parametrize(
    ("line", "title", "words"),
    [
        (
            "WARNING: CPU: 0 PID: 1 at mm/memory.c:1 f+0x1/0x2",
            "WARNING in f",
            "WARNING in f (WARNING: CPU: 0 PID: 1 at",
        ),
        (
            "BUG: non-zero pgtables_bytes on freeing mm: 4096",
            "BUG: non-zero pgtables_bytes on freeing mm: NUM",
            "BUG: n",
        ),
        (
            "BUG: Bad page state in process x  pfn:7",
            "BUG: Bad page state in corrupted",
            "BUG: Bad page state in process",
        ),
        ("BUG: Bad page map in process x", "BUG: Bad page map", "BUG: Bad page map in process x"),
        ("BUG: x", "", "BUG: x"),
    ],
)
def test_a_complaint_is_shown_by_its_title_if_that_says_more(line: str, title: str, words: str) -> None:
    assert KernelComplaint(ComplaintKind.BUG, line, (), title).words.startswith(words)


@pytest.mark.parametrize(
    ("outcome", "one", "two"),
    [
        (Outcome.ERROR, "1 error", "2 errors"),
        (Outcome.KNOWN_BUG, "1 known bug", "2 known bugs"),
        (Outcome.FAILED, "1 failed", "2 failed"),
    ],
)
def test_a_number_of_outcomes(outcome: Outcome, one: str, two: str) -> None:
    assert (words.number_of(outcome, 1), words.number_of(outcome, 2)) == (one, two)
