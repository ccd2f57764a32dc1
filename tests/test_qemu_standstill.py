"""Tests for stalls that a kernel reports only because its machine was stopped: they are shown, but are no failures."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import HugepfnError, KernelDied, MachineryError
from harness.guest.agent import Agent
from harness.machine.vm import VM
from harness.observe.kernel_watch import KernelWatch
from harness.pagetable import Layout
from harness.qemu.end_error import QemuEnd, end_error
from harness.qemu.process import Qemu
from harness.qemu.spec import Accel
from harness.qemu.standstill import Standstill
from harness.results import invariants_of
from harness.verdict import Complaint, Outcome, ScenarioResult, Taint, scan, words
from harness.verdict.log.complaint_kinds import ComplaintKind
from tests.dmesg_logs import logs

SOFT_LOCKUP = "[  88.1] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [fork:71]\n[  88.2]  </TASK>\n"
RCU_STALL = "[  90.1] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:\n"
WORKQUEUE = "[  92.1] BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 33s!\n"
HUNG_TASK = "[ 130.1] INFO: task fork:71 blocked for more than 122 seconds.\n[ 130.2]  </TASK>\n"
WARNING = "[  91.1] WARNING: CPU: 0 PID: 71 at mm/huge_memory.c:1 f+0x1/0x2\n[  91.2] ---[ end trace 0 ]---\n"
PANIC = "[  88.3] Kernel panic - not syncing: softlockup: hung tasks\n"
UNTAINTED = Taint(0)
STALLS = [SOFT_LOCKUP, RCU_STALL, WORKQUEUE, HUNG_TASK]


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def stood(stopped_s: float, *, clock_jumps: bool = True) -> Standstill:
    """The standstill of a machine that was stopped once, for this time."""
    clock = Clock()
    standstill = Standstill(clock_jumps, clock)
    standstill.begin()
    clock.now_s += stopped_s
    standstill.begin()  # first by ourselves, then by the event that reports it
    standstill.end()
    standstill.end()
    clock.now_s += 1000.0  # the machine runs
    return standstill


def watch(log: str, standstill: Standstill, *, taint: Taint = UNTAINTED, already: bool = False) -> KernelWatch:
    """The watch of a program during which the kernel logged this, while the machine stood still before or meanwhile."""
    before = standstill if already else Standstill(standstill.clock_jumps, lambda: 0.0)
    kernel_log = SimpleNamespace(text="", since=lambda _mark: log, mark=lambda: 0, lost_since=lambda _mark: 0)
    qemu = SimpleNamespace(log=kernel_log, begin_run=lambda: (0, before.total_s), standstill=before)
    watched = KernelWatch(cast(Qemu, qemu), cast(Agent, None), UNTAINTED, "fork")
    qemu.standstill = standstill
    watched.taint, watched.settled = taint, True
    return watched


def test_the_times_of_all_stops_are_added() -> None:
    clock = Clock()
    standstill = Standstill(clock=clock)
    for _ in range(3):
        standstill.begin()
        clock.now_s += 4.0
        assert standstill.total_s % 4.0 == 0.0
        standstill.end()
        clock.now_s += 100.0
    assert standstill.total_s == 12.0
    standstill.begin()
    clock.now_s += 5.0
    assert standstill.total_s == 17.0, "a stop that has not ended counts, too"


@pytest.mark.parametrize("log", STALLS)
def test_a_stall_after_a_long_stop_is_reported_but_excused(log: str) -> None:
    watched = watch(log, stood(30.0))
    assert watched.complaints(), "the stall must still be reported"
    assert not watched.troubles().found
    (excused,) = watched.troubles().excused
    assert excused.line in log
    assert excused.why.startswith("the machine was stopped for 30 s under KVM; a kernel without kvm-clock takes that ")


@pytest.mark.parametrize("log", STALLS)
@pytest.mark.parametrize(
    ("standstill", "already"),
    [(stood(30.0, clock_jumps=False), False), (stood(9.0), False), (stood(30.0), True)],
    ids=["its clock stopped as well", "it did not stand still for long", "that was before it began"],
)
def test_every_other_stall_counts_as_a_failure(log: str, standstill: Standstill, already: bool) -> None:
    watched = watch(log, standstill, already=already)
    assert len(watched.troubles().complaints) == 1
    assert watched.troubles().excused == ()


def test_a_complaint_of_another_kind_is_never_excused() -> None:
    watched = watch(WARNING + RCU_STALL, stood(300.0), taint=Taint.WARN)
    troubles = watched.troubles()
    (complaint,) = troubles.complaints
    assert complaint.kind is ComplaintKind.WARNING
    assert "mm/huge_memory.c" in complaint.line
    assert troubles.taint is Taint.WARN
    assert len(troubles.excused) == 1
    assert [told.split(":")[0] for told in words.troubles(troubles)] == ["the kernel log", "the kernel is now tainted"]


def test_the_taint_of_an_excused_soft_lockup_is_excused() -> None:
    assert not watch(SOFT_LOCKUP, stood(30.0), taint=Taint.SOFTLOCKUP).troubles().found
    both = watch(SOFT_LOCKUP, stood(30.0), taint=Taint.SOFTLOCKUP | Taint.WARN).troubles()
    assert (both.complaints, both.taint) == ((), Taint.WARN)
    assert watch(RCU_STALL, stood(30.0), taint=Taint.SOFTLOCKUP).troubles().found, (
        "a taint without a reported soft lockup is not excused"
    )


def test_an_excused_stall_is_shown_and_the_scenario_passes() -> None:
    watched = watch(RCU_STALL, stood(30.0))
    run = SimpleNamespace(
        snapshots=[1],
        broken=[],
        uncalibrated=[],
        kernel_troubles=watched.troubles,
    )
    claim = invariants_of(cast(VM, SimpleNamespace(runs=[run], kernel_troubles=lambda: (watched.troubles(),))))
    assert claim.outcome is Outcome.PASSED
    result = ScenarioResult("fork", "pud", Outcome.PASSED, claims=(claim,), kernel=(watched.troubles(),))
    ((_, _, message),) = words.claims(result)
    assert message.startswith("not the kernel's fault: ")
    assert "rcu_preempt detected stalls" in message


def _end(log: str, standstill: Standstill, from_s: float = 0.0) -> HugepfnError:
    def excuse(complaint: Complaint) -> str:
        return standstill.excuse(complaint, from_s)

    return end_error("waiting: ", QemuEnd(77, 0, "", scan(log), Accel.KVM, "7.2", excuse))


def test_a_panic_after_an_excused_stall_is_no_verdict() -> None:
    error = _end(SOFT_LOCKUP + PANIC, stood(30.0))
    assert isinstance(error, MachineryError)
    assert "softlockup_panic=0" in str(error)
    assert isinstance(_end(SOFT_LOCKUP + PANIC, stood(30.0, clock_jumps=False)), KernelDied)
    assert isinstance(_end(PANIC, stood(30.0)), KernelDied)
    assert isinstance(_end(SOFT_LOCKUP + PANIC, stood(30.0), from_s=30.0), KernelDied), (
        "a stop before this run excuses nothing"
    )


@pytest.mark.parametrize(
    ("accel", "kvm_clock", "jumps"),
    [(Accel.KVM, False, True), (Accel.KVM, True, False), (Accel.TCG, False, False), (Accel.TCG, True, False)],
)
def test_which_machines_have_a_clock_that_jumps(accel: Accel, kvm_clock: bool, jumps: bool) -> None:
    vm = VM("debian")
    vm.spec = cast(Any, SimpleNamespace(accel=accel))
    vm._machine = cast(Any, SimpleNamespace(qemu=SimpleNamespace(standstill=Standstill())))
    vm._know(cast(Any, SimpleNamespace(kvm_clock=kvm_clock, layout=Layout.MODERN)))
    assert vm.qemu.standstill.clock_jumps is jumps


def test_the_kinds_of_stalls() -> None:
    log = (Path(__file__).parent / "data/verdict/stalls.log").read_text()
    kinds = {one.kind for one in scan(log + WORKQUEUE)}
    assert ComplaintKind.WORKQUEUE_STALL in kinds
    assert {kind for kind in kinds if kind.stall} >= {ComplaintKind.RCU_STALL, ComplaintKind.SOFT_LOCKUP}
    assert not ComplaintKind.OOPS.stall
    assert not ComplaintKind.PANIC.stall


def test_a_kernel_that_dies_is_told_by_its_title() -> None:
    (log,) = (one.text for one in logs() if one.path.stem == "null_read_7_3")
    first = scan(log)[0]
    assert str(_end(log, Standstill())).startswith(f"waiting: the kernel died: {first.title} ({first.line}) in ")
