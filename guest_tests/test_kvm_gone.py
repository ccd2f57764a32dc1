"""What is gone from the tables of a process is gone from those of its virtual machine, and comes back with it."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.machine.vm import VM
from harness.pagetable import Level

pytestmark = pytest.mark.leaves_no_trace

TIMEOUT_S = 60.0
#: How a write of the vCPU ends meanwhile. KVM emulates a write to a leaf that the host has read-only: an exit for MMIO.
#: A leaf with PROT_NONE is such a leaf if the kernel takes it for present: pte_present() and pmd_present() do, and
#: pud_present() does not.
REFUSED = {"protnone": ("EFAULT", "MMIO"), "readonly": ("MMIO",)}
NOTHING_MAPPED = ("EFAULT",)


def _gone(vm: VM, level: Level, claim: Claims, case: str) -> None:
    """What holds whatever takes the leaf from the host."""
    with vm.run("kvm_gone", f"--level={level.label}", f"--case={case}", timeout_s=TIMEOUT_S) as guest:
        written = guest.until("written")
        with claim(f"host and KVM have a writable {level.label}", fn.host_pfn_mapping_level):
            for name in ("parent", "vm"):
                assert written[name].leaf("bar").level is level
                assert written[name].leaf("bar").write
        gone = guest.until("gone")
        with claim("KVM has no leaf any more", fn.kvm_mmu_notifier_invalidate_range_start):
            assert gone["vm"].leaves("bar") == ()
        tried = guest.until("tried")
        with claim("the vCPU's write brings no writable leaf back, in neither table", fn.hva_to_pfn_remapped):
            assert not any(leaf.write for name in ("parent", "vm") for leaf in tried[name].leaves("bar"))
        back = guest.until("back")
        with claim(f"when the host's mapping is back, KVM has the same {level.label} again", fn.host_pfn_mapping_level):
            assert back["vm"].leaf("bar").entry == written["vm"].leaf("bar").entry
            assert back["parent"].leaf("bar").pfn == written["parent"].leaf("bar").pfn
        values = guest.result.values
        with claim("the vCPU's write is refused meanwhile", fn.hva_to_pfn_remapped):
            assert values["while"] in REFUSED.get(case, NOTHING_MAPPED)
        with claim("the vCPU reads meanwhile what its process may read, and nothing else", fn.hva_to_pfn_remapped):
            assert values["read"] == ("done" if case == "readonly" else "EFAULT")
        with claim("the vCPU's write is done before and after", fn.kvm_tdp_mmu_map):
            assert (values["before"], values["after"]) == ("done", "done")


@pytest.mark.machine(kvm=True)
@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.kvm_mmu_notifier_invalidate_range_start, fn.hva_to_pfn_remapped)
def test_kvm_memory_off(vm: VM, level: Level, claim: Claims) -> None:
    """A leaf that the device's memory off takes from the host is gone from KVM's tables, and comes back."""
    _gone(vm, level, claim, "memory")


@pytest.mark.machine(kvm=True)
@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.kvm_mmu_notifier_invalidate_range_start, fn.hva_to_pfn_remapped)
def test_kvm_munmap(vm: VM, level: Level, claim: Claims) -> None:
    """A leaf that munmap() takes from the host is gone from KVM's tables, and comes back with a new mapping."""
    _gone(vm, level, claim, "munmap")


@pytest.mark.machine(kvm=True)
@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.kvm_mmu_notifier_invalidate_range_start, fn.hva_to_pfn_remapped)
def test_kvm_protnone(vm: VM, level: Level, claim: Claims) -> None:
    """A leaf that mprotect() makes PROT_NONE is gone from KVM's tables, and no write of the vCPU is done."""
    _gone(vm, level, claim, "protnone")


@pytest.mark.machine(kvm=True)
@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.kvm_mmu_notifier_invalidate_range_start, fn.hva_to_pfn_remapped)
def test_kvm_readonly(vm: VM, level: Level, claim: Claims) -> None:
    """A leaf that mprotect() makes read-only is gone from KVM's tables, and no write of the vCPU is done."""
    _gone(vm, level, claim, "readonly")


@pytest.mark.machine(kvm=True)
@pytest.mark.levels("pte", "pmd")  # mremap() of a pud has bugs of its own, which the scenarios mremap_* show
@pytest.mark.decided_by(fn.kvm_mmu_notifier_invalidate_range_start, fn.move_page_tables)
def test_kvm_mremap(vm: VM, level: Level, claim: Claims) -> None:
    """A leaf that mremap() moves away is gone from KVM's tables, and comes back with the mapping."""
    _gone(vm, level, claim, "mremap")
