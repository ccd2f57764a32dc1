"""Tests for the invariants of whole stops: what is compared with what, and what a test may waive."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import cast

import pytest
from rich.console import Console

from harness.campaign.reporter import RunReporter
from harness.guest.protocol import MappingEvent
from harness.machine.vm import VM
from harness.observe.run import GuestRun
from harness.observe.snapshot import MappingView, ProcessView, Snapshot
from harness.observe.stop_checks import violations_at
from harness.pagetable import Entry, Layout, Leaf, Level, Region
from harness.plugin.carried import Carried, carry
from harness.verdict import Outcome, ScenarioResult, words
from harness.verdict.invariants import Invariant, Violation

BAR, START = 0x380000000, 0x7F4000000000
PWT, PCD = 1 << 3, 1 << 4
GOOD = 1 | 2 | 4 | PCD | 1 << 5 | 1 << 9 | 1 << 63  # P W U PCD A SPECIAL NX


def view(mapping: str, flags: int, offset: int = 0) -> MappingView:
    """One page of the BAR."""
    vaddr = START + offset
    declared = MappingEvent(mapping, 1, vaddr, 4096, 3, "bar", offset)
    leaf = Leaf(Entry(BAR + offset | flags, Level.PTE, Layout.MODERN), vaddr)
    return MappingView(declared, (leaf,), ())


def stop(checkpoint: str, **processes: dict[str, MappingView]) -> Snapshot:
    """A stop at which every process has these mappings."""
    views = {name: ProcessView(name, 1, checkpoint, mappings, {}) for name, mappings in processes.items()}
    return Snapshot(checkpoint, 1, views, (Region("bar", BAR, 1 << 30),))


def test_processes_are_compared_with_each_other() -> None:
    at = stop("forked", parent={"low": view("low", GOOD)}, child={"low": view("low", GOOD | PWT, 4096)})
    (found,) = violations_at(at, True)
    assert found.invariant is Invariant.CACHE_BITS
    assert "at 'forked', PAT index" in str(found)
    assert "parent low+0x0: " in found.message
    assert "child low+0x0: " in found.message


def test_processes_that_are_gone_are_not_compared() -> None:
    before = stop("uncached", parent={"old": view("old", GOOD)})
    after = stop("combining", parent={"new": view("new", GOOD | PWT)})
    assert violations_at(before, True) == []
    assert violations_at(after, True) == []


def run_with(waived: dict[Invariant, str], *found: Violation) -> GuestRun:
    """A run with these stops."""
    run = GuestRun.__new__(GuestRun)
    run.vm = cast("VM", SimpleNamespace(waived=waived, runs=[run]))
    run.violations = list(found)
    return run


def result_of(run: GuestRun) -> ScenarioResult:
    waived = tuple(run.vm.waived.items())
    return ScenarioResult("fork", "pud", Outcome.PASSED, waived=waived, violations=tuple(run.violations))


def test_a_waived_invariant_breaks_no_run() -> None:
    at = stop("forked", parent={"low": view("low", GOOD)}, child={"low": view("low", GOOD | PWT, 4096)})
    (found,) = violations_at(at, True)
    run = run_with({Invariant.CACHE_BITS: "write-combining beside uncached"}, found)
    assert run.broken == []
    (told,) = words.waived(result_of(run))
    assert told.startswith("the same cache bits at every level: write-combining beside uncached (broken once, first ")
    assert "parent low+0x0" in told
    assert run_with({Invariant.WRITE: "another one"}, found).broken == [found]


def test_an_unneeded_waiver_is_reported() -> None:
    run = run_with({Invariant.HOLE: "a kernel of mine shows it"})
    assert words.waived(result_of(run)) == [
        "pagemap shows a hole over a pfnmap: a kernel of mine shows it (not needed: it held)",
    ]


def test_the_output_has_the_waiver_and_its_reason() -> None:
    told = "pfn is BAR + offset: two BARs (broken once, first expected 5)"
    violation = Violation(Invariant.BAR_PFN, "forked", "parent", "bar", "expected 5")
    waived = ((Invariant.BAR_PFN, "two BARs"),)
    result = ScenarioResult("fork", "pud", Outcome.PASSED, waived=waived, violations=(violation,))
    report = cast("pytest.TestReport", SimpleNamespace(nodeid="test_fork", longreprtext=""))
    carry(report, Carried(result, {"kernel": None}))
    console = Console(file=io.StringIO(), width=200)
    reporter = RunReporter(console)
    reporter.pytest_runtest_logreport(report)
    reporter.verdict()
    assert isinstance(console.file, io.StringIO)
    assert f"fork pud: passed\n  waived  {told}\n" in console.file.getvalue()
