"""How fast a guest runs on this host, compared with the host for which the deadlines were chosen.

The measure is the CPU time of a boot, because every machine has booted once: QEMU's thread that ran most, until the
agent answers. Time in which the host did not run it does not count, so a busy host does not look slow. A kernel that
does more work (KASAN, lockdep) is slower by the same measure, and its programs get more time as well.
"""

from __future__ import annotations

from harness.qemu.spec import Accel
from harness.qemu.threads import thread_times

#: CPU seconds that a boot may take before deadlines grow. The machine on which the deadlines were chosen boots
#: debian:6.12 in 3.3 s under TCG.
USUAL_BOOT_S = {Accel.TCG: 5.0, Accel.KVM: 2.0}
MOST = 10.0


def boot_cpu_s(pid: int) -> float:
    """Return the CPU time of the thread that has run most since QEMU was started."""
    return max((time.ran_ns for time in thread_times(pid).values()), default=0) / 1e9


def slowness(accel: Accel, boot_s: float) -> float:
    """Return by how much a deadline has to be longer than usual: 1 to :data:`MOST`.

    :param boot_s: the CPU time of a boot; 0 if it is not known.
    """
    return min(max(boot_s / USUAL_BOOT_S[accel], 1.0), MOST)
