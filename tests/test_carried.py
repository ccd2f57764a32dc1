"""Tests for the value that a pytest report carries: it is JSON text only between two processes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from harness.errors import ExitCode
from harness.pagetable import Observation
from harness.plugin.accounts import keep_worse
from harness.plugin.carried import Carried, Crossing, carried_by, carry
from harness.verdict import Claim, ClaimKind, Outcome, ScenarioResult, exit_code

SEEN = Observation("forked", "child", "bar", 0, "pud", 0x8E7, ("P", "W"), "bar+0x0", None)
RESULT = ScenarioResult(
    *("fork", "pud", Outcome.FAILED, "", (Claim("", Outcome.FAILED, "", kind=ClaimKind.INVARIANTS),), (SEEN,))
)


def report() -> pytest.TestReport:
    return pytest.TestReport("test_fork", ("test_fork.py", None, "test_fork"), {}, "failed", None, "call")


@pytest.fixture
def crossed(pytestconfig: pytest.Config) -> Any:
    """Send a report from a worker of xdist to its controller."""
    crossing = Crossing()
    pytestconfig.pluginmanager.register(crossing, "crossing-under-test")

    def send(one: pytest.TestReport) -> pytest.TestReport:
        hook = pytestconfig.hook
        data = hook.pytest_report_to_serializable(config=pytestconfig, report=one)
        sent = json.loads(json.dumps(data))
        got = hook.pytest_report_from_serializable(config=pytestconfig, data=sent)
        assert isinstance(got, pytest.TestReport)
        return got

    yield send
    pytestconfig.pluginmanager.unregister(crossing)


@pytest.mark.parametrize(
    "carried",
    [
        Carried(RESULT),
        Carried(RESULT, {"kernel": {"spec": "debian:6.12"}, "capabilities": None}, misused=True),
        Carried(RESULT, {}, wished=True),
    ],
)
def test_a_report_carries_the_same_value_in_both_processes(crossed: Any, carried: Carried) -> None:
    sent = report()
    carry(sent, carried)
    assert carried_by(sent) is carried
    assert carried_by(crossed(sent)) == carried
    assert sent.user_properties == [], "the value must not appear in JUnit files"


def test_a_report_of_another_plugin_carries_nothing(crossed: Any) -> None:
    assert carried_by(report()) is None
    assert carried_by(crossed(report())) is None


@pytest.mark.parametrize("outcome", [Outcome.PASSED, Outcome.KNOWN_BUG])
def test_a_failing_teardown_keeps_the_observations(outcome: Outcome) -> None:
    claims = (Claim("it stays", outcome, ""),)
    results = {"test_fork": replace(RESULT, outcome=outcome, claims=claims)}
    keep_worse(results, "test_fork", ScenarioResult("fork", "pud", Outcome.ERROR, "QEMU does not end"))
    assert results["test_fork"] == replace(RESULT, outcome=Outcome.ERROR, reason="QEMU does not end", claims=claims)
    assert exit_code(results.values()) == ExitCode.MACHINERY


def test_a_failing_teardown_keeps_the_failure() -> None:
    results = {"test_fork": RESULT}
    keep_worse(results, "test_fork", ScenarioResult("fork", "pud", Outcome.ERROR, "QEMU does not end"))
    assert results["test_fork"] == RESULT
