"""Tests for results, their JSON and the exit status that follows from them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import ExitCode, UsageError
from harness.pagetable import Observation
from harness.verdict.claims import (
    BugFixed,
    BugReturned,
    BugSeen,
    Claim,
    ClaimKind,
    Outcome,
    Run,
    ScenarioResult,
    exit_code,
)
from harness.verdict.invariants import Invariant, Violation
from harness.verdict.log.complaint_kinds import ComplaintKind
from harness.verdict.log.taint import Taint
from harness.verdict.log.troubles import End, EndKind, Excused, KernelComplaint, KernelTroubles
from harness.verdict.mismatch import EntrySeen, Mismatch, Place, Subject

LOST = EntrySeen("pud", 0x4000000000008A7, ("P", "W"), Place("forked", "child", "bar", 0))
MISMATCH = Mismatch(Subject.BITS, "D", "1", "0", LOST, None, frozenset({"-D"}), note="mine")
COMPLAINT = KernelComplaint(ComplaintKind.BUG, "BUG: x", ("f", "g"), "BUG: x")
CLAIM = Claim(
    *("child keeps its dirty bit", Outcome.FAILED, "copy_huge_pud", "D=0 SAVED_DIRTY=1"),
    checkpoint="forked",
    mismatch=MISMATCH,
)
SEEN = Observation("forked", "child", "bar", 0, "pud", 0x8E7, ("P", "W"), "bar+0x0", None)
RESULT = ScenarioResult(
    *("fork", "pud", Outcome.FAILED, "", (CLAIM,), (SEEN,), ("[ 1.0] BUG",)),
    end=End(EndKind.PROGRAM, "SIGBUS"),
    waived=((Invariant.HOLE, "mine"),),
    stops=3,
    violations=(Violation(Invariant.BAR_PFN, "forked", "child", "bar", "expected 5", LOST),),
    kernel=(KernelTroubles((COMPLAINT,), Taint.WARN, (Excused("rcu: y", "it stood still"),), "3 records"),),
    known_bugs=(BugSeen("HP-1", "W is lost"),),
    fixed_bugs=(BugFixed("HP-2", "6.12.117"),),
    returned_bugs=(BugReturned("HP-3", "6.12.118", date(2026, 11, 26)),),
)


def result(outcome: Outcome, *claims: Outcome) -> ScenarioResult:
    return ScenarioResult("s", None, outcome, claims=tuple(Claim("c", one, "f") for one in claims))


def test_the_documented_object() -> None:
    assert Run((RESULT,), {"kernel": "6.12"}).to_json() == {
        "schema": "hugepfn-run",
        "version": 3,
        "kernel": "6.12",
        "results": [
            {
                "scenario": "fork",
                "file": "",
                "level": "pud",
                "outcome": "failed",
                "was": None,
                "reason": "",
                "end": {"kind": "program", "signal": "SIGBUS", "hang": None},
                "cannot_know": False,
                "claims": [
                    {
                        "kind": "scenario",
                        "name": "child keeps its dirty bit",
                        "outcome": "failed",
                        "kernel_function": "copy_huge_pud",
                        "message": "D=0 SAVED_DIRTY=1",
                        "checkpoint": "forked",
                        "mismatch": {
                            "subject": "bits",
                            "name": "D",
                            "expected": "1",
                            "got": "0",
                            "entry": {
                                "level": "pud",
                                "raw": "0x04000000000008a7",
                                "bits": ["P", "W"],
                                "place": {"checkpoint": "forked", "process": "child", "mapping": "bar", "offset": 0},
                                "count": 1,
                            },
                            "reference": None,
                            "wrong": ["-D"],
                            "since": "",
                            "after": "",
                            "before": "",
                            "note": "mine",
                        },
                        "was": None,
                    }
                ],
                "stops": 3,
                "violations": [
                    {
                        "invariant": "bar_pfn",
                        "checkpoint": "forked",
                        "process": "child",
                        "mapping": "bar",
                        "message": "expected 5",
                        "entry": LOST.to_json(),
                    }
                ],
                "waived": [{"invariant": "hole", "reason": "mine"}],
                "kernel": [
                    {
                        "complaints": [{"kind": "bug", "line": "BUG: x", "functions": ["f", "g"], "title": "BUG: x"}],
                        "taint": 512,
                        "excused": [{"line": "rcu: y", "why": "it stood still"}],
                        "gap": "3 records",
                        "expected": [],
                    }
                ],
                "known_bugs": [{"id": "HP-1", "title": "W is lost"}],
                "fixed_bugs": [{"id": "HP-2", "version": "6.12.117"}],
                "returned_bugs": [{"id": "HP-3", "version": "6.12.118", "date": "2026-11-26"}],
                "expectations": [],
                "evidence": "",
                "observations": [SEEN.to_json()],
                "log": ["[ 1.0] BUG"],
            }
        ],
    }


def test_outcomes_are_the_documented_words() -> None:
    assert [one.value for one in Outcome] == ["passed", "failed", "skipped", "known_bug", "expected", "error"]


texts = st.text(max_size=20)
outcomes = st.sampled_from(Outcome)
kinds = st.sampled_from(ClaimKind)
claims = st.builds(Claim, name=texts, outcome=outcomes, kernel_function=texts, message=texts, kind=kinds)
invariants = st.sampled_from(Invariant)
violations = st.builds(Violation, invariants, texts, texts, texts, texts, st.none() | st.just(LOST))
functions = st.lists(texts, max_size=2).map(tuple)
complaints = st.builds(KernelComplaint, st.sampled_from(ComplaintKind), texts, functions)
troubles = st.builds(
    KernelTroubles,
    complaints=st.lists(complaints, max_size=2).map(tuple),
    taint=st.integers(0, 1 << 40).map(Taint),
    excused=st.lists(st.builds(Excused, texts, texts), max_size=2).map(tuple),
    gap=texts,
)
results = st.builds(
    ScenarioResult,
    scenario=texts,
    level=st.none() | st.sampled_from(["pte", "pmd", "pud"]),
    outcome=outcomes,
    reason=texts,
    end=st.none() | st.builds(End, st.sampled_from(EndKind), texts),
    claims=st.lists(claims, max_size=3).map(tuple),
    observations=st.lists(st.just(SEEN), max_size=3).map(tuple),
    log=st.lists(texts, max_size=3).map(tuple),
    waived=st.lists(st.tuples(invariants, texts), max_size=2).map(tuple),
    cannot_know=st.booleans(),
    stops=st.integers(0, 99),
    violations=st.lists(violations, max_size=2).map(tuple),
    kernel=st.lists(troubles, max_size=2).map(tuple),
    known_bugs=st.lists(st.builds(BugSeen, texts, texts), max_size=2).map(tuple),
    fixed_bugs=st.lists(st.builds(BugFixed, texts, texts), max_size=2).map(tuple),
    returned_bugs=st.lists(st.builds(BugReturned, texts, texts, st.dates()), max_size=2).map(tuple),
)
contexts = st.dictionaries(st.sampled_from(["kernel", "accel", "qemu"]), st.text(max_size=5))
runs = st.builds(Run, results=st.lists(results, max_size=3).map(tuple), context=contexts)


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a busy host
@given(runs)
def test_a_run_can_be_stored_as_json(run: Run) -> None:
    assert Run.from_json(json.loads(json.dumps(run.to_json()))) == run


def test_unknown_keys_are_ignored_in_a_result_and_are_context_in_a_run() -> None:
    data = Run((RESULT,)).to_json()
    data["results"][0]["colour"] = "blue"
    assert Run.from_json(data | {"later": 1}) == Run((RESULT,), {"later": 1})


def test_the_error_about_an_older_version_says_to_run_again() -> None:
    data = Run((RESULT,)).to_json() | {"version": 1}
    with pytest.raises(UsageError) as refused:
        Run.from_json(data)
    assert str(refused.value) == ("the file has hugepfn-run version 1; expected version 3: run again with --json")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"schema": "other"}, "schema 'other'"),
        ({"version": 2}, "version 2"),
        ({"version": True}, "version True"),
        ({"results": "none"}, "'results' is 'none'; expected list"),
        ({"results": [1]}, "a result is int"),
        ({"results": [{}]}, "'scenario' is missing"),
        (
            {"results": [RESULT.to_json() | {"outcome": "great"}]},
            "expected one of: passed, failed, skipped, known_bug, expected, error",
        ),
        ({"results": [RESULT.to_json() | {"level": 3}]}, "'level' is 3"),
        ({"results": [RESULT.to_json() | {"claims": [None]}]}, "a claim is NoneType"),
        ({"results": [RESULT.to_json() | {"observations": ["x"]}]}, "expected an object, got str"),
        (
            {"results": [RESULT.to_json() | {"waived": [{"invariant": "bar"}]}]},
            "'invariant' is 'bar'; expected one of: walkable",
        ),
        ({"results": [RESULT.to_json() | {"violations": ["x"]}]}, "an entry of 'violations' is str"),
        (
            {"results": [RESULT.to_json() | {"returned_bugs": [{"id": "HP-3", "version": "6.12.1", "date": "today"}]}]},
            "'date' is 'today'; expected a day such as 2026-11-26",
        ),
    ],
)
def test_the_error_about_an_invalid_run_says_what_was_expected(change: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        Run.from_json(Run((RESULT,)).to_json() | change)


@pytest.mark.parametrize("value", [None, [], "x", 1])
def test_a_file_that_is_not_an_object(value: object) -> None:
    with pytest.raises(UsageError, match="expected a JSON object"):
        Run.from_json(value)


P, F, S, B, E = Outcome.PASSED, Outcome.FAILED, Outcome.SKIPPED, Outcome.KNOWN_BUG, Outcome.ERROR


@pytest.mark.parametrize(
    ("found", "expected", "strict"),
    [
        ([], ExitCode.USAGE, ExitCode.USAGE),
        ([result(P)], ExitCode.OK, ExitCode.OK),
        ([result(P), result(B)], ExitCode.OK, ExitCode.OK),
        ([result(S)], ExitCode.OK, ExitCode.CLAIM_FAILED),
        ([result(P, P, S)], ExitCode.OK, ExitCode.CLAIM_FAILED),
        ([result(P), result(F)], ExitCode.CLAIM_FAILED, ExitCode.CLAIM_FAILED),
        ([result(P, P, F)], ExitCode.CLAIM_FAILED, ExitCode.CLAIM_FAILED),
        ([result(P), result(E)], ExitCode.MACHINERY, ExitCode.MACHINERY),
        ([result(E), result(F)], ExitCode.CLAIM_FAILED, ExitCode.CLAIM_FAILED),
        ([result(E), result(S)], ExitCode.MACHINERY, ExitCode.CLAIM_FAILED),
        ([result(E, F)], ExitCode.CLAIM_FAILED, ExitCode.CLAIM_FAILED),
    ],
)
def test_exit_code(found: list[ScenarioResult], expected: ExitCode, strict: ExitCode) -> None:
    assert exit_code(found) is expected
    assert exit_code(iter(found), strict=True) is strict


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 2),
        ({"outcome": Outcome.KNOWN_BUG}, 0),
        ({"reason": "the guest program got SIGBUS"}, 0),
    ],
    ids=["failed", "known", "another-reason"],
)
def test_the_number_of_claims_that_failed(changes: dict[str, Any], count: int) -> None:
    found = result(Outcome.FAILED, Outcome.FAILED, Outcome.PASSED, Outcome.FAILED)
    invariants = Claim("", Outcome.FAILED, "f", kind=ClaimKind.INVARIANTS)
    found = replace(found, claims=(*found.claims, invariants), **changes)
    assert found.failed_by_claims == count
