"""KVM maps a leaf of a BAR into a virtual machine: how large, with which rights, and what a write of the vCPU sets."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.kernel_functions import KernelFunction
from harness.machine.vm import VM
from harness.pagetable import Bits, Level

pytestmark = pytest.mark.leaves_no_trace

TIMEOUT_S = 60.0
BELOW = {Level.PMD: Level.PTE, Level.PUD: Level.PMD}


@pytest.mark.machine(kvm=True)
@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.hva_to_pfn_remapped, fn.host_pfn_mapping_level, fn.make_spte)
def test_kvm_level(vm: VM, level: Level, claim: Claims) -> None:
    """KVM maps a leaf of the host at its level, writable as it is, and the vCPU's write changes no host entry."""
    with vm.run("kvm", f"--level={level.label}", timeout_s=TIMEOUT_S) as guest:
        opened = guest.until("opened")
        with claim("before the vCPU runs, KVM has no leaf", fn.kvm_tdp_mmu_map):
            assert opened["vm"].leaves("bar") == ()
        host = opened["parent"].leaf("bar")
        read = guest.until("read")
        with claim(f"the host has a {level.label}, and KVM maps it as one", fn.host_pfn_mapping_level):
            assert host.level is level
            assert read["vm"].leaf("bar").level is level
        with claim("KVM maps the pfn of the host's leaf", fn.hva_to_pfn_remapped):
            assert read["vm"].leaf("bar").pfn == host.pfn
        with claim("the nested leaf is writable after a read, because the host's is", fn.make_spte):
            assert read["vm"].leaf("bar").write
        with claim("the vCPU's read changes nothing in the host's entry", fn.hva_to_pfn_remapped):
            assert read["parent"].leaf("bar").entry == host.entry
        written = guest.until("written")
        with claim("after the vCPU's write the nested leaf is dirty, and otherwise as it was", fn.make_spte):
            assert written["vm"].leaf("bar").dirty
            assert written["vm"].leaf("bar").entry | Bits.D == read["vm"].leaf("bar").entry | Bits.D
        with claim("the vCPU's write changes nothing in the host's entry: it stays clean", fn.hva_to_pfn_remapped):
            assert written["parent"].leaf("bar").entry == host.entry
        values = guest.result.values
        with claim("the vCPU reads and writes", fn.kvm_tdp_mmu_map):
            assert (values["read"], values["write"]) == ("done", "done")


@pytest.mark.machine(kvm=True)
@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.hva_to_pfn_remapped, fn.host_pfn_mapping_level)
def test_kvm_first(vm: VM, level: Level, claim: Claims) -> None:
    """A write of the vCPU that is the first access of all makes the host's leaf, and KVM maps it at the same level."""
    with vm.run("kvm", f"--level={level.label}", "--case=first", timeout_s=TIMEOUT_S) as guest:
        opened = guest.until("opened")
        with claim("before the vCPU's write, the host has no leaf", fn.hva_to_pfn_remapped):
            assert opened["parent"].leaves("bar") == ()
        written = guest.until("written")
        with claim(f"the write makes the host's {level.label}", fn.hva_to_pfn_remapped):
            assert written["parent"].leaf("bar").level is level
            assert written["parent"].leaf("bar").write
        with claim("KVM maps it at the same level, with the same pfn", fn.host_pfn_mapping_level):
            assert written["vm"].leaf("bar").level is level
            assert written["vm"].leaf("bar").pfn == written["parent"].leaf("bar").pfn
        with claim("the vCPU writes", fn.kvm_tdp_mmu_map):
            assert guest.result.values["write"] == "done"


def _does_not_fit(vm: VM, level: Level, claim: Claims, case: str) -> None:
    """What holds for a slot in which the host's leaf does not fit."""
    with vm.run("kvm", f"--level={level.label}", f"--case={case}", timeout_s=TIMEOUT_S) as guest:
        written = guest.until("written")
        with claim(f"the host has a {level.label}", fn.FAULTED_BY[level]):
            assert written["parent"].leaf("bar").level is level
        with claim("KVM maps it one level below, and only what the vCPU touched", fn.kvm_alloc_memslot_metadata):
            assert [leaf.level for leaf in written["vm"].leaves("bar")] == [BELOW[level]]
        with claim("the vCPU writes", fn.kvm_tdp_mmu_map):
            assert guest.result.values["write"] == "done"


@pytest.mark.machine(kvm=True)
@pytest.mark.levels("pmd", "pud")
@pytest.mark.decided_by(fn.kvm_alloc_memslot_metadata, fn.kvm_mmu_max_mapping_level)
def test_kvm_slot_skewed(vm: VM, level: Level, claim: Claims) -> None:
    """Where a slot is not aligned as the host's leaf is, KVM maps it one level below."""
    _does_not_fit(vm, level, claim, "skewed")


@pytest.mark.machine(kvm=True)
@pytest.mark.levels("pmd", "pud")
@pytest.mark.decided_by(fn.kvm_alloc_memslot_metadata, fn.kvm_mmu_max_mapping_level)
def test_kvm_slot_short(vm: VM, level: Level, claim: Claims) -> None:
    """Where a slot ends before the host's leaf does, KVM maps it one level below."""
    _does_not_fit(vm, level, claim, "short")


def _read_only(vm: VM, level: Level, claim: Claims, case: str, refuses: KernelFunction) -> None:
    with vm.run("kvm", f"--level={level.label}", f"--case={case}", timeout_s=TIMEOUT_S) as guest:
        read = guest.until("read")
        with claim(f"KVM maps a {level.label} read-only", fn.make_spte):
            assert read["vm"].leaf("bar").level is level
            assert not read["vm"].leaf("bar").write
        written = guest.until("written")
        with claim("the vCPU's write changes no entry", fn.make_spte):
            assert not written["vm"].leaf("bar").write
            assert written["parent"].leaf("bar").entry == read["parent"].leaf("bar").entry
        values = guest.result.values
        with claim("the vCPU reads, and its write is an exit for MMIO", refuses):
            assert (values["read"], values["write"]) == ("done", "MMIO")


@pytest.mark.machine(kvm=True)
@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.make_spte, fn.kvm_tdp_mmu_map)
def test_kvm_read_only(vm: VM, level: Level, claim: Claims) -> None:
    """In a read-only slot, KVM maps a leaf read-only, at its level, and a write of the vCPU is an exit for MMIO."""
    _read_only(vm, level, claim, "read-only", fn.kvm_tdp_mmu_map)


@pytest.mark.machine(kvm=True)
@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.hva_to_pfn_remapped, fn.make_spte)
def test_kvm_read_only_mapping(vm: VM, level: Level, claim: Claims) -> None:
    """What its process may only read, KVM maps read-only in a slot for writing, too: a write is an exit for MMIO."""
    _read_only(vm, level, claim, "read-only-mapping", fn.hva_to_pfn_remapped)


@pytest.mark.machine(kvm=True)
@pytest.mark.levels("pte", "pmd")
@pytest.mark.decided_by(fn.hva_to_pfn_remapped)
def test_kvm_soft_dirty(vm: VM, level: Level, claim: Claims) -> None:
    """A vCPU writes to a BAR after clear_refs 4, where its process may: the leaf may be read-only to see that write."""
    with vm.run("kvm", f"--level={level.label}", "--case=soft-dirty", timeout_s=10.0) as guest:
        opened = guest.until("opened")
        with claim("before the vCPU runs, neither table has a leaf", fn.kvm_tdp_mmu_map):
            assert opened["parent"].leaves("bar") == opened["vm"].leaves("bar") == ()
        guest.until("written")
        with claim("the vCPU writes where its process may write", fn.hva_to_pfn_remapped):
            assert guest.result.values["write"] == "done"
