"""What the kernel itself finds wrong while a program runs: its log's complaints, its taint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from harness.errors import HugepfnError
from harness.machine.log_reader import read_log
from harness.printable import printable
from harness.verdict import (
    Complaint,
    ComplaintKind,
    Taint,
    added_taint,
    alarming_taint,
    parse_taint,
    scan,
)
from harness.verdict.troubles import Excused, KernelTroubles

if TYPE_CHECKING:
    from harness.machine.vm import VM

_LOG_TIMEOUT_S = 30.0
_LAST_WORDS_TIMEOUT_S = 5.0


class KernelWatch:
    """Begins where the log ends now, see :meth:`begin`."""

    def __init__(self, vm: VM, program: str) -> None:
        self._vm = vm
        self._program = program
        self._start = vm.qemu.log_from = vm.qemu.log.mark()
        self._stood_s = vm.qemu.stood_from_s = vm.qemu.standstill.total_s
        self.taint = Taint(0)  # that the kernel got since it booted, but for what means no harm
        self.settled = False  # the log was read to the program's end

    @classmethod
    async def begin(cls, vm: VM, program: str) -> Self:
        """What the kernel has said by now is not about the program.

        :raises MachineryError: the log cannot be read, see :func:`read_log`.
        """
        await read_log(vm.qemu, vm.agent, f"before {program}", _LOG_TIMEOUT_S)
        return cls(vm, program)

    @property
    def log(self) -> str:
        """The kernel's log since, as far as it was read or the console shows it."""
        return self._vm.qemu.log.since(self._start)

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
        return self._vm.qemu.standstill.excuse(complaint, self._stood_s)

    @property
    def gap(self) -> str:
        """Why "no complaint" cannot be said; empty where all of the log was read."""
        if lost := self._vm.qemu.log.lost_since(self._start):
            return (
                f"the kernel's log has a gap of {lost} records, and a complaint may be among them: log less while "
                f"{self._program} runs, or boot with --append log_buf_len=16M"
            )
        return "" if self.settled else f"the kernel's log was not read to the end of {self._program}"

    async def settle(self) -> None:
        """Reads the log up to now, and the taint. What the kernel said last is said by then.

        :raises MachineryError: the log cannot be read.
        """
        await read_log(self._vm.qemu, self._vm.agent, f"after {self._program}", _LOG_TIMEOUT_S)
        tainted = parse_taint(printable(await self._vm.agent.get("/proc/sys/kernel/tainted")))
        self.taint = alarming_taint(added_taint(parse_taint(self._vm.ready["taint"]), tainted))
        self.settled = True

    async def last_words(self) -> str:
        """Of a program that came to no end: the log's last complaint, the whole log's if the agent still answers."""
        try:
            await read_log(self._vm.qemu, self._vm.agent, f"{self._program} does not end", _LAST_WORDS_TIMEOUT_S)
        except HugepfnError:
            return self._vm.qemu.complaint()
        complaints = self.complaints()
        return f"the kernel log says: {complaints[-1].line}" if complaints else "the kernel log has no complaint"
