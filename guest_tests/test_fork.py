"""fork() and a shared pfnmap: parent and child keep a writable leaf, and no dirty bit moves to SAVED_DIRTY."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.machine.vm import VM
from harness.pagetable import Bits, Level

pytestmark = pytest.mark.leaves_no_trace

#: PAT index of uncached-minus: PCD alone (arch/x86/mm/pat/memtype.c, pat_bp_init()).
UC_MINUS = 2


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.COPIED_BY)
def test_fork(vm: VM, level: Level, claim: Claims) -> None:
    """fork() copies the leaf of a shared pfnmap: writable in parent and child, no dirty bit moved to SAVED_DIRTY."""
    copied_by, early = fn.COPIED_BY[level], vm.caps.early
    with vm.run("fork", f"--level={level.label}") as guest:
        read = guest.until("read")["parent"].leaf("bar")
        with claim(f"a first read maps a {level.label}, writable and clean", fn.FAULTED_BY[level]):
            assert read.level is level
            assert read.write
            assert read.young
            assert not read.dirty
            assert read.special
            assert read.nx
        with claim("the BAR is mapped uncached-minus, at this level as at every other", fn.vfio_pci_core_mmap):
            assert read.cache == UC_MINUS

        written = guest.until("written")["parent"].leaf("bar")
        with claim("a first write sets the dirty bit and nothing else", fn.CPU):
            assert written.bits ^ read.bits == Bits.D
            assert written.pfn == read.pfn

        at = guest.until("forked")
        with claim("the parent's entry is as it was before fork", copied_by):
            assert at["parent"].leaf("bar").entry == written.entry
        with claim("the child has the parent's leaf", copied_by):
            child = at["child"].leaf("bar")
            assert child.level is level
            assert child.pfn == written.pfn
        with claim("the child's entry is writable", copied_by):
            assert at["child"].leaf("bar").write
        with claim("the child's entry is old", copied_by, clear=Bits.A):
            assert not at["child"].leaf("bar").young
        if level is Level.PTE:
            with claim("the child's pte is clean", copied_by):
                assert not at["child"].leaf("bar").kernel_dirty
        else:
            with claim(f"the child's {level.label} keeps its dirty bit", copied_by):
                assert at["child"].leaf("bar").dirty
        if vm.caps.saved_dirty:
            with claim("no dirty bit moved to SAVED_DIRTY", copied_by):
                for process in at:
                    assert Bits.SAVED_DIRTY not in process.leaf("bar").bits

        forked = at
        at = guest.until("child-written")
        with claim("the child's write sets its own accessed and dirty bits, in the same leaf", fn.CPU):
            child = at["child"].leaf("bar")
            assert child.young
            assert child.dirty
            assert child.bits | Bits.A | Bits.D == forked["child"].leaf("bar").bits | Bits.A | Bits.D
        with claim("the child's write leaves the parent's entry alone", fn.CPU):
            assert at["parent"].leaf("bar").entry == written.entry

        at = guest.until("parent-written")
        with claim("the parent's write leaves its entry as it is", copied_by):
            assert at["parent"].leaf("bar").entry == written.entry

        at = guest.until("grandchild-forked")
        with claim("the grandchild has the same copy as the child had", copied_by):
            assert at["grandchild"].leaf("bar").entry | early == forked["child"].leaf("bar").entry | early
        at = guest.until("grandchild-written")
        with claim("the grandchild's write sets its own accessed and dirty bits", fn.CPU):
            assert at["grandchild"].leaf("bar").entry == child.entry

        at = guest.until("exited")
        with claim("the parent's entry outlives child and grandchild", fn.unmap_page_range):
            assert at["parent"].leaf("bar").entry == written.entry
            assert [process.name for process in at] == ["parent"]
        with claim("every process wrote and exited", copied_by):
            assert guest.result.passed, guest.result.reason
        for who in ("child", "parent", "grandchild"):
            with claim(f"the {who} writes without a fault, by the kernel's own count", copied_by):
                assert guest.result.faults(f"{who}-write-faults", before=f"{who}-written") == 0
