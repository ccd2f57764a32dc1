"""fork() of the process that made a virtual machine leaves the virtual machine's tables alone."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.machine.vm import VM
from harness.pagetable import Level

pytestmark = pytest.mark.leaves_no_trace

TIMEOUT_S = 60.0


@pytest.mark.machine(kvm=True)
@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.COPIED_BY, fn.kvm_vcpu_ioctl)
def test_kvm_fork(vm: VM, level: Level, claim: Claims) -> None:
    """fork() and the child change nothing in KVM's tables, and the child cannot run its parent's virtual machine."""
    copied_by = fn.COPIED_BY[level]
    with vm.run("kvm_fork", f"--level={level.label}", timeout_s=TIMEOUT_S) as guest:
        written = guest.until("written")["vm"].leaf("bar")
        with claim(f"KVM has a writable {level.label}", fn.host_pfn_mapping_level):
            assert written.level is level
            assert written.write
        forked = guest.until("forked")
        with claim("the nested leaf is as it was before fork", copied_by):
            assert forked["vm"].leaf("bar").entry == written.entry
        with claim("the child has the parent's leaf of the BAR", copied_by):
            assert forked["child"].leaf("bar").level is level
            assert forked["child"].leaf("bar").pfn == written.pfn
        for checkpoint, what in (("child-tried", "try"), ("child-written", "own write"), ("exited", "end")):
            at = guest.until(checkpoint)
            with claim(f"the child's {what} leaves the nested leaf as it was", fn.unmap_page_range):
                assert at["vm"].leaf("bar").entry == written.entry
        after = guest.until("parent-written")
        with claim("the vCPU of the parent goes on with the same leaf", fn.kvm_tdp_mmu_map):
            assert after["vm"].leaf("bar").entry == written.entry
        values = guest.result.values
        with claim("the child cannot run the virtual machine: EIO", fn.kvm_vcpu_ioctl):
            assert values["child"] == "EIO"
        with claim("the parent can, before and after", fn.kvm_vcpu_ioctl):
            assert (values["before"], values["after"]) == ("done", "done")
