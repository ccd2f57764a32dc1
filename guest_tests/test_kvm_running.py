"""What changes on the host's side while a vCPU runs on another CPU ends that vCPU's accesses at once."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.machine.vm import VM
from harness.pagetable import Level

pytestmark = pytest.mark.leaves_no_trace

TIMEOUT_S = 60.0
#: How the running vCPU's KVM_RUN ends. KVM emulates a write to a leaf that the host has read-only: an exit for MMIO. A
#: leaf with PROT_NONE is such a leaf where the kernel takes it for present (see test_kvm_gone.py).
ENDED = {"protnone": ("EFAULT", "MMIO"), "readonly": ("MMIO",)}
NOTHING_MAPPED = ("EFAULT",)


def _changed(vm: VM, level: Level, claim: Claims, case: str) -> None:
    """What holds whatever takes the leaf, or the right to write to it, from the host."""
    args = (f"--level={level.label}", f"--case={case}", "--vcpu=running")
    with vm.run("kvm_gone", *args, timeout_s=TIMEOUT_S) as guest:
        running = guest.until("running")
        with claim(f"while the vCPU runs, host and KVM have a writable {level.label}", fn.host_pfn_mapping_level):
            for name in ("parent", "vm"):
                assert running[name].leaf("bar").level is level
                assert running[name].leaf("bar").write
            assert running["vm"].leaf("bar").pfn == running["parent"].leaf("bar").pfn
        gone = guest.until("gone")
        with claim("KVM has no writable leaf any more", fn.kvm_mmu_notifier_invalidate_range_start):
            assert not any(leaf.write for leaf in gone["vm"].leaves("bar"))
        if case not in ENDED:
            with claim("neither table has a leaf any more", fn.kvm_mmu_notifier_invalidate_range_start):
                assert gone["parent"].leaves("bar") == gone["vm"].leaves("bar") == ()
        back = guest.until("back")
        with claim(f"when the host's mapping is back, KVM has the same {level.label} again", fn.host_pfn_mapping_level):
            assert back["vm"].leaf("bar").entry == running["vm"].leaf("bar").entry
            assert back["parent"].leaf("bar").pfn == running["parent"].leaf("bar").pfn
        values = guest.result.values
        with claim("the running vCPU's next write ends KVM_RUN", fn.kvm_mmu_notifier_invalidate_range_start):
            assert values["running"] in ENDED.get(case, NOTHING_MAPPED)
        with claim("the vCPU's write is done after that", fn.kvm_tdp_mmu_map):
            assert values["after"] == "done"


@pytest.mark.machine(kvm=True, smp=2)
@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.kvm_mmu_notifier_invalidate_range_start, fn.hva_to_pfn_remapped)
def test_kvm_running_memory_off(vm: VM, level: Level, claim: Claims) -> None:
    """The device's memory off ends the accesses of a vCPU that runs on another CPU."""
    _changed(vm, level, claim, "memory")


@pytest.mark.machine(kvm=True, smp=2)
@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.kvm_mmu_notifier_invalidate_range_start, fn.hva_to_pfn_remapped)
def test_kvm_running_munmap(vm: VM, level: Level, claim: Claims) -> None:
    """munmap() ends the accesses of a vCPU that runs on another CPU."""
    _changed(vm, level, claim, "munmap")


@pytest.mark.machine(kvm=True, smp=2)
@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.kvm_mmu_notifier_invalidate_range_start, fn.hva_to_pfn_remapped)
def test_kvm_running_protnone(vm: VM, level: Level, claim: Claims) -> None:
    """mprotect() to PROT_NONE ends the writes of a vCPU that runs on another CPU."""
    _changed(vm, level, claim, "protnone")


@pytest.mark.machine(kvm=True, smp=2)
@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.kvm_mmu_notifier_invalidate_range_start, fn.hva_to_pfn_remapped)
def test_kvm_running_readonly(vm: VM, level: Level, claim: Claims) -> None:
    """mprotect() to PROT_READ ends the writes of a vCPU that runs on another CPU."""
    _changed(vm, level, claim, "readonly")


@pytest.mark.machine(kvm=True, smp=2)
@pytest.mark.levels("pte", "pmd")  # mremap() of a pud has bugs of its own, which the scenarios mremap_* show
@pytest.mark.decided_by(fn.kvm_mmu_notifier_invalidate_range_start, fn.move_page_tables)
def test_kvm_running_mremap(vm: VM, level: Level, claim: Claims) -> None:
    """mremap() ends the accesses of a vCPU that runs on another CPU."""
    _changed(vm, level, claim, "mremap")


@pytest.mark.machine(kvm=True, smp=2)
@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.kvm_vcpu_ioctl, fn.kvm_destroy_vm)
def test_kvm_killed(vm: VM, level: Level, claim: Claims) -> None:
    """A process that is killed in the middle of KVM_RUN leaves no virtual machine, and its device to the next one."""
    with vm.run("kvm_killed", f"--level={level.label}", timeout_s=TIMEOUT_S) as guest:
        running = guest.until("running")
        with claim(f"child and virtual machine have a {level.label} of the same pfn", fn.host_pfn_mapping_level):
            for name in ("child", "vm"):
                assert running[name].leaf("bar").level is level
            assert running["vm"].leaf("bar").pfn == running["child"].leaf("bar").pfn
        dead = guest.until("dead")
        assert {"child", "vm"}.isdisjoint(dead.processes)
        again = guest.until("again")
        with claim("the next process gets the same leaves for its own virtual machine", fn.host_pfn_mapping_level):
            for name, before in (("parent", "child"), ("next", "vm")):
                assert again[name].leaf("bar").level is level
                assert again[name].leaf("bar").pfn == running[before].leaf("bar").pfn
        values = guest.result.values
        with claim("the killed process's virtual machine is gone", fn.kvm_destroy_vm):
            assert (values["machines"], values["machines-left"]) in (("1", "0"), ("-1", "-1"))
        with claim("the next process's vCPU writes", fn.kvm_tdp_mmu_map):
            assert values["write"] == "done"
