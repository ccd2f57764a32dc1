"""Why a machine ended or is stopped: because of the kernel, of QEMU, or of somebody else."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.errors import EmulatorError, KernelDied, MachineryError, MachineStopped
from harness.qemu.spec import Accel
from harness.verdict import Complaint
from harness.verdict.log.troubles import KernelComplaint

_TOLD_TO_END = "terminating on signal"  # QEMU then exits with 0 (system/runstate.c, qemu_kill_report())
#: Run states that QEMU does not leave by itself (qapi/run-state.json, RunState).
GAVE_UP = ("internal-error", "io-error")


@dataclass(frozen=True, slots=True)
class QemuEnd:
    """How QEMU ended, and the kernel's complaints in this run."""

    pid: int
    status: int | None  # None if it closed QMP and is still running; negative for a signal
    stderr: str
    complaints: Sequence[Complaint]
    accel: Accel
    version: str
    excuse: Callable[[Complaint], str]  # why hugepfn itself caused a stall; empty if it did not


def end_error(when: str, end: QemuEnd) -> KernelDied | MachineryError:
    """The error to raise.

    A guest that resets, panics or powers off ends QEMU with status 0. Any other end is not the kernel's fault, even if
    the kernel has complained before.

    :param when: what we waited for, with which the message begins.
    """
    said = end.stderr or "it printed nothing"
    if end.status is not None and end.status < 0:
        hint = "; there was no space left for guest RAM" if -end.status == signal.SIGBUS else ""
        return MachineryError(f"{when}QEMU was killed by {signal.Signals(-end.status).name}{hint}: {said}")
    if end.status not in (0, None) or _TOLD_TO_END in end.stderr:
        return MachineryError(f"{when}QEMU ended with status {end.status}: {said}")
    if end.complaints:
        return _died(when, end, end.complaints[0])
    if end.status is None:
        return MachineryError(f"{when}QEMU (pid {end.pid}) closed QMP but did not end: {said}")
    return KernelDied(f"{when}the kernel powered off or reset without a message")


def _died(when: str, end: QemuEnd, first: Complaint) -> KernelDied | MachineryError:
    if first.stale_breakpoint and end.accel is Accel.TCG:
        # https://gitlab.com/qemu-project/qemu/-/commit/deba78709ae8; met once in 36 boots with 4 vCPUs.
        return EmulatorError(
            f"{when}the kernel died at a breakpoint that is not in its memory "
            f"({first.line} {first.where}). This is a bug of QEMU {end.version}, not of the kernel: its emulation "
            "of several vCPUs did so before 8.1; run again, or with --smp=1"
        )
    if ours := end.excuse(first):
        return MachineryError(
            f"{when}the kernel died of a stall that hugepfn caused ({first.line}): {ours}; boot it with "
            "--append 'softlockup_panic=0 panic_on_rcu_stall=0 hung_task_panic=0', or use --accel tcg"
        )
    words = [KernelComplaint.of(first).words, first.where, f"(after checkpoint {first.after})" if first.after else ""]
    return KernelDied(f"{when}the kernel died: {' '.join(filter(None, words))}")


def stop_error(when: str, state: str, stderr: str, accel: Accel, *, wanted: bool) -> MachineryError | None:
    """The error to raise if a machine does not run; None if it runs, or is stopped as we want it to be.

    After an exit that KVM cannot handle, QEMU stops the machine for good (accel/kvm/kvm-all.c, kvm_cpu_exec()).

    :param state: RunState of qapi/run-state.json.
    """
    if state in GAVE_UP:
        return MachineStopped(
            f"{when}QEMU stopped the machine ({state}), so this says nothing about the kernel; it printed: "
            f"{stderr or 'nothing'}" + ("; try --accel tcg" if accel is Accel.KVM else "")
        )
    if state in ("paused", "debug") and not wanted:
        return MachineryError(
            f"{when}another program, for instance gdb, stopped the machine ({state}), so this says nothing about "
            "the kernel"
        )
    return None
