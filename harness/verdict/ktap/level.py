"""One level of a KTAP report: its tests, the lines that wait for a result, and what is missing at the end.

:mod:`harness.verdict.ktap.parse` assigns lines to levels; this module interprets the lines of one level.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import ClassVar

from harness.verdict.ktap.lines import Result


class KtapOutcome(enum.Enum):
    """The outcome of a test or of a whole report."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    CRASHED = "crashed"
    """It was started or planned, and never reported."""
    TODO = "todo"
    """It failed as expected (TODO, XFAIL), which does not fail the whole report."""


@dataclass(frozen=True)
class Test:
    """One test and the tests inside it."""

    __test__: ClassVar[bool] = False  # not a class for pytest to collect

    name: str
    outcome: KtapOutcome
    reason: str = ""
    """What follows the "#" of its line: why it was skipped, how it failed."""
    diagnostics: tuple[str, ...] = ()
    """Comments and other lines (for instance of the kernel) since the previous result."""
    subtests: tuple[Test, ...] = ()
    number: int = 0
    """As printed; 0 if it never reported."""


@dataclass
class KtapLevel:
    """One level of nesting while it is being read."""

    prefix: str
    name: str = ""
    planned: int | None = None
    plan_reason: str = ""
    deeper: str = ""
    """By how much the results of this level are indented further than its plan."""
    tests: list[Test] = field(default_factory=list)
    numbers: set[int] = field(default_factory=set)
    last: int = 0
    pending: list[str] = field(default_factory=list)
    """Diagnostics of the test that has not reported yet."""
    inner: list[KtapLevel] = field(default_factory=list)
    """Levels that were read completely, and wait for the result line of their test."""
    upcoming: str = ""
    """The announced name of the test that has not reported yet."""
    problems: list[str] = field(default_factory=list)
    broken: bool = False
    """True if something about this level forbids it to pass."""

    def missing(self) -> int:
        """The number of planned tests that have not reported."""
        if self.planned is None:
            return 0
        return self.planned - sum(1 for number in self.numbers if 1 <= number <= self.planned)

    def outcome(self) -> KtapOutcome:
        """Return the combined outcome of all tests of this level; a missing plan is not considered."""
        found = {test.outcome for test in self.tests}
        if KtapOutcome.CRASHED in found or self.missing():
            return KtapOutcome.CRASHED
        if KtapOutcome.FAILED in found or self.broken:
            return KtapOutcome.FAILED
        if found == {KtapOutcome.TODO}:
            return KtapOutcome.TODO
        return KtapOutcome.SKIPPED if found == {KtapOutcome.SKIPPED} else KtapOutcome.PASSED

    def skip_reasons(self) -> str:
        """Return the reasons of the skipped tests, each once."""
        return "; ".join(dict.fromkeys(test.reason for test in self.tests if test.reason))


def _own_outcome(result: Result) -> KtapOutcome:
    """Return the outcome of the line alone: SKIP counts with "ok" and with "not ok", and a TODO that works passes."""
    if result.directive == "SKIP":
        return KtapOutcome.SKIPPED
    if result.directive == "XFAIL" or (result.directive == "TODO" and not result.ok):
        return KtapOutcome.TODO
    return KtapOutcome.PASSED if result.ok else KtapOutcome.FAILED


def settle(level: KtapLevel, result: Result) -> None:
    """Turn a result line and everything that waited for it into a test."""
    inner = _absorb(level)
    name = result.name or level.upcoming or next((one.name for one in inner if one.name), "")
    own, reason = _own_outcome(result), result.reason
    outcome = _worse(own, {one.outcome() for one in inner if one.tests or one.planned or one.broken})
    if outcome is KtapOutcome.SKIPPED and own is not outcome:
        reason = reason or "; ".join(filter(None, (one.skip_reasons() for one in inner)))
    _add(level, inner, name, outcome, reason, result.number)


def _worse(own: KtapOutcome, within: set[KtapOutcome]) -> KtapOutcome:
    """Return the outcome of a test from its own line and the levels inside it."""
    if KtapOutcome.CRASHED in within and own is not KtapOutcome.SKIPPED:  # a skip may end in the middle of its plan
        return KtapOutcome.CRASHED
    if KtapOutcome.FAILED in within and own is not KtapOutcome.TODO:
        return KtapOutcome.FAILED
    if within == {KtapOutcome.SKIPPED} and own is KtapOutcome.PASSED:
        return KtapOutcome.SKIPPED
    return own


def crash(level: KtapLevel) -> None:
    """Turn what waited for a result that never came into a CRASHED test."""
    inner = _absorb(level)
    name = level.upcoming or next((one.name for one in inner if one.name), "")
    _add(level, inner, name, KtapOutcome.CRASHED, "it never reported", 0)


def _absorb(level: KtapLevel) -> list[KtapLevel]:
    """Close the levels that wait in this one and take over their problems."""
    inner, level.inner = level.inner, []
    for one in inner:
        close(one)
        level.problems += one.problems
    return inner


def _add(
    level: KtapLevel, inner: Sequence[KtapLevel], name: str, outcome: KtapOutcome, reason: str, number: int
) -> None:
    diagnostics = [*level.pending, *(line for one in inner for line in one.pending)]
    subtests = tuple(test for one in inner for test in one.tests)
    level.tests.append(Test(name, outcome, reason, tuple(diagnostics), subtests, number))
    level.pending, level.upcoming = [], ""


def close(level: KtapLevel) -> None:
    """Settle what the end of a level leaves open, and report what is missing or surplus."""
    where = f" of {level.name!r}" if level.name else ""
    missing = level.missing()
    if level.inner or (missing and (level.pending or level.upcoming)):
        crash(level)
    if level.planned is None:
        level.problems.append(f"no plan{where}, so tests may be missing")
        return
    if missing:
        absent = (str(n) for n in range(1, level.planned + 1) if n not in level.numbers)
        listed = ", ".join(islice(absent, 5)) + (", ..." if missing > 5 else "")
        level.problems.append(f"{missing} of {level.planned} planned tests{where} never reported: {listed}")
    if any(not 1 <= number <= level.planned for number in level.numbers):
        level.problems.append(f"more tests{where} than the {level.planned} that were planned")
        level.broken = True
