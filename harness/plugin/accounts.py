"""Makes sure that every selected test has a result: a test that was lost with a killed worker is an error by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.plugin.carried import Carried, carry
from harness.selection.selected import scenario_and_level
from harness.selection.tests import own_file
from harness.verdict import Outcome, ScenarioResult

_KILLED = "its worker process ended while it ran, so there is no verdict; run it alone, without --workers, to see why"
_SILENT = "it was selected, but nothing was reported about it, so there is no verdict; run it again"


class Accounts:
    """A pytest plugin, in the process that gets all reports.

    :param context: returns what the tests run on, as far as it is known without a machine.
    :param root: the folder to which the names of the tests are relative.
    """

    def __init__(self, context: Callable[[], dict[str, object]], root: Path) -> None:
        self._context = context
        self._root = root
        self._scheduled: dict[str, None] = {}
        self._ended: set[str] = set()
        self._unreadable = False
        self.interrupted = False  # by the user
        self.stopped = ""  # why the session ended early, for instance because of -x
        self.not_run = 0  # number of tests that did not run for that reason

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Note the tests that will run."""
        if not session.config.option.collectonly:
            self._scheduled |= dict.fromkeys(item.nodeid for item in session.items)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be read is reported by name, and nothing runs."""
        self._unreadable |= report.failed

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """Note the tests that will run in a worker; all workers have the same."""
        self._scheduled |= dict.fromkeys(ids)

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport) -> None:
        """A worker was killed. xdist's own report about that has no result."""
        self._lose(crashitem, report, _KILLED)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One phase of one test has ended; after a failure only the teardown follows."""
        if report.when == "call" or not report.passed:
            self._ended.add(report.nodeid)

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Ctrl-C. pytest and xdist also end like this by themselves (-x), with their own subclasses."""
        self.interrupted = excinfo.type in (KeyboardInterrupt, pytest.exit.Exception)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Report the tests without a result, before any plugin writes a file."""
        missing = [nodeid for nodeid in self._scheduled if nodeid not in self._ended and not self._unreadable]
        self.stopped = str(session.shouldfail or session.shouldstop or "")
        if self.interrupted or self.stopped:
            self.not_run = len(missing)
            return
        for nodeid in missing:
            report = pytest.TestReport(nodeid, (nodeid.split("::")[0], None, nodeid), {}, "failed", _SILENT, "call")
            self._lose(nodeid, report, _SILENT)
            session.config.hook.pytest_runtest_logreport(report=report)
        if missing and session.exitstatus != pytest.ExitCode.TESTS_FAILED:
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR

    def _lose(self, nodeid: str, report: pytest.TestReport, reason: str) -> None:
        file, _, test = nodeid.partition("::")
        scenario, level = scenario_and_level(test)  # only the name of a lost test is known
        result = ScenarioResult(scenario, level, Outcome.ERROR, reason, file=own_file(self._root / file))
        carry(report, Carried(result, self._context()))


def keep_worse(by_test: dict[str, ScenarioResult], nodeid: str, result: ScenarioResult) -> None:
    """Add a test's result. The result of its teardown replaces it, unless it is a failure."""
    before = by_test.get(nodeid)
    if before is None:
        by_test[nodeid] = result
    elif before.outcome is not Outcome.FAILED:  # keep what the test itself showed: claims, observations, known bugs
        by_test[nodeid] = replace(
            before,
            outcome=result.outcome,
            was=None,
            reason=result.reason,
            evidence=result.evidence or before.evidence,
        )


def accounts_of(config: Any) -> Accounts | None:
    """Return the accounts of a session; None in a worker."""
    plugin = config.pluginmanager.get_plugin("hugepfn-accounts")
    return plugin if isinstance(plugin, Accounts) else None
