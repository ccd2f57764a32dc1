"""The output of ``hugepfn run``: the entries at every checkpoint, then each claim, then the verdict."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

import pytest
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from harness.campaign.progress import Live
from harness.ending import explain
from harness.plugin.accounts import accounts_of, keep_worse
from harness.plugin.carried import carried_by
from harness.verdict import Claim, ClaimKind, Outcome, Run, ScenarioResult, words
from harness.verdict.entries import HEADINGS, Row, rows, signed
from harness.verdict.json_fields import JsonObject
from harness.verdict.table import Case, labels

_STYLE = {
    Outcome.PASSED: "green",
    Outcome.FAILED: "bold red",
    Outcome.SKIPPED: "yellow",
    Outcome.KNOWN_BUG: "yellow",
    Outcome.EXPECTED: "yellow",
    Outcome.ERROR: "bold magenta",
}


class SessionReporter:
    """A pytest plugin that replaces the terminal reporter: the part that all sessions of hugepfn share."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.collect_errors: list[str] = []
        self.unreadable: list[BaseException] = []  # why a test file cannot be imported
        self.troubles: list[str] = []  # what else was lost: a file, a part of the session
        self.interrupted = False  # by the user
        self.not_run = ""  # the number of tests that did not run, and why
        self.live = Live(console)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test starts."""
        self.live.now(nodeid.rpartition("::")[2].removeprefix("test_"))

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Ctrl-C. pytest and xdist also end like this by themselves (-x), with their own subclasses."""
        self.interrupted = excinfo.type in (KeyboardInterrupt, pytest.exit.Exception)

    def pytest_internalerror(self, excinfo: pytest.ExceptionInfo[BaseException]) -> bool:
        """An error outside of all tests: report one line at the end, instead of pytest's traceback."""
        self.troubles.append(explain(excinfo.value))
        return True

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
        """Files are written, including --junit. A failure to write is reported, and changes no verdict."""
        try:
            return (yield)
        except OSError as error:
            self.troubles.append(f"{session.config.option.xmlpath} cannot be written: {error.strerror or error}")
            return None
        finally:
            results = session.config.pluginmanager.get_plugin("hugepfn-results")
            self.troubles += [results.trouble] if results is not None and results.trouble else []
            accounts = accounts_of(session.config)
            if accounts is not None and accounts.not_run and not accounts.interrupted:
                self.not_run = f"{accounts.not_run} not run: {accounts.stopped}"

    def pytest_exception_interact(self, call: pytest.CallInfo[object], report: object) -> None:
        """What a test file that cannot be imported has raised; pytest hands out only its words."""
        if isinstance(report, pytest.CollectReport) and call.excinfo is not None:
            self.unreadable.append(call.excinfo.value.__cause__ or call.excinfo.value)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A test file that cannot be read is a separate error."""
        if report.failed:
            self.collect_errors.append(report.longreprtext)


class RunReporter(SessionReporter):
    """The reporter of ``hugepfn run``.

    A case that failed first says what is wrong, and then shows its entries and claims. Any other case is one line; its
    entries and claims come after all cases, so that no failure scrolls out of sight.

    :param quiet: one line per case, and nothing else.
    :param details: show the entries and claims of the cases that did not fail.
    """

    def __init__(self, console: Console, *, quiet: bool = False, details: bool = True) -> None:
        super().__init__(console)
        self.quiet = quiet
        self.details = details
        self._by_test: dict[str, ScenarioResult] = {}
        self._misused: set[str] = set()  # tests that cannot run with these options
        self._said_context = False
        self._labels: dict[Case, str] = {}

    def expect(self, cases: Sequence[Case]) -> None:
        """Note the tests that will run. If two have the same name, their files are shown."""
        self._labels = labels(cases)

    @property
    def results(self) -> list[ScenarioResult]:
        """One result per test."""
        return list(self._by_test.values())

    @property
    def misused(self) -> bool:
        """Whether wrong options are the only errors, and the machinery did not fail."""
        return bool(self._misused) and len(self._misused) == sum(one.outcome is Outcome.ERROR for one in self.results)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test has ended, or failed in one of its phases."""
        carried = carried_by(report)
        if carried is None:
            return
        if carried.context is None:
            self._plain(report, carried.result)
        else:
            self._context(carried.context)
            self._result(carried.result, report.longreprtext)
        self._misused.discard(report.nodeid)
        if carried.misused:
            self._misused.add(report.nodeid)
        keep_worse(self._by_test, report.nodeid, carried.result)

    def _plain(self, report: pytest.TestReport, result: ScenarioResult) -> None:
        """Report a test that uses no machine."""
        style = _STYLE[result.outcome]
        self.console.print(Text(f"{self._label(result)}: {words.outcome(result)}", style=style), soft_wrap=True)
        if report.failed:
            self.console.print(report.longreprtext, highlight=False, markup=False)

    def _context(self, context: JsonObject) -> None:
        kernel = context["kernel"]
        if self._said_context or not isinstance(kernel, dict) or kernel["release"] is None:
            return
        self._said_context = True
        qemu = f", QEMU {context['qemu']} ({context['accel']})" if context["qemu"] else ""
        about = escape(f": Linux {kernel['release']}{qemu}, {context['smp']} vCPU")
        self.console.print(
            f"[bold]{escape(str(kernel['spec']))}[/bold]{about}",
            highlight=False,
            soft_wrap=True,
        )

    def _label(self, result: ScenarioResult) -> str:
        case = Case(result.scenario, result.level, file=result.file)
        return self._labels.get(case, str(case))

    def _result(self, result: ScenarioResult, longrepr: str = "") -> None:
        first, *rest = (
            words.failed(result) if result.outcome is Outcome.FAILED else words.reason(result).splitlines() or [""]
        )
        if self.quiet and result.outcome is Outcome.FAILED:
            first = words.failure(result).partition("\n")[0]
        label, word = f"{self._label(result)}: ", words.outcome(result)
        verdict = Text(label + words.with_reason(result.outcome, word, first))
        verdict.stylize(_STYLE[result.outcome], 0, len(label + word))
        self.console.print(verdict, soft_wrap=True)
        if self.quiet:
            return
        for line in (*rest, *words.evidence(result)):
            text = Text(f"  {line}")
            text.highlight_regex(f"^  {words.BROKEN}", _STYLE[Outcome.FAILED])
            self.console.print(text, soft_wrap=True)
        if result.outcome is Outcome.ERROR and not first:
            self.console.print(longrepr, highlight=False, markup=False)
        if result.outcome in (Outcome.FAILED, Outcome.ERROR):
            self._details(result)

    def _details(self, result: ScenarioResult) -> None:
        """The entries and the claims of a case."""
        if result.observations:
            self.console.print(f"\n[bold]{escape(self._label(result))}[/bold]")
            for line in entry_lines(rows(result.observations)):
                self.console.print(line, soft_wrap=True)
        for told_claim in words.claims(result):
            self.console.print(_claim_line(*told_claim), highlight=False, soft_wrap=True)
        for told in words.waived(result):
            self.console.print(Text("  waived  ", style="yellow").append(told, style="default"), soft_wrap=True)

    def replay(self, run: Run) -> None:
        """Print a run that was recorded."""
        self._context(run.context)
        for number, result in enumerate(run.results):
            self._result(result)
            self._by_test[str(number)] = result
        self.verdict()

    def verdict(self) -> None:
        """Print the details of what did not fail, the broken claims by name, and the last line."""
        for result in self.results:
            if self.details and not self.quiet and result.outcome not in (Outcome.FAILED, Outcome.ERROR):
                self._details(result)
        self.console.print()
        for line in words.broken(self.results) if not self.quiet else ():
            self.console.print(
                Text("  BROKEN ", style=_STYLE[Outcome.FAILED]).append(line, style="default"), soft_wrap=True
            )
        for line in words.unmet_of(self.results) if not self.quiet else ():
            mark = Text(f"  {words.UNMET:<{len(words.BROKEN)}} ", style=_STYLE[Outcome.FAILED])
            self.console.print(mark.append(line, style="default"), soft_wrap=True)
        self.console.print(Text(words.totals(self.results), style="bold"), soft_wrap=True)
        if self.not_run:
            self.console.print(self.not_run, highlight=False, markup=False, soft_wrap=True)


def entry_lines(table: Sequence[Row]) -> Iterator[Text]:
    """The entries of one run, one block per checkpoint, in columns that are aligned over the whole run.

    A + marks a bit that was set since the previous stop, a - one that was cleared; colour only repeats this.
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
    heading.rstrip()
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
        line.rstrip()
        yield line


def _bits(row: Row) -> Text:
    style = {"": "", "+": "bold green", "-": "red"}
    words = [Text(sign + name, style[sign]) for sign, name in signed(row.bits, row.appeared, row.vanished)]
    return Text(" ").join(words)


def _claim_line(claim: Claim, name: str, message: str) -> Text:
    """One claim; what broke it was said before, if its case failed."""
    mark = {Outcome.PASSED: "  ok    ", Outcome.FAILED: "  BROKEN"}.get(
        claim.outcome, f"  {words.of_outcome(claim.outcome)}"
    )
    line = Text(mark, style=_STYLE[claim.outcome])
    line.append(f" {words.decided(name, claim.kernel_function)}", style="default")
    if message and (claim.outcome is not Outcome.FAILED or claim.kind is ClaimKind.INVARIANTS):
        line.append("\n" + "\n".join(f"         {part}" for part in message.splitlines()), style="default")
    return line
