"""Tests for a program that passes its deadline: the error tells whether the program or the kernel hangs, and where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import DeadlineError
from harness.kernel import Kernel, KernelImage
from harness.machine.vm import VM
from harness.observe.run import GuestRun
from harness.verdict.hang.hang import Hang, HangKind

Write = Callable[[str, str], Path]
#: A jmp to itself, without and with cli. The overwritten function was not called yet, so TCG has not translated it.
LOOPS = {"on": bytes.fromhex("ebfe"), "off": bytes.fromhex("faebfe")}
FUNCTION = "__x64_sys_swapoff"


@pytest.fixture(scope="module")
def image() -> KernelImage:
    return Kernel.debian("6.12").resolve()


def hangs(vm: VM, source: Path, words: str) -> tuple[Hang, GuestRun]:
    """Run a program that hangs. The error must have these words."""

    def run() -> None:
        with vm.run(source, timeout_s=2) as guest:
            guest.until("begin")
            guest.until("end")

    with pytest.raises(DeadlineError, match=words):
        run()
    assert vm.runs[-1].hang_report is not None
    return vm.runs[-1].hang_report.hang, vm.runs[-1]


def overwrite(vm: VM, function: str, code: bytes) -> int:
    """Overwrite a function of the kernel with instructions, and return its address."""
    vaddr = vm.processes.facts.address(function)
    leaf = vm.walk(1, vaddr).leaf
    assert leaf is not None
    paddr, at = leaf.paddr_at(vaddr) & -8, vaddr % 8
    with vm.paused():
        old = b"".join(vm.memory.read_u64(paddr + offset).to_bytes(8, "little") for offset in (0, 8))
        new = old[:at] + code + old[at + len(code) :]
        for offset in (0, 8):
            vm.memory.write_u64(paddr + offset, int.from_bytes(new[offset : offset + 8], "little"))
    return vaddr


def body(statement: str) -> str:
    return f'\tktap_plan(1);\n\tcheckpoint("begin");\n\t{statement}\n\tcheckpoint("end");'


def test_a_program_in_an_endless_loop(image: KernelImage, program: Write) -> None:
    words = (
        r"waiting for checkpoint 'end' of loop: nothing within [\d.]+ s; loop: last at checkpoint 'begin', processes "
        r"\['parent'\]; the program hangs, and the kernel goes on: parent \(pid \d+\) runs in user space \(CPU time .*"
        "the kernel log has no complaint"
    )
    with VM(image) as vm:
        hang, guest = hangs(vm, program("loop", body("for (;;)\n\t\t;")), words)
        assert (hang.kind, hang.checkpoint, hang.tasks[0].state) == (HangKind.PROGRAM, "begin", "R")
        assert hang.tasks[0].user_s > hang.tasks[0].system_s
        assert "sysrq: Show Blocked State" in guest.log
        assert any("Show backtrace of all active CPUs" in line for line in hang.dump)
        assert not guest.kernel_troubles().found, "the kernel's answer to sysrq is no complaint"
        with vm.run("fork") as after:
            assert after.result.passed


def test_a_program_in_an_endless_system_call(image: KernelImage, program: Write) -> None:
    words = r"parent \(pid \d+\) sleeps in pause\(\) at __do_sys_pause < .*\(CPU time"
    with VM(image) as vm:
        hang, _ = hangs(vm, program("sleep", body("pause();")), words)
        assert (hang.kind, hang.tasks[0].syscall) == (HangKind.PROGRAM, "pause")
        assert hang.cpus == ()


@pytest.mark.parametrize("interrupts", ["on", "off"])
def test_a_kernel_in_an_endless_loop(image: KernelImage, program: Write, interrupts: str) -> None:
    words = (
        r"the kernel hangs: its agent did not answer within [\d.]+ s; vCPU 0 runs in the kernel "
        rf".* interrupts {interrupts}"
    )
    source = program("swap", body('syscall(SYS_swapoff, "");'))
    source.write_text("#include <sys/syscall.h>\n" + source.read_text())
    with VM(image) as vm:
        vaddr = overwrite(vm, FUNCTION, LOOPS[interrupts])
        hang, guest = hangs(vm, source, words)
        assert hang.kind is HangKind.KERNEL
        (cpu,) = hang.cpus
        assert vaddr <= cpu.rip < vaddr + 16
        assert cpu.interrupts is (interrupts == "on")
        assert not guest.kernel_troubles().complaints
        assert (FUNCTION in hang.places) is (interrupts == "on"), "sysrq needs an interrupt"
