"""Units that run on this host at the same time: they overlap, and end when nobody wants their answers any more."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable

import pytest

from harness.campaign.kernels import RunOptions, Started, end_child
from harness.campaign.progress import Live
from harness.campaign.units import parallel
from harness.campaign.units.executing import executing
from harness.campaign.units.local import LocalExecutor
from harness.campaign.units.parallel import ParallelExecutor
from harness.campaign.units.unit import Unit, UnitAnswer, UnitEvent, UnitStarted
from harness.events import Event, Note

UNITS = [Unit(f"debian:{number}", (), RunOptions()) for number in range(4)]
WAIT_S = 20


def test_two_run_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(2)

    def run(unit: Unit, say: Callable[[Event], None], _started: Started) -> UnitAnswer:
        together.wait(WAIT_S)
        say(Note("here"))
        return UnitAnswer(unit.spec)

    shown: list[tuple[str, UnitEvent]] = []
    threads: set[threading.Thread] = set()

    def show(unit: Unit, event: UnitEvent) -> None:
        shown.append((unit.spec, event))
        threads.add(threading.current_thread())

    monkeypatch.setattr(parallel, "run_in_child", run)
    found = dict(ParallelExecutor(show, 2).run(UNITS))
    assert found == {number: UnitAnswer(unit.spec) for number, unit in enumerate(UNITS)}
    assert threads == {threading.current_thread()}, "a terminal has one writer"
    for unit in UNITS:
        assert [event for spec, event in shown if spec == unit.spec] == [UnitStarted(), Note("here")]


def test_what_is_not_wanted_any_more_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[subprocess.Popen[bytes]] = []
    second = threading.Event()

    def run(unit: Unit, _say: Callable[[Event], None], started: Started) -> UnitAnswer:
        if unit is UNITS[0]:
            assert second.wait(WAIT_S)
            return UnitAnswer(unit.spec)
        with subprocess.Popen(["sleep", "100"], start_new_session=True) as child:
            children.append(child)
            try:
                started(child)
                second.set()
                child.wait()
            finally:
                if child.poll() is None:
                    end_child(child)
        return UnitAnswer(unit.spec)

    monkeypatch.setattr(parallel, "run_in_child", run)
    answers = ParallelExecutor(lambda _unit, _event: None, 2).run(UNITS)
    assert next(answers) == (0, UnitAnswer(UNITS[0].spec))
    answers.close()
    assert children
    assert all(child.returncode is not None for child in children)
    assert len(children) < len(UNITS) - 1, "what was queued never began"


def test_one_at_a_time_needs_no_further_process() -> None:
    with Live() as live:
        with executing(live) as one:
            assert isinstance(one, LocalExecutor)
        with executing(live, at_once=2) as more:
            assert isinstance(more, ParallelExecutor)
