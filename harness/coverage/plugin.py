"""A pytest plugin that adds up what the kernel has counted in each test: ``-p harness.coverage.plugin``."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.coverage.counters import Counters
from harness.plugin.fixtures import MACHINE

OPTION = "--hugepfn-coverage"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the folder of the counters."""
    words = "add up in this folder which lines the kernel executes"
    parser.getgroup("hugepfn").addoption(OPTION, metavar="DIR", type=Path, required=True, help=words)


def _counters(item: pytest.Item) -> Counters:
    return Counters(item.config.getoption("hugepfn_coverage"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """The machine of a test is up, and the test begins."""
    if (machine := item.stash.get(MACHINE, None)) is not None:
        _counters(item).reset(machine)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """The test is over, and its machine still runs."""
    if (machine := item.stash.get(MACHINE, None)) is not None:
        _counters(item).take(machine, item.nodeid.rpartition("::")[2].removeprefix("test_"))
