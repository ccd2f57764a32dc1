"""How long a machine stood still, and what a kernel takes that for whose clock went on meanwhile.

Under KVM the TSC runs on while QEMU has the vCPUs stopped. A kernel with kvm-clock is told of it (KVM_KVMCLOCK_CTRL)
and excuses itself (arch/x86/kernel/kvmclock.c kvm_check_and_clear_guest_paused(), called by kernel/watchdog.c and
kernel/rcu/tree_stall.h). One without (no CONFIG_KVM_GUEST, or ``no-kvmclock``) sees time jump, and calls it a stall.
Under TCG the clock stops as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from harness.verdict import Complaint

#: The shortest stall that a kernel complains of is 20 s (kernel/watchdog.c, get_softlockup_thresh()); part of one may
#: have passed before the machine was stopped.
LONG_S = 10.0


@dataclass
class Standstill:
    """Adds up for how many seconds a machine stood still."""

    clock_jumps: bool = False  # the kernel's clock goes on meanwhile, and nobody tells the kernel
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    _past_s: float = 0.0
    _since: float | None = None

    def begin(self) -> None:
        """The vCPUs stop; does nothing where they stand still already."""
        if self._since is None:
            self._since = self.clock()

    def end(self) -> None:
        """They go on."""
        self._past_s, self._since = self.total_s, None

    @property
    def present_s(self) -> float | None:
        """For how many seconds it has stood still now; None if it runs."""
        return self.clock() - self._since if self._since is not None else None

    @property
    def total_s(self) -> float:
        """Since the machine came up, in seconds of the host."""
        return self._past_s + (self.present_s or 0.0)

    def excuse(self, complaint: Complaint, from_s: float = 0.0) -> str:
        """Why a complaint is of our making; empty where it is the kernel's own.

        :param from_s: :attr:`total_s` when that began in which the kernel complained.
        """
        stood_s = self.total_s - from_s
        if not self.clock_jumps or not complaint.kind.stall or stood_s < LONG_S:
            return ""
        return (
            f"the machine stood still for {stood_s:.0f} s under KVM; without kvm-clock a kernel takes that for a stall"
        )
