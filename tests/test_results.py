"""Tests for the value that tells what ended a test, made from the error."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.claims import Claims
from harness.errors import (
    BootError,
    ClaimFailed,
    DeadlineError,
    ExitCode,
    GivenUp,
    GuestProgramError,
    KernelDied,
    MachineryError,
    RunBroken,
)
from harness.results import end_of, held_against_ledger, log_of
from harness.verdict import Claim, ClaimKind, Outcome, ScenarioResult
from harness.verdict.claims import exit_code
from harness.verdict.known_bugs import parse_ledger
from harness.verdict.log.taint import Taint
from harness.verdict.log.troubles import End, EndKind, KernelTroubles
from harness.verdict.seen import NO_FACTS


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (None, None),
        (KernelDied("words"), End(EndKind.DIED)),
        (DeadlineError("words"), End(EndKind.HANG)),
        (GivenUp("words", access="write", checkpoint="written"), End(EndKind.HANG)),
        (GuestProgramError("words"), End(EndKind.PROGRAM)),
        (GuestProgramError("words", signal="SIGBUS"), End(EndKind.PROGRAM, "SIGBUS")),
        (BootError("words", exit_status=None, console_tail=""), End(EndKind.BOOT)),
        (AssertionError("words"), End(EndKind.ASSERTION)),
        (ClaimFailed("words"), End(EndKind.ASSERTION)),
        (RunBroken("words"), End(EndKind.ASSERTION)),  # from a run that is not stored, such as that of the probe
        (MachineryError("words"), None),
        (KeyboardInterrupt(), None),
    ],
)
def test_the_end_of_a_test(error: BaseException | None, end: End | None) -> None:
    assert end_of(Claims(), None, error) == end


@pytest.mark.parametrize(("broken", "taint"), [(["a violation"], 0), ([], Taint.WARN)])
def test_failures_that_are_recorded_as_values_are_no_end(broken: list[str], taint: int) -> None:
    run = SimpleNamespace(broken=broken, kernel_troubles=lambda: KernelTroubles(taint=Taint(taint)), hang_report=None)
    machine = cast(Any, SimpleNamespace(runs=[run], kernel_troubles=lambda: (run.kernel_troubles(),)))
    assert end_of(Claims(), machine, RunBroken("words")) is None
    assert end_of(Claims(), machine, KernelDied("words")) == End(EndKind.DIED)
    claims = Claims()
    claims.failure = ClaimFailed("a claim does not hold")
    assert end_of(claims, machine, claims.failure) is None


def test_a_line_of_the_log_without_end_is_cut() -> None:
    machine = cast(Any, SimpleNamespace(runs=[SimpleNamespace(log="short\n" + "x" * 50_000_000 + "\n")]))
    short, long = log_of(machine, None)
    assert short == "short"
    assert len(long) < 2100
    assert "49998000 characters are left out here" in long


LEDGER = """
[[bug]]
id = "HP-7"
title = "a write never ends"
scenario = "write"
function = "mm/memory.c handle_mm_fault()"
reproduce = "hugepfn run write"
[[bug.symptom]]
end = "hang"
[[bug.symptom]]
end = "died"
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [(End(EndKind.HANG), ExitCode.OK), (End(EndKind.DIED), ExitCode.MACHINERY), (None, ExitCode.MACHINERY)],
)
def test_that_the_log_of_a_known_hang_was_not_read_is_no_error(end: End | None, code: ExitCode) -> None:
    claims = (
        Claim("the write is done", Outcome.PASSED, ""),
        Claim("", Outcome.ERROR, "", kind=ClaimKind.INVARIANTS),  # the log was not read up to the end
    )
    outcome = Outcome.FAILED if end is not None else Outcome.PASSED
    hangs = ScenarioResult("write", "pmd", outcome, claims=claims, end=end)
    result = held_against_ledger(hangs, parse_ledger(LEDGER), NO_FACTS, "6.12.118")
    assert result.outcome is (Outcome.KNOWN_BUG if end is not None else Outcome.PASSED)
    assert exit_code([result]) is code
