"""Tests for finding nested tables in simulated memory: what a process says is held against the kernel's structures."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import cast

import pytest

from harness.errors import MachineryError, PremiseNotMet, UsageError
from harness.guest.protocol import VmEvent
from harness.introspect.kernel_facts import KernelFacts
from harness.introspect.kvm import KvmFacts, KvmRoots
from harness.kernel.offsets import TASK_MEMBERS
from harness.observe.nested import TableRoot
from harness.pagetable import Layout, PhysicalMemory
from tests.test_introspect_tasks import AT, BASE, FOUR, INIT, MM, ROOT, TASK, Ram

FILES, TABLE, FDS = 0x22000, 0x22100, 0x22200
VM_FILE, VCPU_FILE, OTHER_FILE = 0x23000, 0x23100, 0x23200
VM, VCPU, OTHER = 0x24000, 0x25000, 0x26000
NESTED_ROOT = 0x30000
OFFSETS = {
    **{member: getattr(AT, member.partition(".")[2]) for member in TASK_MEMBERS},
    **{"task_struct.files": 128, "files_struct.fdt": 8, "fdtable.max_fds": 0, "fdtable.fd": 8},
    **{"file.private_data": 32, "kvm.mm": 40, "kvm_vcpu.kvm": 0},
    **{"kvm_vcpu.arch.root_mmu.root.hpa": 64, "kvm_vcpu.arch.root_mmu.root_role": 72},
}
SAID = VmEvent("vm", 100, 3, 4)


def ram() -> Ram:
    """The memory of a kernel in which process 100 has a virtual machine at files 3 and 4, with a four-level root."""
    made = Ram()
    made.put(TASK + 128, BASE + FILES)
    made.put(FILES + 8, BASE + TABLE)
    made.put(TABLE, 64, 4)
    made.put(TABLE + 8, BASE + FDS)
    for fd, file, data in ((3, VM_FILE, VM), (4, VCPU_FILE, VCPU), (5, OTHER_FILE, OTHER)):
        made.put(FDS + 8 * fd, BASE + file)
        made.put(file + 32, BASE + data)
    made.put(VM + 40, BASE + MM)
    made.put(VCPU, BASE + VM)
    made.put(VCPU + 64, NESTED_ROOT)
    made.put(VCPU + 72, 0xABC4)
    return made


def roots(**files: str) -> KvmRoots:
    said = files or {"/sys/module/kvm_amd/parameters/npt": "Y"}
    facts = SimpleNamespace(optional=lambda path: f"{said[path]}\n".encode() if path in said else b"")
    found = KvmRoots(cast(KernelFacts, facts))
    found.known = KvmFacts(OFFSETS, INIT)
    return found


def find(memory: Ram, said: VmEvent = SAID, by: KvmRoots | None = None) -> TableRoot | None:
    return (by or roots()).find(PhysicalMemory(memory.data), ROOT, FOUR, said)


def test_the_root_is_that_of_the_vcpus_mmu() -> None:
    assert find(ram()) == TableRoot(NESTED_ROOT, Layout.NPT)
    deep = ram()
    deep.put(VCPU + 72, 0xABC5)
    assert find(deep) == TableRoot(NESTED_ROOT, dataclasses.replace(Layout.NPT, five_level=True))
    intel = roots(**{"/sys/module/kvm_intel/parameters/ept": "Y"})
    assert find(ram(), by=intel) == TableRoot(NESTED_ROOT, Layout.EPT)


def machines(memory: Ram) -> tuple[VmEvent, ...]:
    return roots().machines(PhysicalMemory(memory.data), ROOT, FOUR, 100)


def test_the_virtual_machines_of_a_process_are_found_among_its_files() -> None:
    assert machines(ram()) == (VmEvent("100:3", 100, 3, 4),)
    two = ram()
    two.put(OTHER + 40, BASE + MM)  # file 5 is a VM as well, and has no vCPU
    assert machines(two) == (VmEvent("100:3", 100, 3, 4),)
    two.put(FDS + 8 * 9, BASE + 0x23300)
    two.put(0x23300 + 32, BASE + 0x27000)
    two.put(0x27000, BASE + OTHER)
    assert machines(two) == (VmEvent("100:3", 100, 3, 4), VmEvent("100:5", 100, 5, 9))
    two.put(VM + 40, BASE + MM + 0x100)  # a VM of another process
    assert machines(two) == (VmEvent("100:5", 100, 5, 9),)
    two.put(OTHER_FILE + 32, 0x1234567890)
    assert machines(two) == ()


def test_without_a_module_of_kvm_there_is_no_look_for_virtual_machines() -> None:
    with pytest.raises(UsageError, match="start the session with --nested"):
        roots(nothing="").machines(PhysicalMemory(ram().data), ROOT, FOUR, 100)


def test_a_vcpu_that_never_ran_has_no_root() -> None:
    fresh = ram()
    fresh.put(VCPU + 64, (1 << 64) - 1)
    assert find(fresh) is None


@pytest.mark.parametrize(("at", "value"), [(VCPU + 64, NESTED_ROOT + 8), (VCPU + 72, 3), (VCPU + 72, 0)])
def test_a_root_that_makes_no_sense_is_an_error(at: int, value: int) -> None:
    broken = ram()
    broken.put(at, value)
    with pytest.raises(MachineryError, match="expected a page, 4 or 5"):
        find(broken)


@pytest.mark.parametrize(
    ("vm_fd", "vcpu_fd", "words"),
    [
        (3, 6, "no open file 6"),
        (64, 4, "no open file 64"),
        (4, 3, "are not a VM of its own and a vCPU of that"),
        (3, 5, "are not a VM of its own"),
        (5, 4, "are not a VM of its own"),
    ],
)
def test_other_files_are_refused(vm_fd: int, vcpu_fd: int, words: str) -> None:
    with pytest.raises(MachineryError, match=words):
        find(ram(), VmEvent("vm", 100, vm_fd, vcpu_fd))


def test_a_virtual_machine_of_another_process_is_refused() -> None:
    """A child has its parent's files, but KVM serves only the memory of the process that made the VM."""
    inherited = ram()
    inherited.put(VM + 40, BASE + MM + 0x100)
    with pytest.raises(MachineryError, match="are not a VM of its own"):
        find(inherited)


def test_a_file_that_points_anywhere_is_refused() -> None:
    wild = ram()
    wild.put(VM_FILE + 32, 0x1234567890)
    with pytest.raises(MachineryError, match="are not a VM of its own"):
        find(wild)


def test_the_kernel_must_be_the_one_that_is_known() -> None:
    other = ram()
    other.put(INIT + AT.pid, 7, 4)
    with pytest.raises(MachineryError, match="do not lead to init_task at 0xffffffff80010000"):
        find(other)


def test_kvm_without_nested_tables_is_an_unmet_premise() -> None:
    with pytest.raises(PremiseNotMet, match=r"npt is N: this KVM uses shadow page tables"):
        roots(**{"/sys/module/kvm_amd/parameters/npt": "N"}).learn()


def test_no_module_of_kvm_is_no_error_until_there_is_a_virtual_machine() -> None:
    none = roots(nothing="")
    none.learn()
    with pytest.raises(MachineryError, match="neither kvm_amd nor kvm_intel is loaded"):
        find(ram(), by=none)


def test_the_files_of_a_build_tell_the_types_where_the_kernel_does_not() -> None:
    addresses = {"_text": BASE}
    facts = SimpleNamespace(
        **{"optional": lambda path: b"Y" if path.endswith("npt") else b"", "build_id": None, "btf": None},
        **{"offset_of": OFFSETS.__getitem__, "address": addresses.__getitem__, "init_task": BASE + INIT},
    )
    by = KvmRoots(cast(KernelFacts, facts))
    by.learn()
    assert by.known == KvmFacts(OFFSETS, INIT)
