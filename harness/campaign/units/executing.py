"""Chooses who runs the units of a campaign, and shows what they do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from harness.campaign.event_stream import RunEnded, TestEnded, TestStarted
from harness.campaign.progress import Live
from harness.campaign.units.local import LocalExecutor
from harness.campaign.units.unit import Show, Unit, UnitEvent, UnitExecutor, UnitStarted


@contextmanager
def executing(live: Live) -> Iterator[UnitExecutor]:
    """Run the units of the block on this host."""
    yield LocalExecutor(shown(live))


def shown(live: Live) -> Show:
    """Return what shows the events of units; whoever takes their answers reports these."""

    def show(unit: Unit, event: UnitEvent) -> None:
        match event:
            case UnitStarted(worker):
                live.now(f"{unit.name} on {worker}" if worker else unit.name)
            case TestStarted(test):
                live.now(f"{unit.name}: {test.removeprefix('test_')}")
            case TestEnded() | RunEnded():
                pass  # the table tells
            case _:
                live.say(event)

    return show
