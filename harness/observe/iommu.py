"""The registers of the machine's IOMMU, as QEMU shows them, and the tables that they lead to."""

from __future__ import annotations

import re
from typing import Any, Protocol

from harness.errors import MachineryError, PremiseNotMet
from harness.observe.nested import TableRoot
from harness.pagetable.memory import Memory
from harness.pagetable.vtd import Access, DeviceTables, SourceId, device_tables

#: Where q35 has the IOMMU (QEMU's Q35_HOST_BRIDGE_IOMMU_ADDR), and its registers (VT-d specification 11.4).
_BASE = 0xFED90000
_VERSION_AT, _STATUS_AT, _ROOT_AT = 0x00, 0x1C, 0x20
_TRANSLATES = 1 << 31  # GSTS_REG.TES
_WORD = re.compile(r"\b[0-9a-f]+: 0x([0-9a-f]+)\s*$")


class IommuMonitor(Protocol):
    """What is asked of QEMU. :class:`harness.qemu.process.Qemu` has it."""

    async def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Execute a QMP command, and return its answer."""


async def read_rtaddr(qemu: IommuMonitor) -> int:
    """Return RTADDR_REG of the machine's IOMMU. The machine must be stopped.

    :raises PremiseNotMet: the machine has no IOMMU, or the kernel does not use it.
    :raises MachineryError: QEMU's answer makes no sense.
    """
    if not await _register(qemu, "1wx", _VERSION_AT):
        raise PremiseNotMet("this machine has no IOMMU: QEMU was started without intel-iommu")
    if not await _register(qemu, "1wx", _STATUS_AT) & _TRANSLATES:
        raise PremiseNotMet("the IOMMU is off: the kernel does not use it (intel_iommu=off, no CONFIG_INTEL_IOMMU)")
    return await _register(qemu, "1gx", _ROOT_AT)


async def _register(qemu: IommuMonitor, form: str, at: int) -> int:
    line = f"xp /{form} {_BASE + at:#x}"
    said = str(await qemu.execute("human-monitor-command", {"command-line": line}))
    if "Cannot access memory" in said:
        return 0
    if (match := _WORD.search(said)) is None:
        raise MachineryError(f"QEMU answered {said!r} to {line!r}; expected an address and a word")
    return int(match[1], 16)


def root_of(memory: Memory, rtaddr: int, bdf: str) -> tuple[DeviceTables, TableRoot | None]:
    """Return what the IOMMU has for a device, and where its page tables start; None if nothing is translated.

    :raises WalkError: a table lies outside RAM, or an entry has a reserved value.
    """
    found = device_tables(memory, rtaddr, SourceId.parse(bdf))
    return found, TableRoot(found.root, found.layout) if found.access is Access.TRANSLATED else None
