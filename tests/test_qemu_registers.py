"""Tests for reading the registers of every vCPU, from the output of a real QEMU."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import ProtocolError
from harness.pagetable import root_paddr
from harness.qemu.registers import ControlRegisters, parse_registers

#: QEMU 7.2, -cpu max -smp 2: vCPU 0 in long mode with five levels, a PCID and bit 12 set in CR3 (what page-table
#: isolation has in user mode); vCPU 1 never started, so QEMU prints 32-bit registers. CRLF, as QMP returns it.
GOLDEN = Path(__file__).parent / "data" / "machine" / "registers-smp2-la57-pcid.txt"


@pytest.fixture(scope="module")
def text() -> str:
    return GOLDEN.read_bytes().decode()


def test_the_golden_text(text: str) -> None:
    assert "\r\n" in text
    assert parse_registers(text) == [ControlRegisters(0, 0x5801, 0x21020), ControlRegisters(1, 0, 0)]


def test_la57_is_bit_12_of_cr4_of_each_cpu(text: str) -> None:
    assert [one.five_level for one in parse_registers(text)] == [True, False]
    assert not ControlRegisters(0, 0x1000, 0xFFFFFFFF & ~(1 << 12)).five_level


def test_the_isolated_user_root_and_the_kernels_beside_it(text: str) -> None:
    cr3 = parse_registers(text)[0].cr3
    assert root_paddr(cr3) == 0x5000
    assert root_paddr(cr3, pti=True) == 0x4000


def test_addresses_of_more_than_32_bits() -> None:
    text = "\nCPU#3\nRAX=00000000000000ff\nCR0=80050033 CR2=00007f0000000000 CR3=00000001234be801 CR4=00771ef0\n"
    assert parse_registers(text) == [ControlRegisters(3, 0x1234BE801, 0x771EF0)]


def test_a_cpu_without_control_registers_is_named(text: str) -> None:
    head, _, second = text.rpartition("CR3=")
    with pytest.raises(ProtocolError, match="vCPU 1: expected CR3 and CR4"):
        parse_registers(head + second.replace("CR4=", "CR8="))


@pytest.mark.parametrize("text", ["", "unknown command: 'info registers'\r\n", "CR3=1000 CR4=20"])
def test_text_without_a_cpu_is_quoted(text: str) -> None:
    with pytest.raises(ProtocolError, match="expected a line 'CPU#0'") as caught:
        parse_registers(text)
    assert repr(text) in str(caught.value)
