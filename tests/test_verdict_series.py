"""Tests for finding the patch at which a scenario changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.verdict import Claim, ClaimKind, Outcome, Run, ScenarioResult
from harness.verdict.claims import BugSeen
from harness.verdict.series import changes, steady
from harness.verdict.table import TROUBLE, Column, Mark, Table

P, F, S, K = Outcome.PASSED, Outcome.FAILED, Outcome.SKIPPED, Outcome.KNOWN_BUG


def run_of(*outcomes: Outcome | None, claim: str = "W is kept") -> Run:
    """A run of scenarios a, b, ... with these outcomes; None: no result."""
    results = []
    for name, outcome in zip("abcdef", outcomes, strict=False):
        if outcome is None:
            continue
        claims = (Claim(claim, outcome, "f()"),) if outcome in (P, F) else ()
        bugs = (BugSeen("HP-1", "x"),) if outcome is K else ()
        results.append(ScenarioResult(name, "pud", outcome, "no THP" if outcome is S else "", claims, known_bugs=bugs))
    return Run(tuple(results))


def broken(why: str) -> Run:
    return Run((), {TROUBLE: why})


def blind(name: str) -> Run:
    """A run with a scenario that this machine cannot show."""
    return Run((ScenarioResult(name, "pud", S, "blind", cannot_know=True),))


def table_of(*runs: Run) -> Table:
    return Table.of([Column(str(number), (run,)) for number, run in enumerate(runs)])


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([run_of(P), run_of(P), run_of(P)], []),
        ([run_of(P), run_of(F), run_of(F)], [("a", 1, 0)]),
        ([run_of(P), run_of(F), run_of(P)], [("a", 1, 0), ("a", 2, 1)]),
        ([run_of(P), broken("does not build"), run_of(F)], [("a", 2, 0)]),
        ([run_of(P), broken("does not build"), run_of(P)], []),
        ([run_of(P, P), run_of(P, S), run_of(K, S)], [("b", 1, 0), ("a", 2, 1)]),
        ([run_of(F), run_of(F, claim="D is kept")], [("a", 1, 0)]),
        ([broken("does not boot"), run_of(F)], []),
        ([run_of(P), blind("a"), run_of(P)], []),  # "cannot know" is not compared
        ([run_of(P), blind("a"), run_of(F)], [("a", 2, 0)]),
        ([blind("a"), run_of(P)], []),
        ([run_of(P, P), run_of(P, None), run_of(P, F)], [("b", 2, 0)]),
    ],
)
def test_changes(runs: list[Run], expected: list[tuple[str, int, int]]) -> None:
    found = [(one.case.scenario, one.step, one.since) for one in changes(table_of(*runs))]
    assert found == expected


def test_cases_that_never_change_are_counted() -> None:
    table = table_of(run_of(P, P, S), broken("does not build"), run_of(P, F, S))
    assert dict(steady(table)) == {Mark.PASS: 1, Mark.SKIP: 1}
    assert dict(steady(table_of(blind("a"), run_of(P), blind("a")))) == {Mark.PASS: 1}
    assert dict(steady(table_of(blind("a"), blind("a")))) == {Mark.UNKNOWN: 1}


def test_another_known_bug_is_a_change() -> None:
    one, other = run_of(K), run_of(K)
    other = Run((replace(other.results[0], known_bugs=(BugSeen("HP-2", "y"),)),))
    assert [change.step for change in changes(table_of(one, other))] == [1]


def test_the_number_of_stops_is_no_change() -> None:
    held = Claim("", F, "", kind=ClaimKind.INVARIANTS)
    runs = (Run((ScenarioResult("a", "pud", F, "W", (held,), stops=stops),)) for stops in (3, 8))
    assert changes(table_of(*runs)) == []


def test_a_table_of_some_rows() -> None:
    table = table_of(run_of(P, F, S))
    assert [case.scenario for case in table.only([table.cases[1]]).cases] == ["b"]
    assert table.only([]).cases == ()


def test_a_case_without_any_verdict_is_counted_by_its_first_step() -> None:
    table = table_of(blind("a"), broken("does not build"))
    assert dict(steady(table)) == {Mark.UNKNOWN: 1}
    assert dict(steady(table_of(broken("does not build"), blind("a")))) != {Mark.UNKNOWN: 1}
