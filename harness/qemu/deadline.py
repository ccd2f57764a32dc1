"""Deadlines for what a guest has to do. Time in which QEMU could not run is the host's fault and does not count.

When a deadline has passed, :meth:`Deadline.extend` looks at QEMU before the kernel is blamed. If QEMU is stopped,
that is a machinery error. If it waited for a CPU, was stopped and continued, or if this process itself did not run, the
deadline is extended by that time. After :data:`CAP` times the given time, or twice that of a slow guest if this is
longer, it is not extended any more: the host is too busy to say anything about the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Collection
from typing import Any

from harness.errors import MachineryError
from harness.qemu.threads import NO_TIME, ThreadTime, state, stolen_s, thread_times

CAP = 10
_LATE_S = 1.0  # if we wake this late, this process itself did not run
_GRACE_S = 5.0  # to read what arrived while we did not run
_WORTH = 0.02  # of the given time: less starvation than this is ignored
_NOTED = 0.01  # of the given time: most waits end before, and reading the times of all threads costs more than they


class Deadline:
    """The deadline of a wait for a guest."""

    def __init__(self, timeout_s: float, pid: int | None, slowness: float = 1.0) -> None:
        """Start now.

        :param timeout_s: on a host of usual speed.
        :param pid: of QEMU; None if there is none, and the deadline is never extended.
        :param slowness: how much slower than usual the guest runs, see :func:`harness.qemu.speed.slowness`.
        """
        self.timeout_s = timeout_s * slowness
        self._most_s = max(CAP * timeout_s, 2 * self.timeout_s)
        self._pid = pid
        self._begin_s = time.monotonic()
        self._end_s = self._begin_s + self.timeout_s
        self._before: dict[int, ThreadTime] | None = None
        self._stolen_s = 0.0
        self._given_back_s = 0.0

    @property
    def left_s(self) -> float:
        """Seconds that are left; 0 after the deadline."""
        return max(self._end_s - time.monotonic(), 0.0)

    @property
    def wait_s(self) -> float:
        """Seconds to wait until :meth:`note` has something to do, or the time is over."""
        if self._pid is None or self._before is not None:
            return self.left_s
        return min(self.left_s, max(self._begin_s + _NOTED * self.timeout_s - time.monotonic(), 0.0))

    def note(self) -> None:
        """Note once, when a hundredth of the time has passed, how long threads have waited for a CPU by then.

        If that comes late, the host was busy, and the time until then does not count.
        """
        if self._pid is not None and self._before is None and not self.wait_s:
            self._before, self._stolen_s = self._times(), stolen_s()
            self.credit(time.monotonic() - self._begin_s - _NOTED * self.timeout_s)

    def credit(self, host_s: float) -> None:
        """Extend the deadline by seconds in which the host had the machine stopped."""
        self._begin_s += host_s
        self._end_s += host_s

    def extend(self) -> bool:
        """Call this when the time is over. Returns True if there is more time after all, because QEMU could not run.

        :raises MachineryError: QEMU is stopped, or the host is too busy.
        """
        if self._pid is None:
            return False
        check_runs(self._pid)
        now_s = time.monotonic()
        starved_s = self._starved_s()
        owed_s = starved_s - self._given_back_s
        late_s = now_s - self._end_s
        if late_s > _LATE_S:
            self._begin_s += late_s
        if was_continued(self._pid):
            more_s = self.timeout_s
        elif owed_s > _WORTH * self.timeout_s:
            more_s = owed_s
            self._given_back_s = starved_s
        elif late_s > _LATE_S:
            more_s = min(self.timeout_s, _GRACE_S)
        else:
            return False
        if now_s + more_s - self._begin_s > self._most_s:
            raise MachineryError(
                f"the host is too busy: QEMU (pid {self._pid}) or hugepfn waited for a CPU for {starved_s:.1f} of "
                f"{now_s - self._begin_s:.1f} s; run fewer things at the same time (--workers)"
            )
        self._end_s = now_s + more_s
        return True

    def _starved_s(self) -> float:
        """How long the thread that waited most has waited for a CPU since :meth:`note`, of this host or of its host.

        A host that is a virtual machine itself does not see in its run queues when it was not run (steal time).
        """
        if self._before is None:
            return 0.0
        before, now = self._before, self._times()
        waits = (time.waited_ns - before.get(one, NO_TIME).waited_ns for one, time in now.items())
        return max(waits, default=0) / 1e9 + max(stolen_s() - self._stolen_s, 0.0)

    def _times(self) -> dict[int, ThreadTime]:
        """The threads of QEMU and of this process, which reads page tables in one while the machine is stopped."""
        assert self._pid is not None
        return {**thread_times(self._pid), **thread_times(os.getpid())}


async def first_of(either: Collection[asyncio.Future[Any]], deadline: Deadline) -> bool:
    """Wait until one of them is done. Returns False if the time is over.

    :raises MachineryError: see :meth:`Deadline.extend`.
    """
    while True:
        done, _ = await asyncio.wait(either, timeout=deadline.wait_s, return_when=asyncio.FIRST_COMPLETED)
        if done:
            return True
        deadline.note()
        if not deadline.left_s and not deadline.extend():
            return False


def check_runs(pid: int) -> None:
    """Check that a process is not stopped.

    :raises MachineryError: it is, by a signal or by a debugger; says how to continue it.
    """
    if state(pid) in ("T", "t"):
        raise MachineryError(
            f"QEMU (pid {pid}) was stopped by SIGSTOP or by a debugger, so this says nothing about the kernel; "
            f"continue it with `kill -CONT {pid}`"
        )


def was_continued(pid: int) -> bool:
    """Whether a child of ours was stopped and has been continued since this was last asked (waitid(2), WCONTINUED)."""
    with contextlib.suppress(ChildProcessError):
        return os.waitid(os.P_PID, pid, os.WCONTINUED | os.WNOHANG) is not None
    return False
