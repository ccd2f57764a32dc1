"""Two slots of a virtual machine over one leaf of a BAR."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.machine.vm import VM
from harness.pagetable import Level

pytestmark = pytest.mark.leaves_no_trace

TIMEOUT_S = 60.0


@pytest.mark.machine(kvm=True)
@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.host_pfn_mapping_level, fn.kvm_mmu_notifier_invalidate_range_start)
def test_kvm_two_slots(vm: VM, level: Level, claim: Claims) -> None:
    """Two slots over one leaf have a nested leaf each, removing one leaves the other, and munmap() takes both."""
    with vm.run("kvm_slots", f"--level={level.label}", timeout_s=TIMEOUT_S) as guest:
        both = guest.until("both")["vm"]
        with claim(f"both slots have a {level.label} with the same pfn", fn.host_pfn_mapping_level):
            assert (both.leaf("low").level, both.leaf("high").level) == (level, level)
            assert both.leaf("low").pfn == both.leaf("high").pfn
        one = guest.until("one")["vm"]
        with claim("the other slot has the same leaf when one is removed", fn.kvm_tdp_mmu_map):
            assert one.leaf("high").entry == both.leaf("high").entry
        unmapped = guest.until("unmapped")["vm"]
        with claim("munmap() takes the leaves of both slots", fn.kvm_mmu_notifier_invalidate_range_start):
            assert unmapped.leaves("low") == unmapped.leaves("high") == ()
        values = guest.result.values
        with claim("the vCPU writes through both slots", fn.kvm_tdp_mmu_map):
            assert (values["low"], values["high"], values["high-again"]) == ("done", "done", "done")
        with claim("a write where the slot was is an exit for MMIO", fn.kvm_tdp_mmu_map):
            assert values["low-removed"] == "MMIO"
