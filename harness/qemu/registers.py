"""Parses the registers of every vCPU from QEMU's ``info registers -a``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.errors import ProtocolError

#: CR4.LA57, SDM volume 3 section 2.5.
CR4_LA57 = 1 << 12

_CPU = re.compile(r"^CPU#(\d+)$", re.MULTILINE)
_STATE = re.compile(r"^[RE]IP=([0-9a-f]+) [RE]FL=([0-9a-f]+) .*CPL=(\d) .*HLT=(\d)", re.MULTILINE)
_RFLAGS_IF = 1 << 9
_CONTROL = re.compile(r"\bCR([34])=([0-9a-f]+)")


@dataclass(frozen=True, slots=True)
class ControlRegisters:
    """The registers of one vCPU that a page-table walk needs."""

    cpu: int
    cr3: int
    cr4: int

    @property
    def five_level(self) -> bool:
        """Whether a fifth level (p4d) is walked."""
        return bool(self.cr4 & CR4_LA57)


@dataclass(frozen=True, slots=True)
class CpuState:
    """What one vCPU does."""

    cpu: int
    rip: int
    in_kernel: bool  # CPL is 0
    interrupts: bool  # RFLAGS.IF
    halted: bool  # it has executed HLT; under KVM, QEMU may not know


def parse_cpu_states(text: str) -> list[CpuState]:
    """One entry per vCPU, in QEMU's order (target/i386/cpu-dump.c, x86_cpu_dump_state()).

    :raises ProtocolError: the text has no such line for a vCPU.
    """
    parts = _CPU.split(text.replace("\r", ""))
    found = []
    for cpu, body in zip(parts[1::2], parts[2::2], strict=True):
        if (match := _STATE.search(body)) is None:
            raise ProtocolError(f"QEMU's registers of vCPU {cpu}: expected a line with RIP, RFL, CPL and HLT")
        rip, flags, cpl, halted = match.groups()
        interrupts = bool(int(flags, 16) & _RFLAGS_IF)
        found.append(CpuState(int(cpu), int(rip, 16), cpl == "0", interrupts, halted == "1"))
    return found


def parse_registers(text: str) -> list[ControlRegisters]:
    """One entry per vCPU, in QEMU's order.

    :raises ProtocolError: the text has no CR3 and CR4 for a vCPU.
    """
    parts = _CPU.split(text.replace("\r", ""))
    found = []
    for cpu, body in zip(parts[1::2], parts[2::2], strict=True):
        control = {match[1]: int(match[2], 16) for match in _CONTROL.finditer(body)}
        if set(control) != {"3", "4"}:
            raise ProtocolError(f"QEMU's registers of vCPU {cpu}: expected CR3 and CR4 among them")
        found.append(ControlRegisters(int(cpu), control["3"], control["4"]))
    if not found:
        raise ProtocolError(f"QEMU's 'info registers -a' printed {text[:80]!r}, expected a line 'CPU#0'")
    return found
