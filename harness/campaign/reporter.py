"""What ``hugepfn run`` prints: the entries at every checkpoint, then each claim, then the verdict."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pytest
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from harness.pagetable import Observation
from harness.results import CONTEXT_PROPERTY, RESULT_PROPERTY
from harness.verdict import Claim, Outcome, ScenarioResult
from harness.verdict.entries import HEADINGS, Row, rows

_STYLE = {
    Outcome.PASSED: "green",
    Outcome.FAILED: "bold red",
    Outcome.SKIPPED: "yellow",
    Outcome.KNOWN_BUG: "yellow",
    Outcome.ERROR: "bold magenta",
}


class QuietOnBrokenPipe(Console):
    """A console whose reader may leave (``| head``): the run goes on, and says no more."""

    def on_broken_pipe(self) -> None:
        """Nobody reads any more."""
        self.quiet = True


class SessionReporter:
    """A pytest plugin that takes the terminal reporter's place: what all our sessions say alike."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.collect_errors: list[str] = []
        self._said: set[str] = set()
        self._live: Progress | None = None

    def _now(self, job: str) -> None:
        """The live line of a terminal: the job at hand and how long it has taken."""
        if not self.console.is_terminal:
            return
        if self._live is None:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            self._live = Progress(*columns, console=self.console, transient=True)
            self._live.start()
        for task in self._live.task_ids:
            self._live.remove_task(task)
        self._live.add_task(escape(job), total=None)

    def close(self) -> None:
        """Takes the live line away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self._now(nodeid.rpartition("::")[2].removeprefix("test_"))

    def say(self, line: str) -> None:
        """A line of progress, once."""
        if line in self._said:
            return
        self._said.add(line)
        self._now(line)
        self.console.print(f"[dim]hugepfn: {escape(line)}[/dim]", highlight=False, soft_wrap=True)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A test file that cannot be read is an error of its own."""
        if report.failed:
            self.collect_errors.append(report.longreprtext)


class RunReporter(SessionReporter):
    """What ``hugepfn run`` says."""

    def __init__(self, console: Console, entries: bool = True) -> None:
        super().__init__(console)
        self.entries = entries
        self._by_test: dict[str, ScenarioResult] = {}
        self._said_context = False

    @property
    def results(self) -> list[ScenarioResult]:
        """One a test."""
        return list(self._by_test.values())

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One test has ended, or failed on the way."""
        properties = dict(report.user_properties)
        if RESULT_PROPERTY not in properties:
            return
        result = ScenarioResult.from_json(json.loads(str(properties[RESULT_PROPERTY])))
        self._context(json.loads(str(properties[CONTEXT_PROPERTY])))
        self._result(result, report)
        self._by_test[report.nodeid] = result  # a teardown that fails takes its test's place

    def _context(self, context: dict[str, object]) -> None:
        kernel = context["kernel"]
        if self._said_context or not isinstance(kernel, dict) or kernel["release"] is None:
            return
        self._said_context = True
        qemu = f", QEMU {context['qemu']} ({context['accel']})" if context["qemu"] else ""
        self.console.print(
            f"[bold]{escape(str(kernel['spec']))}[/bold]: Linux {kernel['release']}{qemu}, {context['smp']} vCPU",
            highlight=False,
            soft_wrap=True,
        )

    def _result(self, result: ScenarioResult, report: pytest.TestReport) -> None:
        name = f"{result.scenario} {result.level or ''}".strip()
        observations = [Observation.from_json(one) for one in result.observations]
        if self.entries and observations:
            self.console.print(f"\n[bold]{name}[/bold]")
            for line in entry_lines(rows(observations)):
                self.console.print(line, soft_wrap=True)
        for claim in result.claims:
            self.console.print(_claim_line(claim), highlight=False, soft_wrap=True)
        for told in result.waived:
            self.console.print(Text("  waived  ", style="yellow").append(told, style="default"), soft_wrap=True)
        verdict = Text(f"{name}: {result.outcome.value}", style=_STYLE[result.outcome])
        if result.reason:
            verdict.append(f": {result.reason}", style="default")
        self.console.print(verdict, soft_wrap=True)
        if result.outcome is Outcome.ERROR and not result.reason:
            self.console.print(report.longreprtext, highlight=False, markup=False)

    def verdict(self) -> None:
        """The last line."""
        counts = {outcome: sum(one.outcome is outcome for one in self.results) for outcome in Outcome}
        words = ", ".join(f"{count} {outcome.value}" for outcome, count in counts.items() if count)
        claims = [claim for one in self.results for claim in one.claims]
        held = sum(claim.outcome is Outcome.PASSED for claim in claims)
        self.console.print(
            f"\n[bold]{words or 'nothing ran'}[/bold]; {held} of {len(claims)} claims hold", highlight=False
        )


def entry_lines(table: Sequence[Row]) -> Iterator[Text]:
    """The entries of one run, a block a checkpoint, in columns that line up over the whole run.

    Bits that a place did not have at the stop before are bold; those it lost are struck through.
    """
    cells: list[tuple[str | Text, ...]] = [
        (
            row.process,
            row.place + (f" x{row.count}" if row.count > 1 else ""),
            row.level,
            row.raw,
            _bits(row),
            row.pfn,
            row.pagemap,
        )
        for row in table
    ]
    widths = [max(len(str(cell[column])) for cell in (HEADINGS[1:], *cells)) for column in range(len(HEADINGS) - 1)]
    heading = Text("  ")
    for word, width in zip(HEADINGS[1:], widths, strict=True):
        heading.append(f"{word:<{width}}  ", style="dim")
    yield heading
    checkpoint = ""
    for row, columns in zip(table, cells, strict=True):
        if row.checkpoint != checkpoint:
            checkpoint = row.checkpoint
            yield Text(checkpoint, style="bold cyan")
        line = Text("  ")
        for cell, width in zip(columns, widths, strict=True):
            line.append_text(cell if isinstance(cell, Text) else Text(cell))
            line.append(" " * (width - len(str(cell)) + 2))
        yield line


def _bits(row: Row) -> Text:
    text = Text()
    for name in row.bits:
        text.append(name, style="bold green" if name in row.appeared else "")
        text.append(" ")
    for name in row.vanished:
        text.append(name, style="red strike")
        text.append(" ")
    text.rstrip()
    return text


def _claim_line(claim: Claim) -> Text:
    mark = {Outcome.PASSED: "  ok    ", Outcome.FAILED: "  BROKEN"}.get(claim.outcome, f"  {claim.outcome.value}")
    line = Text(mark, style=_STYLE[claim.outcome])
    line.append(f" {claim.name}", style="default")
    if claim.kernel_function:
        line.append(f"  [{claim.kernel_function}]", style="dim")
    if claim.message:
        line.append("\n" + "\n".join(f"         {part}" for part in claim.message.splitlines()), style="default")
    return line
