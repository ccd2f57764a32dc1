"""What the kernel itself finds wrong while a program runs: its log's complaints, its taint."""

from __future__ import annotations

from typing import Self

from harness.errors import HugepfnError
from harness.guest.agent import Agent
from harness.guest.log_reader import read_log
from harness.printable import printable
from harness.qemu.process import Qemu
from harness.verdict import (
    Complaint,
    ComplaintKind,
    Taint,
    added_taint,
    alarming_taint,
    parse_taint,
    scan,
)
from harness.verdict.log.troubles import Excused, KernelTroubles

_LOG_TIMEOUT_S = 30.0
_LAST_WORDS_TIMEOUT_S = 5.0


class KernelWatch:
    """Begins where the log ends now, see :meth:`begin`."""

    def __init__(self, qemu: Qemu, agent: Agent, boot_taint: Taint, program: str) -> None:
        self._qemu = qemu
        self._agent = agent
        self._boot_taint = boot_taint
        self._program = program
        self._start, self._stood_s = qemu.begin_run()
        self.taint = Taint(0)  # that the kernel got since it booted, but for what means no harm
        self.settled = False  # the log was read to the program's end

    @classmethod
    async def begin(cls, qemu: Qemu, agent: Agent, boot_taint: Taint, program: str) -> Self:
        """What the kernel has said by now is not about the program.

        :param boot_taint: what the kernel was tainted with when it came up.
        :raises MachineryError: the log cannot be read, see :func:`read_log`.
        """
        await read_log(agent, f"before {program}", _LOG_TIMEOUT_S)
        return cls(qemu, agent, boot_taint, program)

    @property
    def log(self) -> str:
        """The kernel's log since, as far as it was read or the console shows it."""
        return self._qemu.log.since(self._start)

    def complaints(self) -> tuple[Complaint, ...]:
        """What the log complains about."""
        return scan(self.log)

    def troubles(self) -> KernelTroubles:
        """Complaints and taint, and what is not held against the kernel."""
        told = [(one, self._excuse(one)) for one in self.complaints()]
        taint = self.taint
        if any(one.kind is ComplaintKind.SOFT_LOCKUP and why for one, why in told):
            taint = added_taint(Taint.SOFTLOCKUP, taint)
        return KernelTroubles(
            tuple(one.line for one, why in told if not why),
            taint,
            tuple(Excused(one.line, why) for one, why in told if why),
            self.gap,
        )

    def _excuse(self, complaint: Complaint) -> str:
        return self._qemu.standstill.excuse(complaint, self._stood_s)

    @property
    def gap(self) -> str:
        """Why "no complaint" cannot be said; empty where all of the log was read."""
        if lost := self._qemu.log.lost_since(self._start):
            return (
                f"the kernel log has a gap of {lost} records, and a complaint may be among them: log less while "
                f"{self._program} is running, or boot with --append log_buf_len=16M"
            )
        return "" if self.settled else f"the kernel log was not read up to the end of {self._program}"

    async def settle(self) -> None:
        """Reads the log up to now, and the taint. What the kernel said last is said by then.

        :raises MachineryError: the log cannot be read.
        """
        await read_log(self._agent, f"after {self._program}", _LOG_TIMEOUT_S)
        tainted = parse_taint(printable(await self._agent.get("/proc/sys/kernel/tainted")))
        self.taint = alarming_taint(added_taint(self._boot_taint, tainted))
        self.settled = True

    async def last_words(self) -> str:
        """Of a program that came to no end: the log's last complaint, the whole log's if the agent still answers."""
        try:
            await read_log(self._agent, f"{self._program} does not end", _LAST_WORDS_TIMEOUT_S)
        except HugepfnError:
            return self._qemu.complaint()
        complaints = self.complaints()
        return f"the kernel log says: {complaints[-1].line}" if complaints else "the kernel log has no complaint"
