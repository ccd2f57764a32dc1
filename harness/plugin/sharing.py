"""Lets cases that leave no trace run one after the other in one clone.

Three quarters of a case's time go into what every clone does again: QEMU starts, the program is sent, and TCG
translates the guest's code. A case gets the clone of a case before it if both belong to one file, want the same machine
and have the marker ``leaves_no_trace``, and if that case passed and left no process behind. A case that does not pass
there runs again in a clone of its own, and only that run is reported: no case fails because of what another one did.
One that may show a known bug of the kernel runs in a clone of its own at once, and the other clone waits meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.config import MachineConfig
from harness.errors import HugepfnError
from harness.kernel import KernelImage
from harness.machine.vm import VM
from harness.plugin.options import config_of
from harness.qemu.spec import Device
from harness.selection.tests import bugs_of, level_of, scenario_of

#: The processes that PID 1 has: the jobs of the agent, and what they left to it (needs CONFIG_PROC_CHILDREN).
_CHILDREN = "/proc/1/task/1/children"
#: Cases in one clone. What they leave in memory after all stays small, and so does the memory that the clone dirties.
_CASES_MAX = 16


@dataclass(frozen=True)
class _Waiting:
    """A machine in which cases of a file have passed, and which waits for the next."""

    file: Path
    config: MachineConfig
    machine: VM
    cases: int


_WAITING = pytest.StashKey[_Waiting]()  # of a session
_FOLLOWED = pytest.StashKey[bool]()  # of a case: whether the next one may have its machine
_PASSED = pytest.StashKey[bool]()  # of a case
_CASES = pytest.StashKey[int]()  # of a case: how many ran in its machine before


def begin(item: pytest.Item, following: pytest.Item | None) -> None:
    """Note which case comes after this one."""
    item.stash[_FOLLOWED] = following is not None and following.path == item.path and _shares(following)
    item.stash[_PASSED] = False
    item.stash[_CASES] = 0


def note_passed(item: pytest.Item) -> None:
    """Note that a case has passed."""
    item.stash[_PASSED] = True


def has_passed(item: pytest.Item) -> bool:
    """Return whether a case has passed."""
    return item.stash.get(_PASSED, False)


def is_second_hand(item: pytest.Item) -> bool:
    """Return whether another case ran in the machine of this one before."""
    return item.stash.get(_CASES, 0) > 0


def has_to_run_again(item: pytest.Item) -> bool:
    """Return whether a case did not pass, and may do so in a machine of its own."""
    return is_second_hand(item) and not has_passed(item)


def machine_for(item: pytest.Item, config: MachineConfig, kernel: KernelImage, start: Callable[[], VM]) -> Iterator[VM]:
    """Yield the machine of a case: that of a case before it, or a new one. It then waits for the next, or ends.

    :param start: returns a new machine.
    """
    alone = _may_fail(item, kernel)
    machine = (None if alone else _take(item, config)) or start()
    try:
        yield machine
    except BaseException:
        machine.close()
        raise
    if not alone and _may_go_on(item, machine):
        item.config.stash[_WAITING] = _Waiting(item.path, config, machine, item.stash[_CASES] + 1)
    else:
        machine.close()
    if not item.stash.get(_FOLLOWED, False):
        close(item.config)


def _shares(item: pytest.Item) -> bool:
    wanted = item.get_closest_marker("leaves_no_trace") is not None
    return wanted and not config_of(item.config).pristine and not item.config.getoption("usepdb")


def _may_fail(item: pytest.Item, kernel: KernelImage) -> bool:
    """Return whether a case may show a known bug of this kernel."""
    scenario, level = scenario_of(item).partition("[")[0], level_of(item)  # known bugs do not depend on parameters
    bugs = [bug for bug in bugs_of(item.path.parent, kernel.release) if bug.covers(scenario, level)]
    return any(kernel.config is None or bug.shows(kernel.config.is_set) for bug in bugs)


def _take(item: pytest.Item, config: MachineConfig) -> VM | None:
    waiting = item.config.stash.get(_WAITING, None)
    if waiting is None or not _shares(item) or (waiting.file, waiting.config) != (item.path, config):
        close(item.config)
        return None
    del item.config.stash[_WAITING]
    item.stash[_CASES] = waiting.cases
    waiting.machine.runs.clear()
    return waiting.machine


def _may_go_on(item: pytest.Item, machine: VM) -> bool:
    if not (item.stash.get(_FOLLOWED, False) and _shares(item) and has_passed(item)):
        return False
    if item.get_closest_marker("leaves_a_trace") is not None or machine.expected_complaints:
        return False
    if item.stash[_CASES] + 1 >= _CASES_MAX or not machine.config.clone:
        return False
    if machine.spec.device is Device.SHMEM:  # what was written to its BAR stays there
        return False
    try:
        return not machine.on_loop(machine.agent.get(_CHILDREN)).strip()
    except HugepfnError:
        return False


def close(config: pytest.Config) -> None:
    """End the machine that waits, if there is one."""
    waiting = config.stash.get(_WAITING, None)
    if waiting is not None:
        del config.stash[_WAITING]
        waiting.machine.close()
