"""Read the results of guest programs: KTAP 1 and TAP 13 as kselftest, kunit and hugepfn's own programs print them.

A test is CRASHED until a line says otherwise, and a report without a plan never passes: silence is not success. Nothing
here raises for any text; :attr:`Report.problems` lists what is wrong with a report.

Levels are distinguished by the prefix of their lines: blanks or tabs (kunit), or "# " (the kselftest runner, which
puts it in front of everything that a program prints).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness.verdict.ktap import lines as grammar
from harness.verdict.ktap.level import KtapLevel, KtapOutcome, Test, close, crash, settle
from harness.verdict.ktap.lines import BailOut, Plan, Result, SelftestHeader, Subtest
from harness.verdict.log.lines import split

__all__ = ["MAX_DEPTH", "KtapOutcome", "Report", "Test", "parse"]

_SILENT = "no KTAP or TAP version line: the program reported nothing"
MAX_DEPTH = 32
"""Levels below this one are not distinguished. No kernel test has a tenth of it."""
MAX_RESULTS = 100_000
"""Lines that may begin or end a test: results, plans, version lines. No kernel test has a tenth of it."""
MAX_LINES = 2_000_000
"""Lines of any kind that are read."""
MAX_DIAGNOSTICS = 100_000
"""Other lines that are kept; further ones are counted."""
MAX_PROBLEMS = 100
"""Problems that are kept."""


@dataclass(frozen=True)
class Report:
    """Everything that a stream of results reports."""

    tests: tuple[Test, ...]
    planned: int | None
    """The number in the plan; None if there was no plan."""
    problems: tuple[str, ...]
    outcome: KtapOutcome
    reason: str = ""
    """Why the whole report was skipped."""
    diagnostics: tuple[str, ...] = ()
    """Lines after the last result ("Totals: ...")."""

    @property
    def silent(self) -> bool:
        """True if the program printed neither KTAP nor TAP."""
        return self.problems == (_SILENT,)

    @property
    def passed(self) -> bool:
        """True if there was a plan, every planned test reported, none failed, and at least one passed."""
        return self.outcome is KtapOutcome.PASSED


class _Reader:
    """The state of a reader: the stack of open levels, outermost first."""

    def __init__(self, *, headless: bool = False) -> None:
        self.stack: list[KtapLevel] = [KtapLevel("")] if headless else []
        self._stamped = False
        self._line_number = 0
        self._results_left = MAX_RESULTS
        self._diagnostics = 0
        self._problems = 0

    def take(self, line: str) -> bool:
        """Read one line; return False if the report is too long, and no further line is wanted."""
        self._line_number += 1
        if self._line_number <= MAX_LINES:
            if line:
                self._read(line)
            if self._results_left >= 0:
                return True
        if self.stack:
            limit = f"{MAX_RESULTS} results and plans" if self._results_left < 0 else f"{MAX_LINES} lines"
            text = f"line {self._line_number}: more than {limit}; what follows was not read"
            self.stack[0].problems.insert(0, text)
            self.stack[0].broken = True
        return False

    def _read(self, line: str) -> None:
        stamp, text = split(line)
        if not self.stack:
            if found := grammar.version(text):
                self._stamped = bool(stamp)
                self._open(found.indent, found.known)
            return
        if not self._stamped:
            text = line
        elif not stamp:
            # kunit prints with printk(), so every line of its report has a timestamp. This line has none.
            self._stranger(text)
            return
        if found := grammar.version(text):
            self._version(found)
            return
        for level in reversed(self.stack):
            if text.startswith(level.prefix) and self._known(level, text[len(level.prefix) :]):
                return
        outermost = self.stack[0]
        if not text.startswith(outermost.prefix) and isinstance(grammar.classify(text), Result):
            # Less indented than the outermost level: the beginning of the report is missing.
            self._problem(outermost, f"a result outside the report: {text[:80]}", breaks=True)
        self._stranger(text)

    def finish(self) -> KtapLevel | None:
        """Close all levels and return the outermost one; None if there was no version line."""
        if not self.stack:
            return None
        outermost = self.stack[0]
        self._fold(outermost)
        close(outermost)
        if (dropped := self._diagnostics - MAX_DIAGNOSTICS) > 0:
            outermost.problems.append(f"{dropped} further lines of diagnostics were not kept")
        del outermost.problems[MAX_PROBLEMS:]
        return outermost

    def _open(self, prefix: str, known: bool) -> None:
        self.stack.append(KtapLevel(prefix))
        if not known:
            self._problem(self.stack[-1], "a version of TAP that hugepfn does not know")

    def _version(self, found: grammar.Version) -> None:
        self._results_left -= 1
        outermost = self.stack[0]
        if not found.indent.startswith(outermost.prefix):
            self._problem(outermost, "a version line outside the report", breaks=True)
            return
        parents = [
            level for level in self.stack if found.indent.startswith(level.prefix) and level.prefix != found.indent
        ]
        same = next((level for level in self.stack if level.prefix == found.indent), None)
        if same is not None and (same is outermost or not same.tests):
            self._problem(same, "a second version line")
            return
        if len(parents) >= MAX_DEPTH:
            self._stranger(found.indent)
            return
        parent = parents[-1]
        if same is not None or self.stack[-1] is not parent:
            # The test of this level never reported, and the next one has begun.
            self._fold(parent)
            crash(parent)
        self._open(found.indent, found.known)

    def _known(self, level: KtapLevel, text: str) -> bool:
        """Apply a line to a level; return False if the line is not part of KTAP."""
        kind = grammar.classify(text)
        self._results_left -= kind is not None
        match kind:
            case Result() as result:
                self._fold(level)
                self._result(level, result)
            case Plan() as plan:
                self._plan(level, plan)
            case BailOut(reason):
                self._fold(level)
                self._problem(level, f"Bail out! {reason}".strip(), breaks=True)
            case Subtest(indent, name):
                self._subtest(level, indent, name)
            case SelftestHeader(name):
                level.upcoming = name
            case None:
                if self._deeper(level, text):
                    return True
                if not text.startswith("#"):
                    return False
                self._keep(level, text.removeprefix("#").removeprefix(" "))
        return True

    def _deeper(self, level: KtapLevel, text: str) -> bool:
        """Apply a result that is indented further than the plan of its level, as kunit accepts it."""
        inner = text.lstrip(" \t")
        indent = text[: len(text) - len(inner)]
        if not indent or level is not self.stack[-1] or level is self.stack[0] or level.planned is None:
            return False
        if level.deeper != indent and level.tests:
            return False
        result = grammar.classify(inner)
        if isinstance(result, Result):
            self._results_left -= 1
            level.deeper = indent
            self._result(level, result)
        return isinstance(result, Result)

    def _plan(self, level: KtapLevel, plan: Plan) -> None:
        if plan.indent:
            if level is self.stack[-1] and len(self.stack) < MAX_DEPTH:
                self.stack.append(KtapLevel(level.prefix + plan.indent, planned=plan.count, plan_reason=plan.reason))
        elif level.planned is None:
            level.planned, level.plan_reason = plan.count, plan.reason
        else:
            self._problem(level, "a second plan", breaks=plan.count != level.planned)

    def _subtest(self, level: KtapLevel, indent: str, name: str) -> None:
        if indent and level is self.stack[-1] and len(self.stack) < MAX_DEPTH:
            self.stack.append(KtapLevel(level.prefix + indent, name))  # kunit before KTAP 1: no version line
        elif not indent and level is not self.stack[0] and not level.tests and not level.name:
            level.name = name
        else:
            level.upcoming = name

    def _result(self, level: KtapLevel, result: Result) -> None:
        if result.number in level.numbers:
            self._problem(level, f"test number {result.number} again", breaks=True)
        elif result.number != level.last + 1:
            self._problem(level, f"test number {result.number}; expected {level.last + 1}")
        level.numbers.add(result.number)
        level.last = result.number
        settle(level, result)

    def _stranger(self, text: str) -> None:
        if text.strip():
            self._keep(self.stack[-1], text)

    def _keep(self, level: KtapLevel, diagnostic: str) -> None:
        self._diagnostics += 1
        if self._diagnostics <= MAX_DIAGNOSTICS:
            level.pending.append(diagnostic)

    def _fold(self, level: KtapLevel) -> None:
        """Close every level inside this one and attach each to its parent."""
        while self.stack[-1] is not level:
            inner = self.stack.pop()
            outer = self.stack[-1]
            if outer is not level:
                # The test between the two never reported, so it crashed; what is known about it is kept.
                outer.inner.append(inner)
                crash(outer)
            else:
                outer.inner.append(inner)

    def _problem(self, level: KtapLevel, text: str, *, breaks: bool = False) -> None:
        self._problems += 1
        if self._problems <= MAX_PROBLEMS:
            level.problems.append(f"line {self._line_number}: {text}")
        level.broken = level.broken or breaks


def parse(text: str, *, headless: bool = False) -> Report:
    """Read a stream of results.

    :param text: the guest's output, starting anywhere before the version line; lines may end in CR LF and have printk
        timestamps, and kernel messages may stand in between.
    :param headless: accept plan and results without a version line, as in TAP 12.
    :returns: the report; CRASHED if there is no version line, no plan, or a planned test that never reported.
    """
    level = _outermost(text, _Reader())
    if level is None and headless:
        level = _outermost(text, _Reader(headless=True))
        level = level if level and (level.tests or level.planned is not None or level.broken) else None
    if level is None:
        return Report((), None, (_SILENT,), KtapOutcome.CRASHED)
    outcome, reason = level.outcome(), ""
    if level.planned is None and outcome is not KtapOutcome.FAILED:
        outcome = KtapOutcome.CRASHED
    elif level.planned == 0 and not level.tests and not level.broken:
        outcome, reason = KtapOutcome.SKIPPED, level.plan_reason or "the plan has no tests"
    elif outcome is KtapOutcome.SKIPPED:
        reason = level.skip_reasons()
    return Report(tuple(level.tests), level.planned, tuple(level.problems), outcome, reason, tuple(level.pending))


def _outermost(text: str, reader: _Reader) -> KtapLevel | None:
    for line in _lines(text):
        if not reader.take(line.rstrip("\r")):
            break
    return reader.finish()


def _lines(text: str) -> Iterator[str]:
    """Yield the lines one by one: a list of millions of empty ones would take eight times the room of the text."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    if start < len(text):
        yield text[start:]
