"""What the kernel itself finds wrong while a program runs: its log's complaints, its taint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.verdict import (
    Complaint,
    ComplaintKind,
    Taint,
    added_taint,
    alarming_taint,
    describe_taint,
    parse_taint,
    scan,
)

if TYPE_CHECKING:
    from harness.machine.vm import VM

_LOG_TIMEOUT_S = 30.0


class KernelWatch:
    """Begins where the log stands now."""

    def __init__(self, vm: VM) -> None:
        self._vm = vm
        self._log_start = vm.qemu.log_from = len(vm.qemu.log.text)
        self._stood_s = vm.qemu.standstill.total_s
        self.taint = Taint(0)  # that the kernel got since it booted, but for what means no harm

    @property
    def log(self) -> str:
        """The kernel's log since."""
        return self._vm.kernel_log[self._log_start :]

    def complaints(self) -> tuple[Complaint, ...]:
        """What the log complains about."""
        return scan(self.log)

    def troubles(self) -> list[str]:
        """Complaints and taint, a line each."""
        troubles = [f"the kernel log: {one.line}" for one in self.complaints() if not self._excuse(one)]
        taint = self.taint
        if any(one.kind is ComplaintKind.SOFT_LOCKUP and self._excuse(one) for one in self.complaints()):
            taint = added_taint(Taint.SOFTLOCKUP, taint)
        return troubles + ([f"the kernel got tainted: {describe_taint(taint)}"] if taint else [])

    def excused(self) -> list[str]:
        """Complaints that are not held against the kernel, a line each, with the reason."""
        told = [(one.line, self._excuse(one)) for one in self.complaints()]
        return [f"not the kernel's fault: {line} ({why})" for line, why in told if why]

    def _excuse(self, complaint: Complaint) -> str:
        return self._vm.qemu.standstill.excuse(complaint, self._stood_s)

    async def settle(self, job_id: int, program: str) -> None:
        """Waits until the console has shown everything up to now, and reads the taint.

        What the kernel said last is said by then.
        """
        marker = f"hugepfn: end of job {job_id} ({program})"
        await self._vm.agent.request("log", marker.encode())
        await self._vm.qemu.expect(
            self._vm.qemu.log.shows(marker), _LOG_TIMEOUT_S, f"the kernel log to show {marker!r}"
        )
        tainted = parse_taint((await self._vm.agent.get("/proc/sys/kernel/tainted")).decode())
        self.taint = alarming_taint(added_taint(parse_taint(self._vm.ready["taint"]), tainted))
