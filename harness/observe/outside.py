"""What the kernel complains about during a test, but outside of its programs: in commands, and between programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from harness.errors import HugepfnError
from harness.guest.agent import Agent
from harness.guest.log_reader import read_log
from harness.observe.kernel_watch import KernelWatch, troubles_of
from harness.printable import printable
from harness.qemu.process import Qemu
from harness.verdict import Complaint, Taint, added_taint, alarming_taint, parse_taint, scan
from harness.verdict.log.troubles import NO_TAINT, KernelTroubles

_LOG_TIMEOUT_S = 30.0


class Outside:
    """The kernel's log and taint since a test began, without what its programs answer for.

    :param boot_taint: the taint that the kernel had before.
    """

    def __init__(self, qemu: Qemu, agent: Agent, boot_taint: Taint) -> None:
        self._qemu = qemu
        self._agent = agent
        self._boot_taint = boot_taint
        self._start = qemu.log.held or qemu.log.mark()
        self._stood_s = qemu.standstill.total_s
        self._read_at = agent.next_id
        self._taint = NO_TAINT
        self._gap = ""

    async def settle(self, watched: Sequence[KernelWatch]) -> None:
        """Read the log and the taint up to now, unless nothing was asked of the guest since the last program's end."""
        if self._agent.next_id == max([self._read_at, *(one.read_at for one in watched)]):
            return
        if self._qemu.exit_status is not None or self._qemu.stopped:
            return
        try:
            await read_log(self._agent, "after the test", _LOG_TIMEOUT_S)
            tainted = parse_taint(printable(await self._agent.get("/proc/sys/kernel/tainted")))
            self._taint = alarming_taint(added_taint(self._boot_taint, tainted))
        except HugepfnError as error:
            self._gap = f"the kernel log was not read up to the end of the test: {error}"
        self._read_at = self._agent.next_id

    def troubles(self, watched: Sequence[KernelWatch]) -> KernelTroubles:
        """Return what none of the programs answers for."""
        theirs = Counter(_begin(one) for watch in watched for one in watch.complaints())
        found = []
        for one in scan(self._qemu.log.since(self._start)):
            if theirs[_begin(one)]:
                theirs[_begin(one)] -= 1
            else:
                found.append(one)
        taint = self._taint
        for watch in watched:
            taint = added_taint(watch.taint, taint)
        return troubles_of(found, self._excuse, taint, self._gap or self._lost(watched))

    def _excuse(self, complaint: Complaint) -> str:
        return self._qemu.standstill.excuse(complaint, self._stood_s)

    def _lost(self, watched: Sequence[KernelWatch]) -> str:
        if self._qemu.log.lost_since(self._start) and not any(one.gap for one in watched):
            return "the kernel log has a gap, and a complaint may be in it: boot with --append log_buf_len=16M"
        return ""


def _begin(complaint: Complaint) -> str:
    return complaint.excerpt.partition("\n")[0]
