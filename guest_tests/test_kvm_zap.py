"""Two virtual machines over one mapping of a BAR, and what the kernel zaps on its own account."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.kernel_functions import KernelFunction
from harness.machine.vm import VM
from harness.pagetable import Level

pytestmark = pytest.mark.leaves_no_trace

TIMEOUT_S = 60.0
BOTH = ("vm", "other")


def _zap(vm: VM, level: Level, claim: Claims, case: str, by: KernelFunction) -> None:
    """What holds whatever zaps the leaf, and whether it does."""
    with vm.run("kvm_zap", f"--level={level.label}", f"--case={case}", timeout_s=TIMEOUT_S) as guest:
        written = guest.until("written")
        host = written["parent"].leaf("bar")
        with claim(f"host and both virtual machines have a {level.label} of the same pfn", fn.host_pfn_mapping_level):
            for name in BOTH:
                assert written[name].leaf("bar").level is level
                assert written[name].leaf("bar").pfn == host.pfn
        zapped = guest.until("zapped")
        if case == "smaps":
            with claim("reading smaps leaves the host's leaf", by):
                assert zapped["parent"].leaf("bar").entry == host.entry
        else:
            with claim("the host's leaf is gone", by):
                assert zapped["parent"].leaves("bar") == ()
        # Without huge_fault, one fault puts in a pte for each page; a virtual machine gets those that it asked for.
        there = {name: len(written[name].leaves("bar")) if zapped["parent"].leaves("bar") else 0 for name in BOTH}
        with claim(
            "each virtual machine has its leaf exactly if the host has it", fn.kvm_mmu_notifier_invalidate_range_start
        ):
            for name in BOTH:
                assert len(zapped[name].leaves("bar")) == there[name]
        back = guest.until("back")
        with claim("a write of the first vCPU: the host and its virtual machine have the leaf", fn.hva_to_pfn_remapped):
            assert back["parent"].leaf("bar").pfn == host.pfn
            assert back["parent"].leaf("bar").level is level
            assert back["vm"].leaf("bar").entry == written["vm"].leaf("bar").entry
        with claim("that changes nothing in the other virtual machine", fn.kvm_tdp_mmu_map):
            assert len(back["other"].leaves("bar")) == there["other"]
        back = guest.until("other-back")
        with claim("a write of the second vCPU: its virtual machine has the leaf as well", fn.hva_to_pfn_remapped):
            assert back["other"].leaf("bar").entry == written["other"].leaf("bar").entry
        values = guest.result.values
        with claim("every write of a vCPU is done", fn.kvm_tdp_mmu_map):
            assert [values[name] for name in ("before", "other-before", "after", "other-after")] == ["done"] * 4


@pytest.mark.machine(kvm=True)
@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vfio_pci_zap_bars, fn.kvm_mmu_notifier_invalidate_range_start)
def test_kvm_two_machines(vm: VM, level: Level, claim: Claims) -> None:
    """Two virtual machines map one leaf, lose it with the device's memory, and each gets it back on its own."""
    _zap(vm, level, claim, "off", fn.vfio_pci_zap_bars)


@pytest.mark.machine(kvm=True)
@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.smap_gather_stats, fn.kvm_mmu_notifier_invalidate_range_start)
def test_kvm_smaps(vm: VM, level: Level, claim: Claims) -> None:
    """A reader of smaps takes no leaf from a virtual machine; where it takes it from the host, KVM has it no longer."""
    _zap(vm, level, claim, "smaps", fn.smap_gather_stats)


@pytest.mark.machine(kvm=True, device="nvme")
@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vfio_pci_ioctl_reset, fn.kvm_mmu_notifier_invalidate_range_start)
def test_kvm_reset(vm: VM, level: Level, claim: Claims) -> None:
    """A reset of the device takes the leaf from the host and from every virtual machine, and it comes back."""
    _zap(vm, level, claim, "reset", fn.vfio_pci_ioctl_reset)
