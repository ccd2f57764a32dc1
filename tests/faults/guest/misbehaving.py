"""A test whose guest program, or whose kernel, goes wrong as FAULT_ARGS and FAULT_CODE say."""

import os
import shlex

from harness.claims import Claims
from harness.machine.vm import VM
from harness.observe.run import GuestRun

#: The system call that misbehave.c makes after its checkpoint; no other program in the guest makes it.
SYSTEM_CALL = "__x64_sys_sysfs"


def test_misbehaving(vm: VM, claim: Claims) -> None:
    """The program ends well."""
    at, timeout_s = os.environ.get("FAULT_AT", "1"), float(os.environ.get("FAULT_TIMEOUT_S", "30"))
    arguments = [f"--at={at}", *shlex.split(os.environ.get("FAULT_ARGS", ""))]
    if code := os.environ.get("FAULT_CODE"):
        replace_code(vm, bytes.fromhex(code))
    with vm.run("misbehave", *arguments, timeout_s=timeout_s) as guest:
        with claim("the program passes all checkpoints"):
            guest.until("c6")
        with claim("it ends well"):
            assert guest.result.passed, reason(guest)


def reason(guest: GuestRun) -> str:
    """Why the program did not pass."""
    return guest.result.reason


def replace_code(vm: VM, code: bytes) -> None:
    """Let the kernel run this code instead of a system call that nobody has made since the machine started."""
    vaddr = vm.processes.facts.address(SYSTEM_CALL)
    leaf = vm.walk(1, vaddr).leaf
    assert leaf is not None, f"{SYSTEM_CALL} is not mapped"
    with vm.paused():
        for offset in range(0, len(code), 8):
            at = vaddr + offset - leaf.vaddr
            word = int.from_bytes(code[offset : offset + 8].ljust(8, b"\x90"), "little")
            vm.memory.write_u64((leaf.pfn << 12) + at, word)
