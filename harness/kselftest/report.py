"""The output of ``hugepfn kselftest``: one line per point, then the verdict on each program."""

from __future__ import annotations

from collections import Counter

import pytest
from rich.console import Console
from rich.text import Text

from harness.campaign.reporter import SessionReporter
from harness.kselftest.items import NO_VERDICT

_STYLE = {"passed": "green", "failed": "bold red", "skipped": "yellow", "xfailed": "yellow", "error": "bold magenta"}
_WORD = {"passed": "ok", "failed": "FAILED", "xfailed": "xfail", "error": "ERROR"}


class KselftestReporter(SessionReporter):
    """Print reports as they arrive: a program's points, and then the program."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.programs: Counter[str] = Counter()
        self.points: Counter[str] = Counter()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A program starts."""
        super().pytest_runtest_logstart(nodeid)
        self.console.print(Text(f"\n{nodeid}", style="bold"), soft_wrap=True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Print a point or a program; successful setups and teardowns are not shown."""
        if report.when != "call" and report.passed:
            return
        outcome, reason = told(report)
        if report.nodeid.count("::") > 1:
            self.points[outcome] += 1
            self._print(f"  {_WORD.get(outcome, outcome):<8}", outcome, report.nodeid.split("::", 2)[2], reason)
            return
        self.programs[outcome] += 1
        first, _, rest = reason.partition("\n")
        took = f" ({report.duration:.1f} s)" if report.when == "call" else ""
        self._print(f"{report.nodeid}: {outcome}", outcome, "", (f": {first}" if first else "") + took)
        if rest:
            self.console.print(Text("\n".join(f"    {line}" for line in rest.splitlines())), soft_wrap=True)

    def _print(self, mark: str, outcome: str, name: str, reason: str) -> None:
        line = Text(mark, style=_STYLE[outcome])
        line.append(f" {name}" if name else "", style="default")
        if name:
            words = [part for part in reason.splitlines() if part and part != name]
            if outcome in ("skipped", "xfailed") and words:
                line.append(f": {words.pop(0)}", style="default")
            words = [f"             {part.strip()}" for part in words]
            line.append("\n".join(["", *words]) if outcome == "failed" else "", style="default")
        else:
            line.append(reason, style="default")
        self.console.print(line, soft_wrap=True)

    def verdict(self) -> None:
        """Print the last line."""
        words = [f"{_counted(self.programs)} of {self.programs.total()} programs"]
        if self.points:
            words.append(f"{_counted(self.points)} of {self.points.total()} points")
        self.console.print(Text("\n" + "; ".join(words), style="bold"), soft_wrap=True)


def told(report: pytest.TestReport) -> tuple[str, str]:
    """The outcome of a report in one word, and the reason in the test's own words."""
    if hasattr(report, "wasxfail"):
        return "xfailed", str(report.wasxfail).removeprefix("reason: ")
    if report.skipped:
        longrepr = report.longrepr
        return "skipped", (longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)).removeprefix("Skipped: ")
    if report.failed:
        judged = report.when == "call" and NO_VERDICT not in dict(report.user_properties)
        return ("failed" if judged else "error"), report.longreprtext
    return "passed", "; ".join(str(value) for name, value in report.user_properties if name == "note")


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in _STYLE if counts[name]) or "none"
