"""A session of pytest as one step of ``git bisect run``."""

from __future__ import annotations

import pytest

from harness.plugin.accounts import keep_worse
from harness.plugin.carried import carried_by
from harness.verdict import ScenarioResult
from harness.verdict.bisect import BisectVerdict, judge

BISECT = "hugepfn-bisect"
_WITH_RESULTS = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)


class BisectResults:
    """A pytest plugin that collects the results for a verdict on the commit."""

    def __init__(self) -> None:
        self._by_test: dict[str, ScenarioResult] = {}
        self._no_kernel = ""  # why there is no kernel to test

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test has ended, or failed in one of its phases."""
        if (carried := carried_by(report)) is not None:
            keep_worse(self._by_test, report.nodeid, carried.result)
            if carried.no_kernel:
                lines = carried.result.reason.splitlines()[:2]  # the second one is the compiler's first message
                self._no_kernel = self._no_kernel or " ".join(line.strip() for line in lines)

    def verdict(self, ended: object) -> tuple[BisectVerdict, str]:
        """Return the verdict and its reason.

        :param ended: pytest's own exit status. Without "passed" or "failed" there is no verdict.
        """
        if self._no_kernel:
            return BisectVerdict.CANNOT_TELL, f"there is no kernel to test: {self._no_kernel}"
        if ended not in _WITH_RESULTS:
            return BisectVerdict.BROKEN, f"pytest ended with status {ended}"
        return judge(list(self._by_test.values()))
