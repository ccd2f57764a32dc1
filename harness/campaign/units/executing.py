"""Chooses who runs the units of a campaign, and shows what they do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from harness.campaign.event_stream import RunEnded, TestEnded, TestStarted
from harness.campaign.progress import Live
from harness.campaign.units.local import LocalExecutor
from harness.campaign.units.parallel import ParallelExecutor
from harness.campaign.units.unit import Show, Unit, UnitEvent, UnitExecutor, UnitStarted
from harness.errors import UsageError


@contextmanager
def executing(live: Live, scheduler: str = "", at_once: int = 1) -> Iterator[UnitExecutor]:
    """Run the units of the block.

    :param scheduler: the address of Dask's scheduler; "" for this host.
    :param at_once: how many units run at the same time on this host; Dask's workers have their own numbers.
    :raises UsageError: Dask is not installed, or this is no address.
    :raises MachineryError: nothing answers at this address.
    """
    if not scheduler:
        yield LocalExecutor(shown(live)) if at_once == 1 else ParallelExecutor(shown(live), at_once)
        return
    try:
        from harness.campaign.cluster.executor import connected  # an extra, and slow to import
    except ImportError as error:
        raise UsageError(f"--scheduler needs Dask ({error}); run: pip install 'hugepfn[cluster]'") from error
    with connected(scheduler, shown(live)) as executor:
        yield executor


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
