"""What the kernel itself finds wrong while a program runs: complaints in its log, and its taint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

from harness.errors import HugepfnError
from harness.guest import bounds
from harness.guest.agent import Agent
from harness.guest.kernel_log import LogMark
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
from harness.verdict.log.troubles import Excused, KernelComplaint, KernelTroubles

_LOG_TIMEOUT_S = 30.0
_LAST_WORDS_TIMEOUT_S = 5.0


def troubles_of(
    complaints: Sequence[Complaint], excuse: Callable[[Complaint], str], taint: Taint, gap: str
) -> KernelTroubles:
    """Return what these complaints and this taint say about the kernel. Of very many complaints, the first are judged.

    :param excuse: why we caused a complaint; "" if it is the kernel's fault.
    :param gap: why "no complaint" cannot be said.
    """
    told = [(one, excuse(one)) for one in complaints[: bounds.COMPLAINTS_MAX]]
    if any(one.kind is ComplaintKind.SOFT_LOCKUP and why for one, why in told):
        taint = added_taint(Taint.SOFTLOCKUP, taint)
    if len(complaints) > len(told):
        gap = gap or f"the kernel log has {len(complaints)} complaints, and only the first {len(told)} are judged"
    return KernelTroubles(
        tuple(KernelComplaint.of(one) for one, why in told if not why),
        taint,
        tuple(Excused(one.line, why) for one, why in told if why),
        gap,
    )


class KernelWatch:
    """The kernel's log and taint since a program began; made by :meth:`begin`."""

    def __init__(self, qemu: Qemu, agent: Agent, boot_taint: Taint, program: str) -> None:
        self.qemu = qemu
        self.agent = agent
        self._boot_taint = boot_taint
        self._program = program
        self._start, self._stood_s = qemu.begin_run()
        self._before: tuple[Complaint, ...] = ()  # the complaints before the kernel was asked questions
        self._from: LogMark | None = self._start  # where later ones begin; None while it is asked
        self.taint = Taint(0)  # since the boot, without the harmless bits
        self.settled = False  # whether the log was read up to the program's end
        self.read_at = 0  # the number of the agent's next request then
        self._log: str | None = None  # as far as the program's end
        self._log_later = ""  # the part of it from _from on

    @classmethod
    async def begin(cls, qemu: Qemu, agent: Agent, boot_taint: Taint, program: str) -> Self:
        """Start watching: what the log has by now is not about the program.

        :param boot_taint: the taint of the kernel when it had booted.
        :raises MachineryError: the log cannot be read, see :func:`read_log`.
        """
        await read_log(agent, f"before {program}", _LOG_TIMEOUT_S)
        return cls(qemu, agent, boot_taint, program)

    def hold_against_next(self) -> None:
        """What the kernel has said since this program began is about the next one as well, also in clones."""
        self.qemu.log.held = self._start

    @property
    def log(self) -> str:
        """The kernel log from then to the program's end, as far as it was read or the console shows it."""
        return self.qemu.log.since(self._start) if self._log is None else self._log

    def complaints(self) -> tuple[Complaint, ...]:
        """Return the complaints in the log."""
        return (*self._before, *scan(self._later()))

    def _later(self) -> str:
        """The log from :attr:`_from` to the program's end."""
        if self._log is not None:
            return self._log_later
        return self.qemu.log.since(self._from) if self._from is not None else ""

    def ask(self) -> None:
        """What the kernel logs from now on is an answer to our questions, and no complaint."""
        self._before, self._from = self.complaints(), None

    def answered(self) -> None:
        """What the kernel logs from now on counts again."""
        self._from = self.qemu.log.mark()

    def troubles(self) -> KernelTroubles:
        """Return complaints and taint, and the complaints that are not held against the kernel."""
        return troubles_of(self.complaints(), self._excuse, self.taint, self.gap)

    def _excuse(self, complaint: Complaint) -> str:
        return self.qemu.standstill.excuse(complaint, self._stood_s)

    @property
    def gap(self) -> str:
        """Why "no complaint" cannot be said; "" if the whole log was read."""
        if lost := self.qemu.log.lost_since(self._start):
            return (
                f"the kernel log has a gap of {lost} records, and a complaint may be among them: log less while "
                f"{self._program} is running, or boot with --append log_buf_len=16M"
            )
        return "" if self.settled else f"the kernel log was not read up to the end of {self._program}"

    async def settle(self) -> None:
        """Read the log up to now, and the taint.

        :raises MachineryError: the log cannot be read.
        """
        await read_log(self.agent, f"after {self._program}", _LOG_TIMEOUT_S)
        tainted = parse_taint(printable(await self.agent.get("/proc/sys/kernel/tainted")))
        self.taint = alarming_taint(added_taint(self._boot_taint, tainted))
        self._log_later = self._later()
        self._log, self.read_at, self.settled = self.qemu.log.since(self._start), self.agent.next_id, True

    async def last_words(self) -> str:
        """Return the last complaint in the log for a program that did not end; read the log if the agent answers."""
        try:
            await read_log(self.agent, f"{self._program} does not end", _LAST_WORDS_TIMEOUT_S)
        except HugepfnError:
            return self.qemu.complaint()
        complaints = self.complaints()
        if not complaints:
            return "the kernel log has no complaint"
        return f"the kernel log says: {KernelComplaint.of(complaints[-1]).words}"
