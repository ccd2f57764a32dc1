"""Results of a program of the kernel's selftests: its test points, and the verdict on the whole program.

The rules are kunit's: a planned test that never reported has crashed, and a report without a plan never passes. The
exit status counts in addition to the report (tools/testing/selftests/kselftest.h): 0 pass, 1 fail, 2 expected failure,
3 unexpected pass, 4 skip. Only a program that prints no TAP is judged by its status alone, as in kselftest's runner.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.verdict.ktap.parse import KtapOutcome, Report, Test

KSFT_PASS, _, KSFT_XFAIL, KSFT_XPASS, KSFT_SKIP = range(5)
_FINE_STATUSES = (KSFT_PASS, KSFT_XFAIL, KSFT_XPASS, KSFT_SKIP)
_DOING = re.compile(r"\[(?:RUN|INFO)\]\s+(.+)")  # printed by mm's programs: "# [RUN] test_prot_read"
_FINE = (KtapOutcome.PASSED, KtapOutcome.SKIPPED, KtapOutcome.TODO)


@dataclass(frozen=True)
class Point:
    """One test point."""

    name: str  # unique within its program
    outcome: KtapOutcome
    reason: str = ""
    lines: tuple[str, ...] = ()  # the output since the previous point


def points(report: Report) -> list[Point]:
    """Return the innermost tests of a report, each with a unique name.

    A repeated name (mkdirty has six equal ones) is preceded by the text that announced the test, or followed by a
    number.
    """
    leaves = list(_leaves(report.tests, ""))
    often = Counter(name for name, _ in leaves)
    found: list[Point] = []
    seen: Counter[str] = Counter()
    doing = ""
    for name, test in leaves:
        doing = next((match[1] for line in reversed(test.diagnostics) if (match := _DOING.match(line))), doing)
        told = f"{doing}: {name}" if often[name] > 1 and doing else name
        seen[told] += 1
        unique = told if seen[told] == 1 else f"{told} ({seen[told]})"
        found.append(Point(unique, test.outcome, test.reason, test.diagnostics))
    return found


def _leaves(tests: Sequence[Test], path: str) -> Iterator[tuple[str, Test]]:
    for test in tests:
        # kselftest.h writes "ok 3 # SKIP no huge pages": the name is what follows the word.
        name = path + (test.name or test.reason or f"test {test.number}")
        if test.subtests:
            yield from _leaves(test.subtests, f"{name} / ")
        if not test.subtests or all(inner.outcome in _FINE for inner in test.subtests) != (test.outcome in _FINE):
            yield name, test


@dataclass(frozen=True)
class Judgement:
    """The verdict on one program."""

    outcome: KtapOutcome
    reason: str = ""


def judge(
    report: Report, status: int | None, ended: str, last_words: str = "", troubles: Sequence[str] = ()
) -> Judgement:
    """Judge whether a program passed.

    :param status: its exit status; None if a signal or the kernel's death ended it.
    :param ended: how it ended, in words: "signal SIGSEGV".
    :param last_words: its last line, which is the reason of a skip that has no other.
    :param troubles: the kernel's complaints while it ran.
    """
    bad = sum(point.outcome not in _FINE for point in points(report))
    gave_up = status == KSFT_SKIP and not bad  # it may give up in the middle of its plan
    complete = report.silent or gave_up or report.outcome in _FINE
    faults = [f"{bad} of {len(report.tests)} points failed"] if bad else []
    faults += () if complete else report.problems
    faults += () if status in _FINE_STATUSES else (ended,)
    faults += troubles
    if faults or not complete:
        return Judgement(KtapOutcome.FAILED, "; ".join(dict.fromkeys(faults)) or report.outcome.value)
    if status == KSFT_SKIP or report.outcome is KtapOutcome.SKIPPED:
        reasons = report.reason, _last_reason(report), last_words, "it gives no reason"
        return Judgement(KtapOutcome.SKIPPED, next(filter(None, reasons)))
    if status == KSFT_XFAIL or report.outcome is KtapOutcome.TODO:
        return Judgement(KtapOutcome.TODO, _last_reason(report) or ended)
    return Judgement(KtapOutcome.PASSED, "by its exit status; it reports no test points" if report.silent else "")


def _last_reason(report: Report) -> str:
    return next((test.reason for test in reversed(report.tests) if test.reason), "")
