"""Why a machine ended or stands still: the kernel's own doing, QEMU's, or somebody else's."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.errors import EmulatorError, KernelDied, MachineryError, MachineStopped
from harness.qemu.spec import Accel
from harness.verdict import Complaint

_TOLD_TO_END = "terminating on signal"  # it exits with 0 then (system/runstate.c, qemu_kill_report())
#: Run states that QEMU does not leave by itself (qapi/run-state.json, RunState).
GAVE_UP = ("internal-error", "io-error")


@dataclass(frozen=True, slots=True)
class QemuEnd:
    """How QEMU ended, and what the kernel had complained about in this run."""

    pid: int
    status: int | None  # None where it closed QMP and runs on; negative for a signal
    stderr: str
    complaints: Sequence[Complaint]
    accel: Accel
    version: str
    excuse: Callable[[Complaint], str]  # whether a stall is hugepfn's own doing, in words


def end_error(when: str, end: QemuEnd) -> KernelDied | MachineryError:
    """The error that says so.

    A guest that resets, panics or powers off ends QEMU with status 0; whatever else ends it is not the kernel's, even
    if the kernel has complained of something before.

    :param when: what was waited for, as the message begins.
    """
    said = end.stderr or "no word"
    if end.status is not None and end.status < 0:
        hint = "; guest RAM ran out of room" if -end.status == signal.SIGBUS else ""
        return MachineryError(f"{when}QEMU was killed by {signal.Signals(-end.status).name}{hint}: {said}")
    if end.status not in (0, None) or _TOLD_TO_END in end.stderr:
        return MachineryError(f"{when}QEMU ended with status {end.status}: {said}")
    if end.complaints:
        return _died(when, end, end.complaints[0])
    if end.status is None:
        return MachineryError(f"{when}QEMU (pid {end.pid}) has closed QMP and does not end: {said}")
    return KernelDied(f"{when}the kernel powered off or reset, and said nothing of why")


def _died(when: str, end: QemuEnd, first: Complaint) -> KernelDied | MachineryError:
    if first.stale_breakpoint and end.accel is Accel.TCG:
        # https://gitlab.com/qemu-project/qemu/-/commit/deba78709ae8; met once in 36 boots with 4 vCPUs.
        return EmulatorError(
            f"{when}QEMU {end.version} made the kernel die of a breakpoint that is not in its memory "
            f"({first.line} {first.where}), which is no fault of the kernel: QEMU's emulation with several "
            "vCPUs did so before 8.1; run again, or with --smp=1"
        )
    if ours := end.excuse(first):
        return MachineryError(
            f"{when}the kernel died of a stall that is hugepfn's doing ({first.line}): {ours}; boot it with "
            "--append 'softlockup_panic=0 panic_on_rcu_stall=0 hung_task_panic=0', or use --accel tcg"
        )
    words = [first.line, first.where, f"(after checkpoint {first.after})" if first.after else ""]
    return KernelDied(f"{when}the kernel died: {' '.join(filter(None, words))}")


def stop_error(when: str, state: str, stderr: str, accel: Accel, *, wanted: bool) -> MachineryError | None:
    """The error that says why a machine does not run; None where it runs, or stands still as we want it to.

    After an exit that KVM cannot handle, QEMU stops the machine without an end (accel/kvm/kvm-all.c, kvm_cpu_exec()).

    :param state: RunState of qapi/run-state.json.
    """
    if state in GAVE_UP:
        return MachineStopped(
            f"{when}QEMU has stopped the machine ({state}), so nothing can be said of the kernel; it says: "
            f"{stderr or 'nothing'}" + ("; try --accel tcg" if accel is Accel.KVM else "")
        )
    if state in ("paused", "debug") and not wanted:
        return MachineryError(
            f"{when}somebody else has stopped the machine ({state}), gdb for instance, so nothing can be said of "
            "the kernel"
        )
    return None
