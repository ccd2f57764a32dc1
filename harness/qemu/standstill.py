"""How long a machine was stopped, and whether its kernel took that for a stall.

Under KVM the TSC keeps running while QEMU has the vCPUs stopped. QEMU tells a kernel with kvm-clock
(KVM_KVMCLOCK_CTRL), which then ignores the time: arch/x86/kernel/kvmclock.c kvm_check_and_clear_guest_paused(), called
by kernel/watchdog.c and kernel/rcu/tree_stall.h. A kernel without it (no CONFIG_KVM_GUEST, or ``no-kvmclock``) sees
time jump and reports a stall. Under TCG the clock stops as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from qemu.qmp import QMPClient

from harness.verdict import Complaint

#: The shortest stall that a kernel reports is 20 s (kernel/watchdog.c, get_softlockup_thresh()). Part of it may
#: have passed before the machine was stopped.
LONG_S = 10.0


@dataclass
class LastStop:
    """When a machine stopped last, whoever stopped it: QEMU also does so by itself, where it cannot go on."""

    at: float | None = None  # seconds since the epoch; None: never

    async def follow(self, qmp: QMPClient) -> None:
        """Keep it up to date, until the task is cancelled."""
        with qmp.listener("STOP") as events:
            async for _event in events:
                self.at = time.time()


@dataclass
class Standstill:
    """Adds up for how many seconds a machine was stopped."""

    clock_jumps: bool = False  # the clock keeps running while the machine is stopped, and the kernel is not told
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    _past_s: float = 0.0
    _since: float | None = None

    def begin(self) -> None:
        """The vCPUs stop; does nothing if they are stopped already."""
        if self._since is None:
            self._since = self.clock()

    def end(self) -> None:
        """The vCPUs run again."""
        self._past_s, self._since = self.total_s, None

    @property
    def present_s(self) -> float | None:
        """For how many seconds it has stood still now; None if it runs."""
        return self.clock() - self._since if self._since is not None else None

    @property
    def total_s(self) -> float:
        """Seconds of standstill since the machine was started."""
        return self._past_s + (self.present_s or 0.0)

    def excuse(self, complaint: Complaint, from_s: float = 0.0) -> str:
        """Why we caused a complaint; empty if it is the kernel's fault.

        :param from_s: :attr:`total_s` at the beginning of the run in which the kernel complained.
        """
        stood_s = self.total_s - from_s
        if not self.clock_jumps or not complaint.kind.stall or stood_s < LONG_S:
            return ""
        return (
            f"the machine was stopped for {stood_s:.0f} s under KVM; a kernel without kvm-clock takes that for a stall"
        )
