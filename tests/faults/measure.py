"""How long the command takes without a fault: what deadlines and random moments are measured by."""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass

from tests.faults.kind import CASE
from tests.faults.world import World, undisturbed

_TIME = re.compile(r"^\[ *(\d+\.\d+) ", re.MULTILINE)


@dataclass(frozen=True)
class Measured:
    """Times in seconds, without a fault.

    :ivar run: ``hugepfn run`` of one case in a clone.
    :ivar boot: the same in a machine that boots.
    :ivar template: the same with a template that is made first.
    :ivar imports: until the command's first line of log.
    :ivar restore: from QEMU's start to a clone that runs.
    """

    run: float
    boot: float
    template: float
    imports: float
    restore: float

    def of(self, name: str) -> float:
        """A time by its name."""
        return float(asdict(self)[name])


def prepare(world: World) -> Measured:
    """Fill the cache of a new world by runs without a fault, and measure them."""
    template, _ = _timed(world)
    world.seal()
    world.reset()
    run, log = _timed(world, "-vv")
    boot, _ = _timed(world, "--no-clone")
    started, running = _time_of(log, r"qemu\] \S*qemu"), _time_of(log, r"machine\] starting the machine")
    return Measured(run, boot, template, float(_TIME.findall(log)[0]), running - started)


def _timed(world: World, *options: str) -> tuple[float, str]:
    begin = time.monotonic()
    done = undisturbed(world, "run", CASE, "--kernel", world.kernel, *options)
    return time.monotonic() - begin, done.stderr


def _time_of(log: str, pattern: str) -> float:
    found = re.search(rf"^\[ *(\d+\.\d+) {pattern}", log, re.MULTILINE)
    assert found is not None, f"no line of the log matches {pattern}"
    return float(found[1])
