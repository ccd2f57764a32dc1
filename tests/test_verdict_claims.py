"""Results, their JSON and the exit status that follows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import ExitCode, UsageError
from harness.verdict.claims import Claim, Outcome, Run, ScenarioResult, exit_code

CLAIM = Claim("child keeps D", Outcome.FAILED, "copy_huge_pud", "D=0 SAVED_DIRTY=1")
RESULT = ScenarioResult(
    "fork", "pud", Outcome.FAILED, "", (CLAIM,), ({"at": "forked", "leaf": [1, None]},), ("[ 1.0] BUG",)
)


def result(outcome: Outcome, *claims: Outcome) -> ScenarioResult:
    return ScenarioResult("s", None, outcome, claims=tuple(Claim("c", one, "f") for one in claims))


def test_the_documented_object() -> None:
    assert Run((RESULT,), {"kernel": "6.12"}).to_json() == {
        "schema": "hugepfn-run",
        "version": 1,
        "kernel": "6.12",
        "results": [
            {
                "scenario": "fork",
                "level": "pud",
                "outcome": "failed",
                "reason": "",
                "claims": [
                    {
                        "name": "child keeps D",
                        "outcome": "failed",
                        "kernel_function": "copy_huge_pud",
                        "message": "D=0 SAVED_DIRTY=1",
                    }
                ],
                "observations": [{"at": "forked", "leaf": [1, None]}],
                "log": ["[ 1.0] BUG"],
                "waived": [],
            }
        ],
    }


def test_outcomes_are_the_documented_words() -> None:
    assert [one.value for one in Outcome] == ["passed", "failed", "skipped", "known_bug", "error"]


texts = st.text(max_size=20)
outcomes = st.sampled_from(Outcome)
claims = st.builds(Claim, name=texts, outcome=outcomes, kernel_function=texts, message=texts)
observations = st.dictionaries(texts, st.none() | st.integers() | texts | st.lists(st.booleans()), max_size=3)
results = st.builds(
    ScenarioResult,
    scenario=texts,
    level=st.none() | st.sampled_from(["pte", "pmd", "pud"]),
    outcome=outcomes,
    reason=texts,
    claims=st.lists(claims, max_size=3).map(tuple),
    observations=st.lists(observations, max_size=3).map(tuple),
    log=st.lists(texts, max_size=3).map(tuple),
)
contexts = st.dictionaries(st.sampled_from(["kernel", "accel", "qemu"]), st.text(max_size=5))
runs = st.builds(Run, results=st.lists(results, max_size=3).map(tuple), context=contexts)


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a busy host
@given(runs)
def test_a_run_survives_the_way_through_json(run: Run) -> None:
    assert Run.from_json(json.loads(json.dumps(run.to_json()))) == run


def test_unknown_keys_are_ignored_in_a_result_and_are_context_in_a_run() -> None:
    data = Run((RESULT,)).to_json()
    data["results"][0]["colour"] = "blue"
    assert Run.from_json(data | {"later": 1}) == Run((RESULT,), {"later": 1})


def test_a_file_from_before_there_was_a_log_is_read() -> None:
    data = Run((RESULT,)).to_json()
    del data["results"][0]["log"]
    assert Run.from_json(data).results[0].log == ()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"schema": "other"}, "schema 'other'"),
        ({"version": 2}, "version 2"),
        ({"version": True}, "version True"),
        ({"results": "none"}, "'results' is 'none', list was expected"),
        ({"results": [1]}, "a result is int"),
        ({"results": [{}]}, "'scenario' is missing"),
        ({"results": [RESULT.to_json() | {"outcome": "great"}]}, "one of passed, failed, skipped, known_bug, error"),
        ({"results": [RESULT.to_json() | {"level": 3}]}, "'level' is 3"),
        ({"results": [RESULT.to_json() | {"claims": [None]}]}, "a claim is NoneType"),
        ({"results": [RESULT.to_json() | {"observations": ["x"]}]}, "an observation is str"),
    ],
)
def test_what_is_no_run_says_what_was_expected(change: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        Run.from_json(Run((RESULT,)).to_json() | change)


@pytest.mark.parametrize("value", [None, [], "x", 1])
def test_a_file_that_is_no_object(value: object) -> None:
    with pytest.raises(UsageError, match="a JSON object was expected"):
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
