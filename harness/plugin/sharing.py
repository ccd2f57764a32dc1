"""Lets cases that leave no trace run one after the other in one clone.

Three quarters of a case's time go into what every clone does again: QEMU starts, the program is sent, and TCG
translates the guest's code. A case gets the clone of a case before it if both belong to one file, want the same machine
and have the marker ``leaves_no_trace``, and if that case passed and left no process behind. A case that does not pass
there runs again in a clone of its own, and only that run is reported: no case fails because of what another one did.
Only what the kernel itself complains about counts wherever it shows. A case that may show a known bug of the kernel
runs in a clone of its own at once, and the other clone waits meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from harness.verdict import Outcome, ScenarioResult
from harness.verdict.log.troubles import EndKind

#: The processes that PID 1 has: the jobs of the agent, and what they left to it (needs CONFIG_PROC_CHILDREN).
_CHILDREN = "/proc/1/task/1/children"
#: Cases in one clone. What they leave in memory after all stays small, and so does the memory that the clone dirties.
_CASES_MAX = 16


@dataclass(frozen=True)
class _Waiting:
    """A machine in which cases of a file have passed, and which waits for the next."""

    file: Path
    kernel: KernelImage
    config: MachineConfig
    machine: VM
    cases: int


@dataclass
class _Case:
    """What is known of a case that runs."""

    followed: bool
    """Whether the next case may have its machine."""
    passed: bool = False
    blamed: bool = False
    """Whether the kernel complained, or died."""
    before: int = 0
    """How many cases ran in its machine before."""
    handed_on: bool = False


_WAITING = pytest.StashKey[_Waiting]()  # of a session
_CASE = pytest.StashKey[_Case]()


def begin(item: pytest.Item, following: pytest.Item | None) -> None:
    """Note which case comes after this one."""
    item.stash[_CASE] = _Case(following is not None and following.path == item.path and _shares(following))


def note(item: pytest.Item, result: ScenarioResult) -> None:
    """Note what a case showed."""
    case = item.stash.get(_CASE, None)
    if case is not None:
        died = result.end is not None and result.end.kind is EndKind.DIED
        case.passed = result.outcome is Outcome.PASSED
        case.blamed = died or any(one.complaints or one.taint for one in result.kernel)


def runs_again(item: pytest.Item) -> bool:
    """Return whether what a case showed is not held against the kernel, because another case ran there before."""
    case = item.stash.get(_CASE, None)
    return case is not None and case.before > 0 and not case.blamed


def end(item: pytest.Item, reports: Sequence[pytest.TestReport]) -> bool:
    """A case has ended: end the machines that nobody will take.

    :returns: whether the case did not pass, and has to run again in a machine of its own.
    """
    case = item.stash[_CASE]
    passed = all(one.passed and not hasattr(one, "wasxfail") for one in reports)
    if not case.followed or (case.handed_on and not passed):  # a fixture of its own may have failed at the end
        close(item.config)
    return not passed and runs_again(item)


def machine_for(item: pytest.Item, config: MachineConfig, kernel: KernelImage, start: Callable[[], VM]) -> Iterator[VM]:
    """Yield the machine of a case: that of a case before it, or a new one. It then waits for the next, or ends.

    :param start: returns a new machine.
    """
    waiting = item.config.stash.get(_WAITING, None)
    if waiting is not None and waiting.file != item.path:
        close(item.config)
    alone = _may_fail(item, kernel)
    machine = (None if alone else _take(item, config, kernel)) or start()
    try:
        yield machine
        if not alone and _may_go_on(item, machine):
            case = item.stash[_CASE]
            item.config.stash[_WAITING] = _Waiting(item.path, kernel, config, machine, case.before + 1)
            case.handed_on = True
            return
    except BaseException:
        machine.close()
        raise
    machine.close()


def _shares(item: pytest.Item) -> bool:
    wanted = item.get_closest_marker("leaves_no_trace") is not None
    names = getattr(item, "fixturenames", ())
    wanted &= "vm" in names and "subtests" not in names  # a subtest is reported at once, and not again
    return wanted and not config_of(item.config).pristine and not item.config.getoption("usepdb", False)


def _may_fail(item: pytest.Item, kernel: KernelImage) -> bool:
    """Return whether a case may show a known bug of this kernel."""
    scenario, level = scenario_of(item).partition("[")[0], level_of(item)  # known bugs do not depend on parameters
    bugs = [bug for bug in bugs_of(item.path.parent, kernel.release) if bug.covers(scenario, level)]
    return any(kernel.config is None or bug.shows(kernel.config.is_set) for bug in bugs)


def _take(item: pytest.Item, config: MachineConfig, kernel: KernelImage) -> VM | None:
    waiting = item.config.stash.get(_WAITING, None)
    fits = waiting is not None and (waiting.kernel, waiting.config) == (kernel, config)
    if waiting is None or not fits or _CASE not in item.stash or not _shares(item):
        close(item.config)
        return None
    del item.config.stash[_WAITING]
    item.stash[_CASE].before = waiting.cases
    waiting.machine.runs.clear()
    return waiting.machine


def _may_go_on(item: pytest.Item, machine: VM) -> bool:
    case = item.stash.get(_CASE, None)
    if case is None or not (case.followed and case.passed and _shares(item)):
        return False
    if item.get_closest_marker("leaves_a_trace") is not None or machine.expected_complaints:
        return False
    if case.before + 1 >= _CASES_MAX or not machine.config.clone:
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
