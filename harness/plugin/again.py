"""Runs a test once more, and reports only that: QEMU's own bug ended it, or it failed where another case had run."""

from __future__ import annotations

from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from harness.errors import EmulatorError
from harness.events import Note
from harness.plugin import sharing
from harness.plugin.evidence import TRIED
from harness.plugin.fixtures import CLAIMS, MACHINE, is_live
from harness.plugin.options import say_of

#: Of a test that met such a bug: the error.
_MET = pytest.StashKey[EmulatorError]()
_OF_A_RUN: tuple[pytest.StashKey[Any], ...] = (CLAIMS, MACHINE, TRIED)


def note(item: pytest.Item, error: BaseException | None) -> None:
    """Note what ended one phase of a test."""
    if isinstance(error, EmulatorError):
        item.stash[_MET] = error


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a test on a machine of its own, or on that of a case before it. What is done again is reported only once."""
    if "vm" not in getattr(item, "fixturenames", ()) or is_live(item.config):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    sharing.begin(item, nextitem)
    reports = runtestprotocol(item, nextitem=nextitem, log=False)
    if sharing.end(item, reports):
        reports = _again(item, nextitem)
        if all(report.passed for report in reports):
            words = f"{item.name} passed in a clone of its own, but not after the case before it"
            say_of(item.config)(Note(words))
            reports[-1].sections.append(("hugepfn", words))  # of a worker of xdist, the note is not shown
    if (error := item.stash.get(_MET, None)) is not None:
        say_of(item.config)(Note(f"running {item.name} again: {error}"))
        reports = _again(item, nextitem)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _again(item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
    for key in (*_OF_A_RUN, _MET):
        if key in item.stash:
            del item.stash[key]
    item.user_properties.clear()
    item._report_sections.clear()  # what was captured
    sharing.begin(item, nextitem)
    reports = runtestprotocol(item, nextitem=nextitem, log=False)
    sharing.end(item, reports)
    return reports
