"""fork() that runs out of memory half way, at each of its allocations."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.machine.vm import VM
from harness.pagetable import Level

TIMEOUT_S = 120.0


@pytest.mark.decided_by(fn.dup_mmap, fn.copy_page_range)
def test_fork_fails(vm: VM, claim: Claims) -> None:
    """fork() that fails at any of its allocations changes no leaf, page table or PAT reservation of the parent."""
    top = next(level for level in (Level.PUD, Level.PMD, Level.PTE) if not vm.caps.why_not(level))
    names = [f"as-{level.label}" for level in Level if level <= top] + ["remapped"]
    with vm.run("fork_fails", f"--level={top.label}", timeout_s=TIMEOUT_S) as guest:
        before = guest.until("before")["parent"]
        with claim("a leaf of each level, dirty", fn.copy_page_range):
            assert [before.leaf(name).level for name in names] == [level for level in Level if level <= top] + [
                Level.PTE
            ]
            assert all(before.leaf(name).dirty for name in names)
        for stop, what in (("failed", "some forks failed"), ("after", "every fork failed")):
            at = guest.until(stop)["parent"]
            for name in names:
                with claim(f"after {what}: {name} has the entries that it had", fn.copy_page_range):
                    assert [leaf.entry for leaf in at.leaves(name)] == [leaf.entry for leaf in before.leaves(name)]
        values = guest.result.values
        with claim("fork() failed at many of its allocations, always for lack of memory", fn.dup_mmap):
            assert int(values["failed"]) > int(values["every"])
            assert values["other-errors"] == "0"
        with claim("the parent reads and writes everything that it had mapped without a fault", fn.copy_page_range):
            assert values["faults"] == "0"
        with claim("the parent has as many page tables as before", fn.copy_process):
            assert values["tables-kib"] == "0"
        with claim("no page table of a child is leaked, apart from other activity in the system", fn.copy_process):
            assert int(values["all-tables-kib"]) < 4 * int(values["failed"]) // 2
        with claim("the PAT reservations are as before", fn.untrack_pfn_copy):
            assert values["pat-changes"] == "0"
