"""Tests for the end of a guest program: when it passed, why it did not, and the values that it reported."""

from __future__ import annotations

import pytest

from harness.errors import ClaimFailed, ProtocolError
from harness.guest.job import ExitStatus
from harness.observe.run_result import SKIP_STATUS, RunResult
from harness.verdict import parse_ktap

PASSED = "KTAP version 1\n1..1\nok 1 maps\n"
FAILED = "KTAP version 1\n1..1\nnot ok 1 maps\n"
SKIPPED = "KTAP version 1\n1..0 # SKIP no guard regions\n"
DEVICE = "# value lacks=device\n"


def result(stdout: str, status: int | None = 0, signal: int | None = None, stderr: str = "") -> RunResult:
    return RunResult(parse_ktap(stdout), ExitStatus(status, signal), stdout, stderr)


@pytest.mark.parametrize(
    ("stdout", "status", "signal", "passed", "skipped"),
    [
        (PASSED, 0, None, True, False),
        (PASSED, 1, None, False, False),
        (PASSED, SKIP_STATUS, None, False, False),
        (PASSED, None, 11, False, False),
        (FAILED, 0, None, False, False),
        (FAILED, 1, None, False, False),
        (SKIPPED, 0, None, False, True),
        (SKIPPED, 4, None, False, True),
        (SKIPPED, 1, None, False, False),
        (SKIPPED, None, 9, False, False),
        ("", 0, None, False, False),
        ("", 4, None, False, False),
        ("KTAP version 1\n1..2\nok 1 maps\n", 0, None, False, False),
    ],
)
def test_passed_and_skipped_need_the_report_and_the_exit_status(
    stdout: str, status: int | None, signal: int | None, passed: bool, skipped: bool
) -> None:
    ended = result(stdout, status, signal)
    assert (ended.passed, ended.skipped) == (passed, skipped)
    assert bool(ended.reason) is not passed


@pytest.mark.parametrize(
    ("ended", "reason"),
    [
        (result(PASSED), ""),
        (result(PASSED, None, 11), "killed by SIGSEGV"),
        (result(SKIPPED, None, 11), "killed by SIGSEGV"),
        (result(SKIPPED, 4), "no guard regions"),
        (result(PASSED, 3, stderr=" fork: no memory\n"), "passed, exit status 3: fork: no memory"),
        (result("  x  ", 1), "crashed, exit status 1: x"),
        (result("", 1, stderr="y" * 300), "crashed, exit status 1: " + "y" * 200),
    ],
)
def test_the_reason_is_what_ended_it(ended: RunResult, reason: str) -> None:
    assert ended.reason == reason


@pytest.mark.parametrize(
    ("stdout", "status", "lacks"),
    [
        (DEVICE + SKIPPED, 4, True),
        (SKIPPED + DEVICE, 0, True),
        (SKIPPED, 4, False),
        (DEVICE + SKIPPED, 1, False),
        (DEVICE + PASSED, 0, False),
        ("# value lacks=device of mine\n" + SKIPPED, 4, False),
    ],
)
def test_it_lacks_a_device_only_if_it_was_skipped_for_that(stdout: str, status: int, lacks: bool) -> None:
    assert result(stdout, status).lacks_device is lacks


def test_the_last_report_of_a_value_counts() -> None:
    said = "# value a=1\n# value b=x=y z\nok # value c=1\n# value a=2\n# value  d=1\n# value e=\n"
    assert result(said).values == {"a": "2", "b": "x=y z", "e": ""}


def test_values_without_end_are_cut() -> None:
    said = "".join(f"# value a{number}=1\n" for number in range(20_000))
    assert len(result(said).values) == 10_000


@pytest.mark.parametrize(("word", "count"), [("0", 0), ("1", 1), ("999999999", 999999999)])
def test_a_number_of_faults(word: str, count: int) -> None:
    assert result(f"# value write-faults={word}\n").faults("write-faults", "written") == count


@pytest.mark.parametrize("word", ["", "1 ", "x", "1" * 10, "--1", "1.0"])
def test_an_invalid_number_of_faults_is_refused(word: str) -> None:
    for said in (f"# value write-faults={word}\n", "# value other=1\n"):
        with pytest.raises(ProtocolError, match=r"value write-faults is '.*'; expected a number of faults"):
            result(said).faults("write-faults", "written")


def test_an_access_that_was_given_up_hangs() -> None:
    with pytest.raises(
        ClaimFailed, match="a hang before checkpoint 'written': write was abandoned after 10,000 faults"
    ):
        result("# value write-faults=-1\n").faults("write-faults", "written")
